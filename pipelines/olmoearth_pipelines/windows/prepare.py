"""From labels and a catalogue to a folder of windows, once: the first leg of fine-tuning.

Order matters for safety: labels, dates, splits, scenes and guard are checked before the folder is touched. A window is
there when its file is; what a broken run has cut is not cut again, and a finished folder is taken as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.geo.grid import PIXEL_M
from olmoearth_cli.geo.periods import stamps
from olmoearth_cli.maps.files import output_error, remove, write_text
from olmoearth_pipelines.cluster import TILES_IN_FLIGHT, check_folder, connect
from olmoearth_pipelines.fanout import Lost, fan_out
from olmoearth_pipelines.guarded import guard_table
from olmoearth_pipelines.stac import SceneTable, search
from olmoearth_pipelines.windows.cut import UNREADABLE, CutJob, CutWork, run_job
from olmoearth_pipelines.windows.folder import FILES, LIST, STARTED, WindowFolder, WindowWriter
from olmoearth_pipelines.windows.label_set import LabelSet, stem
from olmoearth_pipelines.windows.layout import Group, Layout, lay_out, layout_notes
from olmoearth_pipelines.windows.outcome import Outcome
from olmoearth_pipelines.windows.request import WindowRequest
from olmoearth_pipelines.windows.window import WindowTask

__all__ = ["CutTile", "WindowRequest", "prepare_windows"]

Note = Callable[[str], None]
SCENES = "scenes.json"
LARGE_GB = 20
"""Size of a folder, before compression, that is worth a warning."""


@dataclass(frozen=True, kw_only=True)
class CutTile:
    """Neighbouring windows are dealt with."""

    tile: str
    status: str
    """`done`, or `gap` with its `reason`."""
    reason: str | None
    windows: int
    """Windows cut."""
    tiles_to_do: int
    """Groups of neighbours of the whole run."""
    km2: float
    """Ground that was read."""
    km2_to_do: float
    """Of the whole run."""


def prepare_windows(request: WindowRequest, note: Note, warn: Note) -> Iterator[CutTile | WindowFolder]:
    """Cut the windows of labels, or take those that were cut with the same settings before.

    Args:
        request: what the user asked for.
        note: told what was inferred and left out.
        warn: told what makes the windows less than the labels promise.

    Yields:
        A report for each group of neighbouring windows, and last the finished folder.

    Raises:
        InputError, CatalogError, GuardError: whatever cannot be used as asked; nothing is left behind.
        OutputError: the folder holds something else, or cannot be written.
        RunError: scenes could not be read; the windows that could be are kept, and a later run goes on.
    """
    periods = request.checked_periods(date.today())
    labels = request.read_labels()
    for line in labels.notes:
        note(line)
    settings = request.settings(labels, periods)
    begun = _check_folder(request.folder, labels, settings)
    if (request.folder / LIST).is_file():
        yield _as_before(request.folder, note, warn)
        return
    layout = lay_out(request, labels, periods, settings)
    for line in layout_notes(layout):
        note(line)
    for line in layout.division.warnings:
        warn(line)
    table = _scenes(layout, begun=begun)
    for line in table.notes():
        note(line)
    size_gb = _size_gb(layout, table)
    if size_gb > LARGE_GB:
        warn(f"the windows may take up to {size_gb:.0f} GB in {request.folder}; --max-windows takes a sample of them")
    guard_table(table, [group.box for group in layout.groups], mode=request.guard, warn=warn)
    writer = WindowWriter(request.folder, _task(layout, table), settings)
    write_text(request.folder / SCENES, table.to_json())
    done = writer.done()
    if done:
        note(f"{len(done)} of {len(layout.ids)} windows are known from before; doing the rest")
    outcome = Outcome(layout=layout)
    yield from _cut(layout, table, done, outcome)
    yield _close(layout, table, writer, outcome, warn)


def _check_folder(folder: Path, labels: LabelSet, settings: Mapping[str, Any]) -> bool:
    """Refuse a folder that holds something else; True where these very windows were begun there.

    Raises:
        OutputError: somebody else's files, or windows of other settings.
    """
    other = "Windows are kept under the name of the labels: move it away, or give the labels another name."
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file, not a folder. {other}")
        names = sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.exists() else []
    except OSError as error:
        raise output_error(folder, error) from error
    if not names:
        return False
    if not {LIST, STARTED} & set(names):
        raise OutputError(f"{folder}: is not empty and holds no windows ({names[0]}). Nothing was changed. {other}")
    # In a folder that was begun, a writer compares the settings and leaves the task alone.
    nothing = WindowTask(
        name="", kind=labels.kind, class_names=(), field="", modalities=(), window_px=1, periods=1, facts={}
    )
    WindowWriter(folder, nothing, settings)
    return True


def _as_before(folder: Path, note: Note, warn: Note) -> WindowFolder:
    found = WindowFolder.open(folder)
    note(f"{len(found)} windows as cut before ({folder})")
    for line in found.task.facts.get("warnings", ()):
        warn(line)
    return found


def _scenes(layout: Layout, *, begun: bool) -> SceneTable:
    """The chosen scenes: from an earlier run in the same folder, else from the catalogue."""
    path = layout.request.folder / SCENES
    if begun and path.is_file():
        return SceneTable.from_json(path.read_text(encoding="utf-8"))
    return search(layout.cells(), layout.periods, layout.request.catalogs, layout.request.modalities)


def _size_gb(layout: Layout, table: SceneTable) -> float:
    bands = sum(len(MODALITIES[name].bands) * (4 if name == "sentinel1" else 2) for name in table.modalities)
    return len(layout.plan) * layout.plan.window_px**2 * len(layout.periods) * bands / 1e9


def _task(layout: Layout, table: SceneTable) -> WindowTask:
    labels, request = layout.labels, layout.request
    files = [source.table.source for source in labels.sources]
    return WindowTask(
        name=stem(request.labels),
        kind=labels.kind,
        class_names=labels.class_names,
        field=labels.field,
        modalities=table.modalities,
        window_px=request.window_px,
        periods=len(layout.periods),
        centre=not labels.per_pixel,
        sparse=labels.per_pixel and labels.sparse,
        facts={**layout.settings, "labels": files, "block_km": layout.division.block_km},
    )


def _cut(layout: Layout, table: SceneTable, done: set[str], outcome: Outcome) -> Iterator[CutTile]:
    """Windows that are not there yet on the workers, neighbours together, in the order in which they get ready."""
    request, folder = layout.request, layout.request.folder.resolve()
    todo = {group.name: group for group in layout.groups if any(layout.ids[n] not in done for n in group.members)}
    if not todo:
        return
    work = CutWork(
        folder=str(folder),
        scenes=str(folder / SCENES),
        scenes_sha256=hashlib.sha256((folder / SCENES).read_bytes()).hexdigest(),
        modalities=table.modalities,
        stamps=tuple(stamps(layout.periods)),
        patch_px=request.patch_px,
        centred=layout.plan.centred,
    )
    with (
        tempfile.TemporaryDirectory(prefix="olmoearth-") as scratch,
        connect(workers=request.workers, scheduler=request.scheduler, scratch=Path(scratch)) as client,
    ):
        if request.scheduler:
            check_folder(client, folder)
        slots = len(client.scheduler_info(n_workers=-1)["workers"]) * TILES_IN_FLIGHT
        km2 = sum(group.km2 for group in todo.values())
        jobs = (_job(layout, group, work, done) for group in todo.values())
        for job, result in fan_out(client, run_job, jobs, slots=slots):
            lost = {"status": UNREADABLE, "reason": str(result), "bare": [], "blind": 0}
            facts = lost if isinstance(result, Lost) else result
            outcome.add(todo[job.name], facts)
            yield _report(job, facts, len(todo), km2)


def _job(layout: Layout, group: Group, work: CutWork, done: set[str]) -> CutJob:
    windows = tuple(layout.window(n) for n in group.members if layout.ids[n] not in done)
    return CutJob(name=group.name, box=group.box, windows=windows, work=work)


def _report(job: CutJob, facts: Mapping[str, Any], groups: int, km2: float) -> CutTile:
    unread = facts["status"] == UNREADABLE
    return CutTile(
        tile=job.name,
        status="gap" if unread else "done",
        reason=facts.get("reason"),
        windows=0 if unread else len(job.windows) - len(facts["bare"]),
        tiles_to_do=groups,
        km2=job.box.height * job.box.width * PIXEL_M**2 / 1e6,
        km2_to_do=km2,
    )


def _close(layout: Layout, table: SceneTable, writer: WindowWriter, outcome: Outcome, warn: Note) -> WindowFolder:
    """Write the list of windows, by which the folder is finished."""
    done = writer.done()
    kept = [n for n, name in enumerate(layout.ids) if name in done]
    try:
        outcome.check(kept)
    except InputError:
        _clear(layout.request.folder)
        raise
    warnings = outcome.warnings(kept)
    for line in warnings:
        warn(line)
    task = _task(layout, table)
    said = {"warnings": [*layout.division.warnings, *warnings]}
    order = [(layout.ids[n], layout.split(n)) for n in kept]
    return writer.finish(order, replace(task, facts={**task.facts, **said}))


def _clear(folder: Path) -> None:
    """Take back a run that made nothing of use, so that another may have the folder."""
    for name in (SCENES, STARTED):
        remove(folder / name)
    shutil.rmtree(folder / FILES, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: then it is not ours to take away
        folder.rmdir()
