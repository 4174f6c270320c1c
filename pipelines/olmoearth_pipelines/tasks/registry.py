"""The benchmark tasks by name: the 13 of Figure 1, and two more of the tables (spec/evaluation.md 10.1)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.breizhcrops import BreizhCropsReader
from olmoearth_pipelines.tasks.common import FRACTIONS, L8, S1, S2
from olmoearth_pipelines.tasks.cropharvest import CropHarvestReader
from olmoearth_pipelines.tasks.geobench import GeoBenchReader
from olmoearth_pipelines.tasks.mados import MadosReader
from olmoearth_pipelines.tasks.pastis import PastisReader
from olmoearth_pipelines.tasks.rslearn_windows import WindowReader
from olmoearth_pipelines.tasks.sen1floods11 import Sen1FloodsReader
from olmoearth_pipelines.tasks.task import Reader, Task


class _Opener(Protocol):
    def __call__(self, task: Task, folder: Path, *, reference: bool) -> Reader: ...


def _knn(name: str, classes: int, side_px: int, modalities: tuple[str, ...], **more: Any) -> Task:
    """A kNN row; single-label classification by accuracy unless told otherwise."""
    row: dict[str, Any] = {"kind": "classification", "method": "knn", "metric": "accuracy"} | more
    return Task(name=name, classes=classes, side_px=side_px, modalities=modalities, **row)


def _series(name: str, classes: int, modalities: tuple[str, ...], **more: Any) -> Task:
    """A pixel time series: linear probe, accuracy, patch size 1."""
    row: dict[str, Any] = {"kind": "classification", "method": "linear", "metric": "accuracy", "patch_px": 1} | more
    return Task(name=name, classes=classes, side_px=1, modalities=modalities, **row)


def _segmentation(name: str, classes: int, side_px: int, modalities: tuple[str, ...], **more: Any) -> Task:
    """A segmentation row: linear probe, mIoU; all of them are published with label fractions."""
    row: dict[str, Any] = {"kind": "segmentation", "method": "linear", "metric": "miou", "partitions": FRACTIONS} | more
    return Task(name=name, classes=classes, side_px=side_px, modalities=modalities, **row)


_ROWS: tuple[tuple[Task, _Opener], ...] = (
    (_knn("m-bigearthnet", 43, 120, (S2,), kind="multilabel", metric="f1", partitions=FRACTIONS), GeoBenchReader),
    (_knn("m-so2sat", 17, 32, (S2,), partitions=FRACTIONS), GeoBenchReader),
    (_knn("m-brick-kiln", 2, 64, (S2,), partitions=FRACTIONS), GeoBenchReader),
    (_knn("m-forestnet", 12, 332, (L8,), partitions=FRACTIONS), GeoBenchReader),
    (_knn("m-eurosat", 10, 64, (S2,), partitions=FRACTIONS), GeoBenchReader),
    (_series("breizhcrops", 9, (S2,), batch_size=128), BreizhCropsReader),
    (_series("cropharvest-togo", 2, (S2, S1)), CropHarvestReader),
    (_series("cropharvest-prc", 2, (S2, S1)), CropHarvestReader),
    (_segmentation("m-cashewplant", 7, 256, (S2,), batch_size=8), GeoBenchReader),
    (_segmentation("m-SA-crop-type", 10, 256, (S2,), batch_size=8), GeoBenchReader),
    (_segmentation("pastis", 19, 64, (S2, S1), batch_size=8), PastisReader),
    (_segmentation("mados", 15, 80, (S2,), batch_size=128, lr=0.01), MadosReader),
    (_segmentation("sen1floods11", 2, 64, (S1,), batch_size=128), Sen1FloodsReader),
    (_knn("awf", 9, 32, (S2, S1, L8)), WindowReader),
    (_knn("nandi", 6, 4, (S2, S1, L8)), WindowReader),
)
_OPENERS = {task.name: opener for task, opener in _ROWS}

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task, _ in _ROWS})
"""Every task by its name, in the order of the report's table."""


def find_task(name: str) -> Task:
    """A task by its name, whatever the case.

    Raises:
        InputError: no such task; suggests the nearest.
    """
    known = {task.casefold(): task for task in TASKS}
    if name.casefold() in known:
        return TASKS[known[name.casefold()]]
    close = difflib.get_close_matches(name.casefold(), list(known), n=1)
    hint = f" Did you mean {known[close[0]]}?" if close else ""
    raise InputError(f"no task {name!r}.{hint} Known: {', '.join(TASKS)}.")


def open_task(name: str, folder: Path, *, reference: bool = False) -> Reader:
    """The reader of a task's published files.

    Args:
        name: one of `TASKS`, in any case.
        folder: the task's own folder, or the usual parent (for GEO-Bench, GEOBENCH_DIR).
        reference: True, to compare with published scores, reads as the reference does where that is odd: MADOS in
            reflectance units, m-eurosat and m-brick-kiln by their wrong band names, BreizhCrops by its package's order.

    Raises:
        InputError: unknown task, or the folder does not hold it; names the missing files and the expected layout.
    """
    task = find_task(name)
    return _OPENERS[task.name](task, folder, reference=reference)
