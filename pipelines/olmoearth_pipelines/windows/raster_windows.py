"""The windows that a raster of labels makes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.warp import transform_bounds

from olmoearth_cli.geo.aoi import NORTH_LIMIT, SOUTH_LIMIT, Aoi
from olmoearth_cli.geo.grid import PIXEL_M, square
from olmoearth_cli.geo.tiles import blocks_of
from olmoearth_cli.maps.footprint import to_lonlat
from olmoearth_cli.maps.label_raster import opened_raster
from olmoearth_cli.maps.labels import LabelTable
from olmoearth_cli.maps.reading import utm_zone
from olmoearth_pipelines.windows.label_set import LabelSource
from olmoearth_pipelines.windows.stores import Candidates, RasterTargets
from olmoearth_pipelines.windows.window import Array

Ints = npt.NDArray[np.int64]
READ_PX = 1024
"""Side of the squares in which a raster is looked through."""


def raster_windows(source: LabelSource, *, window_px: int, classes: int) -> Candidates:
    """Windows of the grid with at least one labelled pixel; each in the UTM zone of its centre.

    Args:
        source: the raster.
        window_px: side of a window.
        classes: C; 0 for numbers.

    Raises:
        InputError: the raster cannot be read.
    """
    side = window_px * max(1, READ_PX // window_px)
    reader = RasterTargets(
        table=source.table, classes=source.classes, place=np.empty((0, 3), np.int64), window_px=window_px
    )
    places, amounts = [np.empty((0, 3), np.int64)], [np.empty((0, max(1, classes)))]
    for epsg, members in sorted(blocks_of(_extent(source.table), side).items()):
        for i, j in members:
            box = square(epsg, side, i, j)
            amount, labelled = _summed(reader.over(box), window_px, classes)
            row, col = np.divmod(np.flatnonzero(labelled), side // window_px)
            place = np.stack([np.full_like(row, epsg), box.row0 + row * window_px, box.col0 + col * window_px], axis=1)
            own = _own_zone(place, window_px)
            places.append(place[own])
            amounts.append(amount[labelled][own])
    place, amount = np.concatenate(places), np.concatenate(amounts)
    order = np.lexsort(place.T[::-1])
    place, amount = place[order], amount[order]
    return Candidates(
        place=place,
        role=np.full(len(place), source.role[0]),
        amount=amount,
        labels=np.zeros(len(place), dtype=np.int64),
        first=np.full(len(place), -1),
        targets=RasterTargets(table=source.table, classes=source.classes, place=place, window_px=window_px),
    )


def _extent(table: LabelTable) -> Aoi:
    """The raster's bounds as a region, as far as UTM reaches."""
    assert table.raster is not None
    with opened_raster(table.raster) as source:
        west, south, east, north = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    spans = [(west, east)] if west < east else [(west, 180.0), (-180.0, east)]
    low, high = max(south, SOUTH_LIMIT), min(north, NORTH_LIMIT)
    return Aoi(shapely.MultiPolygon([shapely.box(a, low, b, high) for a, b in spans]), table.source, "")


def _summed(pixels: Array, window_px: int, classes: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Per window of a square [S, S], row by row: [K, C] pixels of each class or [K, 1] the mean, and [K] labelled."""
    k = len(pixels) // window_px
    by_window = pixels.reshape(k, window_px, k, window_px).swapaxes(1, 2).reshape(k * k, -1)  # K W·W
    if not classes:
        seen = np.isfinite(by_window)
        total = np.where(seen, by_window, 0).sum(axis=1, dtype=np.float64)
        count = seen.sum(axis=1)
        return (total / np.maximum(count, 1))[:, None], count > 0
    window, at = np.nonzero(by_window >= 0)
    code = window * classes + by_window[window, at]
    amount = np.bincount(code, minlength=k * k * classes).reshape(k * k, classes).astype(np.float64)
    return amount, amount.sum(axis=1) > 0


def _own_zone(place: Ints, window_px: int) -> npt.NDArray[np.bool_]:
    """[K] True for windows whose centre lies in their own zone; along a border both zones have windows."""
    if not len(place):
        return np.zeros(0, dtype=np.bool_)
    row, col = ((place[:, k] + window_px / 2) * PIXEL_M for k in (1, 2))
    lonlat = np.column_stack(to_lonlat(int(place[0, 0])).transform(col, -row))
    return np.asarray(utm_zone(lonlat) == place[:, 0])
