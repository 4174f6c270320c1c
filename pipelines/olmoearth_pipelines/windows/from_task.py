"""A benchmark's samples as labelled windows: fine-tuning reads them like any others (spec/evaluation.md 8.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from olmoearth_cli.core.finetune.task import Limits
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.probe.statistics import DEFAULT_METHOD
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.common import SINGLE_DATE
from olmoearth_pipelines.tasks.features import TaskProgress
from olmoearth_pipelines.tasks.measure import BandMeter, present_periods
from olmoearth_pipelines.tasks.task import Reader, Task, TaskSample
from olmoearth_pipelines.windows.folder import WindowFolder, WindowWriter, write_shard
from olmoearth_pipelines.windows.window import Array, Window, WindowTask

OWN_STATISTICS = frozenset({"m-SA-crop-type", "mados", "m-forestnet", "m-cashewplant"})
"""Tasks that are normalised with their own statistics; the others with those of pretraining (8.1)."""
WIDTHS = 2
"""Standard deviations from the mean to the limits: `norm_no_clip_2_std` (2.1)."""
SHARD_WINDOWS, SHARD_BYTES = 256, 2**25
"""What a file holds at most."""


def task_windows(
    task: Task, reader: Reader, folder: Path, *, partition: str | None = None
) -> Iterator[TaskProgress | WindowFolder]:
    """Convert a benchmark, or open what an earlier call converted.

    The folder is known again by the task, the sizes of the splits and their first samples: delete it after changing
    other files of the data set.

    Args:
        task: what is read.
        reader: its data (`tasks.registry.open_task`).
        folder: where the windows lie or will lie.
        partition: label fraction, one of `task.partitions`; thins `train` alone.

    Yields:
        Progress, and at last the windows: train, val and test as published, their ids with the split in front.

    Raises:
        InputError: files that are absent or damaged, samples of different sizes, or bands that do not vary.
        OutputError: the folder holds other windows, or cannot be written.
    """
    settings = _settings(task, reader, partition)
    writer = WindowWriter(folder, _window_task(task, settings), settings)
    finished = writer.finished()
    if finished is not None:
        yield finished
        return
    conversion = _Conversion(task, reader, writer, partition)
    for split in reader.splits():
        yield from conversion.write(split)
    yield conversion.finish()


class _Conversion:
    """Writes splits, and gathers on the way what is known only in the end."""

    def __init__(self, task: Task, reader: Reader, writer: WindowWriter, partition: str | None) -> None:
        self._task, self._reader, self._writer, self._partition = task, reader, writer, partition
        self._published = {name: reader.statistics(name) for name in task.modalities}
        own = task.name in OWN_STATISTICS
        self._meters = {name: BandMeter(name) for name, table in self._published.items() if own and table is None}
        self._order: list[tuple[str, str]] = []
        self._delivered: set[str] = set()
        self._periods, self._dated = 1, False

    def write(self, split: str) -> Iterator[TaskProgress]:
        """Write the windows of a split, many to a file."""
        announced, done = self._reader.splits()[split], 0
        samples = self._reader.read(split, self._partition if split == "train" else None)
        for number, shard in enumerate(_shards(self._window(sample, split) for sample in samples)):
            write_shard(self._writer.folder, f"{split}-{number:05d}", [(window, split) for window in shard])
            self._order += [(window.id, split) for window in shard]
            done += len(shard)
            yield TaskProgress(
                task=self._task.name, step=f"write {split} windows", done=done, total=max(done, announced)
            )

    def finish(self) -> WindowFolder:
        """Write the list."""
        modalities = tuple(name for name in MODALITIES if name in self._delivered)
        own = self._task.name in OWN_STATISTICS
        task = replace(
            self._writer.task,
            modalities=modalities,
            periods=self._periods,
            real_dates=self._dated,
            normalisation={name: self._limits(name) for name in modalities} if own else None,
        )
        return self._writer.finish(self._order, task)

    def _window(self, sample: TaskSample, split: str) -> Window:
        where = f"{self._task.name} {split}, sample {sample.id}"
        images, valid, absent = {}, {}, {}
        for name, values in sample.inputs.items():
            present = present_periods(sample, name)
            image = np.where(present[:, None], values, np.float32(0))  # H W T C
            if image.shape[:2] != (self._task.side_px,) * 2 or not np.isfinite(image).all():
                raise InputError(
                    f"{where}, {name}: {image.shape[0]} x {image.shape[1]} px where {self._task.side_px} are expected, "
                    "or values that are not finite. Fetch the data set again."
                )
            images[name] = image
            valid[name] = np.broadcast_to(present, image.shape[:3])
            absent[name] = np.zeros(image.shape[2:], np.bool_)
            if split == "train" and name in self._meters:
                self._meters[name].add(sample)
        self._delivered |= set(images)
        self._periods = max(self._periods, len(sample.timestamps))
        self._dated |= not np.array_equal(sample.timestamps, SINGLE_DATE)
        return Window(
            id=f"{split}/{sample.id}",
            images=images,
            valid=valid,
            absent=absent,
            timestamps=sample.timestamps,
            target=np.asarray(sample.target),
        )

    def _limits(self, name: str) -> Limits:
        """Limits by the statistics that the benchmark publishes, or that were measured on train."""
        table = self._published[name] or self._meters[name].table()
        low, high = table.mean - WIDTHS * table.std, table.mean + WIDTHS * table.std
        # A copied band takes its source's normalised value (2.2): its values are the source's, so are its limits.
        for band, source in table.copied.items():
            low[band], high[band] = low[source], high[source]
        flat = [band for band, a, b in zip(MODALITIES[name].bands, low, high, strict=True) if not b > a]
        if flat:
            raise InputError(f"{self._task.name}, {name}: {', '.join(flat)} do not vary. Fetch the data set again.")
        return tuple(low.tolist()), tuple(high.tolist())


def _shards(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Windows in groups that share a file."""
    shard, size = list[Window](), 0
    for window in windows:
        bulk = sum(image.nbytes for image in window.images.values())
        if shard and (len(shard) == SHARD_WINDOWS or size + bulk > SHARD_BYTES):
            yield shard
            shard, size = [], 0
        shard.append(window)
        size += bulk
    if shard:
        yield shard


def _window_task(task: Task, settings: Mapping[str, Any]) -> WindowTask:
    """What is known before reading."""
    return WindowTask(
        name=task.name,
        kind=task.kind,
        class_names=tuple(f"class {number}" for number in range(task.classes)),
        field="label",
        modalities=task.modalities,
        window_px=task.side_px,
        periods=1,
        facts={"patch_px": task.patch_px, **settings},
    )


def _settings(task: Task, reader: Reader, partition: str | None) -> dict[str, Any]:
    counts = reader.splits()
    first = {split: next(reader.read(split, partition if split == "train" else None), None) for split in counts}
    return {
        "benchmark": task.name,
        "partition": partition,
        "samples": dict(counts),
        "first_samples": {split: sample and _digest(sample) for split, sample in first.items()},
        "statistics": DEFAULT_METHOD if task.name in OWN_STATISTICS else "pretraining",
    }


def _digest(sample: TaskSample) -> str:
    digest = hashlib.sha256(sample.id.encode())
    arrays: list[Array] = [sample.timestamps, np.asarray(sample.target), *sample.inputs.values()]
    for values in arrays:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
