"""A region of interest as pixels of any grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from pyproj import Transformer
from rasterio.features import geometry_mask
from rasterio.warp import transform_bounds

from olmoearth_cli.geo.aoi import DENSE_DEG, Aoi
from olmoearth_cli.maps.merge import Grid

REACH_DEG = 0.5
"""How far around a raster a region is kept before projecting: a vertex far from a zone has no place in it."""


class Clip:
    """The part of a region that lies on a grid."""

    def __init__(self, aoi: Aoi, grid: Grid) -> None:
        self._region = region_in(aoi, grid.crs, grid.bounds)

    def outside(self, part: Grid) -> npt.NDArray[np.bool_]:
        """[H, W] True for pixels of a part of the grid whose centre lies outside the region."""
        frame = shapely.box(*part.bounds)
        if not shapely.intersects(self._region, frame):
            return np.ones((part.height, part.width), dtype=np.bool_)
        if shapely.covers(self._region, frame):
            return np.zeros((part.height, part.width), dtype=np.bool_)
        outside = geometry_mask([self._region], (part.height, part.width), part.transform)
        return np.asarray(outside, dtype=np.bool_)


def region_in(aoi: Aoi, crs: rasterio.CRS, bounds: tuple[float, float, float, float]) -> shapely.Geometry:
    """The region in a reference system, without what lies far from `bounds` (of that system); may be empty."""
    west, south, east, north = transform_bounds(crs, rasterio.CRS.from_epsg(4326), *bounds)
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    near = shapely.union_all([shapely.box(w, south, e, north).buffer(REACH_DEG, join_style="mitre") for w, e in spans])
    part = shapely.segmentize(shapely.intersection(aoi.geometry, near), DENSE_DEG)
    to_crs = Transformer.from_crs(4326, crs.to_wkt(), always_xy=True)
    moved = shapely.transform(part, to_crs.transform, interleaved=False)
    return moved if moved.is_valid else shapely.make_valid(moved)
