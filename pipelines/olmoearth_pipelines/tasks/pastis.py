"""PASTIS-R in the prepared layout of 64-pixel quarters (spec/evaluation.md 10.1).

`pastis_r_{train,valid,test}/{s1_images,s2_images}/<i>.pt` (T, bands, H, W), `months.pt` [N, T] as 201809 and
`targets.pt` [N, H, W]. Sentinel-2 has the 13 bands B01 ... B12, of which B01, B09 and B10 were filled when the
files were prepared; Sentinel-1 is vv, vh in dB. Void is 19, or already -1. Label fractions
(`<fraction>x_train_partition.json`, a list of numbers) lie beside the splits or in a folder `pastis` next to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.common import (
    ALL_S2,
    S1,
    S2,
    band_positions,
    checked_labels,
    find_home,
    load_tensors,
    partition_file,
    require_split,
    shaped,
    train_indices,
)
from olmoearth_pipelines.tasks.task import IGNORE, BandTable, Task, TaskSample

_SPLITS = {"train": "pastis_r_train", "val": "pastis_r_valid", "test": "pastis_r_test"}
_VOID = 19
_STORED = {S2: ("s2_images", ALL_S2), S1: ("s1_images", ("vv", "vh"))}
"""Modality -> its folder and the order of its channels."""


class PastisReader:
    """Reads one quarter at a time; months and labels are mapped from disk."""

    def __init__(self, task: Task, folder: Path, *, reference: bool = False) -> None:
        """Find the data at or below `folder`; `reference` changes nothing here.

        Raises:
            InputError: the training split is not there.
        """
        del reference
        self._task = task
        train = _SPLITS["train"]
        self._home = find_home(
            folder,
            ("pastis_r",),
            (f"{train}/months.pt", f"{train}/targets.pt", f"{train}/s2_images", f"{train}/s1_images"),
            task=task.name,
            layout="<folder>/pastis_r_{train,valid,test}/{s1_images,s2_images}/<i>.pt, months.pt and targets.pt",
        )

    def splits(self) -> Mapping[str, int]:
        """Split -> number of quarters."""
        there = {split: name for split, name in _SPLITS.items() if (self._home / name / "months.pt").is_file()}
        return {split: len(self._months(name)) for split, name in there.items()}

    def read(self, split: str, partition: str | None = None) -> Iterator[TaskSample]:
        """Quarters by number, or in the order of the partition file; see `Reader.read`."""
        require_split(split, self.splits(), task=self._task.name, home=self._home)
        home = self._home / _SPLITS[split]
        months = self._months(home.name)
        side = self._task.side_px
        targets = shaped(load_tensors(home / "targets.pt"), (len(months), side, side), f"{home / 'targets.pt'}")
        numbers = list(range(len(months)))
        if partition is not None and split == "train":
            places = [self._home, self._home / "pastis", self._home.parent / "pastis"]
            path = partition_file(places, partition, task=self._task.name, known=self._task.partitions)
            numbers = train_indices(path, len(months))
        for number in numbers:
            yield self._sample(home, number, months[number], targets[number])

    def statistics(self, modality: str) -> BandTable | None:
        """None: the set publishes no statistics."""
        return None

    def _months(self, name: str) -> torch.Tensor:
        path = self._home / name / "months.pt"
        return shaped(load_tensors(path), (None, None), f"{path}")

    def _sample(self, home: Path, number: int, months: torch.Tensor, target: torch.Tensor) -> TaskSample:
        side, inputs = self._task.side_px, {}
        for modality, (folder, channels) in _STORED.items():
            path = home / folder / f"{number}.pt"
            series = shaped(load_tensors(path), (len(months), len(channels), side, side), f"{path}")  # T C H W
            positions = band_positions(modality, channels)
            inputs[modality] = series.permute(2, 3, 0, 1)[..., positions].numpy().astype(np.float32)  # H W T C
        labels = target.numpy().astype(np.int64)
        labels = checked_labels(np.where(labels == _VOID, IGNORE, labels), self._task.classes, home / "targets.pt")
        dates = _dates(months.numpy().astype(np.int64), home / "months.pt")
        return TaskSample(id=f"{number}", inputs=inputs, missing={}, timestamps=dates, target=labels)


def _dates(months: npt.NDArray[np.int64], path: Path) -> npt.NDArray[np.int64]:
    """Timestamps [T, 3] of months such as 201809."""
    year, month = months // 100, months % 100
    if ((month < 1) | (month > 12)).any():
        raise InputError(f"{path}: {months.tolist()} are not months like 201809.")
    return np.stack([np.ones_like(months), month - 1, year], axis=1)
