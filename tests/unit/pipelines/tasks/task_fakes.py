"""Readers in memory, for the tests of extraction and protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.normalize import band_statistics
from olmoearth_pipelines.tasks.task import BandTable, Task, TaskSample

S1, S2 = "sentinel1", "sentinel2_l2a"
STAMPS = np.array([[1, 6, 2020]], dtype=np.int64)


class FakeReader:
    """Splits in memory; counts how often each is read to its end."""

    def __init__(
        self, splits: Mapping[str, Sequence[TaskSample]], tables: Mapping[str, BandTable] | None = None
    ) -> None:
        self._splits, self._tables = splits, tables or {}
        self.reads: Counter[str] = Counter()

    def splits(self) -> Mapping[str, int]:
        return {split: len(samples) for split, samples in self._splits.items()}

    def read(self, split: str, partition: str | None = None) -> Iterator[TaskSample]:
        yield from self._splits[split][:: 2 if partition else 1]
        self.reads[split] += 1

    def statistics(self, modality: str) -> BandTable | None:
        return self._tables.get(modality)


def bands(modality: str, side: int, periods: int, rng: np.random.Generator, shift: float = 0.0) -> np.ndarray:
    """[H, W, T, C] physical values; `shift` in standard deviations."""
    facts, shape = band_statistics(modality), (side, side, periods, len(MODALITIES[modality].bands))
    return (facts.mean + facts.std * (0.3 * rng.standard_normal(shape) + shift)).astype(np.float32)


def sample(name: str, inputs: Mapping[str, np.ndarray], target: object, *, missing=None, stamps=STAMPS) -> TaskSample:
    return TaskSample(id=name, inputs=inputs, missing=missing or {}, timestamps=stamps, target=np.asarray(target))


def scene_task(**more: object) -> Task:
    """Single-date classification with 2 classes, 8 x 8 px."""
    row = {"kind": "classification", "classes": 2, "side_px": 8, "modalities": (S2,), "method": "knn"}
    return Task(**{"name": "fake-scenes", "metric": "accuracy", **row, **more})  # type: ignore[arg-type]


def scene_reader(
    counts: tuple[int, int, int] = (24, 12, 12), *, seed: int = 0, shift: float = 0.8, **more
) -> FakeReader:
    """Classes whose bands differ by `shift`; at 0 the labels say nothing about the pixels."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        labels = rng.permutation(np.arange(count) % 2)
        splits[split] = [
            sample(f"{split}-{i}", {S2: bands(S2, 8, 1, rng, shift * (2 * label - 1))}, np.int64(label))
            for i, label in enumerate(labels)
        ]
    return FakeReader(splits, **more)


def map_task(**more: object) -> Task:
    """Segmentation with 2 classes, 8 x 8 px."""
    row = {"kind": "segmentation", "classes": 2, "side_px": 8, "modalities": (S2,), "method": "linear"}
    return Task(**{"name": "fake-maps", "metric": "miou", "batch_size": 8, **row, **more})  # type: ignore[arg-type]


def map_reader(counts: tuple[int, int, int] = (16, 8, 8), *, seed: int = 0) -> FakeReader:
    """Each 4 x 4 px patch is of one class, which shifts its bands; the first pixel of an image is unlabelled."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        splits[split] = []
        for i in range(count):
            classes = np.kron(rng.integers(0, 2, (2, 2)), np.ones((4, 4), np.int64))
            values = bands(S2, 8, 1, rng)
            values += (2 * classes - 1)[:, :, None, None] * band_statistics(S2).std.astype(np.float32)
            classes[0, 0] = -1
            splits[split].append(sample(f"{split}-{i}", {S2: values}, classes))
    return FakeReader(splits)


def series_task(**more: object) -> Task:
    """A pixel time series of two satellites, 2 classes."""
    row = {"kind": "classification", "classes": 2, "side_px": 1, "modalities": (S2, S1), "method": "linear"}
    return Task(**{"name": "fake-series", "metric": "accuracy", "patch_px": 1, **row, **more})  # type: ignore[arg-type]


def series_reader(count: int = 7, *, seed: int = 0) -> FakeReader:
    """Series of 3 to 6 months; the second month of Sentinel-2 is missing in every other one, and NaN there."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        months = 3 + i % 4
        inputs = {m: bands(m, 1, months, rng) for m in (S2, S1)}
        missing = {S2: np.arange(months) == (1 if i % 2 else -1)}
        inputs[S2][:, :, missing[S2]] = np.nan
        stamps = np.stack([np.ones(months), np.arange(months), np.full(months, 2021)], axis=1).astype(np.int64)
        made.append(sample(f"s{i}", inputs, np.int64(i % 2), missing=missing, stamps=stamps))
    return FakeReader({"train": made, "val": made, "test": made})


def finish(generator):
    """Run a generator to its end; what it returned."""
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value
