"""Where training data comes from: the windows of a request, cut or converted where they are not there yet."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from olmoearth_pipelines.finetuning.request import FinetuneRequest
from olmoearth_pipelines.tasks.features import TaskProgress
from olmoearth_pipelines.tasks.registry import find_task, open_task
from olmoearth_pipelines.windows.folder import WindowFolder
from olmoearth_pipelines.windows.from_samples import sample_windows
from olmoearth_pipelines.windows.from_task import task_windows
from olmoearth_pipelines.windows.prepare import CutTile, prepare_windows
from olmoearth_pipelines.windows.window import WindowSource

Say = Callable[[str], None]
Progress = CutTile | TaskProgress


def open_source(request: FinetuneRequest, note: Say, warn: Say) -> Generator[Progress, None, WindowSource]:
    """The windows that a request names.

    Args:
        request: with one source.
        note: told what was inferred and left out.
        warn: told what makes the windows less than the labels promise.

    Yields:
        `CutTile` while windows are cut, `TaskProgress` while a benchmark is converted.

    Returns:
        The windows.

    Raises:
        OlmoEarthError: as `WindowFolder.open`, `prepare_windows`, `task_windows` and `sample_windows`.
    """
    if request.dataset is not None:
        found = WindowFolder.open(request.dataset)
        for line in found.task.facts.get("warnings", ()):
            warn(line)
        return found
    if request.samples is not None:
        return sample_windows(
            request.samples,
            field=request.label_map,
            modalities=request.modalities,
            window_px=request.window_px,
            block_km=request.block_km,
            seed=request.recipe.seed,
        )
    if request.windows is not None:
        return (yield from _last(prepare_windows(request.windows, note, warn)))
    assert request.task is not None and request.data is not None
    folder = request.converted or Path("datasets") / request.task
    windows = task_windows(find_task(request.task), open_task(request.task, request.data), folder)
    return (yield from _last(windows))


def _last(steps: Iterable[Progress | WindowFolder]) -> Generator[Progress, None, WindowFolder]:
    """Passes progress on; returns the folder at the end of it."""
    for step in steps:
        if isinstance(step, WindowFolder):
            return step
        yield step
    raise ValueError("no folder of windows came of it")
