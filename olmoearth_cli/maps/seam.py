"""The seam figure: do windows show in the map?

A cell's vector comes from the window that owns it, so two neighbouring cells may come from two
windows. The figure is the mean Euclidean distance between such neighbours over the mean distance
between neighbours from one window; 1.0 is seamless. The distance is Euclidean because the ratio
cancels any scale, and because a cosine would hide a step in length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_ROWS = 32
"""Rows of cells per step, to bound the memory of the differences."""


@dataclass(frozen=True, kw_only=True)
class SeamSums:
    """Sums over neighbouring cells; add those of several tiles to get the map's figure."""

    border_sum: float = 0.0
    """Sum of distances across window borders."""
    border_count: int = 0
    inside_sum: float = 0.0
    """Sum of distances inside windows."""
    inside_count: int = 0

    def __add__(self, other: SeamSums) -> SeamSums:
        return SeamSums(
            border_sum=self.border_sum + other.border_sum,
            border_count=self.border_count + other.border_count,
            inside_sum=self.inside_sum + other.inside_sum,
            inside_count=self.inside_count + other.inside_count,
        )

    @property
    def ratio(self) -> float | None:
        """Mean across borders over mean inside; None where one of the two was not seen or nothing varies."""
        if not self.border_count or not self.inside_count or self.inside_sum <= 0:
            return None
        return (self.border_sum / self.border_count) / (self.inside_sum / self.inside_count)


def seam_figure(vectors: npt.NDArray[np.floating[Any]], row: int, col: int, cells_per_stride: int) -> SeamSums:
    """Compare neighbouring cells of one tile, along rows and along columns.

    Args:
        vectors: [Y, X, D], NaN where there is no data; pairs with such a cell are left out.
        row: the global grid's row of the first cell.
        col: the global grid's column of the first cell.
        cells_per_stride: cells along the side of the square that a window owns.

    Returns:
        Sums for borders and insides. Borders between tiles are not seen: their cells lie in two files.
    """
    total = SeamSums()
    for start in range(0, vectors.shape[0], _ROWS):
        rows = vectors[start : start + _ROWS]
        below = vectors[start + 1 : start + _ROWS + 1]
        total += _sums(rows[:, 1:], rows[:, :-1], _borders(col + 1, rows.shape[1] - 1, cells_per_stride)[None, :])
        total += _sums(below, rows[: len(below)], _borders(row + start + 1, len(below), cells_per_stride)[:, None])
    return total


def _borders(first: int, count: int, stride: int) -> npt.NDArray[np.bool_]:
    """True for grid lines first, first + 1, ... on which a new owner begins. [count]."""
    return (np.arange(first, first + max(count, 0)) % stride) == 0


def _sums(
    a: npt.NDArray[np.floating[Any]], b: npt.NDArray[np.floating[Any]], border: npt.NDArray[np.bool_]
) -> SeamSums:
    distance = np.sqrt(((a - b).astype(np.float64) ** 2).sum(axis=-1))  # Y X
    known = np.isfinite(distance)
    at_border, inside = known & border, known & ~border
    return SeamSums(
        border_sum=float(distance[at_border].sum()),
        border_count=int(at_border.sum()),
        inside_sum=float(distance[inside].sum()),
        inside_count=int(inside.sum()),
    )
