"""What a run would take: `olmoearth pretrain --plan`. Nothing is trained and nothing is written.

Steps and tokens are exact. Time is the arithmetic of the mean step over the speed of a few forward and backward
passes on made-up data, or the time to read its samples where that is longer. Memory is four numbers per weight plus
what those passes kept for going backward, scaled to the largest crop.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from olmoearth_cli.core.masking import draw_codes
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.optimizer import zero_gradients
from olmoearth_cli.core.pretrain_step import VIEWS, PretrainBatch, PretrainModel, accumulate, fresh_model
from olmoearth_pipelines.samples.crops import LARGEST_PATCH, LARGEST_SIDE, counted_groups, longest_series
from olmoearth_pipelines.training.flops import peak_flops, sequence_tokens, step_flops
from olmoearth_pipelines.training.setup import Setup
from olmoearth_pipelines.training.trainer import compile_parts

DRY_SAMPLES = 8
"""Samples of a dry pass at most; on a GPU a whole microbatch."""
DRY_SIDE = 6
"""Patches per side of a dry pass: about the mean number of tokens."""
DRY_PATCH = 4
PASSES = 3
"""Timed, after one that is not."""
COUNTED = 8
"""Samples whose masks are drawn to count the arithmetic of a crop."""
BYTES_PER_WEIGHT = 16
"""Weight, gradient and two moments, float32."""


def estimate(setup: Setup, device: str) -> dict[str, Any]:
    """Figures of a run, as a JSON-able dict.

    Args:
        setup: the run.
        device: where it would run.
    """
    request, steps = setup.request, setup.schedule.steps
    crops = [_crop(setup, side, COUNTED) for side in _sides(setup)]
    tokens = [sequence_tokens(crop) // COUNTED for crop in crops]
    flops = [step_flops(crop, setup.config) / COUNTED for crop in crops]
    model = fresh_model(setup.config, request.seeds[0]).to(device).train()
    dry = _dry_passes(setup, model, device)
    share = request.batch_size // setup.loader.plan.world_size
    compute_s = float(np.mean(flops)) * share / dry["flops_per_s"]
    read_s = _read_seconds(setup) * setup.loader.plan.parts / max(request.workers, 1)
    step_s = max(compute_s, read_s) if request.workers else compute_s + read_s
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    largest = max(tokens) / dry["tokens"] * setup.recipe.microbatch
    peak = peak_flops(torch.cuda.get_device_name(), request.precision) if device.startswith("cuda") else None
    return {
        "model": request.model_name,
        "parameters": trained,
        "samples": len(setup.samples),
        "held_out": len(setup.held_out),
        "steps_per_epoch": setup.loader.steps_per_epoch,
        "steps": steps,
        "epochs": steps / setup.loader.steps_per_epoch,
        "batch_size": request.batch_size,
        "microbatch": setup.recipe.microbatch,
        "tokens_per_sample": float(np.mean(tokens)),
        "tokens_largest": max(tokens),
        "tokens": float(np.mean(tokens)) * request.batch_size * steps,
        "step_s": step_s,
        "compute_s": compute_s,
        "read_s": read_s,
        "seconds": step_s * steps,
        "device": device,
        "devices": setup.loader.plan.world_size,
        "device_hours": step_s * steps * setup.loader.plan.world_size / 3600,
        "mfu": dry["flops_per_s"] / peak if peak else None,
        "memory_bytes": int(trained * BYTES_PER_WEIGHT + dry["kept_bytes"] * largest),
    }


def _sides(setup: Setup) -> range:
    """Patches per side that are drawn, equally often, where samples are as large as the published ones."""
    return range(1, min(LARGEST_SIDE, setup.loader.side_px // LARGEST_PATCH) + 1)


def _crop(setup: Setup, side: int, samples: int, *, patch_px: int = 1) -> PretrainBatch:
    """Made-up samples of which nothing is missing."""
    plan = setup.loader.plan
    groups = counted_groups(tuple(plan.band_sets), plan.band_sets, plan.budget_groups)
    periods = longest_series(side, *groups, budget=plan.token_budget)
    rng = np.random.default_rng(0)
    length = {m: periods if MODALITIES[m].multitemporal else 1 for m in plan.band_sets}
    present = {m: np.ones(t, dtype=bool) for m, t in length.items()}
    codes = []
    for _ in range(VIEWS):
        drawn = [draw_codes(present, plan.band_sets, side, plan.masking, rng) for _ in range(samples)]
        codes.append({m: torch.from_numpy(np.stack([each[m] for each in drawn])) for m in plan.band_sets})
    px = side * patch_px
    inputs = {m: torch.rand(samples, px, px, t, len(MODALITIES[m].bands)) for m, t in length.items()}
    stamps = torch.tensor([(1, t, 2020) for t in range(periods)]).expand(samples, -1, -1)
    return PretrainBatch(inputs=(inputs,), codes=(codes[0], codes[1]), timestamps=stamps, patch_px=patch_px)


def _dry_passes(setup: Setup, model: PretrainModel, device: str) -> dict[str, float]:
    """Speed, tokens of a sample, and bytes kept per sample."""
    most = setup.recipe.microbatch
    samples = most if device.startswith("cuda") else min(most, DRY_SAMPLES)
    side = min(DRY_SIDE, len(_sides(setup)))
    crop = _crop(setup, side, samples, patch_px=DRY_PATCH)
    generator = torch.Generator().manual_seed(0)
    objective, precision = setup.recipe.objective, setup.request.precision
    zero_gradients(p for p in model.parameters() if p.requires_grad)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(crop, objective, generator, precision=precision)
    loss.total.backward()
    held = sum(kept.values()) - sum(p.numel() * 4 for p in model.parameters())
    if setup.request.compile:
        compile_parts(model)
        accumulate(model, crop, objective, generator, microbatch=samples, precision=precision)
    times = []
    for _ in range(PASSES):
        began = time.perf_counter()
        accumulate(model, crop, objective, generator, microbatch=samples, precision=precision)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return {
        "flops_per_s": step_flops(crop, setup.config) / min(times),
        "tokens": sequence_tokens(crop) / samples,
        "kept_bytes": max(held, 0) / samples,
    }


def _read_seconds(setup: Setup) -> float:
    """Of one microbatch, by one process; files that were read before come from memory, so it is a lower bound."""
    from dataclasses import replace

    from olmoearth_pipelines.samples.assemble import Key, assemble

    plan = replace(setup.loader.plan, rank=0)
    indices = setup.samples[: plan.microbatch]
    began = time.perf_counter()
    assemble(setup.folder.path, indices, plan, Key(1, 0, 0), setup.loader.side_px)
    return time.perf_counter() - began
