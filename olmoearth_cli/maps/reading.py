"""Reading vectors back from tiles: windows, points, blocks. float32, NaN where there is no data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_cli.maps.cell_keys import holders
from olmoearth_cli.maps.cog import block_side
from olmoearth_cli.maps.footprint import from_lonlat
from olmoearth_cli.maps.map_spec import MapSpec
from olmoearth_cli.maps.tile_files import QUALITY, TileEntry

Vectors = npt.NDArray[np.float32]
Cells = tuple[slice, slice]
"""Rows and columns of cells inside a tile."""


def read_cells(spec: MapSpec, path: Path, cells: Cells) -> Vectors:
    """[Y, X, D] of some cells of a finished tile.

    Raises:
        InputError: the file is gone or damaged.
    """
    with _opened(path) as source:
        return _decoded(spec, _stored(source, cells))


def read_stored(path: Path, cells: Cells) -> npt.NDArray[Any]:
    """[Y, X, D] of some cells of a finished tile as the file holds them: codes of an int8 map.

    Raises:
        InputError: the file is gone or damaged.
    """
    with _opened(path) as source:
        return _stored(source, cells)


def blocks_of(spec: MapSpec, box: PixelBox) -> list[Cells]:
    """Rows and columns of the blocks in which a tile's file is stored, row by row."""
    height, width = spec.shape(box)
    side = block_side(spec.dimensions, np.dtype(spec.dtype).itemsize, max(height, width))
    return [
        (slice(i, min(i + side, height)), slice(j, min(j + side, width)))
        for i in range(0, height, side)
        for j in range(0, width, side)
    ]


@contextmanager
def _opened(path: Path) -> Iterator[DatasetReader]:
    try:
        with rasterio.open(path) as source:
            yield source
    except RasterioError as error:
        raise InputError(
            f"{path}: cannot be read ({error}). Delete the file and run the same embed command again: "
            "it makes this tile anew."
        ) from error


def _stored(source: DatasetReader, cells: Cells) -> npt.NDArray[Any]:
    """[Y, X, D] as the file holds it."""
    rows, cols = cells
    window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
    return np.moveaxis(source.read(window=window), 0, -1)


def _decoded(spec: MapSpec, values: npt.NDArray[Any]) -> Vectors:
    return np.ascontiguousarray(spec.quantizer.decode(values) if spec.quantizer else values)


def read_seen(tile: TileEntry) -> npt.NDArray[np.bool_]:
    """bool [Y, X] of a finished tile, True where it has vectors: told by its quality file, which is small."""
    with _opened(_path(tile).parent.parent / QUALITY / f"{tile.id}.tif") as source:
        return np.isfinite(source.read(1))


def read_window(spec: MapSpec, tiles: Sequence[TileEntry], box: PixelBox) -> Vectors:
    """[Y, X, D] over a box of whole cells, NaN where the map has no data or no tile."""
    p = spec.patch_px
    out = np.full((*spec.shape(box), spec.dimensions), np.nan, dtype=np.float32)
    for tile in tiles:
        common = tile.box.intersection(box)
        if tile.status == "done" and not common.empty:
            out[_cells(common, box, p)] = read_cells(spec, _path(tile), _cells(common, tile.box, p))
    return out


def read_points(spec: MapSpec, tiles: Sequence[TileEntry], lonlat: npt.ArrayLike) -> Vectors:
    """[N, D] for points [N, 2] (longitude, latitude): the vector of the cell that holds the point.

    Where two zones overlap, the point's own zone is asked first. Only blocks with points are read.
    """
    points = np.asarray(lonlat, dtype=np.float64).reshape(-1, 2)
    out = np.full((len(points), spec.dimensions), np.nan, dtype=np.float32)
    done = [tile for tile in tiles if tile.status == "done"]
    own = utm_zone(points)
    for own_zone_only in (True, False):
        for epsg in sorted({tile.box.epsg for tile in done}):
            open_points = ~np.isfinite(out[:, 0]) & np.isfinite(points).all(axis=1)
            wanted = np.flatnonzero(open_points & (own == epsg) if own_zone_only else open_points)
            if len(wanted):
                _fill_zone(spec, [t for t in done if t.box.epsg == epsg], points, wanted, out)
    return out


def _fill_zone(
    spec: MapSpec,
    tiles: Sequence[TileEntry],
    points: npt.NDArray[np.float64],
    wanted: npt.NDArray[np.intp],
    out: Vectors,
) -> None:
    """Write the vectors of points `wanted` that lie in tiles of one zone into `out`."""
    x, y = from_lonlat(tiles[0].box.epsg).transform(points[wanted, 0], points[wanted, 1])
    near = np.isfinite(x) & np.isfinite(y)  # a point far from the zone has no coordinates in it
    col = np.floor(np.where(near, x, 0.0) / PIXEL_M).astype(np.int64)
    row = np.floor(-np.where(near, y, 0.0) / PIXEL_M).astype(np.int64)
    for tile in tiles:
        box = tile.box
        inside = near & (row >= box.row0) & (row < box.row1) & (col >= box.col0) & (col < box.col1)
        if inside.any():
            at = np.column_stack([row[inside] - box.row0, col[inside] - box.col0]) // spec.patch_px
            out[wanted[inside]] = _read_cells_at(spec, tile, at)


def read_listed(spec: MapSpec, tiles: Sequence[TileEntry], cells: npt.NDArray[np.int64]) -> Vectors:
    """[N, D] of cells [N, 3] (EPSG, row, column in cells), NaN where no tile covers the cell or it has no data.

    Only blocks with a wanted cell are read, one at a time: reading several tiles at once was measured (2 cores,
    9 tiles of 128 bands, 50,000 cells) and no faster.
    """
    done = [tile for tile in tiles if tile.status == "done"]
    out = np.full((len(cells), spec.dimensions), np.nan, dtype=np.float32)
    holder = holders(done, cells, spec.patch_px)
    order = np.argsort(holder, kind="stable")
    held = order[np.searchsorted(holder[order], 0) :]
    for mine in np.split(held, np.flatnonzero(np.diff(holder[held])) + 1) if len(held) else []:
        tile = done[holder[mine[0]]]
        corner = np.array([tile.box.row0, tile.box.col0]) // spec.patch_px
        out[mine] = _read_cells_at(spec, tile, cells[mine, 1:] - corner)
    return out


def _read_cells_at(spec: MapSpec, tile: TileEntry, at: npt.NDArray[np.int64]) -> Vectors:
    """[N, D] of single cells [N, 2] (row, column) of a tile, block by block; only these cells are decoded."""
    height, width = spec.shape(tile.box)
    with _opened(_path(tile)) as source:
        side = int(source.block_shapes[0][0])
        stored = np.empty((len(at), spec.dimensions), dtype=source.dtypes[0])
        blocks, member = np.unique(at // side, axis=0, return_inverse=True)
        order = np.argsort(member.reshape(-1), kind="stable")
        ends = np.cumsum(np.bincount(member.reshape(-1), minlength=len(blocks)))
        for (i, j), mine in zip(blocks.tolist(), np.split(order, ends[:-1]), strict=True):
            rows = slice(i * side, min((i + 1) * side, height))
            cols = slice(j * side, min((j + 1) * side, width))
            stored[mine] = _stored(source, (rows, cols))[at[mine, 0] - rows.start, at[mine, 1] - cols.start]
    return _decoded(spec, stored)


def _path(tile: TileEntry) -> Path:
    assert tile.path is not None, f"{tile.id} is a gap"
    return tile.path


def utm_zone(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """EPSG code of each point's UTM zone; only a preference, so Norway's exceptions do not matter."""
    lon = np.where(np.isfinite(points[:, 0]), points[:, 0], 0.0)
    number = np.floor((lon + 180.0) / 6.0).astype(np.int64) % 60 + 1
    return np.where(points[:, 1] >= 0, 32600, 32700) + number


def _cells(box: PixelBox, within: PixelBox, patch_px: int) -> Cells:
    """Cells of `box` in an array over `within`."""
    rows, cols = box.slices_in(within)
    return (
        slice(rows.start // patch_px, rows.stop // patch_px),
        slice(cols.start // patch_px, cols.stop // patch_px),
    )
