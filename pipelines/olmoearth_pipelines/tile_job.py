"""One tile on a worker: read, encode, write. No array leaves the worker; what comes back is a few numbers."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from olmoearth_cli.core.spec import MICRO_BATCH_TOKENS
from olmoearth_cli.geo.tiles import Tile, Windowing, pixels_of
from olmoearth_cli.maps.embedding_map import MapSpec, TileResult, write_gap, write_tile
from olmoearth_cli.maps.seam import seam_figure
from olmoearth_cli.maps.stac_items import Described
from olmoearth_pipelines.cluster import TILES_IN_FLIGHT, local_cores
from olmoearth_pipelines.cube import Cube, ReadError, read_cube
from olmoearth_pipelines.models import check_device
from olmoearth_pipelines.scene import Selection
from olmoearth_pipelines.stac import SceneTable

if TYPE_CHECKING:
    from olmoearth_cli.core import OlmoEarthModel

NO_IMAGERY = "no imagery in any period"
"""Why a tile is a gap whose scenes could be read."""
READ_THREADS = 8
"""Threads that read one tile's scenes: they wait for the network more than they work."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all tiles of a run share."""

    folder: str
    model: str
    device: str
    precision: str
    stamps: tuple[tuple[int, int, int], ...]
    """(day, month 0-11, year) of every period."""
    windowing: Windowing
    blend: str
    threads: int | None
    """Blocks encoded side by side; the worker's own cores where None."""


@dataclass(frozen=True, kw_only=True)
class EmbedWork(Work):
    """What all tiles of an embedding map share."""

    map_spec: MapSpec


@dataclass(frozen=True, kw_only=True)
class TileJob:
    """One task."""

    tile: Tile
    work: Work


class Resident:
    """What a worker keeps between tiles: model, rotary tables, scene table, threads."""

    def __init__(self, work: Work, load: Callable[[str, str], OlmoEarthModel]) -> None:
        """Load.

        Args:
            work: of the run.
            load: the model by its name and device.
        """
        import torch

        from olmoearth_cli.core.plan import EmbedPlan

        torch.set_num_threads(1)
        self.device = _device(work.device)
        model = load(work.model, self.device)
        self.table = SceneTable.from_json((Path(work.folder) / "scenes.json").read_text(encoding="utf-8"))
        self.plan = EmbedPlan(
            model,
            np.asarray(work.stamps, dtype=np.int64),
            self.table.modalities,
            work.windowing.window_px,
            work.windowing.patch_px,
            precision=work.precision,
            max_tokens=MICRO_BATCH_TOKENS[self.device.split(":")[0]],
        )
        self.spec = model.spec
        self.threads = 1 if self.device.startswith("cuda") else work.threads or local_cores()
        self.pool = ThreadPoolExecutor(self.threads, initializer=functools.partial(torch.set_num_threads, 1))
        self.slots = threading.BoundedSemaphore(TILES_IN_FLIGHT)
        self.encoding = threading.Lock()


_residents: dict[Work, Resident] = {}
_loading = threading.Lock()
_Held = TypeVar("_Held", bound=Resident)


def resident_of(work: Work, kind: Callable[[Work], _Held]) -> _Held:
    """What this worker keeps for a run; loaded at its first tile."""
    with _loading:
        if work not in _residents:
            _residents.clear()
            _residents[work] = kind(work)
        return _residents[work]  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pixels:
    """What was read for a tile."""

    cube: Cube
    selections: tuple[Selection, ...]
    read_s: float

    @property
    def sources(self) -> dict[str, str | None]:
        """Scenes that were read -> link to the catalogue's item."""
        used = set(self.cube.used)
        return {s.id: s.self_href for selection in self.selections for s in selection.scenes if s.id in used}


def read_pixels(work: Work, tile: Tile, resident: Resident) -> Pixels:
    """The pixels that a tile's windows look at.

    Raises:
        ReadError: a chosen scene cannot be read.
    """
    started = time.perf_counter()
    box = pixels_of(tile, work.windowing, work.blend)
    selections = resident.table.for_box(box)
    cube = read_cube(box, selections, len(work.stamps), resident.table.modalities, threads=READ_THREADS)
    return Pixels(cube=cube, selections=selections, read_s=time.perf_counter() - started)


def _embedder(work: Work) -> Resident:
    from olmoearth_cli.core import load_model

    return Resident(work, lambda name, device: load_model(name, device=device))


def _device(asked: str) -> str:
    """`auto` -> a GPU where there is one; several GPUs are dealt out by the worker's number."""
    import torch
    from distributed import get_worker

    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    check_device(asked)
    if ":" in asked:
        return asked
    name = str(get_worker().name)
    number = int("".join(c for c in name if c.isdigit()) or 0)
    return f"cuda:{number % torch.cuda.device_count()}"


def run_tile(job: TileJob) -> dict[str, Any]:
    """From pixels to file.

    Returns:
        `status` (`done`, or `gap` with its `reason`) and the tile's figures.

    Raises:
        OutputError: the tile cannot be written; ends the run.
    """
    work, tile = job.work, job.tile
    assert isinstance(work, EmbedWork)
    resident = resident_of(work, _embedder)
    with resident.slots:
        try:
            pixels = read_pixels(work, tile, resident)
        except ReadError as error:
            return give_up(work.folder, work.map_spec, tile, str(error))
        return _encode_and_write(work, tile, pixels, resident)


def _encode_and_write(work: EmbedWork, tile: Tile, pixels: Pixels, resident: Resident) -> dict[str, Any]:
    from olmoearth_pipelines.encode import BlockEncoder, encode_tile

    cube = pixels.cube
    encoder = BlockEncoder(cube, resident.spec, resident.plan, work.windowing)
    with resident.encoding:
        encoded = encode_tile(
            tile,
            encoder,
            windowing=work.windowing,
            dimensions=resident.spec.embedding_size,
            blend=work.blend,
            pool=resident.pool,
        )
    if not np.isfinite(encoded.vectors[..., 0]).any():
        return give_up(work.folder, work.map_spec, tile, NO_IMAGERY)
    p = work.windowing.patch_px
    cells = work.windowing.stride_px // p
    seam = seam_figure(encoded.vectors, tile.box.row0 // p, tile.box.col0 // p, cells)
    facts = {
        "km2": len(tile.blocks) * work.windowing.block_km2,
        "windows": encoded.windows,
        "tokens": encoded.tokens,
        "bytes_read": cube.bytes_read,
        "read_s": round(pixels.read_s, 3),
        "encode_s": round(encoded.seconds, 3),
        "device": resident.device,
        "threads": resident.threads,
        "seam": asdict(seam),
    }
    result = TileResult(
        tile_id=tile.id,
        box=tile.box,
        vectors=encoded.vectors,
        quality=quality_bands(cube, tile, work.windowing, encoded.vectors, encoded.disagreement),
        sources=pixels.sources,
        facts=facts,
    )
    return {"status": "done", **facts, **write_tile(Path(work.folder), work.map_spec, result)}


def give_up(folder: str | Path, spec: Described, tile: Tile, reason: str) -> dict[str, Any]:
    """Record a tile as a gap; a later run tries it again."""
    write_gap(Path(folder), spec, tile.id, tile.box, reason)
    return {"status": "gap", "reason": reason}


def quality_bands(
    cube: Cube, tile: Tile, windowing: Windowing, vectors: np.ndarray, disagreement: np.ndarray
) -> dict[str, np.ndarray]:
    """Quality of every cell, float32 [Y, X], NaN where the map has no data.

    `periods_<modality>`: periods with data. `clear_fraction`: share of clear pixels (scene classes 4 to 7)
    among Sentinel-2 pixels with data. `disagreement`: see `encode.TileVectors`.
    """
    from olmoearth_pipelines.encode import seen_patches

    p = windowing.patch_px
    inner = tile.box.intersection(cube.box)
    rows, cols = inner.slices_in(cube.box)
    at_rows, at_cols = inner.slices_in(tile.box)
    target = (slice(at_rows.start // p, at_rows.stop // p), slice(at_cols.start // p, at_cols.stop // p))
    source = (slice(rows.start // p, rows.stop // p), slice(cols.start // p, cols.stop // p))
    shape = vectors.shape[:2]

    def spread(values: np.ndarray) -> np.ndarray:
        band = np.full(shape, np.nan, np.float32)
        band[target] = values[source]
        band[~np.isfinite(vectors[..., 0])] = np.nan
        return band

    bands = {f"periods_{m}": spread(seen_patches(cube, m, p).sum(axis=0).astype(np.float32)) for m in cube.values}
    if cube.clear is not None:
        valid = cube.valid["sentinel2_l2a"]
        clear = _per_cell(cube.clear & valid, p)
        seen = _per_cell(valid, p)
        bands["clear_fraction"] = spread(np.where(seen > 0, clear / np.maximum(seen, 1), np.nan))
    bands["disagreement"] = np.where(np.isfinite(vectors[..., 0]), disagreement, np.nan).astype(np.float32)
    return bands


def _per_cell(mask: np.ndarray, patch_px: int) -> np.ndarray:
    """bool [T, H, W] -> float32 [Y, X]: True pixels per cell over all periods."""
    t, h, w = mask.shape
    y, x = h // patch_px, w // patch_px
    cells = mask[:, : y * patch_px, : x * patch_px].reshape(t, y, patch_px, x, patch_px)
    return cells.sum(axis=(0, 2, 4)).astype(np.float32)
