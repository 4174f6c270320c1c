"""Model windows, the blocks they are encoded in, and the tiles that become files.

All three are squares of the global pixel grid (`geo.grid`), never of the region:

    window   what the encoder sees at once; neighbours overlap
    stride   the square in the window's middle whose cells it owns; strides tile the plane
    block    batch_side x batch_side strides, encoded together; the unit in which a region is covered
    tile     whole blocks; one task from pixels to file

A block's vectors depend on its own pixels alone and on nothing about the region, the tile or the
number of workers; this is what makes two maps agree byte for byte where they overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import shapely

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.aoi import Aoi
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox, square

TILE_SIDES_PX = (256, 512, 1024)
"""Wanted tile sides; large tiles read fewer bytes twice, small ones give every worker something to do."""
MIN_TILES = 8
"""A region gets the largest tile side that still leaves this many tiles."""
LARGEST_PATCH_PX = 8
"""The models' base patch size; larger patches were never trained (spec/model.md G11)."""


@dataclass(frozen=True, kw_only=True)
class Windowing:
    """How windows lie on the pixel grid. Sides in 10 m pixels."""

    window_px: int
    overlap_px: int
    """Pixels that neighbouring windows share; half of it is dropped on each side."""
    patch_px: int
    """Side of a map cell."""
    batch_side: int = 1
    """Windows per side of a block; 1 where a single window fills a micro-batch."""

    def __post_init__(self) -> None:
        w, o, p = self.window_px, self.overlap_px, self.patch_px
        if not 1 <= p <= LARGEST_PATCH_PX:
            raise InputError(f"--patch-size {p}: the models take 1 to {LARGEST_PATCH_PX} pixels. Use 4 or 8.")
        if w < p or w % p:
            raise InputError(
                f"--patch-size {p} does not divide --window {w}. "
                f"Use a window of {max(p, round(w / p) * p)} pixels, or another patch size."
            )
        if not 0 <= o < w:
            raise InputError(f"--overlap {o} must be at least 0 and smaller than --window {w}.")
        if o % (2 * p):
            raise InputError(
                f"--overlap {o}: half of it must be a whole number of {p} px patches. "
                f"Use a multiple of {2 * p}, for example {o // (2 * p) * 2 * p}."
            )

    @property
    def stride_px(self) -> int:
        """Side of the square that a window owns."""
        return self.window_px - self.overlap_px

    @property
    def margin_px(self) -> int:
        """Pixels of a window beyond its owned square, on each side."""
        return self.overlap_px // 2

    @property
    def block_px(self) -> int:
        """Side of a block."""
        return self.stride_px * self.batch_side

    @property
    def block_km2(self) -> float:
        """Area of a block."""
        return (self.block_px * PIXEL_M) ** 2 / 1e6

    @property
    def cells_per_window(self) -> int:
        """Map cells along a window's side."""
        return self.window_px // self.patch_px

    @property
    def reach(self) -> int:
        """How many strides away a window can still cover a cell."""
        return math.ceil(self.margin_px / self.stride_px)

    def owned(self, epsg: int, i: int, j: int) -> PixelBox:
        """The square whose cells window (i, j) owns."""
        return square(epsg, self.stride_px, i, j)

    def window(self, epsg: int, i: int, j: int) -> PixelBox:
        """What the encoder sees for window (i, j)."""
        return self.owned(epsg, i, j).grown(self.margin_px)

    def windows_of(self, block: tuple[int, int]) -> list[tuple[int, int]]:
        """Indices of a block's windows, row by row."""
        k = self.batch_side
        return [(block[0] * k + a, block[1] * k + b) for a in range(k) for b in range(k)]

    def tile_px(self, wanted_px: int) -> int:
        """The tile side of whole blocks next to `wanted_px`, at least one block."""
        return max(1, round(wanted_px / self.block_px)) * self.block_px


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One job: a square of the grid and the blocks in it that the region touches."""

    id: str
    """Zone and grid position, for example `32631-r-05610-c00063-256`."""
    box: PixelBox
    """The square that the tile's file covers, in 10 m pixels."""
    blocks: tuple[tuple[int, int], ...]
    """(i, j) of the blocks to encode, row by row."""

    @property
    def area_km2(self) -> float:
        """Area of the file's square."""
        return self.box.height * self.box.width * PIXEL_M**2 / 1e6


@dataclass(frozen=True, kw_only=True)
class TileGrid:
    """All tiles of a region."""

    windowing: Windowing
    tile_px: int
    tiles: tuple[Tile, ...]

    @property
    def blocks(self) -> int:
        """Blocks to encode in all tiles."""
        return sum(len(tile.blocks) for tile in self.tiles)

    @property
    def area_km2(self) -> float:
        """Area that will be encoded; a little more than the region, by whole blocks."""
        return self.blocks * self.windowing.block_km2


def tile_id(box: PixelBox) -> str:
    """Name of a tile: zone, signed grid position in tiles, side. Safe as a file name on every system."""
    side = box.height
    return f"{box.epsg}-r{box.row0 // side:+06d}-c{box.col0 // side:+06d}-{side}".replace("+", "0")


def blocks_of(aoi: Aoi, block_px: int) -> dict[int, list[tuple[int, int]]]:
    """EPSG code -> (i, j) of every block of the grid that the region touches, row by row."""
    return {epsg: list(_touched(epsg, part, block_px)) for epsg, part in aoi.by_zone().items()}


def _touched(epsg: int, part: shapely.Geometry, side_px: int) -> Iterator[tuple[int, int]]:
    """Grid squares that share area with `part` (metres), found by halving: cheap for large regions."""
    side_m = side_px * PIXEL_M
    west, south, east, north = part.bounds
    rows = (math.floor(-north / side_m), math.floor(-south / side_m) + 1)
    cols = (math.floor(west / side_m), math.floor(east / side_m) + 1)
    shapely.prepare(part)
    found: list[tuple[int, int]] = []
    stack = [(rows[0], rows[1], cols[0], cols[1])]
    while stack:
        r0, r1, c0, c1 = stack.pop()
        area = shapely.box(c0 * side_m, -r1 * side_m, c1 * side_m, -r0 * side_m)
        if not shapely.intersects(part, area) or shapely.touches(part, area):
            continue
        if shapely.covers(part, area) or (r1 - r0 == 1 and c1 - c0 == 1):
            found.extend((i, j) for i in range(r0, r1) for j in range(c0, c1))
        elif r1 - r0 >= c1 - c0:
            middle = (r0 + r1) // 2
            stack += [(r0, middle, c0, c1), (middle, r1, c0, c1)]
        else:
            middle = (c0 + c1) // 2
            stack += [(r0, r1, c0, middle), (r0, r1, middle, c1)]
    yield from sorted(found)


def tile_grid(aoi: Aoi, windowing: Windowing, *, tile_px: int | None = None) -> TileGrid:
    """Cover a region with tiles.

    Args:
        aoi: the region.
        windowing: how windows lie on the grid.
        tile_px: wanted tile side in pixels; chosen by the region's size where None.

    Returns:
        Tiles sorted by zone, row and column, each with the blocks that the region touches.
    """
    blocks = blocks_of(aoi, windowing.block_px)
    sides = [tile_px] if tile_px else list(TILE_SIDES_PX)
    side = 0
    grouped: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for wanted in sides:
        candidate = windowing.tile_px(wanted)
        groups = _group(blocks, windowing, candidate)
        if grouped and len(groups) < MIN_TILES:
            break
        side, grouped = candidate, groups
    tiles = []
    for (epsg, i, j), members in sorted(grouped.items()):
        box = square(epsg, side, i, j)
        tiles.append(Tile(id=tile_id(box), box=box, blocks=tuple(members)))
    return TileGrid(windowing=windowing, tile_px=side, tiles=tuple(tiles))


def _group(
    blocks: dict[int, list[tuple[int, int]]], windowing: Windowing, side_px: int
) -> dict[tuple[int, int, int], list[tuple[int, int]]]:
    per_side = side_px // windowing.block_px
    groups: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for epsg, members in blocks.items():
        for i, j in members:
            groups.setdefault((epsg, i // per_side, j // per_side), []).append((i, j))
    return groups


def needed_blocks(tile: Tile, windowing: Windowing, blend: str) -> list[tuple[int, int]]:
    """Blocks to encode for a tile: its own, and with blending those whose windows reach into them."""
    if blend == "none" or not windowing.overlap_px:
        return sorted(tile.blocks)
    reach = -(-windowing.reach // windowing.batch_side)
    span = range(-reach, reach + 1)
    return sorted({(i + a, j + b) for i, j in tile.blocks for a in span for b in span})


def pixels_of(tile: Tile, windowing: Windowing, blend: str) -> PixelBox:
    """The pixels that a tile's windows look at."""
    blocks = needed_blocks(tile, windowing, blend)
    side = windowing.block_px
    rows, cols = [b[0] for b in blocks], [b[1] for b in blocks]
    return PixelBox(
        tile.box.epsg,
        min(rows) * side,
        min(cols) * side,
        (max(rows) + 1) * side,
        (max(cols) + 1) * side,
    ).grown(windowing.margin_px)
