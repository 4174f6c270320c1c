"""An embedding map: the folder that `embed` writes and everything else reads (design.md section 6)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.files import file_sha256, read_json
from olmoearth_cli.maps.finish import finish_map
from olmoearth_cli.maps.map_spec import MapSpec, TileResult
from olmoearth_cli.maps.tile_files import (
    TileEntry,
    is_embedding,
    read_tiles,
    spec_of,
    tile_facts,
    tile_states,
    write_gap,
    write_tile,
)

if TYPE_CHECKING:
    import xarray

__all__ = [
    "EmbeddingMap",
    "MapSpec",
    "TileEntry",
    "TileResult",
    "finish_map",
    "open_map",
    "tile_facts",
    "tile_states",
    "write_gap",
    "write_tile",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingMap:
    """A map on disk. Nothing is read until asked for."""

    folder: Path
    spec: MapSpec
    """What all tiles share."""
    tiles: tuple[TileEntry, ...]
    """Finished tiles and gaps, by id."""
    complete: bool
    """True where the run that made the map ended and left no gap."""

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> EmbeddingMap:
        """Open a finished or half-finished map; what is complete can be read.

        Raises:
            InputError: no such folder, no map in it, no finished tile, or tiles of several models.
        """
        path = Path(folder)
        if not path.is_dir():
            raise InputError(f"{path}: no such folder. Give the folder that `olmoearth embed` printed.")
        tiles = tuple(read_tiles(path))
        done = [tile for tile in tiles if tile.status == "done"]
        if not done:
            raise InputError(_why_no_tile(path, gaps=len(tiles)))
        if not is_embedding(done[0]):
            raise InputError(
                f"{path}: holds predictions, not embeddings. Give the folder that `olmoearth embed` printed."
            )
        spec = spec_of(done[0])
        for tile in done[1:]:
            other = spec.differences(spec_of(tile))
            if other:
                raise InputError(
                    f"{path}: tiles {done[0].id} and {tile.id} differ in {', '.join(other)}; "
                    "their vectors cannot be compared. Make the map again with --overwrite."
                )
        return cls(folder=path, spec=spec, tiles=tiles, complete=_is_complete(path))

    @property
    def zones(self) -> tuple[int, ...]:
        """EPSG codes of the map's UTM zones."""
        return tuple(sorted({tile.box.epsg for tile in self.tiles if tile.status == "done"}))

    def read_window(self, box: PixelBox) -> npt.NDArray[np.float32]:
        """Vectors over a box.

        Args:
            box: 10 m pixels; edges on multiples of `spec.patch_px`.

        Returns:
            [Y, X, D], NaN where the map has no data.
        """
        from olmoearth_cli.maps.reading import read_window

        return read_window(self.spec, self.tiles, box)

    def read_points(self, lonlat: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Vectors at points.

        Args:
            lonlat: [N, 2] longitude and latitude in degrees (WGS84).

        Returns:
            [N, D], NaN for points where the map has no data.
        """
        from olmoearth_cli.maps.reading import read_points

        return read_points(self.spec, self.tiles, lonlat)

    def read_cells(self, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Vectors of single cells; only the blocks that hold one are read.

        Args:
            cells: [N, 3] EPSG code, row, column; rows and columns count cells of the zone's global grid.

        Returns:
            [N, D] in the order of `cells`, NaN where the map has no data.

        Raises:
            InputError: a tile's file is gone or damaged.
        """
        from olmoearth_cli.maps.reading import read_listed

        return read_listed(self.spec, self.tiles, np.asarray(cells, dtype=np.int64).reshape(-1, 3))

    def checksums(self) -> dict[str, str]:
        """Tile id -> SHA-256 of its COG, computed from the file as it is now."""
        return {tile.id: file_sha256(tile.path) for tile in self.tiles if tile.path is not None}


def open_map(folder: str | os.PathLike[str], *, epsg: int | None = None) -> xarray.DataArray:
    """Open a map as a lazy array of decoded vectors.

    Args:
        folder: what `olmoearth embed` printed.
        epsg: the UTM zone to open; needed where the map has several.

    Returns:
        float32 DataArray (band, y, x) backed by dask, one chunk per block of a tile, NaN where there is no
        data; CRS and transform are known to rioxarray (`.rio`).

    Raises:
        InputError: no map, or several zones and none chosen.
    """
    from olmoearth_cli.maps.lazy import to_dataarray

    opened = EmbeddingMap.open(folder)
    zones = ", ".join(str(zone) for zone in opened.zones)
    if epsg is None and len(opened.zones) > 1:
        raise InputError(f"{folder}: the map lies in several UTM zones ({zones}). Choose one with epsg=.")
    chosen = opened.zones[0] if epsg is None else epsg
    if chosen not in opened.zones:
        raise InputError(f"{folder}: no tile in EPSG:{chosen}. The map has: {zones}.")
    return to_dataarray(opened.spec, [tile for tile in opened.tiles if tile.box.epsg == chosen])


def _is_complete(folder: Path) -> bool:
    path = folder / "run.json"
    if not path.is_file():
        return False
    record = read_json(path)
    return isinstance(record, dict) and record.get("status") == "finished" and bool(record.get("complete"))


def _why_no_tile(folder: Path, *, gaps: int) -> str:
    if gaps:
        return f"{folder}: all {gaps} tiles of this map are gaps (their reasons are in {folder / 'gaps'})."
    if (folder / "run.json").is_file():
        return f"{folder}: no tile of this map is finished yet. Run the same embed command again to continue it."
    return f"{folder}: holds no embedding map (no items/*.json). Give the folder that `olmoearth embed` printed."
