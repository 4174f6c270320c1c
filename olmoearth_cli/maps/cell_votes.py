"""From labelled places inside cells to one target per cell.

A tile's labels arrive as marks: a cell, a target code, the label it came from, and for finer grids the
place inside the cell. The rules below work on arrays of marks and know neither tiles nor maps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
PerCell = tuple[Ints, Ints, npt.NDArray[Any]]
"""[K] cells, ascending, the first label [K] on each, and a target [K, ...] for each."""
LEAST_SHARE = 0.5
"""A cell needs labels on at least this share of its ground."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Marks:
    """M labelled places."""

    cell: Ints
    """[M] number of the cell."""
    code: npt.NDArray[Any]
    """[M] int64 code of the target (equal codes are equal targets), or float64 value of a raster of numbers."""
    label: Ints
    """[M] row of the label table; 0 for rasters."""
    place: Ints
    """[M] position inside the cell, row by row; 0 where a cell has one place."""

    def __len__(self) -> int:
        return len(self.cell)

    def take(self, which: npt.NDArray[Any]) -> Marks:
        """Some of the marks, by mask or position."""
        return Marks(cell=self.cell[which], code=self.code[which], label=self.label[which], place=self.place[which])


def without_overlaps(marks: Marks, places: int) -> tuple[Marks, int]:
    """One mark per place: the first label's where several agree, none where they differ.

    Args:
        marks: several may lie on one place.
        places: number of places in a cell.

    Returns:
        The marks by cell and place, and the number of cells that lost one.
    """
    if not len(marks):
        return marks, 0
    spot = marks.cell * places + marks.place
    marks = marks.take(np.lexsort((marks.label, spot)))
    spot = marks.cell * places + marks.place
    first = np.flatnonzero(np.diff(spot, prepend=spot[0] - 1))
    agreed = np.minimum.reduceat(marks.code, first) == np.maximum.reduceat(marks.code, first)
    return marks.take(first[agreed]), len(np.unique(marks.cell[first[~agreed]]))


def well_covered(marks: Marks, places: int) -> Marks:
    """The marks of cells that are labelled on at least half of their places; one mark per place is expected."""
    return marks.take(np.bincount(marks.cell)[marks.cell] >= LEAST_SHARE * places)


def majority(marks: Marks) -> tuple[Marks, int]:
    """One mark per cell: the most frequent code (an integer), with its first label.

    Returns:
        The marks by cell, without the cells whose most frequent codes tie, and the number of those.
    """
    if not len(marks):
        return marks, 0
    pair = marks.cell * (marks.code.max() + 1) + marks.code
    order = np.argsort(pair, kind="stable")
    runs = np.flatnonzero(np.diff(pair[order], prepend=-1))
    count, label = np.diff(runs, append=len(marks)), np.minimum.reduceat(marks.label[order], runs)
    votes = replace(marks.take(order[runs]), label=label)
    by_count = np.lexsort((-count, votes.cell))
    votes, count = votes.take(by_count), count[by_count]
    best = np.flatnonzero(np.diff(votes.cell, prepend=-1))
    second = np.minimum(best + 1, len(votes) - 1)
    tied = (second > best) & (votes.cell[second] == votes.cell[best]) & (count[second] == count[best])
    return votes.take(best[~tied]), int(tied.sum())


def mean_value(marks: Marks, values: npt.NDArray[np.float64]) -> PerCell:
    """The mean of the marks' values [M] in each cell."""
    cells, member, label = _by_cell(marks)
    return cells, label, np.bincount(member, weights=values) / np.bincount(member)


def any_class(marks: Marks, values: npt.NDArray[np.uint8]) -> PerCell:
    """0/1 [K, C]: 1 where any of a cell's marks [M, C] has the class."""
    cells, member, label = _by_cell(marks)
    out = np.zeros((len(cells), values.shape[1]), dtype=np.uint8)
    np.maximum.at(out, member, values)
    return cells, label, out


def pixel_codes(marks: Marks, patch_px: int) -> PerCell:
    """int16 [K, P, P] codes of each cell's pixels, -1 unlabelled."""
    cells, member, label = _by_cell(marks)
    out = np.full((len(cells), patch_px * patch_px), -1, dtype=np.int16)
    out[member, marks.place] = marks.code
    return cells, label, out.reshape(-1, patch_px, patch_px)


def _by_cell(marks: Marks) -> tuple[Ints, npt.NDArray[np.intp], Ints]:
    """[K] distinct cells, [M] which of them each mark is in, [K] their first labels."""
    cells, member = np.unique(marks.cell, return_inverse=True)
    label = np.full(len(cells), np.iinfo(np.int64).max)
    np.minimum.at(label, member, marks.label)
    return cells, member, label
