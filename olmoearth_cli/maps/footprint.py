"""Where a tile lies, in the longitudes and latitudes that STAC wants."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import antimeridian
import numpy as np
import shapely
from pyproj import Transformer

from olmoearth_cli.geo.grid import PixelBox

POINTS_PER_EDGE = 5
"""A UTM square's edges are curved in longitude and latitude; five points keep the error below a pixel."""
DECIMALS = 7
"""About a centimetre."""


@lru_cache(maxsize=256)
def to_lonlat(epsg: int) -> Transformer:
    """From a UTM zone to (longitude, latitude)."""
    return Transformer.from_crs(epsg, 4326, always_xy=True)


@lru_cache(maxsize=256)
def from_lonlat(epsg: int) -> Transformer:
    """From (longitude, latitude) to a UTM zone."""
    return Transformer.from_crs(4326, epsg, always_xy=True)


def footprint(box: PixelBox) -> tuple[dict[str, Any], list[float]]:
    """GeoJSON geometry and bounding box; cut in two, with west > east, where the box crosses the dateline."""
    west, south, east, north = box.bounds_m
    step = np.linspace(0.0, 1.0, POINTS_PER_EDGE)[:-1]
    x = np.concatenate([west + step * (east - west), np.full(4, east), east - step * (east - west), np.full(4, west)])
    y = np.concatenate(
        [np.full(4, south), south + step * (north - south), np.full(4, north), north - step * (north - south)]
    )
    lon, lat = to_lonlat(box.epsg).transform(x, y)
    outline = shapely.Polygon(np.round(np.column_stack([lon, lat]), DECIMALS))
    shape = antimeridian.fix_polygon(outline) if _crosses(lon) else outline
    bounds = [round(float(value), DECIMALS) for value in antimeridian.bbox(shape)]
    return shapely.geometry.mapping(shape), bounds


def _crosses(lon: np.ndarray) -> bool:
    """True where the outline jumps from 180 to -180 degrees; UTM tiles are never half a world wide."""
    return bool(lon.max() - lon.min() > 180.0)


def overall_bbox(boxes: list[list[float]]) -> list[float]:
    """One bounding box over several; the narrower way round where they lie on both sides of the dateline."""
    south, north = min(b[1] for b in boxes), max(b[3] for b in boxes)
    plain = [(b[0], b[2] if b[2] >= b[0] else b[2] + 360.0) for b in boxes]
    shifted = [(w + 360.0, e + 360.0) if e < 0 else (w, e) for w, e in plain]
    west, east = min(
        ((min(w for w, _ in spans), max(e for _, e in spans)) for spans in (plain, shifted)),
        key=lambda span: span[1] - span[0],
    )
    return [west, south, east - 360.0 if east > 180.0 else east, north]
