"""Map cells as single integers, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely

from olmoearth_cli.geo.grid import PIXEL_M
from olmoearth_cli.maps.footprint import from_lonlat, to_lonlat
from olmoearth_cli.maps.tile_files import TileEntry

Ints = npt.NDArray[np.int64]
_BITS = 24
_MIDDLE = 1 << (_BITS - 1)
"""Rows of the northern hemisphere are negative."""


def keys_of(cells: Ints) -> Ints:
    """[N] one integer per cell [N, 3]; sorted keys are cells sorted by zone, row, column."""
    epsg, row, col = cells.T
    return np.asarray((epsg << 2 * _BITS) + ((row + _MIDDLE) << _BITS) + col + _MIDDLE)


def cells_from(keys: Ints) -> Ints:
    """[N, 3] EPSG, row, column of keys [N]."""
    low = (1 << _BITS) - 1
    row, col = ((keys >> _BITS) & low) - _MIDDLE, (keys & low) - _MIDDLE
    return np.stack([keys >> 2 * _BITS, row, col], axis=-1)


def centres(cells: Ints, patch_px: int) -> npt.NDArray[np.float64]:
    """[N, 2] longitude and latitude of the cells' centres."""
    side = patch_px * PIXEL_M
    out = np.empty((len(cells), 2), dtype=np.float64)
    for epsg in np.unique(cells[:, 0]).tolist():
        mine = cells[:, 0] == epsg
        row, col = cells[mine, 1], cells[mine, 2]
        out[mine] = np.column_stack(to_lonlat(epsg).transform((col + 0.5) * side, -(row + 0.5) * side))
    return out


def cells_at(lonlat: npt.NDArray[np.float64], epsg: npt.NDArray[np.int64] | int, patch_px: int) -> Ints:
    """[N, 3] the cells of given zones that hold points [N, 2]; row and column 0 where a zone cannot hold the point."""
    side = patch_px * PIXEL_M
    zones = np.broadcast_to(np.asarray(epsg, dtype=np.int64), len(lonlat))
    out = np.zeros((len(lonlat), 3), dtype=np.int64)
    out[:, 0] = zones
    for zone in np.unique(zones).tolist():
        mine = np.flatnonzero(zones == zone)
        x, y = from_lonlat(zone).transform(lonlat[mine, 0], lonlat[mine, 1])
        near = np.isfinite(x) & np.isfinite(y)
        out[mine[near], 1] = np.floor(-y[near] / side)
        out[mine[near], 2] = np.floor(x[near] / side)
    return out


def holders(tiles: Sequence[TileEntry], cells: Ints, patch_px: int) -> npt.NDArray[np.intp]:
    """[N] position in `tiles` of a tile that covers each cell [N, 3]; -1 where none does."""
    apart = 1 << _BITS  # zones lie side by side in one plane
    zone, row0, col0, row1, col1 = np.array([_edges(tile, patch_px) for tile in tiles]).reshape(-1, 5).T
    boxes = shapely.box(zone * apart + col0, row0, zone * apart + col1, row1)
    middle = shapely.points(cells[:, 0] * apart + cells[:, 2] + 0.5, cells[:, 1] + 0.5)
    at, tile = shapely.STRtree(boxes).query(middle)  # by envelope, which is exact: a centre is on no edge
    out = np.full(len(cells), -1, dtype=np.intp)
    out[at] = tile
    return out


def _edges(tile: TileEntry, patch_px: int) -> tuple[int, int, int, int, int]:
    box = tile.box
    p = patch_px
    return box.epsg, box.row0 // p, box.col0 // p, box.row1 // p, box.col1 // p
