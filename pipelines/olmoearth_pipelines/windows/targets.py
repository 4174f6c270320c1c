"""Which pixels of the global grid points and polygons label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from olmoearth_cli.geo.aoi import DENSE_DEG, Aoi
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox, square
from olmoearth_cli.maps.cell_keys import cells_at, keys_of
from olmoearth_cli.maps.footprint import from_lonlat
from olmoearth_cli.maps.label_files import POLYGON
from olmoearth_cli.maps.label_shapes import places_inside
from olmoearth_cli.maps.reading import utm_zone

Ints = npt.NDArray[np.int64]
Shapes = npt.NDArray[np.object_]
LARGE_PX = 2048
"""Polygons with a larger extent are looked up square by square, for all pixels of the extent are tried."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelPixels:
    """M pairs of a pixel and a label that covers it."""

    key: Ints
    """[M] the pixel: EPSG code, row and column (`cell_keys` with cells of one pixel)."""
    label: Ints
    """[M] number of the point or polygon."""


def label_pixels(shapes: Shapes, patch_px: int) -> LabelPixels:
    """The pixels that labels cover.

    A point covers the pixels of the map cell that holds it, a polygon those whose centre it holds; a polygon that
    holds no centre covers the pixel that it lies in. A polygon on the border of two UTM zones is divided there.

    Args:
        shapes: [N] points, polygons and multipolygons in WGS84.
        patch_px: side of a map cell.
    """
    is_point = shapely.get_type_id(shapes) < POLYGON
    points, areas = np.flatnonzero(is_point), np.flatnonzero(~is_point)
    key, owner = _area_pixels(shapes[areas])
    bare = areas[~np.isin(np.arange(len(areas)), owner)]
    cells = label_cells(shapes[points], patch_px)  # points 3
    rows, cols = cells[:, 1:2] * patch_px, cells[:, 2:3] * patch_px
    down, right = np.divmod(np.arange(patch_px**2), patch_px)
    parts = np.broadcast_arrays(cells[:, :1], rows + down, cols + right)  # points P·P each
    pixels = np.stack([part.ravel() for part in parts], axis=1)
    return LabelPixels(
        key=np.concatenate([keys_of(pixels), key, keys_of(label_cells(shapes[bare], 1))]),
        label=np.concatenate([np.repeat(points, patch_px**2), areas[owner], bare]).astype(np.int64),
    )


def label_cells(shapes: Shapes, patch_px: int) -> Ints:
    """[N, 3] EPSG code, row and column of the cell that holds each point, or a point on each polygon."""
    lonlat = shapely.get_coordinates(shapely.point_on_surface(shapes))
    return cells_at(lonlat, utm_zone(lonlat), patch_px)


def _area_pixels(polygons: Shapes) -> tuple[Ints, Ints]:
    """[M] pixels whose centres polygons [K] hold, and [M] the polygon."""
    keys, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for epsg, (parts, owner) in _by_zone(polygons).items():
        for box, members in _portions(epsg, parts):
            polygon, row, col = places_inside(parts[members], box, PIXEL_M)
            pixels = np.stack([np.full_like(row, epsg), row + box.row0, col + box.col0], axis=1)
            keys.append(keys_of(pixels))
            owners.append(owner[members[polygon]])
    return np.concatenate(keys), np.concatenate(owners)


def _by_zone(polygons: Shapes) -> dict[int, tuple[Shapes, Ints]]:
    """EPSG code -> parts of polygons in that zone's metres, and which polygon each is part of."""
    if not len(polygons):
        return {}
    west, south, east, north = shapely.bounds(polygons).T
    middle = np.where(south >= 0, 1.0, -1.0)  # a latitude of the hemisphere
    zone, other = (utm_zone(np.stack([lon, middle], axis=1)) for lon in (west, east))
    whole = (zone == other) & ((south >= 0) | (north < 0))
    found: dict[int, tuple[list[shapely.Geometry], list[int]]] = {}
    for epsg in np.unique(zone[whole]).tolist():
        members = np.flatnonzero(whole & (zone == epsg))
        dense = shapely.segmentize(polygons[members], DENSE_DEG)
        moved = shapely.transform(dense, from_lonlat(epsg).transform, interleaved=False)
        found[epsg] = (list(moved), members.tolist())
    for number in np.flatnonzero(~whole).tolist():
        region = Aoi(shapely.MultiPolygon(list(shapely.get_parts(polygons[number]))), "", "")
        for epsg, part in region.by_zone().items():
            parts, owners = found.setdefault(epsg, ([], []))
            parts.append(part)
            owners.append(number)
    return {epsg: (np.array(parts, dtype=object), np.array(owners)) for epsg, (parts, owners) in sorted(found.items())}


def _portions(epsg: int, polygons: Shapes) -> list[tuple[PixelBox, npt.NDArray[np.intp]]]:
    """Boxes to look for pixels in, with the polygons [K] to try there: all small ones at once, large ones in pieces."""
    west, south, east, north = shapely.bounds(polygons).T / PIXEL_M
    large = (east - west) * (north - south) > LARGE_PX**2
    out = []
    small = np.flatnonzero(~large)
    if len(small):
        out.append((_box(epsg, west[small], south[small], east[small], north[small]), small))
    for number in np.flatnonzero(large):
        one = np.array([number])
        extent = _box(epsg, west[one], south[one], east[one], north[one])
        out += [(square(epsg, LARGE_PX, i, j), one) for i, j in extent.squares(LARGE_PX)]
    return out


def _box(
    epsg: int,
    west: npt.NDArray[np.float64],
    south: npt.NDArray[np.float64],
    east: npt.NDArray[np.float64],
    north: npt.NDArray[np.float64],
) -> PixelBox:
    """The box around extents in pixels."""
    row0, row1 = int(np.floor(-north.max())), int(np.ceil(-south.min()))
    return PixelBox(epsg, row0, int(np.floor(west.min())), row1, int(np.ceil(east.max())))
