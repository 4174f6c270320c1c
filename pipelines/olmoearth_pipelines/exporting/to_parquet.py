"""A map as GeoParquet, one row per cell with a vector.

Tiles come in the order of a Hilbert curve over the map, and so do the rows of every row group: rows that lie near each
other on the ground lie near each other in the file. Memory is bounded by a row group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import antimeridian
import geopandas
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.cell_keys import centres
from olmoearth_cli.maps.embedding_map import TileEntry
from olmoearth_cli.maps.footprint import footprint, to_lonlat
from olmoearth_cli.maps.merge import Array, Grid
from olmoearth_cli.maps.quantize import NO_DATA
from olmoearth_cli.maps.reading import Cells, blocks_of, read_stored
from olmoearth_pipelines.exporting.clip import Clip
from olmoearth_pipelines.exporting.geoparquet import ROW_GROUP_BYTES, VectorFile, row_bytes
from olmoearth_pipelines.exporting.source import Source, in_order

CELL_COLUMNS = {"epsg": pa.int32(), "row": pa.int32(), "column": pa.int32()}
"""Zone, row and column of a cell on its zone's global grid."""
SHAPES_AT_ONCE = 65_536
"""Geometries that exist as objects at once: one takes several times the bytes that it has in the file."""
HILBERT_LEVEL = 16
"""Steps of the curve along a side: 2^16."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Cells with vectors."""

    cells: npt.NDArray[np.int64]
    """[N, 3] EPSG code, row, column; rows and columns count cells of the zone's global grid."""
    vectors: Array
    """[N, D] in the export's number type."""
    lonlat: npt.NDArray[np.float64]
    """[N, 2] the cells' centres in degrees."""
    place: npt.NDArray[np.int64]
    """[N] distance along the map's Hilbert curve."""


def write_cells(source: Source, path: Path, *, outlines: bool) -> int:
    """Write every cell with a vector.

    Args:
        source: the map.
        path: of the new file.
        outlines: True: a row's geometry is the cell's square; False: its centre.

    Returns:
        The number of rows.

    Raises:
        InputError: a tile's file is gone or damaged.
        OutputError: the disk refused.
    """
    most = max(1, ROW_GROUP_BYTES // row_bytes(source.spec))
    with VectorFile(path, source.spec, CELL_COLUMNS, what="cell") as file:
        for rows in _groups(_blocks(source), most):
            order = np.argsort(rows.place, kind="stable")
            cells = rows.cells[order]
            shapes = _squares(cells, source.spec.patch_px) if outlines else _points(rows.lonlat[order])
            file.write({name: cells[:, k] for k, name in enumerate(CELL_COLUMNS)}, rows.vectors[order], shapes)
        return file.rows


def _points(lonlat: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.object_]]:
    for start in range(0, len(lonlat), SHAPES_AT_ONCE):
        yield shapely.points(lonlat[start : start + SHAPES_AT_ONCE])


def _squares(cells: npt.NDArray[np.int64], patch_px: int) -> Iterator[npt.NDArray[np.object_]]:
    for start in range(0, len(cells), SHAPES_AT_ONCE):
        yield squares(cells[start : start + SHAPES_AT_ONCE], patch_px)


def hilbert(points: npt.NDArray[np.object_], bounds: tuple[float, float, float, float]) -> npt.NDArray[np.int64]:
    """[N] distance along a Hilbert curve over `bounds`."""
    series = geopandas.GeoSeries(points)
    return np.asarray(series.hilbert_distance(total_bounds=bounds, level=HILBERT_LEVEL), dtype=np.int64)


def squares(cells: npt.NDArray[np.int64], patch_px: int) -> npt.NDArray[np.object_]:
    """[N] the cells' outlines in longitude and latitude, divided where they cross the dateline."""
    side = patch_px * 10
    out = np.empty(len(cells), dtype=object)
    for epsg in np.unique(cells[:, 0]).tolist():
        mine = np.flatnonzero(cells[:, 0] == epsg)
        row, col = cells[mine, 1, None] + [1, 1, 0, 0], cells[mine, 2, None] + [0, 1, 1, 0]
        lon, lat = to_lonlat(epsg).transform(col * side, -row * side)  # N 4: counter-clockwise from the lower left
        out[mine] = shapely.polygons(np.stack([lon, lat], axis=-1))
        for k in mine[np.ptp(lon, axis=1) > 180]:
            out[k] = antimeridian.fix_polygon(out[k])
    return out


def _bounds(tiles: Sequence[TileEntry]) -> tuple[float, float, float, float]:
    """Longitudes and latitudes around the tiles."""
    prints = [shapely.geometry.shape(footprint(tile.box)[0]) for tile in tiles]
    west, south, east, north = shapely.total_bounds(np.array(prints, dtype=object)).tolist()
    return west, south, east, north


def _blocks(source: Source) -> Iterator[Rows]:
    """The map block by block; blocks without a cell are left out."""
    tiles, spec, bounds = source.tiles, source.emap.spec, _bounds(source.tiles)
    middles = np.array([shapely.geometry.shape(footprint(t.box)[0]).centroid for t in tiles], dtype=object)
    tasks = [
        (tiles[k], cells)
        for k in np.argsort(hilbert(middles, bounds), kind="stable").tolist()
        for cells in blocks_of(spec, tiles[k].box)
    ]

    def read(task: tuple[TileEntry, Cells]) -> Rows:
        return _rows(source, *task, bounds)

    for done, (_, rows) in enumerate(in_order(read, tasks, source.threads), start=1):
        if len(rows.cells):
            yield rows
        source.show("blocks", done, len(tasks))


def _rows(source: Source, tile: TileEntry, block: Cells, bounds: tuple[float, float, float, float]) -> Rows:
    """The cells of a block that have a vector and lie in the region."""
    assert tile.path is not None
    p = source.spec.patch_px
    stored = read_stored(tile.path, block)  # Y X D
    seen = np.isfinite(stored[..., 0]) if stored.dtype.kind == "f" else stored[..., 0] != NO_DATA
    if source.aoi is not None:
        rows, cols = block
        box = tile.box
        part = PixelBox(
            box.epsg,
            box.row0 + rows.start * p,
            box.col0 + cols.start * p,
            box.row0 + rows.stop * p,
            box.col0 + cols.stop * p,
        )
        grid = Grid.over(part, source.spec.cell_m)
        seen &= ~Clip(source.aoi, grid).outside(grid)
    row, col = np.nonzero(seen)
    places = [np.full(len(row), tile.box.epsg), row + block[0].start + tile.box.row0 // p]
    cells = np.stack([*places, col + block[1].start + tile.box.col0 // p], axis=1).astype(np.int64)
    lonlat = centres(cells, p)
    place = hilbert(shapely.points(lonlat), bounds)
    return Rows(cells=cells, vectors=source.converted(stored[seen]), lonlat=lonlat, place=place)


def _groups(parts: Iterator[Rows], most: int) -> Iterator[Rows]:
    """Parts joined to about `most` rows."""
    held: list[Rows] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part.cells)
        if count >= most:
            yield _joined(held)
            held, count = [], 0
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Rows)})
