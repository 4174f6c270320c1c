"""Normalisation with a benchmark's own band statistics (spec/evaluation.md 2.1 and 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class _Method:
    widths: float | None = None
    """Standard deviations from the mean to the bounds; None for minimum and maximum."""
    clip: bool = False
    """True limits the result to [0, 1]."""
    eight_bit: bool = False
    """True cuts the result down to steps of 1/255."""


_RANGES: Mapping[str, _Method] = {
    "norm_no_clip": _Method(widths=1),
    "norm_no_clip_2_std": _Method(widths=2),
    "norm_yes_clip": _Method(widths=1, clip=True),
    "norm_yes_clip_2_std": _Method(widths=2, clip=True),
    "norm_yes_clip_3_std": _Method(widths=3, clip=True),
    "norm_yes_clip_int": _Method(widths=1, eight_bit=True),
    "norm_yes_clip_2_std_int": _Method(widths=2, eight_bit=True),
    "norm_yes_clip_3_std_int": _Method(widths=3, eight_bit=True),
    "norm_yes_clip_min_max_int": _Method(eight_bit=True),
}
METHODS = (*_RANGES, "standardize", "no_norm")
"""Names of the methods, as in the reference."""
DEFAULT_METHOD = "norm_no_clip_2_std"
"""The affine form of the pretraining statistics."""


def normalize_by_dataset(
    values: Array,
    method: str,
    *,
    mean: Array,
    std: Array,
    minimum: Array | None = None,
    maximum: Array | None = None,
    copied: Mapping[int, int] | None = None,
) -> npt.NDArray[np.float32]:
    """Normalise with the statistics of a benchmark's training data.

    Args:
        values: [..., C] in the units of the statistics.
        method: one of `METHODS`.
        mean: float [C].
        std: float [C].
        minimum: float [C], for `norm_yes_clip_min_max_int`.
        maximum: float [C], likewise.
        copied: band position -> position that it was copied from. The copy is repeated on the normalised values,
            so that it carries those of its source whatever its own statistics are.

    Returns:
        float32 [..., C].

    Raises:
        InputError: the method needs a minimum and maximum that the benchmark does not give, or a band does not vary.
        ValueError: unknown method, or another number of bands.
    """
    if method not in METHODS:
        raise ValueError(f"normalisation method {method!r} is none of {', '.join(METHODS)}")
    if values.shape[-1:] != np.shape(mean) or values.shape[-1:] != np.shape(std):
        raise ValueError(f"{values.shape[-1]} bands, but statistics of {len(mean)} and {len(std)}")
    out = values.astype(np.float32)
    if method != "no_norm":
        low, high = _bounds(method, mean, std, minimum, maximum)
        flat = np.flatnonzero(~(high - low > 0))
        if len(flat):
            raise InputError(
                f"{method}: the statistics of the bands at {flat.tolist()} leave no range. "
                "Correct the statistics of the data set, or use no_norm."
            )
        out = _discretised(((out - low) / (high - low)).astype(np.float32), _RANGES.get(method, _Method()))
    for band, source in (copied or {}).items():
        out[..., band] = out[..., source]
    return out


def _bounds(method: str, mean: Array, std: Array, minimum: Array | None, maximum: Array | None) -> tuple[Array, Array]:
    """What becomes 0 and what becomes 1, float32 [C] both."""
    if method == "standardize":
        low, high = mean, np.add(mean, std)
    elif (widths := _RANGES[method].widths) is not None:
        low, high = mean - widths * np.asarray(std), mean + widths * np.asarray(std)
    elif minimum is None or maximum is None:
        raise InputError(
            f"{method} needs the minimum and maximum of every band, which this data set does not give. "
            f"Use {DEFAULT_METHOD}."
        )
    else:
        low, high = minimum, maximum
    return np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)


def _discretised(out: npt.NDArray[np.float32], method: _Method) -> npt.NDArray[np.float32]:
    if method.eight_bit:
        return np.trunc(np.clip(out * np.float32(255), 0, 255)) / np.float32(255)
    return np.clip(out, 0, 1) if method.clip else out
