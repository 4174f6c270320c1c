"""What a run would take: `olmoearth finetune --plan`. Nothing is trained and nothing is written.

Time is that of one update and of one forward pass, measured here, over the epochs of every training. It is an upper
bound where training may stop early, and leaves out what is read from a catalogue first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch

from olmoearth_cli.core.finetune.batch import FinetuneBatch
from olmoearth_cli.core.finetune.layers import adamw, parameter_groups
from olmoearth_cli.core.finetune.loop import scores_of, train_step
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.objective import Objective
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.finetuning import memory
from olmoearth_pipelines.finetuning.data import Numbers, WindowReader
from olmoearth_pipelines.finetuning.made_up import foresee
from olmoearth_pipelines.finetuning.recipe import Recipe
from olmoearth_pipelines.finetuning.request import FinetuneRequest
from olmoearth_pipelines.finetuning.setup import Plan, Setup, make_plan
from olmoearth_pipelines.finetuning.survey import Survey
from olmoearth_pipelines.models import local_device, open_model
from olmoearth_pipelines.windows.window import SPLITS

Say = Callable[[str], None]
PASSES = 2
"""Timed, after one that is not."""


def estimate(request: FinetuneRequest, note: Say, warn: Say) -> dict[str, Any]:
    """Figures of a run, as a JSON-able dict.

    Args:
        request: what the user asked for.
        note: told what was inferred.
        warn: told what makes the windows less than the labels promise.

    Raises:
        OlmoEarthError: whatever would stop the run before its first update, out of memory included.
    """
    device = local_device(request.device)
    foreseen = foresee(request, note, warn)
    plan = make_plan(foreseen.source, open_model(request.model, note, device=device), request)
    windows = {split: len(foreseen.source.split(split)) for split in SPLITS}
    setup = _setup(plan, request)
    network = setup.fresh().train()
    network.let_encoder_learn(plan.recipe.kind != "head")
    step_s, pass_s = _timed(network, setup, min(plan.batch_size, windows["train"]))
    task, recipe = foreseen.source.task, plan.recipe
    updates = -(-windows["train"] // plan.batch_size)
    return {
        "data": task.name,
        "kind": task.kind,
        "field": task.field,
        "class_names": list(task.class_names),
        "windows": windows,
        "window_px": task.window_px,
        "patch_px": plan.head.patch_px,
        "periods": task.periods,
        "modalities": list(plan.modalities),
        "bytes_to_read": foreseen.bytes_to_read,
        "groups_to_cut": foreseen.groups,
        "model": plan.model.name,
        "demo": plan.model.demo,
        "recipe": recipe.words,
        "metric": plan.yardstick.metric,
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "trainings": len(recipe.rates),
        "epochs": recipe.epochs,
        "batch_size": plan.batch_size,
        "steps": updates * recipe.epochs * len(recipe.rates),
        "step_s": step_s * plan.batch_size,
        "seconds": _seconds(recipe, windows, step_s, pass_s),
        "device": str(network.device),
        "out": str(request.out),
    }


def _setup(plan: Plan, request: FinetuneRequest) -> Setup:
    """A setup whose windows nobody looked at: good for sizes and speed."""
    reader = WindowReader(
        plan.source,
        plan.model.spec,
        patch_px=plan.head.patch_px,
        modalities=plan.modalities,
        threads=request.workers,
    )
    numbers = {split: plan.source.split(split) for split in SPLITS}
    none: Mapping[str, Any] = dict.fromkeys(SPLITS, np.zeros(0, np.int64))
    unseen = Survey(numbers=numbers, groups=none, labelled=dict.fromkeys(SPLITS, 0), counts=none, target=(0.0, 1.0))
    recipe, head = plan.recipe, plan.head
    objective = Objective(kind=head.kind, classes=head.classes, dice=recipe.dice, error=recipe.error)
    return Setup(plan=plan, reader=reader, survey=unseen, objective=objective)


def _timed(network: FinetuneModel, setup: Setup, size: int) -> tuple[float, float]:
    """Seconds per window of an update and of a forward pass."""
    plan = setup.plan
    part = -(-size // plan.recipe.accumulate)
    numbers = _usable(setup, part)
    batch = setup.reader.batch(numbers)
    optimizer = adamw(parameter_groups(network, plan.recipe.rates[0], plan.recipe.llrd))
    if network.device.type == "cpu" and network.encoder_learns():
        one = setup.reader.batch(numbers[:1])
        memory.check_fits(network, one, part, batch_size=plan.batch_size, available=memory.available_bytes())

    def update(batch: FinetuneBatch) -> object:
        return train_step(network, optimizer, [batch], setup.objective)

    def look(batch: FinetuneBatch) -> object:
        with torch.inference_mode():
            return scores_of(network, batch)

    return _best_of(update, batch) / len(batch), _best_of(look, batch) / len(batch)


def _usable(setup: Setup, most: int) -> Numbers:
    """The first training windows that show something."""
    reader, centre = setup.reader, setup.plan.head.centre
    train = setup.survey.numbers["train"].tolist()
    found = list(islice((n for n in train if reader.shows(reader.window(n), centre=centre)), most))
    if not found:
        raise InputError(f"{setup.plan.source.task.name}: no training window with imagery. Label more places.")
    return np.array(found, np.int64)


def _best_of(work: Callable[[FinetuneBatch], object], batch: FinetuneBatch) -> float:
    """Shortest time of a few; `work` ends with figures on the CPU, so a GPU has finished by then."""
    times = []
    for _ in range(PASSES + 1):
        began = time.perf_counter()
        work(batch)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _seconds(recipe: Recipe, windows: Mapping[str, int], step_s: float, pass_s: float) -> float:
    """Of all trainings, the judging at the end and what it is compared with."""
    frozen = 0 if recipe.plan.frozen is None else recipe.plan.frozen.epochs(recipe.epochs)
    trainings = len(recipe.rates)
    judged = windows["val"] * pass_s
    learning = trainings * (recipe.epochs - frozen) * (windows["train"] * step_s + judged)
    looks = windows["train"] * pass_s + judged
    kept = recipe.cache_features and recipe.augmentation is None
    resting = looks * (min(frozen, 1) if kept else frozen * trainings)
    return learning + resting + 2 * sum(windows.values()) * pass_s
