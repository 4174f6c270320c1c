"""Neighbouring windows on a worker: read their ground once, cut them out, write each to its file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines.cube import Cube, ReadError, read_cube
from olmoearth_pipelines.encode import seen_patches
from olmoearth_pipelines.stac import SceneTable
from olmoearth_pipelines.windows.folder import write_window
from olmoearth_pipelines.windows.plan import middle_px
from olmoearth_pipelines.windows.window import Array, Window

DONE, UNREADABLE = "done", "unreadable"
STORED = {"i": np.int64, "u": np.uint8, "f": np.float32}
"""Kind of dtype of a planned target -> dtype of `Window.target`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedWindow:
    """A window before its images are read."""

    id: str
    box: PixelBox
    split: str
    """One of `SPLITS`."""
    target: Array
    """As in `Window`, in small types."""
    lonlat: tuple[float, float]
    """Centre in degrees."""
    group: int
    """Number of the block of land; -1 for none."""


@dataclass(frozen=True, kw_only=True)
class CutWork:
    """What all jobs of a run share."""

    folder: str
    """Folder of the windows, which workers and parent see."""
    scenes: str
    """File of the scene table."""
    scenes_sha256: str
    """Of that file, so that a worker never goes on with another run's table."""
    modalities: tuple[str, ...]
    stamps: tuple[tuple[int, int, int], ...]
    """(day, month 0-11, year) of every period."""
    patch_px: int
    """Side of a map cell."""
    centred: bool
    """True where a window needs data in its middle cell, False where on any labelled pixel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CutJob:
    """One task."""

    name: str
    box: PixelBox
    """Around all windows of the group, those of an earlier run included: the bytes must not depend on the rest."""
    windows: tuple[PlannedWindow, ...]
    work: CutWork


def run_job(job: CutJob) -> dict[str, Any]:
    """From pixels to one file per window.

    Returns:
        `status` (`done`, or `unreadable` with its `reason`), `bare`: ids of the windows that were not written, for no
        scene has data where they are labelled, and `blind`: labelled pixels without data in the others.

    Raises:
        OutputError: the folder cannot be written; ends the run.
    """
    work = job.work
    selections = _table(work.scenes, work.scenes_sha256).for_box(job.box)
    try:
        cube = read_cube(job.box, selections, len(work.stamps), work.modalities)
    except ReadError as error:
        return {"status": UNREADABLE, "reason": str(error), "bare": [], "blind": 0}
    seen = _seen_pixels(cube, work.patch_px)
    bare, blind = [], 0
    for planned in job.windows:
        rows, cols = planned.box.slices_in(job.box)
        labelled, there = _labelled(planned.target, seen[rows, cols], work)
        if not there:
            bare.append(planned.id)
            continue
        blind += labelled - there
        write_window(Path(work.folder), cut(cube, planned, work.stamps), planned.split)
    return {"status": DONE, "bare": bare, "blind": blind}


def cut(cube: Cube, planned: PlannedWindow, stamps: tuple[tuple[int, int, int], ...]) -> Window:
    """A window from the stack around it; modalities without a valid pixel are left out."""
    rows, cols = planned.box.slices_in(cube.box)
    images, valid, absent = {}, {}, {}
    for name, values in cube.values.items():
        seen = cube.valid[name][:, rows, cols]  # T H W
        if seen.any():
            images[name] = np.ascontiguousarray(values[:, :, rows, cols].transpose(2, 3, 0, 1))  # T C H W -> H W T C
            valid[name] = np.ascontiguousarray(seen.transpose(1, 2, 0))  # H W T
            absent[name] = cube.absent_bands[name]  # T C
    return Window(
        id=planned.id,
        images=images,
        valid=valid,
        absent=absent,
        timestamps=np.array(stamps, dtype=np.int64),
        target=planned.target.astype(STORED[planned.target.dtype.kind]),
        lonlat=planned.lonlat,
        group=planned.group,
    )


def _seen_pixels(cube: Cube, patch_px: int) -> npt.NDArray[np.bool_]:
    """[H, W] True in cells that some modality has data for in some period, as an encoder would take them."""
    cells = np.any([seen_patches(cube, name, patch_px).any(axis=0) for name in cube.values], axis=0)  # Y X
    return np.asarray(cells).repeat(patch_px, axis=0).repeat(patch_px, axis=1)


def _labelled(target: Array, seen: npt.NDArray[np.bool_], work: CutWork) -> tuple[int, int]:
    """How many labelled pixels (or places) a window has, and how many of them have data."""
    if work.centred:
        middle = middle_px(len(seen), work.patch_px)
        return 1, int(seen[middle, middle])
    labelled = np.isfinite(target) if target.dtype.kind == "f" else target >= 0  # H W
    return int(labelled.sum()), int((labelled & seen).sum())


@lru_cache(maxsize=1)
def _table(path: str, _sha256: str) -> SceneTable:
    return SceneTable.from_json(Path(path).read_text(encoding="utf-8"))
