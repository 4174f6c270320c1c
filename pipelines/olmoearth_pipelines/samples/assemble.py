"""Samples on disk to one microbatch of the training step (spec/pretraining.md sections 2.2 to 2.7).

Every draw has a generator of its own, derived from seed, epoch and sample or batch. So a batch is the same on any
worker, in any order, and after a resume; the reference repeats none of this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from olmoearth_cli.core.masking import Masking, draw_codes, sample_generator
from olmoearth_cli.core.modality import MISSING_VALUE, MODALITIES
from olmoearth_cli.core.normalize import normalize
from olmoearth_cli.core.pretrain_step import VIEWS, PretrainBatch
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.samples.crops import (
    BUDGET_GROUPS,
    SYMMETRIES,
    TOKEN_BUDGET,
    Grid,
    counted_groups,
    draw_grid,
    draw_window,
    longest_series,
    turned,
)
from olmoearth_pipelines.samples.layout import sample_name
from olmoearth_pipelines.samples.order import Indices
from olmoearth_pipelines.samples.sample_file import OpenSample, open_sample

AUGMENTS = ("none", "shared", "per_view")
GRID_PER = ("batch", "microbatch")
_CROP = VIEWS
"""The stream of a sample that is no view's: where its crop lies."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How batches are made."""

    band_sets: Mapping[str, int]
    """{modality: band groups of the model}; its keys are the modalities that are read, in order."""
    seed: int = 3622
    """Of order, crops and masks."""
    global_batch: int = 512
    """Samples of a step, over all ranks."""
    microbatch: int = 64
    """Samples of a forward pass; a whole number of them fills a rank's share of the batch."""
    rank: int = 0
    """Of this process."""
    world_size: int = 1
    """Processes that share a batch."""
    masking: Masking = field(default_factory=Masking)
    """How views are drawn."""
    augment: str = "none"
    """`none`; `shared`: one symmetry per rank and batch; `per_view`: one for each view of each microbatch."""
    budget_groups: str = "v1"
    """Whose band groups the token budget counts: `v1`, as all official runs do, or the `model`'s own."""
    token_budget: int = TOKEN_BUDGET
    """Tokens of a sample, which decide its timesteps."""
    grid_per: str = "batch"
    """What shares one patch and crop size: a rank's part of a `batch`, or a `microbatch` (G29)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be divided or is unknown."""
        strange = [name for name in self.band_sets if name not in MODALITIES]
        if strange or self.seed < 0 or not 0 <= self.rank < self.world_size:
            raise ValueError(f"modalities {strange}, seed {self.seed}, rank {self.rank} of {self.world_size}")
        named = (("augment", AUGMENTS), ("budget_groups", BUDGET_GROUPS), ("grid_per", GRID_PER))
        for name, known in named:
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}.")
        if min(self.global_batch, self.microbatch) < 1 or self.global_batch % (self.microbatch * self.world_size):
            raise InputError(
                f"a batch of {self.global_batch} samples is not a multiple of {self.microbatch} samples per forward "
                f"pass on {self.world_size} processes. Choose another batch or microbatch."
            )

    @property
    def parts(self) -> int:
        """Microbatches of one rank and step."""
        return self.global_batch // (self.microbatch * self.world_size)


class Key(NamedTuple):
    """Names a microbatch of a rank."""

    epoch: int
    """Counts from 1."""
    batch: int
    """Step within the epoch, from 0."""
    part: int
    """Microbatch within the step, from 0."""


def draw_layout(plan: BatchPlan, key: Key, side_px: int) -> tuple[Grid, int]:
    """Patches and timesteps of a microbatch.

    Args:
        plan: how batches are made.
        key: which one.
        side_px: side of the samples.
    """
    grid = draw_grid(_generator(plan, key, "grid", per_part=plan.grid_per == "microbatch"), side_px)
    groups = counted_groups(tuple(plan.band_sets), plan.band_sets, plan.budget_groups)
    return grid, longest_series(grid.side, *groups, budget=plan.token_budget)


def draw_symmetries(plan: BatchPlan, key: Key) -> tuple[int, ...]:
    """The symmetry of the inputs: one for both views, or one each."""
    if plan.augment == "none":
        return (0,)
    rng = _generator(plan, key, "symmetry", per_part=plan.augment == "per_view")
    return tuple(int(v) for v in rng.integers(SYMMETRIES, size=VIEWS if plan.augment == "per_view" else 1))


def assemble(folder: Path, indices: Indices, plan: BatchPlan, key: Key, side_px: int) -> PretrainBatch:
    """Read, crop, normalise and mask the samples of a microbatch.

    Args:
        folder: leaf folder of the dataset.
        indices: [B] samples.
        plan: how batches are made.
        key: which microbatch this is.
        side_px: side of the samples.

    Returns:
        Missing timesteps and modalities are -99999 in the inputs and 3 in the codes.

    Raises:
        InputError: a sample that cannot be read or has no satellite data.
    """
    grid, periods = draw_layout(plan, key, side_px)
    symmetries = draw_symmetries(plan, key)
    inputs, codes = _buffers(len(indices), grid, periods, plan, len(symmetries))
    stamps = torch.empty((len(indices), periods, 3), dtype=torch.int64)
    for i, index in enumerate(indices.tolist()):
        rng = sample_generator(plan.seed, key.epoch, index, _CROP)
        with open_sample(folder / sample_name(index), tuple(plan.band_sets)) as sample:
            _check_side(sample, side_px)
            crop = sample.read(draw_window(sample, grid, periods, rng))
        stamps[i] = torch.from_numpy(crop.timestamps)
        for name, values in crop.values.items():
            scaled = normalize(name, values, release="v1.2")  # nothing is missing in it, so any release is the same
            for symmetry, buffer in zip(symmetries, inputs, strict=True):
                buffer[name][i].numpy()[:, :, crop.present[name]] = turned(scaled, symmetry)
        for view in range(VIEWS):
            rng = sample_generator(plan.seed, key.epoch, index, view)
            drawn = draw_codes(crop.present, plan.band_sets, grid.side, plan.masking, rng)
            for name, tokens in drawn.items():
                codes[view][name][i] = torch.from_numpy(tokens)
    return PretrainBatch(inputs=tuple(inputs), codes=(codes[0], codes[1]), timestamps=stamps, patch_px=grid.patch_px)


def _check_side(sample: OpenSample, side_px: int) -> None:
    if sample.side_px != side_px:
        raise InputError(
            f"{sample.path}: rasters of {sample.side_px} px, but the dataset's samples have {side_px}. Write all "
            "with one side, or leave this one out."
        )


def _buffers(
    samples: int, grid: Grid, periods: int, plan: BatchPlan, copies: int
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Inputs {modality: [B, H, W, T, C]} full of -99999, as often as asked, and codes [B, Y, X, T, S] of each view."""
    pixels, tokens = {}, {}
    for name, band_sets in plan.band_sets.items():
        modality = MODALITIES[name]
        t = periods if modality.multitemporal else 1
        pixels[name] = (samples, grid.side_px, grid.side_px, t, len(modality.bands))
        tokens[name] = (samples, grid.side, grid.side, t, band_sets)
    inputs = [_block(pixels, torch.float32) for _ in range(copies)]
    for each in inputs:
        for values in each.values():
            values.fill_(MISSING_VALUE)
    return inputs, [_block(tokens, torch.uint8) for _ in range(VIEWS)]


def _block(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors in one piece of memory: a worker hands over one file descriptor for all of them, not one for each."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    parts = torch.empty(sum(sizes.values()), dtype=dtype).split(list(sizes.values()))
    return {name: part.view(shapes[name]) for name, part in zip(sizes, parts, strict=True)}


def _generator(plan: BatchPlan, key: Key, purpose: str, *, per_part: bool) -> np.random.Generator:
    """The generator of what a batch's samples share; never one of a sample's."""
    place = (("grid", "symmetry").index(purpose), key.batch, plan.rank, key.part if per_part else 0)
    return np.random.default_rng(np.random.SeedSequence([plan.seed, key.epoch], spawn_key=place))
