"""One tile's pixels to one tile's vectors: windows, what is missing in them, and who owns a cell.

Strategy: a block of windows (geo.tiles) is the unit of encoding. Its batch is made from its own pixels
alone, so the numbers that come out cannot depend on the region, the tile or the number of threads.
Torch runs with one thread; parallelism comes from encoding several blocks at once, which is faster
for these small matrices than splitting each of them and leaves every sum in one fixed order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from olmoearth_cli.core.finetune.task import Limits
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.plan import EmbedPlan
from olmoearth_cli.core.spec import ModelSpec
from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.geo.tiles import Tile, Windowing, needed_blocks
from olmoearth_pipelines.cube import Cube
from olmoearth_pipelines.model_input import model_values, patches_with_data, tokens_with_data

Array = np.ndarray


@dataclass(kw_only=True)
class TileVectors:
    """What encoding leaves of a tile."""

    vectors: Array
    """float32 [Y, X, D]; NaN where no modality was seen or the region does not reach."""
    disagreement: Array
    """float32 [Y, X]: mean cosine distance between the owner's vector and those of the tile's other
    windows over the same cell; NaN where no other window of the tile covers it."""
    windows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    _sum: Array = field(repr=False)
    _count: Array = field(repr=False)


def seen_patches(cube: Cube, modality: str, patch_px: int) -> Array:
    """bool [T, Y, X]: True where a patch has data (`model_input.patches_with_data`)."""
    return patches_with_data(cube.valid[modality], modality, patch_px)


class BlockEncoder:
    """Encodes the blocks of one tile; safe to call from several threads."""

    def __init__(
        self,
        cube: Cube,
        spec: ModelSpec,
        plan: EmbedPlan,
        windowing: Windowing,
        *,
        normalisation: Mapping[str, Limits] | None = None,
    ) -> None:
        """Prepare.

        Args:
            cube: the tile's pixels.
            spec: the model.
            plan: of the model, for windows of this windowing.
            windowing: how windows lie on the grid.
            normalisation: {modality: limits} that a fine-tuned model learned with; those of pretraining otherwise.
        """
        self._cube, self._spec, self._plan, self._windowing = cube, spec, plan, windowing
        self._limits = normalisation or {}
        self._seen = {m: seen_patches(cube, m, windowing.patch_px) for m in cube.values}
        self._sets = {m: [MODALITIES[m].indices(band_set) for band_set in spec.band_sets(m)] for m in cube.values}

    def encode(self, block: tuple[int, int]) -> tuple[list[tuple[int, int]], Array, int]:
        """Encode one block.

        Returns:
            Window indices, their vectors float32 [B, Y, X, D] with NaN where nothing was seen, and the
            number of tokens.
        """
        windows, inputs, seen = self.samples(block)
        vectors: Tensor = self._plan.embed(inputs, seen)  # B Y X D
        out = vectors.numpy().copy() if not vectors.is_cuda else vectors.cpu().numpy()
        covered = np.any([mask.any(axis=(3, 4)) for mask in seen.values()], axis=0)  # B Y X
        out[~covered] = np.nan
        return windows, out, int(sum(mask.sum() for mask in seen.values()))

    def samples(self, block: tuple[int, int]) -> tuple[list[tuple[int, int]], dict[str, Array], dict[str, Array]]:
        """The windows of a block as the model reads them.

        Returns:
            Window indices, {modality: normalised values float32 [B, H, W, T, C]} and {modality: bool [B, Y, X, T, S]},
            True where a token has data.
        """
        windows = self._windowing.windows_of(block)
        inputs, seen = {}, {}
        for modality in self._cube.values:
            parts = [self._window(modality, *index) for index in windows]
            inputs[modality] = np.stack([values for values, _ in parts])  # B H W T C
            seen[modality] = np.stack([mask for _, mask in parts])  # B Y X T S
        return windows, inputs, seen

    def _window(self, modality: str, i: int, j: int) -> tuple[Array, Array]:
        """Normalised values [H, W, T, C] and seen [Y, X, T, S] of one window."""
        cube, p = self._cube, self._windowing.patch_px
        box = self._windowing.window(cube.box.epsg, i, j)
        rows, cols = box.slices_in(cube.box)
        raw = np.ascontiguousarray(cube.values[modality][:, :, rows, cols].transpose(2, 3, 0, 1))  # H W T C
        valid = cube.valid[modality][:, rows, cols].transpose(1, 2, 0)  # H W T
        absent = cube.absent_bands[modality]  # T C
        limits = self._limits.get(modality)
        values = model_values(modality, raw, valid, absent, release=self._spec.release, limits=limits)
        seen = self._seen[modality][:, rows.start // p : rows.stop // p, cols.start // p : cols.stop // p]  # T Y X
        return values, tokens_with_data(seen, absent, self._sets[modality])


def encode_tile(
    tile: Tile, encoder: BlockEncoder, *, windowing: Windowing, dimensions: int, blend: str, pool: Executor
) -> TileVectors:
    """Encode all windows of a tile and give every cell its vector.

    Args:
        tile: what to encode.
        encoder: the tile's pixels and the model.
        windowing: how windows lie on the grid.
        dimensions: embedding size D.
        blend: `none` (a cell's vector is that of the window that owns it) or `hann` (weighted mean).
        pool: where blocks run side by side.

    Returns:
        The tile's vectors.
    """
    started = time.perf_counter()
    side = tile.box.height // windowing.patch_px
    out = TileVectors(
        vectors=np.full((side, side, dimensions), np.nan, np.float32),
        disagreement=np.full((side, side), np.nan, np.float32),
        _sum=np.zeros((side, side), np.float32),
        _count=np.zeros((side, side), np.uint16),
    )
    blended = (
        Blend(out.vectors.shape, windowing, windowing.patch_px) if blend == "hann" and windowing.overlap_px else None
    )
    wanted = set(tile.blocks)
    recent: dict[tuple[int, int], Array] = {}
    for block, result in _in_order(encoder, needed_blocks(tile, windowing, blend), pool):
        windows, vectors, tokens = result
        out.tokens += tokens
        out.windows += len(windows)
        recent = {at: old for at, old in recent.items() if at[0] >= windows[0][0] - windowing.reach}
        for index, window in zip(windows, vectors, strict=True):
            if blended:
                blended.add(tile, index, window)
            elif block in wanted:
                place(out.vectors, tile, windowing, index, window)
            _compare(out, tile, windowing, index, window, recent)
            recent[index] = window
    if blended:
        for at, values in blended.means(tile):
            out.vectors[at] = values
    np.divide(out._sum, out._count, out=out.disagreement, where=out._count > 0)
    out.seconds = time.perf_counter() - started
    return out


def _in_order(
    encoder: BlockEncoder, blocks: list[tuple[int, int]], pool: Executor
) -> Iterator[tuple[tuple[int, int], tuple[list[tuple[int, int]], Array, int]]]:
    yield from zip(blocks, pool.map(encoder.encode, blocks), strict=True)


def cells_in(box: PixelBox, within: PixelBox, cell_px: int) -> tuple[slice, slice]:
    """Cell slices of `box` in an array over `within`."""
    rows, cols = box.slices_in(within)
    return slice(rows.start // cell_px, rows.stop // cell_px), slice(cols.start // cell_px, cols.stop // cell_px)


def place(target: Array, tile: Tile, windowing: Windowing, index: tuple[int, int], window: Array) -> None:
    """Copy a window's owned cells into the tile.

    Args:
        target: [Y, X, D] of the tile.
        tile: whose cells.
        windowing: how windows lie on the grid.
        index: of the window.
        window: [y, x, D] in cells of the target's size.
    """
    owned = windowing.owned(tile.box.epsg, *index)
    cell_px = windowing.window_px // window.shape[0]
    source = cells_in(owned, owned.grown(windowing.margin_px), cell_px)
    target[cells_in(owned, tile.box, cell_px)] = window[source]


def _compare(
    out: TileVectors,
    tile: Tile,
    windowing: Windowing,
    index: tuple[int, int],
    window: Array,
    recent: dict[tuple[int, int], Array],
) -> None:
    """Add the cosine distances between a window and its earlier neighbours on the cells one of them owns."""
    if not windowing.overlap_px:
        return
    epsg, p = tile.box.epsg, windowing.patch_px
    here = windowing.window(epsg, *index)
    for di, dj in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
        other = (index[0] + di, index[1] + dj)
        if other not in recent:
            continue
        there = windowing.window(epsg, *other)
        for owner in (index, other):
            area = windowing.owned(epsg, *owner).intersection(here).intersection(there)
            area = area.intersection(tile.box)
            if area.empty:
                continue
            a, b = window[cells_in(area, here, p)], recent[other][cells_in(area, there, p)]
            norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
            distance = 1.0 - (a * b).sum(axis=-1) / np.maximum(norms, 1e-12)
            known = np.isfinite(distance)
            at = cells_in(area, tile.box, p)
            out._sum[at] += np.where(known, distance, 0.0)
            out._count[at] += known


class Blend:
    """Weighted mean of all windows over a cell, Hann weights, in one fixed order of windows."""

    def __init__(self, shape: tuple[int, ...], windowing: Windowing, cell_px: int) -> None:
        """Begin.

        Args:
            shape: (Y, X, D) of the tile.
            windowing: how windows lie on the grid.
            cell_px: side of a cell in pixels; divides the patch.
        """
        n = windowing.window_px // cell_px
        ramp = np.sin(np.pi * (np.arange(n, dtype=np.float32) + 0.5) / n) ** 2
        self._weights = np.outer(ramp, ramp).astype(np.float32)  # Y X of a window
        self._windowing, self._cell_px = windowing, cell_px
        self._total = np.zeros(shape, np.float32)
        self._mass = np.zeros(shape[:2], np.float32)

    def add(self, tile: Tile, index: tuple[int, int], window: Array) -> None:
        """Add a window [y, x, D], NaN where it has no data."""
        here = self._windowing.window(tile.box.epsg, *index)
        area = here.intersection(tile.box)
        if area.empty:
            return
        source, at = cells_in(area, here, self._cell_px), cells_in(area, tile.box, self._cell_px)
        values = window[source]
        weights = np.where(np.isfinite(values[..., 0]), self._weights[source], 0.0).astype(np.float32)
        self._total[at] += np.where(weights[..., None] > 0, values, 0.0) * weights[..., None]
        self._mass[at] += weights

    def means(self, tile: Tile) -> Iterator[tuple[tuple[slice, slice], Array]]:
        """Cells of the tile's blocks; the neighbours' blocks belong to other tiles or lie outside.

        Yields:
            A block's place in the tile and its values [y, x, D], NaN where no window has data.
        """
        side = self._windowing.block_px
        for i, j in tile.blocks:
            at = cells_in(square(tile.box.epsg, side, i, j), tile.box, self._cell_px)
            mass = self._mass[at][..., None]
            yield at, np.where(mass > 0, self._total[at] / np.where(mass > 0, mass, 1), np.nan)
