"""From scores to decisions, the same for every probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def decide(kind: str, scores: Array) -> Array:
    """Decide by scores.

    Args:
        kind: `classification`, `multilabel`, `segmentation`, `regression` or `pixel_regression`.
        scores: [N, C], or [N, C, H, W] for segmentation; values of any shape for regression.

    Returns:
        int64 class ids, axis C dropped, the lowest of equal ones; uint8 0/1 [N, C], 1 above one half, for
        multi-label; the values themselves for regression.
    """
    if kind == "multilabel":
        return (scores > 0.5).astype(np.uint8)
    if kind in {"regression", "pixel_regression"}:
        return scores
    return scores.argmax(axis=1).astype(np.int64)
