"""One tile of an embedding map on a worker: read block by block, score, write. No array leaves the worker."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.cog import Raster, cog_bytes
from olmoearth_cli.maps.files import write_bytes
from olmoearth_cli.maps.map_spec import MapSpec
from olmoearth_cli.maps.reading import Cells, blocks_of, read_cells
from olmoearth_pipelines.cluster import local_cores
from olmoearth_pipelines.probing.class_layout import Array, encode, layout_of

PROBE = "probe.safetensors"
"""Name of the probe's copy in the work folder: workers read it there, and a run has one probe to its end."""
STEP = 2048
"""Cells scored at once: whole chunks of the kNN; bounds the scores [2048, C, P, P] in memory."""


@dataclass(frozen=True, kw_only=True)
class ClassWork:
    """What all tiles of a class map share."""

    folder: str
    """The work folder: the probe is read there, finished tiles are written there."""
    spec: MapSpec
    threads: int | None
    """Blocks scored side by side; the worker's own cores where None."""


@dataclass(frozen=True, kw_only=True)
class ClassJob:
    """One task."""

    tile: str
    """The tile's id."""
    box: PixelBox
    path: str
    """The tile's COG."""
    work: ClassWork


class Resident:
    """What a worker keeps between tiles: the probe and its threads."""

    def __init__(self, work: ClassWork) -> None:
        import torch

        from olmoearth_cli.core.probe.saved import load_probe

        # One thread per product: a sum's last digits depend on how many share it, and a map must not.
        torch.set_num_threads(1)
        self.saved = load_probe(Path(work.folder) / PROBE)
        self.layout = layout_of(self.saved, work.spec.patch_px)
        self.pool = ThreadPoolExecutor(
            work.threads or local_cores(), initializer=functools.partial(torch.set_num_threads, 1)
        )


_residents: dict[ClassWork, Resident] = {}
_loading = threading.Lock()


def _resident(work: ClassWork) -> Resident:
    with _loading:
        if work not in _residents:
            _residents.clear()
            _residents[work] = Resident(work)
        return _residents[work]


def tile_path(folder: Path, tile: str) -> Path:
    """Where a finished tile lies in the work folder."""
    return folder / "tiles" / f"{tile}.tif"


def classify_tile(job: ClassJob) -> str:
    """From vectors to a small file of the class map's bands on the tile's own grid.

    Returns:
        The tile's id.

    Raises:
        InputError: the tile cannot be read.
        OutputError: the result cannot be written.
    """
    resident, spec = _resident(job.work), job.work.spec
    layout, f = resident.layout, resident.layout.cell_px
    height, width = spec.shape(job.box)
    out = layout.empty(height * f, width * f)
    blocks = blocks_of(spec, job.box)
    score = functools.partial(_score_block, resident, spec, Path(job.path))
    for (rows, cols), values in zip(blocks, resident.pool.map(score, blocks), strict=True):
        out[:, rows.start * f : rows.stop * f, cols.start * f : cols.stop * f] = values
    raster = Raster(
        values=out,
        epsg=job.box.epsg,
        transform=job.box.transform(layout.pixel_m),
        nodata=layout.nodata,
        names=layout.bands,
    )
    write_bytes(tile_path(Path(job.work.folder), job.tile), cog_bytes(raster))
    return job.tile


def _score_block(resident: Resident, spec: MapSpec, path: Path, cells: Cells) -> Array:
    """[bands, y P, x P] of a block of y x x cells."""
    vectors = read_cells(spec, path, cells)  # y x D
    y, x, _ = vectors.shape
    layout, f = resident.layout, resident.layout.cell_px
    valid = np.isfinite(vectors).all(axis=-1).reshape(-1)
    out = layout.empty(y * x, f * f).reshape(-1, y * x, f, f)  # bands N P P
    rows = np.flatnonzero(valid)
    flat = vectors.reshape(y * x, -1)
    for start in range(0, len(rows), STEP):
        at = rows[start : start + STEP]
        out[:, at] = encode(layout, resident.saved, flat[at])
    return out.reshape(-1, y, x, f, f).swapaxes(2, 3).reshape(-1, y * f, x * f)
