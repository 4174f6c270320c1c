"""A sample of labelled cells that does not depend on how the map is divided into tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Ints = npt.NDArray[np.int64]
LEAST_PER_CLASS = 100
"""Cells of a rare class that a sample keeps beyond its share."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """Labelled cells of a tile."""

    key: Ints
    """[K] the cell (`cell_keys`)."""
    target: npt.NDArray[Any]
    """[K, ...]."""
    label: Ints
    """[K] row of the label table; 0 for rasters."""
    stratum: Ints
    """[K] class that the cell counts for in a sample; 0 where targets are no single class."""

    def __len__(self) -> int:
        return len(self.key)

    def take(self, which: npt.NDArray[Any]) -> Found:
        """Some of the cells, by mask or position."""
        return Found(
            key=self.key[which], target=self.target[which], label=self.label[which], stratum=self.stratum[which]
        )


class CellPool:
    """Collects cells tile by tile and keeps no more than a sample needs.

    Every cell has a pseudo-random rank that depends on its place and the seed alone; a sample is the cells with
    the lowest ranks of each class. So neither the order nor the size of the tiles matters, and the sample lies
    as densely here as there.
    """

    def __init__(self, max_cells: int, strata: int, seed: int) -> None:
        self.max_cells = max_cells
        self.count = np.zeros(strata, dtype=np.int64)
        self._seed = seed
        self._parts: list[Found] = []
        self._held = 0
        self._limit = 4 * max_cells

    def add(self, found: Found) -> None:
        """Cells of one tile."""
        if not len(found):
            return
        self.count += np.bincount(found.stratum, minlength=len(self.count))
        self._parts.append(found)
        self._held += len(found)
        if self._held > self._limit:
            kept = self._lowest(np.full(len(self.count), self.max_cells))
            self._parts, self._held = [kept], len(kept)
            self._limit = 2 * len(kept) + 4 * self.max_cells

    def chosen(self) -> Found | None:
        """At most `max_cells` cells, sorted by place; None where there is none."""
        if not self._parts:
            return None
        total = int(self.count.sum())
        found = self._lowest(quotas(self.count, self.max_cells) if total > self.max_cells else self.count)
        return found.take(np.argsort(found.key, kind="stable"))

    def _lowest(self, quota: Ints) -> Found:
        """The `quota[s]` cells of lowest rank in each stratum s."""
        together = Found(
            **{
                name: np.concatenate([getattr(part, name) for part in self._parts])
                for name in ("key", "target", "label", "stratum")
            }
        )
        order = np.lexsort((together.key, _rank(together.key, self._seed), together.stratum))
        held = np.bincount(together.stratum, minlength=len(quota))
        start = np.cumsum(held) - held
        stratum = together.stratum[order]
        return together.take(order[np.arange(len(order)) - start[stratum] < quota[stratum]])


def quotas(count: Ints, size: int) -> Ints:
    """[S] how many of `count` [S] cells a sample of `size` takes: in proportion, rare classes at least 100.

    The sum is `size` where that many cells exist, never more.
    """
    present = max(1, int((count > 0).sum()))
    least = np.minimum(count, min(LEAST_PER_CLASS, size // present))
    rest = count - least
    room = min(size - int(least.sum()), int(rest.sum()))
    exact = rest * (room / max(1, int(rest.sum())))
    quota = least + np.floor(exact).astype(np.int64)
    left = min(size, int(count.sum())) - int(quota.sum())
    largest = np.argsort(-(exact - np.floor(exact)), kind="stable")[:left]
    quota[largest] += 1
    return np.asarray(np.minimum(quota, count))


def _rank(key: Ints, seed: int) -> npt.NDArray[np.uint64]:
    """[K] pseudo-random numbers that depend on key and seed alone."""
    salt = pd.util.hash_array(np.array([seed], dtype=np.int64))
    return np.asarray(pd.util.hash_array(pd.util.hash_array(key) ^ salt))
