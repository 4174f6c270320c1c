"""One tile of 256 px on a worker: read, check, write. No array leaves the worker but by the file that it writes.

Only one process may write a dataset, for samples are numbered as tiles come. So a worker leaves its tile in a work
folder, which also lets an interrupted export go on without reading a scene twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.geo.tiles import tile_id
from olmoearth_cli.maps.files import write_json
from olmoearth_pipelines.cube import Cube, ReadError, read_cube
from olmoearth_pipelines.exporting.data_maps import MapError, MapRaster, read_maps
from olmoearth_pipelines.exporting.data_tiles import centre
from olmoearth_pipelines.samples.layout import TILE_PX
from olmoearth_pipelines.samples.rules import check_sample, odd_dtypes
from olmoearth_pipelines.samples.sample_file import (
    MASKS,
    PERIODS,
    SampleData,
    hdf5_errors,
    open_file,
    read_array,
    write_sample,
)
from olmoearth_pipelines.stac import SceneTable

Array = npt.NDArray[Any]
LEAST_SHARE = 0.1
"""A mosaic with data in a smaller share of the tile counts as missing: upstream, a scene was only accepted for a tile
if it covered as much of it (spec/inputs.md section 4)."""
DONE, SKIPPED, UNREADABLE = "done", "skipped", "unreadable"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all tiles of an export share."""

    folder: str
    """Work folder, which workers and parent see."""
    scenes: str
    """File of the scene table."""
    scenes_sha256: str
    """Of that file, so that a worker never goes on with another export's table."""
    modalities: tuple[str, ...]
    """Satellite products to read."""
    maps: tuple[MapRaster, ...]
    """Rasters of the map modalities."""
    stamps: tuple[tuple[int, int, int], ...]
    """(day, month 0-11, year) of every period."""


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """One task."""

    box: PixelBox
    """The tile."""
    work: Work
    """Of the export."""


def run_tile(job: SampleJob) -> dict[str, Any]:
    """From pixels to a file in the work folder.

    Returns:
        `status` (`done`, `skipped` or `unreadable`, the latter two with a `reason`) and, where done, `left_out`:
        {modality: why it is not in the tile}. What is done or skipped is recorded in the work folder; what could not
        be read is not, and so is tried again by the next run.

    Raises:
        OutputError: the work folder cannot be written; ends the run.
    """
    work, name = job.work, tile_id(job.box)
    selections = _table(work.scenes, work.scenes_sha256).for_box(job.box)
    try:
        cube = read_cube(job.box, selections, len(work.stamps), work.modalities)
        images, present, left_out = satellite_images(cube)
        reason = _too_little(present)
        maps, without = ({}, {}) if reason else read_maps(work.maps, job.box)
    except (ReadError, MapError) as error:
        return {"status": UNREADABLE, "reason": str(error)}
    facts: dict[str, Any] = {"status": SKIPPED, "reason": reason}
    if not reason:
        sample = SampleData(
            latlon=centre(job.box),
            timestamps=np.array(work.stamps, dtype=np.int32),
            images=images | maps,
            present=present,
        )
        findings = check_sample(sample, TILE_PX) + odd_dtypes(sample)
        facts["reason"] = f"not as the format wants it: {'; '.join(findings)}" if findings else None
        if not findings:
            write_sample(tile_file(Path(work.folder), name), sample)
            facts = {"status": DONE, "left_out": left_out | without}
    write_json(facts_file(Path(work.folder), name), facts)
    return facts


def satellite_images(cube: Cube) -> tuple[dict[str, Array], dict[str, npt.NDArray[np.bool_]], dict[str, str]]:
    """The satellite products of a tile as the format stores them (sections 1.5 and 1.6).

    Returns:
        {modality: [H, W, t, C]} with only the periods that exist, {modality: [T]} True where a period exists, and
        {modality: why it is left out}.
    """
    images, present, left_out = {}, {}, {}
    for name, values in cube.values.items():
        # Zeros of a swath's edge stay in an optical mosaic; a radar series with one such pixel goes as a whole.
        seen = (cube.valid[name].mean(axis=(1, 2)) >= LEAST_SHARE) & ~cube.absent_bands[name].any(axis=1)
        if not seen.any():
            left_out[name] = "no imagery"
        elif name == "sentinel1" and not cube.valid[name][seen].all():
            left_out[name] = "pixels without data in a period"
        else:
            images[name] = np.ascontiguousarray(values[seen].transpose(2, 3, 0, 1))  # T C H W -> H W T C
            present[name] = seen
    return images, present, left_out


def tile_file(folder: Path, name: str) -> Path:
    """Where a tile waits to be added to the dataset."""
    return folder / f"{name}.h5"


def facts_file(folder: Path, name: str) -> Path:
    """Where it is recorded what became of a tile; written last."""
    return folder / f"{name}.json"


def read_tile(path: Path) -> SampleData:
    """What `write_sample` has written, whole and in its own dtypes.

    Raises:
        InputError: the file is gone or damaged.
    """
    with open_file(path) as file, hdf5_errors(path):
        images = {name: read_array(file, name, path) for name in MODALITIES if name in file}
        series = [name for name in images if MODALITIES[name].multitemporal]
        present = {name: read_array(file, f"{MASKS}/{name}", path) for name in series}
        return SampleData(
            latlon=read_array(file, "latlon", path),
            timestamps=read_array(file, "timestamps", path),
            images=images,
            present=present,
        )


def _too_little(present: Mapping[str, npt.NDArray[np.bool_]]) -> str | None:
    """Why a tile cannot become samples (section 1.8); None where it can."""
    most = max((int(seen.sum()) for seen in present.values()), default=0)
    if most == PERIODS:
        return None
    return f"no satellite product has all {PERIODS} periods (most: {most})"


@lru_cache(maxsize=1)
def _table(path: str, _sha256: str) -> SceneTable:
    return SceneTable.from_json(Path(path).read_text(encoding="utf-8"))
