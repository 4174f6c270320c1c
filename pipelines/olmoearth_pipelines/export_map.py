"""The road of `olmoearth export map`: a map of tiles becomes one file that GIS, xarray or a database reads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.aoi import read_aoi
from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_cli.maps.files import publish
from olmoearth_pipelines.exporting.grids import one_grid, zone_grids
from olmoearth_pipelines.exporting.layers import Layer
from olmoearth_pipelines.exporting.output import bytes_of, check_output, work_folder
from olmoearth_pipelines.exporting.source import Source, exported_spec

FORMATS = {".tif": "cog", ".tiff": "cog", ".zarr": "zarr", ".parquet": "parquet", ".geoparquet": "parquet"}
"""Ending of the output -> format."""
GEOMETRIES = ("point", "cell")
MOST_THREADS = 8
"""Readers beyond this wait for each other and hold windows in memory."""


@dataclass(frozen=True, kw_only=True)
class MapRequest:
    """What to export, and how."""

    map: Path
    to: Path
    format: str | None = None
    """`cog`, `zarr` or `parquet`; by the ending of `to` where None."""
    epsg: int | None = None
    """Reference system of the raster; the map's own where None."""
    resolution: float | None = None
    """Side of a pixel in units of the reference system; the map's cell where None."""
    aoi: str | None = None
    """Vector file or box; only cells whose centre lies inside are exported."""
    dtype: str | None = None
    """`int8` or `float32`; the map's own where None."""
    shard: bool = False
    """True packs a Zarr store's chunks into larger files."""
    pool: Path | None = None
    """Vector file whose polygons become the rows."""
    geometry: str = "point"
    """`point` or `cell`: what a row of a cell holds."""
    threads: int | None = None
    """Readers side by side; the machine's cores where None."""
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class MapReport:
    """What was exported."""

    path: str
    format: str
    dtype: str
    dimensions: int
    rows: int | None
    """Of a GeoParquet file."""
    layers: tuple[dict[str, Any], ...]
    """Rasters with `name`, `epsg`, `height`, `width`, `resolution`, `bounds`, `cells`."""
    bytes: int
    model: str
    demo: bool
    """True where the vectors come from weights that learned nothing."""
    tiles: int
    gaps: int
    """Tiles that the map lacks."""
    complete: bool
    """False where the map is half finished."""
    seconds: float
    notes: tuple[str, ...]


def run(request: MapRequest, show: Callable[[str, int, int], None]) -> MapReport:
    """Export a map.

    Args:
        request: what and how.
        show: told of every step: what, done, of how many.

    Raises:
        InputError: no map, options that do not go together, a region or polygons that do not meet the map.
        OutputError: the output is there already, or cannot be written.
    """
    started = time.monotonic()
    kind = _format(request)
    _check_options(request, kind)
    out = request.to.absolute()
    check_output(out, overwrite=request.overwrite, own_file="zarr.json" if kind == "zarr" else None)
    emap = EmbeddingMap.open(request.map)
    source = Source(
        emap=emap,
        spec=exported_spec(emap.spec, request.dtype or ("float32" if request.pool else None)),
        aoi=None if request.aoi is None else read_aoi(request.aoi),
        threads=request.threads or min(MOST_THREADS, os.cpu_count() or 1),
        show=show,
    )
    with work_folder(out, flag="--to") as work:
        made = _WRITERS[kind](request, source, work)
        publish(made.path, out)
    gaps = len(emap.tiles) - len(source.tiles)
    return MapReport(
        path=str(request.to),
        format=kind,
        dtype=source.spec.dtype,
        dimensions=source.spec.dimensions,
        rows=made.rows,
        layers=tuple(asdict(layer) for layer in made.layers),
        bytes=bytes_of(out),
        model=source.spec.model_id,
        demo=source.spec.demo,
        tiles=len(source.tiles),
        gaps=gaps,
        complete=emap.complete,
        seconds=round(time.monotonic() - started, 2),
        notes=(*_map_notes(emap, gaps), *made.notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A finished export in the work folder."""

    path: Path
    layers: tuple[Layer, ...] = ()
    rows: int | None = None
    notes: tuple[str, ...] = ()


def _cog(request: MapRequest, source: Source, work: Path) -> _Made:
    from olmoearth_pipelines.exporting.to_cog import write_raster

    grid = one_grid(source.spec, source.tiles, epsg=request.epsg, resolution=request.resolution, aoi=source.aoi)
    path, layer = write_raster(source, grid, work)
    return _Made(path=path, layers=_with_data((layer,), source))


def _zarr(request: MapRequest, source: Source, work: Path) -> _Made:
    from olmoearth_pipelines.exporting.to_zarr import write_store

    if request.epsg is None and request.resolution is None:
        grids = zone_grids(source.spec, source.tiles, source.aoi)
    else:
        grid = one_grid(source.spec, source.tiles, epsg=request.epsg, resolution=request.resolution, aoi=source.aoi)
        grids = [(grid, source.tiles)]
    folder = work / "store.zarr"
    layers = write_store(source, grids, folder, shard=request.shard)
    return _Made(path=folder, layers=_with_data(tuple(layers), source))


def _parquet(request: MapRequest, source: Source, work: Path) -> _Made:
    path = work / "rows.parquet"
    if request.pool is not None:
        from olmoearth_pipelines.exporting.pooled import write_pooled

        pooled = write_pooled(source, request.pool, path)
        return _Made(path=path, rows=pooled.rows, notes=pooled.notes)
    from olmoearth_pipelines.exporting.to_parquet import write_cells

    rows = write_cells(source, path, outlines=request.geometry == "cell")
    if not rows:
        raise _nothing(source)
    return _Made(path=path, rows=rows)


_WRITERS: dict[str, Callable[[MapRequest, Source, Path], _Made]] = {"cog": _cog, "zarr": _zarr, "parquet": _parquet}


def _with_data(layers: tuple[Layer, ...], source: Source) -> tuple[Layer, ...]:
    if not any(layer.cells for layer in layers):
        raise _nothing(source)
    return layers


def _nothing(source: Source) -> InputError:
    where = "" if source.aoi is None else f" in the region {source.aoi.source}"
    return InputError(f"{source.emap.folder}: no cell with data{where}. Nothing was written.")


def _format(request: MapRequest) -> str:
    kind = request.format or FORMATS.get(request.to.suffix.lower())
    if kind not in _WRITERS:
        raise InputError(
            f"--to {request.to}: the ending says which format: .tif (COG), .zarr or .parquet; "
            "or name one with --format cog, zarr or parquet."
        )
    return kind


def _check_options(request: MapRequest, kind: str) -> None:
    """Refuse options that the format has no use for, rather than ignore them."""
    wrong = {
        "--shard": request.shard and kind != "zarr",
        "--pool": request.pool is not None and kind != "parquet",
        "--geometry": request.geometry != "point" and (kind != "parquet" or request.pool is not None),
        "--epsg": request.epsg is not None and kind == "parquet",
        "--resolution": request.resolution is not None and kind == "parquet",
    }
    given = [flag for flag, clash in wrong.items() if clash]
    if given:
        rows = " GeoParquet keeps the map's own cells, placed in EPSG:4326." if kind == "parquet" else ""
        raise InputError(
            f"{', '.join(given)}: has no meaning for {kind}.{rows} Leave it out, or choose another format."
        )
    if request.geometry not in GEOMETRIES:
        raise InputError(f"--geometry {request.geometry}: choose {' or '.join(GEOMETRIES)}.")


def _map_notes(emap: EmbeddingMap, gaps: int) -> tuple[str, ...]:
    if emap.complete:
        return ()
    missing = f"{gaps} tiles are gaps" if gaps else "the run that makes it has not ended"
    return (f"{emap.folder}: the map is half finished ({missing}); what is complete was exported.",)
