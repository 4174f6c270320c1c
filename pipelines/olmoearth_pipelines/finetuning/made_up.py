"""Windows that are not there yet, counted from labels or from a benchmark's index, to plan a run with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_pipelines.cost import BYTES_PER_PIXEL
from olmoearth_pipelines.finetuning.request import FinetuneRequest
from olmoearth_pipelines.finetuning.sources import open_source
from olmoearth_pipelines.stac import search
from olmoearth_pipelines.tasks.registry import find_task, open_task
from olmoearth_pipelines.windows.folder import LIST
from olmoearth_pipelines.windows.layout import lay_out, layout_notes
from olmoearth_pipelines.windows.request import WindowRequest
from olmoearth_pipelines.windows.window import SPLITS, Array, Window, WindowSource, WindowTask

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """A `WindowSource` whose windows have the right size and no meaning."""

    task: WindowTask
    counts: Mapping[str, int]
    """Split -> number of windows."""

    def split(self, name: str) -> npt.NDArray[np.int64]:
        """Numbers of a split's windows."""
        before = sum(self.counts[split] for split in SPLITS[: SPLITS.index(name)])
        return np.arange(before, before + self.counts[name], dtype=np.int64)

    def read(self, number: int) -> Window:
        """Noise of which nothing is missing, labelled everywhere."""
        task, rng = self.task, np.random.default_rng(number)
        side, names = task.window_px, task.modalities
        periods = {name: task.periods if MODALITIES[name].multitemporal else 1 for name in names}
        shapes = {name: (side, side, periods[name], len(MODALITIES[name].bands)) for name in names}
        return Window(
            id=f"made up {number}",
            images={name: rng.uniform(1, 3000, shape).astype(np.float32) for name, shape in shapes.items()},
            valid={name: np.ones(shape[:3], np.bool_) for name, shape in shapes.items()},
            absent={name: np.zeros(shape[2:], np.bool_) for name, shape in shapes.items()},
            timestamps=np.array([(15, month % 12, 2024) for month in range(task.periods)]),
            target=_target(task, rng),
        )

    @property
    def fingerprint(self) -> str:
        """Of nothing."""
        return "made up"


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """The windows of a planned run."""

    source: WindowSource
    bytes_to_read: int = 0
    """Decoded imagery that is read first, to cut windows that are not there yet."""
    groups: int = 0
    """Groups of neighbouring windows that are cut first."""


def foresee(request: FinetuneRequest, note: Say, warn: Say) -> Foreseen:
    """The windows of a request as they are, or as they will be; nothing is written.

    Raises:
        OlmoEarthError: as `open_source`.
    """
    if request.windows is not None and not (request.windows.folder / LIST).is_file():
        return _from_labels(request.windows, note, warn)
    if request.task is not None:
        assert request.data is not None
        folder = request.converted or Path("datasets") / request.task
        if not (folder / LIST).is_file():
            return Foreseen(source=_from_benchmark(request.task, request.data))
    steps = open_source(request, note, warn)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return Foreseen(source=end.value)


def _from_labels(request: WindowRequest, note: Say, warn: Say) -> Foreseen:
    periods = request.checked_periods(date.today())
    labels = request.read_labels()
    layout = lay_out(request, labels, periods, {})
    for line in (*labels.notes, *layout_notes(layout)):
        note(line)
    for line in layout.division.warnings:
        warn(line)
    table = search(layout.cells(), periods, request.catalogs, request.modalities)
    for line in table.notes():
        note(line)
    task = WindowTask(
        name=Path(request.labels).stem,
        kind=labels.kind,
        class_names=labels.class_names,
        field=labels.field,
        modalities=table.modalities,
        window_px=request.window_px,
        periods=len(periods),
        centre=not labels.per_pixel,
        sparse=labels.per_pixel and labels.sparse,
        facts={"patch_px": request.patch_px},
    )
    counts = np.bincount(layout.division.split, minlength=len(SPLITS)).tolist()
    pixels = sum(group.box.height * group.box.width for group in layout.groups)
    return Foreseen(
        source=MadeUp(task=task, counts=dict(zip(SPLITS, counts, strict=True))),
        bytes_to_read=int(pixels * len(periods) * sum(BYTES_PER_PIXEL[name] for name in table.modalities)),
        groups=len(layout.groups),
    )


def _from_benchmark(name: str, data: Path) -> MadeUp:
    task, reader = find_task(name), open_task(name, data)
    counts = reader.splits()
    first = next(reader.read("train"))
    windows = WindowTask(
        name=task.name,
        kind=task.kind,
        class_names=tuple(f"class {number}" for number in range(task.classes)),
        field="label",
        modalities=tuple(name for name in MODALITIES if name in first.inputs),
        window_px=task.side_px,
        periods=len(first.timestamps),
        facts={"patch_px": task.patch_px},
    )
    return MadeUp(task=windows, counts={split: counts.get(split, 0) for split in SPLITS})


def _target(task: WindowTask, rng: np.random.Generator) -> Array:
    shape = (task.window_px, task.window_px) if task.kind in {"segmentation", "pixel_regression"} else ()
    if "regression" in task.kind:
        return rng.uniform(0, 1, shape).astype(np.float32)
    classes: Any = len(task.class_names)
    if task.kind == "multilabel":
        return rng.integers(0, 2, classes, dtype=np.uint8)
    return np.asarray(rng.integers(0, classes, shape))
