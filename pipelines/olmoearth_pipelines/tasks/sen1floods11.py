"""Sen1Floods11 in the prepared layout: `flood_{train,valid,test}_data.pt` (spec/evaluation.md 10.1).

Each file holds `s1` [N, 2, 64, 64] (VV, VH in dB), `labels` [N, 1, 64, 64] (-1 ignored) and `s2`, which is not used.
Tiles with a value that is not finite are dropped, before label fractions are counted. Each file is one block of all
samples, mapped from disk. The extra Bolivia split is no part of the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch

from olmoearth_pipelines.tasks.common import (
    S1,
    SINGLE_DATE,
    checked_labels,
    find_home,
    load_tensors,
    partition_file,
    require_split,
    tensor_of,
    train_indices,
)
from olmoearth_pipelines.tasks.task import BandTable, Task, TaskSample

_SPLITS = {"train": "flood_train_data.pt", "val": "flood_valid_data.pt", "test": "flood_test_data.pt"}
_BLOCK = 256
"""Tiles looked at together for values that are not finite."""


class Sen1FloodsReader:
    """Reads tiles one by one from the mapped file of a split."""

    def __init__(self, task: Task, folder: Path, *, reference: bool = False) -> None:
        """Find the data at or below `folder`; `reference` changes nothing here.

        Raises:
            InputError: the training file is not there.
        """
        del reference
        self._task = task
        self._home = find_home(
            folder,
            ("floods",),
            (_SPLITS["train"],),
            task=task.name,
            layout="<folder>/flood_{train,valid,test}_data.pt, each with tensors `s1` and `labels`",
        )
        self._kept = cache(self._finite_tiles)

    def splits(self) -> Mapping[str, int]:
        """Split -> number of tiles that are finite everywhere; scans each file once."""
        there = [split for split, name in _SPLITS.items() if (self._home / name).is_file()]
        return {split: len(self._kept(split)) for split in there}

    def read(self, split: str, partition: str | None = None) -> Iterator[TaskSample]:
        """Finite tiles by number, or in the order of the partition file; see `Reader.read`."""
        require_split(split, self.splits(), task=self._task.name, home=self._home)
        images, labels = self._load(split)
        numbers = self._kept(split)
        if partition is not None and split == "train":
            path = partition_file([self._home], partition, task=self._task.name, known=self._task.partitions)
            numbers = [numbers[n] for n in train_indices(path, len(numbers))]
        for number in numbers:
            image = images[number].permute(1, 2, 0).to(torch.float32).numpy()  # H W C
            target = labels[number, 0].numpy().astype(np.int64)
            yield TaskSample(
                id=f"{number}",
                inputs={S1: image[:, :, None, :]},
                missing={},
                timestamps=SINGLE_DATE,
                target=checked_labels(target, self._task.classes, self._home / _SPLITS[split]),
            )

    def statistics(self, modality: str) -> BandTable | None:
        """None: the set publishes no statistics."""
        return None

    def _load(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        path, side = self._home / _SPLITS[split], self._task.side_px
        content = load_tensors(path)
        labels = tensor_of(content, "labels", (None, 1, side, side), path)
        return tensor_of(content, "s1", (len(labels), 2, side, side), path), labels

    def _finite_tiles(self, split: str) -> list[int]:
        images, _ = self._load(split)
        finite = [block.isfinite().flatten(1).all(dim=1) for block in images.split(_BLOCK)]
        return torch.cat(finite).nonzero().flatten().tolist() if finite else []
