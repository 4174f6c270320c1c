"""What a benchmark run may vary, and how that resolves for one task (spec/evaluation.md sections 6, 15 and 17)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from olmoearth_cli import __version__
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.probe.knn import TEMPERATURE, K
from olmoearth_cli.core.probe.linear import LinearRecipe
from olmoearth_cli.core.probe.metrics import CHOICES
from olmoearth_cli.core.probe.pooling import POOLINGS
from olmoearth_cli.core.probe.statistics import DEFAULT_METHOD
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.features import NORMALISATIONS, Extraction
from olmoearth_pipelines.tasks.published import column_name
from olmoearth_pipelines.tasks.task import Reader, Task

PARITY_INTERVAL = 50
"""Epochs between validations in the reference's default: once, at the end."""


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """How tasks are run; the defaults are those that section 15 recommends."""

    method: str | None = None
    """`knn` or `linear`; None: as in the published tables."""
    modalities: tuple[str, ...] | None = None
    """What the encoder sees; None: the only modality of the task."""
    sweep: bool = True
    """False: the first normalisation and pooling, and the task's own learning rate ("defaults only")."""
    normalisations: tuple[str, ...] = NORMALISATIONS
    """Normalisations to sweep."""
    poolings: tuple[str, ...] = POOLINGS
    """Poolings to sweep."""
    norm_method: str = DEFAULT_METHOD
    """Formula of the `dataset` normalisation (2.1)."""
    patch_px: int | None = None
    """Patch side; None: the task's."""
    centre_token: bool = False
    """Classification: the middle patch alone."""
    precision: str = "float32"
    """Of the encoder: `float32` or `bfloat16`."""
    batch: int | None = None
    """Samples encoded together; None: as suits the device."""
    partition: str | None = None
    """Label fraction, where the benchmark publishes one."""
    max_train: int | None = None
    """Training rows of the probe: the first of a permutation drawn with the seed. None: all."""
    max_samples: int | None = None
    """Samples of each split, evenly spread; None: all. For trials: the figures are not comparable."""
    k: int = K
    """Neighbours of kNN."""
    temperature: float = TEMPERATURE
    """Of kNN's vote."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `LinearRecipe` that the user gave; the rest follow from the task and from `parity`."""
    metric: str | None = None
    """Primary metric; None: that of the published tables."""
    rounds: int = 1000
    """Bootstrap rounds; 0: none."""
    quantise: bool = False
    """True sends all vectors through the int8 format of maps (9.1)."""
    pca: int | None = None
    """Principal components to keep, fitted on the training vectors (9.3)."""
    parity: bool = False
    """True follows the reference where this product differs (section 15)."""
    seed: int = 42
    cache: Path | None = None
    """Folder for extracted features; None keeps them in memory."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request resolved for one task."""

    request: TaskRequest
    task: Task
    column: str
    """As in the reports' table, for example `m-eurosat S2`."""
    method: str
    """`knn` or `linear`."""
    metric: str
    recipe: LinearRecipe
    """Of the linear probe."""
    extraction: Extraction

    @property
    def legs(self) -> list[tuple[str, tuple[str, ...]]]:
        """The poolings to try under each normalisation."""
        request = self.request
        if request.sweep:
            return [(normalisation, request.poolings) for normalisation in request.normalisations]
        return [(request.normalisations[0], request.poolings[:1])]

    def settings(self, model: OlmoEarthModel, reader: Reader) -> dict[str, Any]:
        """Everything that the figures depend on, as plain JSON."""
        request = self.request
        extraction = asdict(self.extraction)
        del extraction["batch"]
        probe = asdict(self.recipe) if self.method == "linear" else {"k": request.k, "temperature": request.temperature}
        settings = {
            "task": self.task.name,
            "regime": self.method,
            "metric": self.metric,
            "weights_sha256": model.weights_sha256,
            "software": __version__,
            "samples_listed": dict(reader.splits()),
            "legs": self.legs,
            **extraction,
            **probe,
            **{name: getattr(request, name) for name in ("max_train", "rounds", "quantise", "pca", "parity", "seed")},
        }
        return {name: _plain(value) for name, value in settings.items()}


def plan_task(task: Task, request: TaskRequest) -> Plan:
    """Resolve a request for a task.

    Raises:
        InputError: the task does not have what the request asks for.
    """
    modalities = request.modalities or task.modalities
    if request.modalities is None and len(modalities) > 1:
        raise InputError(f"{task.name} has {', '.join(task.modalities)}: name the modality to run.")
    method, metric = request.method or task.method, request.metric or task.metric
    _check(task, request, method, metric)
    extraction = Extraction(
        modalities=modalities,
        patch_px=request.patch_px or task.patch_px,
        method=request.norm_method,
        centre_token=request.centre_token,
        precision=request.precision,
        batch=request.batch,
        max_samples=request.max_samples,
        partition=request.partition,
        reference_pooling=request.parity,
    )
    return Plan(
        request=request,
        task=task,
        column=column_name(task.name, modalities),
        method=method,
        metric=metric,
        recipe=_recipe(task, request, metric),
        extraction=extraction,
    )


def _recipe(task: Task, request: TaskRequest, metric: str) -> LinearRecipe:
    if request.recipe.get("dice") and task.kind != "segmentation":
        raise InputError(f"{task.name}: --dice is for segmentation, not for {task.kind}. Leave it out.")
    recipe = LinearRecipe(batch_size=task.batch_size, seed=request.seed, metric=metric)
    if not request.sweep:
        recipe = replace(recipe, lrs=(task.lr,))
    if request.parity:
        recipe = replace(recipe, eval_interval=PARITY_INTERVAL)
    try:
        recipe = replace(recipe, **request.recipe)
    except ValueError as error:
        raise InputError(f"linear probe: {error}.") from None
    return recipe if request.sweep else replace(recipe, lrs=recipe.lrs[:1])


def _check(task: Task, request: TaskRequest, method: str, metric: str) -> None:
    name = task.name
    if method not in {"knn", "linear"}:
        raise InputError(f"{name}: method {method!r} is neither knn nor linear.")
    if method == "knn" and task.kind == "segmentation":
        raise InputError(f"{name} is a segmentation task, which kNN does not judge. Use the linear probe.")
    if method == "linear" and task.kind == "multilabel" and request.parity:
        raise InputError(f"{name}: the reference has no multi-label linear probe. Use kNN, or leave parity off.")
    number = re.fullmatch(r"f1_class_(\d+)", metric)
    if metric not in CHOICES[task.kind] and not (number and int(number[1]) < task.classes):
        raise InputError(f"{name}: metric {metric!r} is none of {', '.join(CHOICES[task.kind])} or f1_class_<i>.")
    if request.partition is not None and request.partition not in task.partitions:
        known = ", ".join(task.partitions) or "none are published with it"
        raise InputError(f"{name} has no label fraction {request.partition}: {known}.")
    for what, given, known_names in (
        ("normalisation", request.normalisations, NORMALISATIONS),
        ("pooling", request.poolings, POOLINGS),
    ):
        if not given or not set(given) <= set(known_names):
            raise InputError(
                f"{name}: {what} {', '.join(given) or 'of no kind'}; choose from {', '.join(known_names)}."
            )
    for what, value in (("k", request.k), ("max_train", request.max_train), ("max_samples", request.max_samples)):
        if value is not None and value < 1:
            raise InputError(f"{name}: {what} = {value}; it must be at least 1.")


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value
