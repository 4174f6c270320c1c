"""Which tiles become samples: cells of 2560 m of the UTM grid (spec/pretraining.md section 1.7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.aoi import NORTH_LIMIT, SOUTH_LIMIT, ZONE_DEG, Aoi
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox, square
from olmoearth_cli.geo.tiles import blocks_of
from olmoearth_cli.maps.label_files import POINT, read_label_file
from olmoearth_pipelines.samples.layout import TILE_PX


def tiles_of(aoi: Aoi) -> tuple[PixelBox, ...]:
    """The cells that a region touches, by zone, row and column; along a zone border those of both zones."""
    cells = blocks_of(aoi, TILE_PX)
    return tuple(square(epsg, TILE_PX, i, j) for epsg in sorted(cells) for i, j in cells[epsg])


def tiles_at(path: Path) -> tuple[tuple[PixelBox, ...], tuple[str, ...]]:
    """The cells that hold the points of a file, each once, by zone, row and column.

    Args:
        path: CSV with columns lon and lat, or any vector file of points.

    Returns:
        The cells, and what was left out of the file.

    Raises:
        InputError: unreadable, something other than points, or points outside UTM.
    """
    found = read_label_file(path)
    others = np.flatnonzero(shapely.get_type_id(found.geometry) != POINT)
    if len(others):
        raise InputError(
            f"--points {path}: {len(others)} of {len(found.geometry)} features are no points (first: "
            f"{found.geometry[others[0]].geom_type}). Give polygons with --aoi."
        )
    lonlat = shapely.get_coordinates(found.geometry)  # N 2
    outside = np.flatnonzero((lonlat[:, 1] < SOUTH_LIMIT) | (lonlat[:, 1] > NORTH_LIMIT))
    if len(outside):
        lon, lat = lonlat[outside[0]]
        raise InputError(
            f"--points {path}: {len(outside)} of {len(lonlat)} points lie outside UTM ({SOUTH_LIMIT:.0f} to "
            f"{NORTH_LIMIT:.0f} degrees latitude), first {lon:.6g}, {lat:.6g}. Leave them out."
        )
    return tuple(square(epsg, TILE_PX, i, j) for epsg, i, j in sorted(set(_cells(lonlat)))), found.notes


def drawn(tiles: Sequence[PixelBox], most: int | None, seed: int) -> tuple[PixelBox, ...]:
    """At most so many tiles, each as likely as any other; their order stays."""
    if most is None or len(tiles) <= most:
        return tuple(tiles)
    chosen = np.random.default_rng(seed).choice(len(tiles), size=most, replace=False)
    return tuple(tiles[k] for k in np.sort(chosen))


def centre(tile: PixelBox) -> npt.NDArray[np.float32]:
    """[2] latitude and longitude in degrees of a tile's centre."""
    west, south, east, north = tile.bounds_m
    to_lonlat = Transformer.from_crs(tile.epsg, 4326, always_xy=True)
    lon, lat = to_lonlat.transform((west + east) / 2, (south + north) / 2)
    return np.array([lat, lon], dtype=np.float32)


def _cells(lonlat: npt.NDArray[np.float64]) -> list[tuple[int, int, int]]:
    """(epsg, i, j) of the cell that each point lies in."""
    lon, lat = lonlat.T
    zones = np.clip(np.floor((lon + 180) / ZONE_DEG).astype(int) + 1, 1, 60)
    epsgs = np.where(lat >= 0, 32600, 32700) + zones
    cells = []
    for epsg in np.unique(epsgs):
        here = epsgs == epsg
        x, y = Transformer.from_crs(4326, int(epsg), always_xy=True).transform(lon[here], lat[here])
        side_m = TILE_PX * PIXEL_M
        rows, columns = np.floor(-y / side_m).astype(int), np.floor(x / side_m).astype(int)
        cells += [(int(epsg), int(i), int(j)) for i, j in zip(rows, columns, strict=True)]
    return cells
