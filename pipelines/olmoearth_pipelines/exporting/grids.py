"""The pixels of an exported raster: a zone's own cells, or another reference system's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyproj
import rasterio
import shapely
from rasterio.warp import transform_bounds

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.aoi import Aoi
from olmoearth_cli.maps.embedding_map import MapSpec, TileEntry
from olmoearth_cli.maps.merge import Grid, check_zones, extent_in
from olmoearth_cli.maps.mosaic import zones
from olmoearth_pipelines.exporting.clip import region_in

DEGREE_M = 111_320.0
"""Length of a degree on the equator."""
MOST_PER_CELL = 64
"""Pixels of the raster per cell of the map beyond which a resolution is taken for a mistake."""
EDGE = 1e-6
"""Pixels that a bound may pass an edge by and still lie on it."""


def one_grid(
    spec: MapSpec, tiles: Sequence[TileEntry], *, epsg: int | None, resolution: float | None, aoi: Aoi | None
) -> Grid:
    """The grid of a map in one reference system.

    Args:
        spec: of the map.
        tiles: finished ones.
        epsg: reference system; the zone with most tiles where None.
        resolution: side of a pixel in its units; the map's cell where None (a cell's worth of degrees).
        aoi: crops the grid.

    Raises:
        InputError: no such reference system, a map too wide for one zone or that has no place in it, a resolution
            that is no length or makes far more pixels than cells, or a region that is not on the map.
    """
    own_zones = zones(tiles)
    if epsg is None:
        check_zones(tiles, "Choose a reference system for all of it with --epsg, for example 4326.")
    crs = _crs(own_zones[0] if epsg is None else epsg)
    side = _side(crs, resolution, spec.cell_m)
    code = crs.to_epsg()
    if code in own_zones and side == spec.cell_m:
        grid = Grid.over(extent_in(tiles, code, spec.patch_px), spec.cell_m)
    else:
        grid = _around(_bounds(tiles, crs), crs, side)
    if aoi is not None:
        grid = _cropped(grid, aoi)
    _check_size(grid, spec, tiles)
    return grid


def zone_grids(spec: MapSpec, tiles: Sequence[TileEntry], aoi: Aoi | None) -> list[tuple[Grid, tuple[TileEntry, ...]]]:
    """A grid of own cells for every zone that the region meets, with the zone's tiles; by zone.

    Raises:
        InputError: the region is not on the map.
    """
    found: list[tuple[Grid, tuple[TileEntry, ...]]] = []
    for epsg in sorted(zones(tiles)):
        members = tuple(tile for tile in tiles if tile.box.epsg == epsg)
        grid = Grid.over(extent_in(members, epsg, spec.patch_px), spec.cell_m)
        if aoi is None:
            found.append((grid, members))
        elif shapely.intersects(region_in(aoi, grid.crs, grid.bounds), shapely.box(*grid.bounds)):
            found.append((_cropped(grid, aoi), members))
    if not found and aoi is not None:
        raise _off_the_map(aoi)
    return found


def _crs(epsg: int) -> rasterio.CRS:
    try:
        pyproj.CRS.from_epsg(epsg)  # GDAL would write to stderr besides
    except pyproj.exceptions.CRSError:
        raise InputError(f"--epsg {epsg}: no such reference system. For example 4326, or 3035 in Europe.") from None
    crs = rasterio.CRS.from_epsg(epsg)
    if not (crs.is_geographic or crs.is_projected):
        raise InputError(f"--epsg {epsg}: not a reference system of a plane map. Choose a projected or geographic one.")
    return crs


def _side(crs: rasterio.CRS, resolution: float | None, cell_m: int) -> float:
    if resolution is not None:
        if not (math.isfinite(resolution) and resolution > 0):
            raise InputError(f"--resolution {resolution}: give a length above 0, in the units of the reference system.")
        return resolution
    return cell_m / DEGREE_M if crs.is_geographic else cell_m / crs.linear_units_factor[1]


def _bounds(tiles: Sequence[TileEntry], crs: rasterio.CRS) -> tuple[float, float, float, float]:
    boxes = []
    for tile in tiles:
        own = rasterio.CRS.from_epsg(tile.box.epsg)
        west, south, east, north = transform_bounds(own, crs, *tile.box.bounds_m)
        if not all(map(math.isfinite, (west, south, east, north))) or west >= east or south >= north:
            raise InputError(
                f"--epsg {crs.to_epsg()}: tile {tile.id} of the map has no place in it, or lies across its edge. "
                "Choose the reference system of the map's own region."
            )
        boxes.append((west, south, east, north))
    west, south = (min(box[k] for box in boxes) for k in (0, 1))
    east, north = (max(box[k] for box in boxes) for k in (2, 3))
    return west, south, east, north


def _around(bounds: tuple[float, float, float, float], crs: rasterio.CRS, side: float) -> Grid:
    """Pixels over bounds, their edges on multiples of the side: two exports of one region share their pixels."""
    west, south, east, north = (edge / side for edge in bounds)
    col0, row0 = math.floor(west + EDGE), math.floor(-north + EDGE)
    col1, row1 = math.ceil(east - EDGE), math.ceil(-south - EDGE)
    return Grid(
        crs=crs,
        transform=rasterio.Affine(side, 0.0, col0 * side, 0.0, -side, -row0 * side),
        height=row1 - row0,
        width=col1 - col0,
    )


def _cropped(grid: Grid, aoi: Aoi) -> Grid:
    frame = shapely.box(*grid.bounds)
    common = shapely.intersection(region_in(aoi, grid.crs, grid.bounds), frame)
    if common.is_empty or common.area == 0:
        raise _off_the_map(aoi)
    west, south, east, north = shapely.bounds(common).tolist()
    (top, left), (bottom, right) = grid.place(west, north), grid.place(east, south)
    row0, col0 = max(0, math.floor(top + EDGE)), max(0, math.floor(left + EDGE))
    row1, col1 = min(grid.height, math.ceil(bottom - EDGE)), min(grid.width, math.ceil(right - EDGE))
    return grid.part(rasterio.windows.Window(col0, row0, max(1, col1 - col0), max(1, row1 - row0)))


def _off_the_map(aoi: Aoi) -> InputError:
    return InputError(f"--aoi {aoi.source}: does not meet the map. Give a region on it, or leave --aoi out.")


def _check_size(grid: Grid, spec: MapSpec, tiles: Sequence[TileEntry]) -> None:
    """A step mistaken for degrees or metres would make a raster that never ends."""
    boxes = [extent_in([t for t in tiles if t.box.epsg == epsg], epsg, spec.patch_px) for epsg in zones(tiles)]
    cells = sum(math.prod(spec.shape(box)) for box in boxes)
    if grid.height * grid.width > MOST_PER_CELL * max(cells, 10_000):
        raise InputError(
            f"{grid.height} x {grid.width} pixels of {grid.transform.a:g} from a map of {cells} cells. "
            f"--resolution is in the units of EPSG:{grid.crs.to_epsg()}; give a larger one, or another --epsg."
        )
