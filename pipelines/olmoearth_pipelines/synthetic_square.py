"""The ground of a synthetic region: a square of UTM pixels, its place on the Earth, and its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer

Array = np.ndarray
GRID_PX = 12
"""Sides are multiples of this, so that 10, 20 and 60 m grids end together."""
GRID_M = 60
_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
"""Letters of the 100 km columns from 100 km east on, by zone modulo 3."""
_ROWS = "ABCDEFGHJKLMNPQRSTUV"
_BANDS = "CDEFGHJKLMNPQRSTUVWX"


@dataclass(frozen=True, kw_only=True)
class Square:
    """A north-up square of 10 m pixels in a UTM zone."""

    epsg: int
    origin: tuple[float, float]
    """Easting and northing of the upper left corner."""
    size_px: int

    def transform(self, metres: int) -> Affine:
        """Pixel to map coordinates for a pixel size in metres."""
        return Affine(metres, 0, self.origin[0], 0, -metres, self.origin[1])

    def lonlat(self, geometry: shapely.Geometry) -> shapely.Geometry:
        """Pixel coordinates (column, row) to lon/lat."""
        to_lonlat = Transformer.from_crs(self.epsg, 4326, always_xy=True)

        def moved(xy: Array) -> Array:
            east, north = self.origin[0] + 10 * xy[:, 0], self.origin[1] - 10 * xy[:, 1]
            return np.column_stack(to_lonlat.transform(east, north))

        return shapely.transform(geometry, moved)

    @cached_property
    def outline(self) -> shapely.Geometry:
        """The square in lon/lat."""
        return self.lonlat(shapely.box(0, 0, self.size_px, self.size_px))

    @property
    def bbox(self) -> list[float]:
        """Bounds in lon/lat, to 7 digits."""
        return [round(float(v), 7) for v in self.outline.bounds]

    @property
    def mgrs_tile(self) -> str:
        """Name of the 100 km square that the middle lies in, as Sentinel-2 tiles are named."""
        centre = self.lonlat(shapely.Point(self.size_px / 2, self.size_px / 2))
        east, north = self.origin[0] + 5 * self.size_px, self.origin[1] - 5 * self.size_px
        zone = self.epsg % 100
        column = _COLUMNS[zone % 3][int(east // 100_000) - 1]
        # Even zones start their rows five letters later, so that neighbours differ.
        row = _ROWS[(int(north // 100_000) + (0 if zone % 2 else 5)) % len(_ROWS)]
        band = _BANDS[min(int((centre.y + 80) // 8), len(_BANDS) - 1)]
        return f"{zone:02d}{band}{column}{row}"

    def neighbour(self) -> Square:
        """The smallest square in the nearer neighbouring zone that holds all of this ground."""
        zone = self.epsg % 100
        east = self.outline.centroid.x > 6 * zone - 183
        other = self.epsg - zone + (zone % 60 + 1 if east else (zone - 2) % 60 + 1)
        to_other = Transformer.from_crs(4326, other, always_xy=True)
        ground = shapely.segmentize(shapely.box(0, 0, self.size_px, self.size_px), self.size_px / 8)
        moved = shapely.transform(self.lonlat(ground), to_other.transform, interleaved=False)
        left, bottom, right, top = moved.bounds
        corner = (np.floor(left / GRID_M) * GRID_M, np.ceil(top / GRID_M) * GRID_M)
        side_m = max(right - corner[0], corner[1] - bottom)
        side_px = int(np.ceil(side_m / (10 * GRID_PX))) * GRID_PX
        return Square(epsg=other, origin=(float(corner[0]), float(corner[1])), size_px=side_px)

    def rows_and_columns_of(self, other: Square) -> tuple[Array, Array, Array]:
        """Where the pixels of another square lie in this one.

        Returns:
            Row and column of the pixel here that holds each pixel centre there, int64 [H, W] of the other square,
            clipped to this one; and bool [H, W], True where that centre lies outside.
        """
        there = (np.arange(other.size_px) + 0.5) * 10
        east, north = np.meshgrid(other.origin[0] + there, other.origin[1] - there)
        x, y = Transformer.from_crs(other.epsg, self.epsg, always_xy=True).transform(east, north)
        cols, rows = (np.floor(v / 10).astype(np.int64) for v in (x - self.origin[0], self.origin[1] - y))
        last = self.size_px - 1
        outside = (rows < 0) | (cols < 0) | (rows > last) | (cols > last)
        return np.clip(rows, 0, last), np.clip(cols, 0, last), outside


def feature(geometry: shapely.Geometry, properties: dict[str, Any]) -> dict[str, Any]:
    """A GeoJSON feature, coordinates to 7 digits."""
    return {"type": "Feature", "properties": properties, "geometry": plain(geometry)}


def plain(geometry: shapely.Geometry) -> dict[str, Any]:
    """A geometry as GeoJSON, coordinates to 7 digits (1 cm)."""
    content: dict[str, Any] = json.loads(shapely.to_geojson(shapely.set_precision(geometry, 1e-7)))
    return content


def write_json(path: Path, content: Any) -> None:
    """Write JSON, its folder made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_cog(
    path: Path,
    values: Array,
    square: Square,
    metres: int,
    *,
    nodata: float,
    colours: dict[int, tuple[int, int, int]] | None = None,
) -> None:
    """Write one band [H, W] as a small COG, its folder made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "COG",
        "dtype": values.dtype,
        "count": 1,
        "height": values.shape[0],
        "width": values.shape[1],
        "crs": square.epsg,
        "transform": square.transform(metres),
        "nodata": nodata,
        "compress": "DEFLATE",
        "level": 9,
        "predictor": "YES",
        "blocksize": 256,
        "overviews": "NONE",
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(values, 1)
        if colours:
            target.write_colormap(1, colours)
