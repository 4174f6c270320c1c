"""Which cells points and polygons lie on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely

from olmoearth_cli.geo.aoi import DENSE_DEG
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.cell_keys import cells_at, holders
from olmoearth_cli.maps.footprint import footprint, from_lonlat
from olmoearth_cli.maps.reading import utm_zone
from olmoearth_cli.maps.tile_files import TileEntry

Ints = npt.NDArray[np.int64]
Shapes = npt.NDArray[np.object_]
DEGREE_M = 111_320.0
"""Length of a degree on the equator."""
REACH_DEG = 0.5
"""How far beyond a tile a polygon is kept before projecting; a vertex far from its zone has no place in it."""
PLACES_AT_ONCE = 2_000_000
"""Places that are tested against polygons in one call."""


def place_points(
    lonlat: npt.NDArray[np.float64], tiles: Sequence[TileEntry], patch_px: int
) -> tuple[Ints, npt.NDArray[np.intp]]:
    """Cells that hold points, from the point's own UTM zone where a finished tile of that zone covers it.

    Args:
        lonlat: [N, 2] degrees.
        tiles: finished tiles.
        patch_px: side of a cell.

    Returns:
        [N, 3] cells, and [N] position of their tile in `tiles`, -1 where no tile covers the point.
    """
    cells = cells_at(lonlat, utm_zone(lonlat), patch_px)
    tile = holders(tiles, cells, patch_px)
    for epsg in sorted({entry.box.epsg for entry in tiles}):
        rest = np.flatnonzero(tile < 0)
        if len(rest):
            other = cells_at(lonlat[rest], epsg, patch_px)
            held = holders(tiles, other, patch_px)
            cells[rest[held >= 0]] = other[held >= 0]
            tile[rest] = held
    return cells, tile


def smaller_than_a_cell(polygons: Shapes, cell_m: int) -> npt.NDArray[np.bool_]:
    """[N] True for polygons in WGS84 with less area than a cell."""
    if not len(polygons):
        return np.zeros(0, dtype=np.bool_)
    bounds = shapely.bounds(polygons)
    metres_per_degree = DEGREE_M**2 * np.cos(np.radians((bounds[:, 1] + bounds[:, 3]) / 2))
    return np.asarray(shapely.area(polygons) * metres_per_degree < cell_m**2)


def meeting(polygons: Shapes, tiles: Sequence[TileEntry]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Every pair of a tile and a polygon in WGS84 that meet: [M] position in `tiles`, [M] in `polygons`."""
    prints = np.array([shapely.geometry.shape(footprint(tile.box)[0]) for tile in tiles], dtype=object)
    tile, polygon = shapely.STRtree(polygons).query(prints, predicate="intersects")
    return tile, polygon


def projected(polygons: Shapes, box: PixelBox) -> Shapes:
    """Polygons in metres of a tile's zone, without what lies far from the tile.

    Edges are straight in longitude and latitude, as GeoJSON has it (RFC 7946).
    """
    reach = shapely.buffer(shapely.geometry.shape(footprint(box)[0]), REACH_DEG, join_style="mitre")
    shapely.prepare(reach)
    near, far = polygons.copy(), ~shapely.covers(reach, polygons)
    near[far] = shapely.intersection(polygons[far], reach)
    dense = shapely.segmentize(near, DENSE_DEG)
    return np.asarray(shapely.transform(dense, from_lonlat(box.epsg).transform, interleaved=False), dtype=object)


def places_inside(polygons: Shapes, box: PixelBox, step_m: float) -> tuple[npt.NDArray[np.intp], Ints, Ints]:
    """Every pair of a polygon and a place inside it; places are the centres of a grid over a tile.

    Args:
        polygons: [K] in metres of the box's zone.
        box: the tile.
        step_m: spacing of the grid; divides the tile's side.

    Returns:
        [M] polygon, [M] row and [M] column of the place in the grid.
    """
    west, south, east, north = box.bounds_m
    low_x, low_y, high_x, high_y = shapely.bounds(polygons).T  # K each
    col0, col1 = _steps(low_x - west, high_x - west, step_m, round((east - west) / step_m))
    row0, row1 = _steps(north - high_y, north - low_y, step_m, round((north - south) / step_m))
    width, places = col1 - col0, (col1 - col0) * (row1 - row0)
    shapely.prepare(polygons)
    found = []
    chunk = np.cumsum(places) // PLACES_AT_ONCE
    for members in np.split(np.arange(len(polygons)), np.flatnonzero(np.diff(chunk)) + 1):
        which = np.repeat(members, places[members])
        within = np.arange(len(which)) - np.repeat(np.cumsum(places[members]) - places[members], places[members])
        row, col = row0[which] + within // width[which], col0[which] + within % width[which]
        inside = shapely.contains_xy(polygons[which], west + (col + 0.5) * step_m, north - (row + 0.5) * step_m)
        found.append((which[inside], row[inside], col[inside]))
    polygon, row, col = (np.concatenate(part) for part in zip(*found, strict=True))
    return polygon, row, col


def _steps(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], step: float, count: int) -> tuple[Ints, Ints]:
    """[K] first and past-the-last place whose centre lies between two distances from the tile's edge."""
    # A polygon that was cut away entirely has no bounds (NaN) and no place.
    first = np.ceil(np.nan_to_num(low, nan=0.0) / step - 0.5).clip(0, count).astype(np.int64)
    past = (np.floor(np.nan_to_num(high, nan=-step) / step - 0.5) + 1).clip(0, count).astype(np.int64)
    return first, np.maximum(first, past)
