"""A map as a lazy xarray.DataArray; blocks are read and decoded when they are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401 - gives DataArrays their .rio
import xarray as xr
from dask.base import tokenize

from olmoearth_cli.maps.cog import block_side
from olmoearth_cli.maps.map_spec import MapSpec, utc_text
from olmoearth_cli.maps.mosaic import extent
from olmoearth_cli.maps.reading import read_cells
from olmoearth_cli.maps.tile_files import TileEntry


@dataclass(frozen=True, kw_only=True, eq=False)
class _BlockReader:
    """Reads chunk (band 0, i, j) of the array; small enough to travel to every worker."""

    spec: MapSpec
    paths: Mapping[tuple[int, int], Path]
    """(tile row, tile column) in the array -> COG; a missing one is a gap."""
    tile_cells: int
    """Cells along a tile's side."""
    block: int
    """Cells along a chunk's side."""

    def __call__(self, block_id: tuple[int, int, int]) -> npt.NDArray[np.float32]:
        _, i, j = block_id
        per_tile = -(-self.tile_cells // self.block)
        rows, cols = (self._span(k % per_tile) for k in (i, j))
        path = self.paths.get((i // per_tile, j // per_tile))
        if path is None:
            shape = (self.spec.dimensions, rows.stop - rows.start, cols.stop - cols.start)
            return np.full(shape, np.nan, dtype=np.float32)
        return np.moveaxis(read_cells(self.spec, path, (rows, cols)), -1, 0)  # D Y X

    def _span(self, k: int) -> slice:
        return slice(k * self.block, min((k + 1) * self.block, self.tile_cells))


def to_dataarray(spec: MapSpec, tiles: Sequence[TileEntry]) -> xr.DataArray:
    """Finished tiles of one zone as (band, y, x), one chunk per COG block.

    All tiles of a map are equal squares of the global grid, so they form the array's blocks.
    """
    done = [tile for tile in tiles if tile.status == "done"]
    box = extent(done)
    side_px = done[0].box.height
    cells = side_px // spec.patch_px
    item_bytes = np.dtype(spec.dtype).itemsize
    paths = {
        ((t.box.row0 - box.row0) // side_px, (t.box.col0 - box.col0) // side_px): t.path.resolve()
        for t in done
        if t.path is not None
    }
    reader = _BlockReader(
        spec=spec,
        paths=paths,
        tile_cells=cells,
        block=block_side(spec.dimensions, item_bytes, cells),
    )
    chunks = [min(reader.block, cells - at) for at in range(0, cells, reader.block)]
    ys, xs = (tuple(chunks * (length // side_px)) for length in (box.height, box.width))
    array = da.map_blocks(
        reader,
        name=f"embedding-{tokenize(*((t.id, str(t.path), t.facts.get('sha256')) for t in done))}",
        chunks=((spec.dimensions,), ys, xs),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), dtype=np.float32),
    )
    return _with_place(array, spec, done)


def _with_place(array: da.Array, spec: MapSpec, tiles: Sequence[TileEntry]) -> xr.DataArray:
    """Name the dimensions and attach coordinates, CRS and no data."""
    box = extent(tiles)
    geo = box.transform(spec.cell_m)
    height, width = spec.shape(box)
    attributes: dict[str, Any] = {
        "title": spec.title,
        "model": spec.model_id,
        "demo_weights": int(spec.demo),
        "start": utc_text(spec.start),
        "end": utc_text(spec.end),
    }
    out = xr.DataArray(
        array,
        dims=("band", "y", "x"),
        coords={
            "band": list(spec.band_names),
            "y": geo.f + geo.e * (np.arange(height) + 0.5),
            "x": geo.c + geo.a * (np.arange(width) + 0.5),
        },
        name="embedding",
        attrs=attributes,
    )
    return out.rio.write_crs(box.epsg).rio.write_transform(geo).rio.write_nodata(np.nan)
