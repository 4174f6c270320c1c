"""A request with everything looked up: dataset, samples held out, schedule, and what decides the weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.checkpoint import sha256_of_file, weights_file
from olmoearth_cli.core.hub import fetch
from olmoearth_cli.core.optimizer import Schedule
from olmoearth_cli.core.recipe import Recipe
from olmoearth_cli.core.spec import released_spec
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.samples.assemble import BatchPlan
from olmoearth_pipelines.samples.layout import SampleFolder, open_folder, pieces_per_tile
from olmoearth_pipelines.samples.loader import SampleLoader, sample_side
from olmoearth_pipelines.samples.order import Indices, random_share, usable_samples
from olmoearth_pipelines.training.request import PretrainRequest, config_of, recipe_of, words_of

EPOCHS = 300
"""Of the official runs."""
WARMUP = 8000
HELD_OUT = 0.1
"""Share of the tiles that a run with probes does not train on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A run, laid out."""

    request: PretrainRequest
    config: EncoderConfig
    """The encoder."""
    recipe: Recipe
    """How it is trained."""
    schedule: Schedule
    """Its learning rates; `steps` is the run's length."""
    loader: SampleLoader
    """This process's microbatches."""
    folder: SampleFolder
    """The dataset."""
    samples: Indices
    """What is trained on."""
    held_out: Indices
    """Samples of tiles that are not; empty without probes."""
    weights: Path | None
    """What training starts from; None for fresh weights."""
    settings: dict[str, Any]
    """What decides the weights; a folder never mixes two of these."""

    @property
    def microbatches(self) -> int:
        """Microbatches of a step, over all processes."""
        return self.loader.plan.parts * self.loader.plan.world_size


def prepare(request: PretrainRequest, *, rank: int = 0, world_size: int = 1) -> Setup:
    """Check a request; reads the dataset's table and one sample, and writes nothing.

    Args:
        request: the flags.
        rank: of this process.
        world_size: processes that share a batch.

    Raises:
        InputError, ModelError: whatever cannot be used as asked.
    """
    _check_numbers(request)
    config = config_of(request)
    recipe = recipe_of(request, config, processes=world_size)
    folder = open_folder(request.data)
    usable = usable_samples(folder, config.modalities)
    samples, held_out = usable, usable[:0]
    if request.probe_every:
        samples, held_out = _split(folder, usable, config, request)
    plan = BatchPlan(
        band_sets={m: len(config.band_sets(m)) for m in config.modalities},
        seed=request.seeds[1],
        global_batch=request.batch_size,
        microbatch=recipe.microbatch,
        rank=rank,
        world_size=world_size,
        masking=recipe.masking,
        augment=recipe.augment,
        budget_groups=request.budget_groups,
        grid_per=request.grid_per,
    )
    loader = SampleLoader(folder, samples, plan, workers=request.workers)
    weights = _weights(request.init)
    schedule = _schedule(request, recipe, loader.steps_per_epoch)
    return Setup(
        request=request,
        config=config,
        recipe=recipe,
        schedule=schedule,
        loader=loader,
        folder=folder,
        samples=samples,
        held_out=held_out,
        weights=weights,
        settings=_settings(request, config, recipe, schedule, loader, weights),
    )


def _check_numbers(request: PretrainRequest) -> None:
    if request.steps is not None and request.epochs is not None:
        raise InputError("--steps and --epochs both say how long to train. Give one of them.")
    positive = ("batch_size", "microbatch", "steps", "epochs", "devices", "save_every", "keep", "log_every", "lr")
    for name in positive:
        value = getattr(request, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value}: give a number above 0.")
    for name in ("workers", "probe_every", "warmup", "weight_decay", "contrast_weight", "seed", "grid_intensity"):
        value = getattr(request, name)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value}: give a number of at least 0.")


def _schedule(request: PretrainRequest, recipe: Recipe, steps_per_epoch: int) -> Schedule:
    steps = request.steps or (request.epochs or EPOCHS) * steps_per_epoch
    # The official share is 1.2 %; a run too short for 8,000 steps warms up for a tenth of it.
    warmup = min(WARMUP, steps // 10) if request.warmup is None else request.warmup
    if warmup >= steps:
        raise InputError(f"--warmup {warmup}: the run has {steps} steps; give fewer for the warm-up.")
    return Schedule(peak_lr=recipe.peak_lr, steps=steps, warmup=warmup)


def _split(
    folder: SampleFolder, usable: Indices, config: EncoderConfig, request: PretrainRequest
) -> tuple[Indices, Indices]:
    """Samples to train on and samples of tiles held out: never a part of a tile here and another there (G15)."""
    pieces = pieces_per_tile(sample_side(folder, int(usable[0]), config.modalities))
    if len(np.unique(usable // pieces)) < 1 / HELD_OUT:
        raise InputError(
            f"--probe-every: {folder.path} has {len(np.unique(usable // pieces))} tiles, too few to hold out "
            f"{HELD_OUT:.0%} of them. Leave the probe out."
        )
    kept = random_share(usable, 1 - HELD_OUT, pieces=pieces, seed=request.seeds[1])
    return kept, np.setdiff1d(usable, kept, assume_unique=True)


def _weights(init: str | None) -> Path | None:
    if init is None:
        return None
    released = released_spec(init)
    return fetch(released.repo) if released is not None else weights_file(Path(init).expanduser())


def _settings(
    request: PretrainRequest,
    config: EncoderConfig,
    recipe: Recipe,
    schedule: Schedule,
    loader: SampleLoader,
    weights: Path | None,
) -> dict[str, Any]:
    data = loader.state(0)
    masking, objective = recipe.masking, recipe.objective
    return {
        "recipe": request.recipe,
        "size": request.size,
        "modalities": list(config.modalities),
        **words_of(config),
        "band_dropout": config.band_dropout_rate,
        "rope_mixed_base": config.rope_mixed_base,
        "masking": asdict(masking),
        "loss": "masked-negatives" if objective.twin_modalities else "v1",
        "contrast_weight": objective.contrast_weight,
        "augment": recipe.augment,
        "budget_groups": request.budget_groups,
        "grid_per": request.grid_per,
        "batch_size": request.batch_size,
        "microbatch": recipe.microbatch,
        "devices": loader.plan.world_size,
        "steps": schedule.steps,
        "lr": schedule.peak_lr,
        "warmup": schedule.warmup,
        "weight_decay": recipe.weight_decay,
        "seeds": list(request.seeds),
        "precision": request.precision,
        "init_sha256": sha256_of_file(weights) if weights else None,
        "samples": data["used_samples"],
        "samples_sha256": data["used_sha256"],
        "data_sha256": data["csv_sha256"],
    }
