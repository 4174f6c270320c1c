"""A run made ready: model, head, data and yardstick fitted to each other, and refused where they do not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
from olmoearth_cli.core.finetune.lora import add_lora
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.objective import Objective, balanced_weights
from olmoearth_cli.core.finetune.saved import DESCRIPTION, load_finetuned
from olmoearth_cli.core.finetune.task import TaskDescription
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.finetuning.data import WindowReader
from olmoearth_pipelines.finetuning.evaluate import Yardstick, choose_metric
from olmoearth_pipelines.finetuning.recipe import Recipe
from olmoearth_pipelines.finetuning.request import PATCH_PX, FinetuneRequest
from olmoearth_pipelines.finetuning.survey import Survey, survey
from olmoearth_pipelines.windows.window import WindowSource, WindowTask

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a run will do, before a window is read."""

    source: WindowSource
    recipe: Recipe
    model: OlmoEarthModel
    """That training begins with; never changed."""
    head: HeadSpec
    modalities: tuple[str, ...]
    """That are read, in canonical order."""
    yardstick: Yardstick
    batch_size: int
    """Windows of an update."""
    settings: Mapping[str, Any]
    """All that decides the result, as plain JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A plan with its windows looked at."""

    plan: Plan
    reader: WindowReader
    survey: Survey
    objective: Objective

    def fresh(self) -> FinetuneModel:
        """Encoder and head before training, the same each time."""
        plan = self.plan
        model = copy.deepcopy(plan.model)
        if plan.recipe.lora is not None:
            add_lora(model.encoder, plan.recipe.lora, seed=plan.recipe.seed)
        head = build_head(plan.head, plan.recipe.seed)
        return FinetuneModel(model, head, drop_path=plan.recipe.drop_path, precision=plan.recipe.precision)

    def description(self) -> TaskDescription:
        """The task, for those who use the model later."""
        task, plan = self.plan.source.task, self.plan
        return TaskDescription(
            head=plan.head,
            class_names=() if plan.head.regresses else task.class_names,
            field=task.field,
            modalities=plan.modalities,
            window_px=task.window_px,
            periods=task.periods,
            real_dates=task.real_dates,
            first_month=_first_month(task),
            normalisation=task.normalisation,
            target=self.survey.target,
        )


def _first_month(task: WindowTask) -> int | None:
    """Windows cut from a catalogue all begin on one day; those of other sources need not."""
    start = task.facts.get("start")
    return date.fromisoformat(start).month if isinstance(start, str) and task.real_dates else None


def make_plan(source: WindowSource, model: OlmoEarthModel, request: FinetuneRequest) -> Plan:
    """Fit a request to its windows and its model; nothing is read yet.

    Raises:
        InputError: another patch size or modality set, a head or metric that the task does not have.
    """
    task, recipe = source.task, request.recipe
    patch_px = _patch_px(source, request)
    modalities = _modalities(source, model, request)
    _check_start(Path(request.model), patch_px, modalities)
    head = _head(source, model, recipe, patch_px)
    metric = choose_metric(task.kind, head.classes, sparse=task.sparse, asked=recipe.metric)
    batch_size = recipe.batch_windows(per_window=head.per_window)
    settings = {
        "data": source.fingerprint,
        "model": model.weights_sha256,
        "modalities": list(modalities),
        "head": head.to_json(),
        "bootstrap": request.bootstrap,
        "baselines": request.baselines,
        "recipe": {**recipe.settings(), "batch_size": batch_size, "metric": metric, "centre": head.centre},
    }
    return Plan(
        source=source,
        recipe=recipe,
        model=model,
        head=head,
        modalities=modalities,
        yardstick=Yardstick(
            kind=task.kind,
            classes=head.classes,
            patch_px=patch_px,
            sparse=task.sparse and not head.per_window,
            metric=metric,
        ),
        batch_size=batch_size,
        settings=settings,
    )


def make_setup(plan: Plan, request: FinetuneRequest, note: Say, warn: Say) -> Setup:
    """Look at the windows.

    Raises:
        InputError: as `survey`.
    """
    reader = WindowReader(
        plan.source,
        plan.model.spec,
        patch_px=plan.head.patch_px,
        modalities=plan.modalities,
        threads=request.workers,
    )
    found = survey(reader, plan.head, note, warn, own_labels="labels" in plan.source.task.facts)
    weights = None
    if plan.recipe.class_weights == "balanced":
        weights = balanced_weights(torch.from_numpy(found.counts["train"]))
    objective = Objective(
        kind=plan.head.kind,
        classes=plan.head.classes,
        dice=plan.recipe.dice,
        class_weights=weights,
        error=plan.recipe.error,
        target=found.target,
    )
    setup = Setup(plan=plan, reader=reader, survey=found, objective=objective)
    setup.description()  # what it refuses is better known before training than after it
    return setup


def _patch_px(source: WindowSource, request: FinetuneRequest) -> int:
    task = source.task
    patch_px = request.patch_px or int(task.facts.get("patch_px", PATCH_PX))
    if task.window_px % patch_px:
        raise InputError(
            f"--patch-size {patch_px} does not divide the windows of {task.name}, which are {task.window_px} px wide. "
            f"Choose a divisor of {task.window_px}."
        )
    return patch_px


def _modalities(source: WindowSource, model: OlmoEarthModel, request: FinetuneRequest) -> tuple[str, ...]:
    """What is read, in the order of the windows."""
    task, known = source.task, model.spec.encoder.input_modalities
    lacking = [name for name in request.modalities or () if name not in task.modalities]
    if lacking:
        raise InputError(f"--modalities {', '.join(lacking)}: {task.name} has {', '.join(task.modalities)}.")
    chosen = tuple(name for name in task.modalities if request.modalities is None or name in request.modalities)
    strange = [name for name in chosen if name not in known]
    if strange:
        raise InputError(
            f"{request.model} does not read {', '.join(strange)} of {task.name}; it reads {', '.join(known)}. Give "
            "another --model, or name with --modalities what it shall learn from."
        )
    return chosen


def _check_start(folder: Path, patch_px: int, modalities: tuple[str, ...]) -> None:
    """A model that was fine-tuned before goes on as it was taught."""
    if not (folder / DESCRIPTION).is_file():
        return
    before = load_finetuned(folder).task
    if before.head.patch_px != patch_px:
        raise InputError(
            f"{folder}: was fine-tuned with {before.head.patch_px} px patches, these windows are to be read with "
            f"{patch_px} px. Give --patch-size {before.head.patch_px}, or begin with a published model."
        )
    strange = [name for name in modalities if name not in before.modalities]
    if strange:
        raise InputError(
            f"{folder}: was fine-tuned on {', '.join(before.modalities)}, not on {', '.join(strange)}. Leave those out "
            "with --modalities, or begin with a published model."
        )


def _head(source: WindowSource, model: OlmoEarthModel, recipe: Recipe, patch_px: int) -> HeadSpec:
    task = source.task
    regresses = task.kind in {"regression", "pixel_regression"}
    can_centre = task.kind in {"classification", "multilabel", "regression"} and recipe.decoder in {"linear", "mlp"}
    if recipe.dice and task.kind != "segmentation":
        raise InputError(f"--dice is for segmentation; {task.name} asks for {task.kind}.")
    if recipe.error != "squared" and not regresses:
        raise InputError(f"--loss {recipe.error} is for regression; {task.name} asks for {task.kind}. Leave it out.")
    if recipe.class_weights == "balanced" and regresses:
        raise InputError(f"--class-weights balanced: {task.name} has values, no classes.")
    try:
        return HeadSpec(
            kind=task.kind,
            classes=1 if regresses else len(task.class_names),
            width=model.spec.embedding_size,
            patch_px=patch_px,
            decoder=recipe.decoder,
            hidden=recipe.hidden,
            centre=(task.centre and can_centre) if recipe.centre is None else recipe.centre,
        )
    except ValueError as error:
        raise InputError(f"--decoder {recipe.decoder}: {error}.") from None
