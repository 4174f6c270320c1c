"""One tile's pixels to one tile's answers: head on windows, windows blended, answers as a raster's bands.

As in `encode`, a block is scored from its own pixels alone and windows are added in one fixed order, so that a pixel's
answer cannot depend on the region, the tile or the number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from olmoearth_cli.core.finetune.batch import FeatureBatch, FinetuneBatch
from olmoearth_cli.core.finetune.loop import scores_of
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.task import TaskDescription
from olmoearth_cli.geo.tiles import Tile, Windowing, needed_blocks
from olmoearth_pipelines.encode import Blend, BlockEncoder, cells_in
from olmoearth_pipelines.predicting.prediction import bands_of
from olmoearth_pipelines.probing.class_layout import Array, Layout

Floats = npt.NDArray[np.float32]
HEAD_WINDOWS = 4
"""Windows that a head takes at once: a UNet holds many channels at every pixel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The answers for a block."""

    windows: list[tuple[int, int]]
    """[B] indices."""
    scores: Floats
    """[B, y, x, K] probabilities or values; a pixel or a map cell each; NaN where nothing was seen."""
    tokens: int


class BlockScorer:
    """Scores the blocks of one tile; safe to call from several threads."""

    def __init__(
        self,
        encoder: BlockEncoder,
        network: FinetuneModel,
        task: TaskDescription,
        stamps: Sequence[tuple[int, int, int]],
    ) -> None:
        """Prepare.

        Args:
            encoder: of the tile's pixels, with the fine-tuned weights.
            network: encoder and head, in evaluation mode.
            task: what they were taught.
            stamps: [T] (day, month 0-11, year).
        """
        self._encoder, self._network, self._task = encoder, network, task
        self._stamps = torch.tensor(stamps, dtype=torch.int64)

    def score(self, block: tuple[int, int]) -> Scored:
        """Score one block."""
        if not self._task.head.reads_map:
            return self._by_window(block)
        windows, vectors, tokens = self._encoder.encode(block)  # B Y X D
        seen = np.isfinite(vectors[..., 0])
        # Where nothing was seen the head met zeros in training, and reads them as neighbours of what was.
        maps = torch.from_numpy(np.where(seen[..., None], vectors, np.float32(0)))
        if self._task.head.centre:
            return Scored(windows=windows, scores=self._of_cells(maps, seen), tokens=tokens)
        scores = np.concatenate([self._answers(FeatureBatch(features=part)) for part in maps.split(HEAD_WINDOWS)])
        return Scored(windows=windows, scores=_spread(scores, seen), tokens=tokens)

    def _by_window(self, block: tuple[int, int]) -> Scored:
        """Windows with one answer from all their tokens."""
        windows, inputs, masks = self._encoder.samples(block)
        seen = np.any([mask.any(axis=(3, 4)) for mask in masks.values()], axis=0)  # B Y X
        known = np.flatnonzero(seen.any(axis=(1, 2)))
        scores = np.full((len(windows), 1, 1, self._task.head.classes), np.nan, np.float32)
        if len(known):
            order = [m for m in self._network.config.input_modalities if m in inputs]
            batch = FinetuneBatch(
                inputs={m: torch.from_numpy(inputs[m][known]) for m in order},
                visible={m: torch.from_numpy(masks[m][known]) for m in order},
                timestamps=self._stamps.expand(len(known), -1, -1),
                patch_px=self._task.head.patch_px,
            )
            scores[known] = self._answers(batch)
        return Scored(windows=windows, scores=_spread(scores, seen), tokens=int(sum(m.sum() for m in masks.values())))

    def _of_cells(self, maps: torch.Tensor, seen: npt.NDArray[np.bool_]) -> Floats:
        """A head for the middle cell, on every cell."""
        scores = np.full((*seen.shape, self._task.head.classes), np.nan, np.float32)
        if seen.any():
            cells = maps[torch.from_numpy(seen)][:, None, None]  # N 1 1 D
            scores[seen] = self._answers(FeatureBatch(features=cells))[:, 0, 0]
        return scores

    def _answers(self, batch: FinetuneBatch | FeatureBatch) -> Floats:
        """[B, y, x, K] of a batch; y = x = 1 for one answer per window."""
        head = self._task.head
        scores = scores_of(self._network, batch, self._task.target)  # B K H W | B H W | B K | B
        if head.regresses:
            scores = scores.unsqueeze(1)
        if head.per_window:
            scores = scores[..., None, None]
        return scores.movedim(1, -1).numpy()


def _spread(scores: Floats, seen: npt.NDArray[np.bool_]) -> Floats:
    """Answers [B, y, x, K] on map cells at least, NaN where a cell [B, Y, X] was not seen."""
    side = max(1, scores.shape[1] // seen.shape[1])
    mask = seen.repeat(side, axis=1).repeat(side, axis=2)[..., None]
    return np.where(mask, scores, np.float32(np.nan))


@dataclass(kw_only=True, eq=False)
class TileScores:
    """The answers for a tile."""

    rasters: tuple[Array, ...]
    """One per layout: [bands, H, W]."""
    windows: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def put(self, layouts: Sequence[Layout], at: tuple[slice, slice], scores: Floats) -> None:
        """Write the answers [y, x, K] of a part of the tile."""
        for raster, layout in zip(self.rasters, layouts, strict=True):
            raster[:, *at] = bands_of(layout, scores)


def score_tile(
    tile: Tile,
    scorer: BlockScorer,
    *,
    windowing: Windowing,
    layouts: Sequence[Layout],
    blend: str,
    pool: Executor,
) -> TileScores:
    """Score all windows of a tile and give every pixel its answer.

    Args:
        tile: what to score.
        scorer: the tile's pixels and the model.
        windowing: how windows lie on the grid.
        layouts: forms of the rasters; all with pixels of one size.
        blend: `none` (a pixel's answer is that of the window that owns it) or `hann` (weighted mean of the
            probabilities or values of all windows over it).
        pool: where blocks run side by side.
    """
    started = time.perf_counter()
    px = layouts[0].pixel_px
    side = tile.box.height // px
    out = TileScores(rasters=tuple(layout.empty(side, side) for layout in layouts))
    blended: Blend | None = None
    for block in pool.map(scorer.score, needed_blocks(tile, windowing, blend)):
        out.tokens += block.tokens
        out.windows += len(block.windows)
        if blended is None and blend == "hann" and windowing.overlap_px:
            blended = Blend((side, side, block.scores.shape[-1]), windowing, px)
        for index, scores in zip(block.windows, block.scores, strict=True):
            if blended is not None:
                blended.add(tile, index, scores)
                continue
            owned = windowing.owned(tile.box.epsg, *index)
            inside = scores[cells_in(owned, windowing.window(tile.box.epsg, *index), px)]
            out.put(layouts, cells_in(owned, tile.box, px), inside)
    if blended is not None:
        for at, means in blended.means(tile):
            out.put(layouts, at, means)
    out.seconds = time.perf_counter() - started
    return out
