"""A map as GeoParquet, one row per polygon of a vector file: the mean of the cells inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import shapely

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.aoi import Aoi
from olmoearth_cli.maps.embedding_map import TileEntry
from olmoearth_cli.maps.label_files import POLYGON, LabelFile, read_label_file
from olmoearth_cli.maps.label_shapes import meeting, place_points, places_inside, projected
from olmoearth_pipelines.exporting.geoparquet import BBOX, EMBEDDING, GEOMETRY, ROW_GROUP_BYTES, VectorFile, row_bytes
from olmoearth_pipelines.exporting.source import Source
from olmoearth_pipelines.exporting.to_parquet import hilbert

CELLS = "cells"
AT_ONCE_BYTES = 64_000_000
"""Vectors that are held at once while sums are formed."""


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """What pooling made."""

    rows: int
    without_cells: int
    """Polygons that hold no cell with data; they have no row."""
    notes: tuple[str, ...]


def write_pooled(source: Source, polygons_file: Path, path: Path) -> Pooled:
    """Write the mean vector of every polygon.

    A polygon's cells are those whose centre it holds; one that holds none takes the cell that it lies in. Its row
    keeps its attributes and says how many cells were averaged. Memory grows with the polygons (their sums), not with
    the map.

    Args:
        source: the map; its region also limits the polygons, whole ones only.
        polygons_file: anything GDAL reads, or GeoParquet.
        path: of the new file.

    Raises:
        InputError: no polygon, or none on the map.
        OutputError: the disk refused.
    """
    file = read_label_file(polygons_file)
    polygons, attributes, notes = _polygons(file, polygons_file, source.aoi)
    sums = np.zeros((len(polygons), source.spec.dimensions))
    count = np.zeros(len(polygons), dtype=np.int64)
    for member, vectors in _inside(source, polygons):
        _add(sums, count, member, vectors)
    small = np.flatnonzero(count == 0)
    if len(small):
        vectors = source.emap.read_cells(_cells_below(source, polygons[small]))
        _add(sums, count, small, vectors)
    kept = np.flatnonzero(count)
    if not len(kept):
        raise InputError(f"--pool {polygons_file}: none of its {len(polygons)} polygons lies on data of the map.")
    means = (sums[kept] / count[kept, None]).astype(np.float32)
    quantizer = source.spec.quantizer
    stored = quantizer.encode(means) if quantizer else means
    columns = {**_columns(attributes.iloc[kept], notes), CELLS: pa.array(count[kept], type=pa.int64())}
    _write(source, path, columns, stored, polygons[kept])
    missing = len(polygons) - len(kept)
    if missing:
        notes.append(f"{missing} of {len(polygons)} polygons hold no cell with data: left out")
    return Pooled(rows=len(kept), without_cells=missing, notes=tuple(notes))


def _polygons(
    file: LabelFile, origin: Path, aoi: Aoi | None
) -> tuple[npt.NDArray[np.object_], pd.DataFrame, list[str]]:
    notes = list(file.notes)
    is_polygon = np.isin(shapely.get_type_id(file.geometry), (POLYGON, 6))
    if not is_polygon.any():
        raise InputError(f"--pool {origin}: no polygon ({len(file.geometry)} points). Buffer the points in a GIS.")
    if not is_polygon.all():
        notes.append(f"{int((~is_polygon).sum())} points left out: means are of polygons")
    wanted = is_polygon
    if aoi is not None:
        wanted = is_polygon & shapely.covers(aoi.geometry, file.geometry)
        if not wanted.any():
            raise InputError(f"--pool {origin}: no polygon lies wholly in the region {aoi.source}.")
    return file.geometry[wanted], file.columns[wanted].reset_index(drop=True), notes


def _inside(
    source: Source, polygons: npt.NDArray[np.object_]
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]]:
    """Every pair of a polygon and a cell inside it, tile by tile: [M] polygon, [M, D] vector."""
    tiles, spec = source.tiles, source.emap.spec
    at_once = max(1, AT_ONCE_BYTES // (4 * spec.dimensions))
    tile_of, polygon_of = meeting(polygons, tiles)
    for k, tile in enumerate(tiles):
        mine = polygon_of[tile_of == k]
        if len(mine):
            which, cells = _cells_inside(polygons[mine], tile, spec.cell_m, spec.patch_px)
            for start in range(0, len(which), at_once):
                part = slice(start, start + at_once)
                yield mine[which[part]], source.emap.read_cells(cells[part])
        source.show("tiles", k + 1, len(tiles))


def _cells_inside(
    polygons: npt.NDArray[np.object_], tile: TileEntry, cell_m: int, patch_px: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    which, row, col = places_inside(projected(polygons, tile.box), tile.box, cell_m)
    corner = tile.box.row0 // patch_px, tile.box.col0 // patch_px
    return which, np.stack([np.full(len(row), tile.box.epsg), row + corner[0], col + corner[1]], axis=1)


def _cells_below(source: Source, polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """[N, 3] the cells that polygons too small for a cell's centre lie in."""
    lonlat = shapely.get_coordinates(shapely.point_on_surface(polygons))
    cells, _ = place_points(lonlat, source.tiles, source.spec.patch_px)
    return cells


def _add(
    sums: npt.NDArray[np.float64],
    count: npt.NDArray[np.int64],
    member: npt.NDArray[np.intp],
    vectors: npt.NDArray[np.float32],
) -> None:
    """Add vectors [M, D] to the sums of their polygons [M]; cells without data count for nothing."""
    seen = np.isfinite(vectors).all(axis=1)
    order = np.flatnonzero(seen)[np.argsort(member[seen], kind="stable")]
    if not len(order):
        return
    polygon, start = np.unique(member[order], return_index=True)
    sums[polygon] += np.add.reduceat(vectors[order].astype(np.float64), start, axis=0)
    count[polygon] += np.diff(np.append(start, len(order)))


def _columns(attributes: pd.DataFrame, notes: list[str]) -> dict[str, pa.Array]:
    """The file's attributes as Parquet columns; names that the export needs are changed."""
    out: dict[str, pa.Array] = {}
    for name, values in attributes.items():
        key = str(name)
        while key in out or key in (EMBEDDING, BBOX, GEOMETRY, CELLS):
            key = f"{key}_"
        if key != name:
            notes.append(f"attribute {name} is named {key}")
        try:
            out[key] = pa.array(values, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # a column of mixed types
            out[key] = pa.array([None if pd.isna(v) else str(v) for v in values])
    return out


def _write(
    source: Source,
    path: Path,
    columns: dict[str, pa.Array],
    vectors: npt.NDArray[Any],
    polygons: npt.NDArray[np.object_],
) -> None:
    bounds = shapely.total_bounds(polygons).tolist()
    order = np.argsort(hilbert(shapely.centroid(polygons), bounds), kind="stable")
    types = {name: values.type for name, values in columns.items()}
    most = max(1, ROW_GROUP_BYTES // row_bytes(source.spec))
    with VectorFile(path, source.spec, types, what="polygon") as file:
        for start in range(0, len(order), most):
            rows = order[start : start + most]
            some = {name: values.take(pa.array(rows)) for name, values in columns.items()}
            file.write(some, vectors[rows], [polygons[rows]])
