"""What a benchmark task is, and what its reader gives (spec/evaluation.md sections 2 and 10.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
SPLITS = ("train", "val", "test")
IGNORE = -1
"""The only ignore value in segmentation targets; readers map every other void value to it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskSample:
    """One sample as the encoder wants it, in the physical units of spec/inputs.md (S2 digital numbers, S1 dB)."""

    id: str
    """File or window name, for messages and the order check."""
    inputs: Mapping[str, npt.NDArray[np.float32]]
    """{modality: [H, W, T, C]}, bands in canonical order (`core.modality`), missing bands already filled (2.2)."""
    missing: Mapping[str, npt.NDArray[np.bool_]]
    """{modality: [T]}, True where a period has no data; an absent key means nothing is missing."""
    timestamps: npt.NDArray[np.int64]
    """[T, 3]: day 1-31, month 0-11, year."""
    target: Array
    """int64 scalar [] (classification), uint8 [C] of 0/1 (multi-label), int64 [H, W] (segmentation, -1 ignored)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BandTable:
    """The benchmark's own statistics of one modality, in the units of the samples; float64 [C], canonical order."""

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    minimum: npt.NDArray[np.float64] | None = None
    """None where the benchmark publishes none that is usable."""
    maximum: npt.NDArray[np.float64] | None = None
    copied: Mapping[int, int] = field(default_factory=dict)
    """Band position -> position it was copied from, where the copy must be repeated after normalising (m-forestnet)."""


class Reader(Protocol):
    """One published on-disk format. Everything is read lazily: a split never lies in memory whole."""

    def splits(self) -> Mapping[str, int]:
        """Split -> number of samples, for the splits that are there.

        Raises:
            InputError: the folder does not hold this task; says which files were expected and not found.
        """

    def read(self, split: str, partition: str | None = None) -> Iterator[TaskSample]:
        """Samples of one split in file order (sorted ids, or the order of the published index).

        Args:
            split: one of `SPLITS`.
            partition: label fraction, one of `Task.partitions`; thins `train` only. None reads everything.

        Raises:
            ValueError: no such split.
            InputError: the split or the partition is not there, or a file of it is damaged.
        """

    def statistics(self, modality: str) -> BandTable | None:
        """The benchmark's own band statistics; None where it publishes none (they are then measured on train)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the report's table: what to read and how it is judged."""

    name: str
    """As in the report, for example `m-eurosat`."""
    kind: str
    """`classification`, `multilabel` or `segmentation`."""
    classes: int
    """Number of classes C."""
    side_px: int
    """Side of a sample in pixels."""
    modalities: tuple[str, ...]
    """What the data offers, in the models' names and order; each is a column, with the combination where listed."""
    method: str
    """`knn` or `linear`: the regime of the published tables."""
    metric: str
    """Primary metric of the published tables: `accuracy`, `f1` (micro) or `miou`."""
    patch_px: int = 4
    batch_size: int = 32
    """Training batch of the linear probe (5.2)."""
    lr: float = 0.1
    """Default learning rate of the linear probe where nothing is swept."""
    partitions: tuple[str, ...] = ()
    """Label fractions with a partition file shipped with the data, for example `0.01`; empty where there is none."""
