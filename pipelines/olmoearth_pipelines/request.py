"""A request to embed a region, checked and laid out: everything that needs no pixels and no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from shapely import to_wkb

from olmoearth_cli.core.spec import MICRO_BATCH_TOKENS, ModelSpec, find_spec
from olmoearth_cli.errors import ModelError
from olmoearth_cli.geo.aoi import Aoi, read_aoi
from olmoearth_cli.geo.periods import Period, resolve_periods
from olmoearth_cli.geo.tiles import Tile, TileGrid, Windowing, pixels_of, tile_grid
from olmoearth_cli.maps import run_record
from olmoearth_pipelines.cluster import check_device_name
from olmoearth_pipelines.stac import CELL_PX, SceneTable, search

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What the user asked for; the flags of `olmoearth embed`, one to one."""

    aoi: str
    start: date | None = None
    end: date | None = None
    year: int | None = None
    periods: int | None = None
    catalogs: tuple[str, ...] | None = None
    modalities: tuple[str, ...] | None = None
    model: str = "v1.2-tiny"
    patch_size: int = 4
    window: int = 64
    overlap: int = 32
    blend: str = "none"
    precision: str = "float32"
    dtype: str = "int8"
    out: Path | None = None
    workers: int = 1
    scheduler: str | None = None
    device: str = "auto"
    tile_size: int | None = None
    guard: str = "strict"
    overwrite: bool = False


@dataclass(kw_only=True)
class Prepared:
    """A request with everything looked up that needs no pixels."""

    request: EmbedRequest
    aoi: Aoi
    periods: tuple[Period, ...]
    spec: ModelSpec
    grid: TileGrid
    folder: Path
    settings: dict[str, Any]
    note: Note
    _table: SceneTable | None = field(default=None, repr=False)

    @property
    def table(self) -> SceneTable:
        """The chosen scenes: from an earlier run in the same folder, else from the catalogue, once."""
        if self._table is None:
            self._table = self._saved_table() or self._search()
        return self._table

    def _saved_table(self) -> SceneTable | None:
        path = self.folder / "scenes.json"
        if not path.is_file() or not run_record.matches(self.folder, self.settings):
            return None
        self.note(f"scenes as chosen before ({path})")
        return SceneTable.from_json(path.read_text(encoding="utf-8"))

    def _search(self) -> SceneTable:
        cells = sorted({(t.box.epsg, i, j) for t in self.grid.tiles for i, j in self._reach(t)})
        return search(cells, self.periods, self.request.catalogs, self.request.modalities)

    def _reach(self, tile: Tile) -> list[tuple[int, int]]:
        return pixels_of(tile, self.grid.windowing, self.request.blend).squares(CELL_PX)


def prepare(request: EmbedRequest, note: Note, *, parent: str = "embeddings") -> Prepared:
    """Check a request and lay out its tiles. Reads the region and the model's description only.

    Args:
        request: what the user asked for.
        note: told where scenes come from.
        parent: folder in which the result lies under the region's name, unless the request names one.

    Raises:
        InputError, ModelError: whatever cannot be used as asked.
    """
    check_device_name(request.device)
    aoi = read_aoi(request.aoi)
    periods = resolve_periods(request.start, request.end, request.year, request.periods, date.today())
    spec = find_spec(request.model)
    if not spec.supported:
        raise ModelError(
            f"--model {request.model}: release {spec.release} is not part of this version yet. Use v1.2-base."
        )
    windowing = Windowing(
        window_px=request.window,
        overlap_px=request.overlap,
        patch_px=request.patch_size,
        batch_side=_batch_side(request, spec, len(periods)),
    )
    grid = tile_grid(aoi, windowing, tile_px=request.tile_size)
    folder = request.out or Path(parent) / aoi.name
    return Prepared(
        request=request,
        aoi=aoi,
        periods=periods,
        spec=spec,
        grid=grid,
        folder=folder,
        settings=_settings(request, aoi, periods, grid),
        note=note,
    )


def _batch_side(request: EmbedRequest, spec: ModelSpec, periods: int) -> int:
    """Windows per side of a block: as many as fill a micro-batch when nothing is missing."""
    modalities = request.modalities or ("sentinel2_l2a", "sentinel1")
    per_cell = sum(len(spec.band_sets(m)) for m in modalities) * periods
    tokens = per_cell * (request.window // max(request.patch_size, 1)) ** 2
    limit = MICRO_BATCH_TOKENS[_device_kind(request)]
    return max(k for k in (1, 2, 4, 8) if k == 1 or k * k * tokens <= limit)


def _device_kind(request: EmbedRequest) -> str:
    """`cuda` or `cpu`, without importing torch: the size of a block depends on it, and `--plan` must be quick."""
    if request.device == "auto":
        return "cuda" if Path("/dev/nvidiactl").exists() and not request.scheduler else "cpu"
    return request.device.partition(":")[0]


def _settings(request: EmbedRequest, aoi: Aoi, periods: tuple[Period, ...], grid: TileGrid) -> dict[str, Any]:
    """What decides the map's content; a folder never mixes two of these."""
    return {
        "aoi": aoi.source,
        "aoi_sha256": hashlib.sha256(to_wkb(aoi.geometry, output_dimension=2)).hexdigest(),
        "start": periods[0].start.date().isoformat(),
        "periods": len(periods),
        "catalog": list(request.catalogs or ("default",)),
        "modalities": list(request.modalities or ("default",)),
        "model": request.model,
        "patch_size": request.patch_size,
        "window": request.window,
        "overlap": request.overlap,
        "blend": request.blend,
        "precision": request.precision,
        "dtype": request.dtype,
        "tile_size": grid.tile_px,
        "batch_side": grid.windowing.batch_side,
    }
