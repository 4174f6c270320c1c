"""What a probe learns from and is judged on: vectors, targets, and where each of them lies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
KINDS = ("classification", "multilabel", "segmentation", "regression")


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """N labelled vectors, whatever they came from: a map and labels, or a file of vectors."""

    kind: str
    """One of `KINDS`."""
    class_names: tuple[str, ...]
    """Names in the order of the class ids; empty for regression."""
    vectors: npt.NDArray[np.float32]
    """[N, D], finite."""
    targets: Array
    """int64 [N] class ids; uint8 0/1 [N, C]; int64 [N, P, P] class ids per pixel, -1 unlabelled; float64 [N]."""
    lonlat: npt.NDArray[np.float64] | None
    """[N, 2] degrees (WGS84); None where the samples have no place."""
    group: npt.NDArray[np.int64]
    """[N]: the label feature that a sample came from. All cells of one polygon share it and one fold."""
    split: npt.NDArray[np.object_] | None = None
    """[N] value of the field that `--split field:NAME` names, as text; None where none was asked."""
    cells: npt.NDArray[np.int64] | None = None
    """[N, 3] EPSG code, row, column of the map cell; row and column count cells of the zone's global grid."""

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def classes(self) -> int:
        """Number of classes C; 1 for regression."""
        return len(self.class_names) or 1

    def with_vectors(self, vectors: npt.NDArray[np.float32]) -> Samples:
        """The same labels over other features, for a baseline that must be judged on the same samples."""
        return replace(self, vectors=vectors)
