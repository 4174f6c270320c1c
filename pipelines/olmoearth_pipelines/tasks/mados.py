"""MADOS in the prepared layout: `MADOS_{train,val,test}.pt` with `images` and `labels` (spec/evaluation.md 10.1).

Images are 80-pixel tiles of 13 bands B01 ... B12 (three of them filled when the files were prepared), bands
last or first. They are Rayleigh-corrected reflectance of about 0-1 and leave here as digital numbers, x 10,000;
`reference=True` leaves them as they are, under which a `pre_trained` run sees an almost constant image.

Whether unlabelled pixels are -1 (classes 0-14) or 0 (classes 1-15) could not be verified on the published file, and
its preparation script writes the latter. A split in which any label is -1 is of the first kind; otherwise 0
becomes -1 and the classes move down by one. Each file is one block of all samples, mapped from disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.common import (
    ALL_S2,
    S2,
    SINGLE_DATE,
    band_positions,
    checked_labels,
    find_home,
    load_tensors,
    partition_file,
    require_split,
    tensor_of,
    train_indices,
)
from olmoearth_pipelines.tasks.task import IGNORE, BandTable, Task, TaskSample

_TO_DIGITAL_NUMBERS = 10_000.0


class MadosReader:
    """Reads tiles one by one from the mapped file of a split."""

    def __init__(self, task: Task, folder: Path, *, reference: bool = False) -> None:
        """Find the data at or below `folder`.

        Args:
            task: the MADOS row.
            folder: that of the prepared files.
            reference: True leaves reflectance as it is stored.

        Raises:
            InputError: the training file is not there.
        """
        self._task = task
        self._scale = 1.0 if reference else _TO_DIGITAL_NUMBERS
        self._home = find_home(
            folder,
            ("mados", "MADOS"),
            ("MADOS_train.pt",),
            task=task.name,
            layout="<folder>/MADOS_{train,val,test}.pt, each with tensors `images` and `labels`",
        )

    def splits(self) -> Mapping[str, int]:
        """Split -> number of tiles."""
        there = [split for split in ("train", "val", "test") if self._path(split).is_file()]
        return {split: len(self._load(split)[1]) for split in there}

    def read(self, split: str, partition: str | None = None) -> Iterator[TaskSample]:
        """Tiles by number, or in the order of the partition file; see `Reader.read`."""
        require_split(split, self.splits(), task=self._task.name, home=self._home)
        images, labels = self._load(split)
        shift = 0 if bool((labels == IGNORE).any()) else 1
        numbers = list(range(len(labels)))
        if partition is not None and split == "train":
            path = partition_file([self._home], partition, task=self._task.name, known=self._task.partitions)
            numbers = train_indices(path, len(labels))
        positions = band_positions(S2, ALL_S2)
        for number in numbers:
            image = images[number][..., positions].to(torch.float32).numpy() * np.float32(self._scale)  # H W C
            target = checked_labels(
                labels[number].numpy().astype(np.int64) - shift, self._task.classes, self._path(split)
            )
            yield TaskSample(
                id=f"{number}", inputs={S2: image[:, :, None, :]}, missing={}, timestamps=SINGLE_DATE, target=target
            )

    def statistics(self, modality: str) -> BandTable | None:
        """None: the set publishes no statistics."""
        return None

    def _path(self, split: str) -> Path:
        return self._home / f"MADOS_{split}.pt"

    def _load(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [N, H, W, 13] and labels [N, H, W]."""
        path, side = self._path(split), self._task.side_px
        content = load_tensors(path)
        labels = tensor_of(content, "labels", (None, side, side), path)
        images = tensor_of(content, "images", (len(labels), None, None, None), path)
        bands = len(ALL_S2)
        if tuple(images.shape[1:]) == (bands, side, side):
            return images.permute(0, 2, 3, 1), labels
        if tuple(images.shape[1:]) != (side, side, bands):
            raise InputError(
                f"{path}: `images` has shape {tuple(images.shape)}, expected (N, {side}, {side}, {bands}) "
                "or bands first. Download the prepared file again."
            )
        return images, labels
