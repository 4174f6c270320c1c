"""What of a map is exported, read in parallel and in order, never more than a few windows at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, TypeVar

import numpy as np
from rasterio.windows import Window

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.aoi import Aoi
from olmoearth_cli.maps.cog import block_side
from olmoearth_cli.maps.embedding_map import EmbeddingMap, MapSpec, TileEntry
from olmoearth_cli.maps.merge import Array, Form, Grid, Mosaic, by_zone, piece_on
from olmoearth_cli.maps.quantize import NO_DATA
from olmoearth_pipelines.exporting.clip import Clip

WINDOW_BYTES = 32_000_000
"""Decoded size of what is read and written at once, about."""

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A map, and how its vectors leave it."""

    emap: EmbeddingMap
    spec: MapSpec
    """The map's own, with the number type of the export."""
    aoi: Aoi | None
    """Only cells whose centre lies inside are exported."""
    threads: int
    """Readers side by side."""
    show: Callable[[str, int, int], None]
    """Told of every step: what, done, of how many."""

    @property
    def tiles(self) -> tuple[TileEntry, ...]:
        """The finished ones."""
        return tuple(tile for tile in self.emap.tiles if tile.status == "done")

    def windows(self, grid: Grid, side: int, tiles: Sequence[TileEntry]) -> Iterator[tuple[Window, Array]]:
        """Every window of a grid with its values [D, H, W] in the export's number type, in order."""
        stored = form_of(self.emap.spec, block=side, window=side)
        first = grid.crs.to_epsg() or 0
        pieces = [piece_on(grid, _path(t), t.box, self.emap.spec.cell_m) for t in by_zone(tiles, first)]
        mosaic = Mosaic(pieces, grid, stored)
        clip = Clip(self.aoi, grid) if self.aoi else None

        def read(window: Window) -> Array:
            values = mosaic.read(window)
            if clip is not None:
                values[:, clip.outside(grid.part(window))] = stored.nodata
            return np.moveaxis(self.converted(np.moveaxis(values, 0, -1)), -1, 0)

        total = -(-grid.height // side) * -(-grid.width // side)
        for done, found in enumerate(in_order(read, grid.windows(side), self.threads), start=1):
            yield found
            self.show("windows", done, total)

    def converted(self, stored: Array) -> Array:
        """[..., D] from the map's number type to the export's."""
        quantizer = self.emap.spec.quantizer
        return quantizer.decode(stored) if quantizer and self.spec.dtype == "float32" else stored


def exported_spec(spec: MapSpec, dtype: str | None) -> MapSpec:
    """A map's specification with the export's number type.

    Raises:
        InputError: int8 is asked of a float32 map, which does not hold the model's rule.
    """
    if dtype in (None, spec.dtype):
        return spec
    if dtype == "int8":
        raise InputError(
            "--dtype int8: this map holds float32, and the rule that makes int8 of it belongs to the model, not to "
            "the map. Export float32, or make the map with `olmoearth embed --dtype int8`."
        )
    return replace(spec, dtype="float32", scale=None, offset=None)


def form_of(spec: MapSpec, *, block: int, window: int) -> Form:
    """The form of a map's bands."""
    d = spec.dimensions
    return Form(
        names=spec.band_names,
        dtype=spec.dtype,
        nodata=float(NO_DATA) if spec.dtype == "int8" else float("nan"),
        scales=spec.scale or (1.0,) * d,
        offsets=spec.offset or (0.0,) * d,
        block=block,
        window=window,
        averaged=True,
    )


def block_of(spec: MapSpec, grid: Grid) -> int:
    """Side of a raster's blocks: all bands of one decode to a few MB."""
    return block_side(spec.dimensions, np.dtype(spec.dtype).itemsize, max(grid.height, grid.width))


def window_of(spec: MapSpec, block: int) -> int:
    """Side of a window: whole blocks, about `WINDOW_BYTES` of the widest number that is met on the way."""
    blocks = WINDOW_BYTES // (block * block * spec.dimensions * np.dtype(spec.dtype).itemsize)
    return block * max(1, isqrt(blocks))


def in_order(function: Callable[[Task], Result], tasks: Iterable[Task], threads: int) -> Iterator[tuple[Task, Result]]:
    """Results in the order of the tasks; threads work ahead by no more tasks than there are threads."""
    waiting: deque[tuple[Task, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for task in tasks:
            waiting.append((task, pool.submit(function, task)))
            if len(waiting) > threads:
                ready, future = waiting.popleft()
                yield ready, future.result()
        while waiting:
            ready, future = waiting.popleft()
            yield ready, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _path(tile: TileEntry) -> Any:
    assert tile.path is not None, f"{tile.id} is a gap"
    return tile.path
