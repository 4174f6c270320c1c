"""One run of the sweep: a probe fitted on train and judged on validation (spec/evaluation.md section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.probe.knn import fit_knn
from olmoearth_cli.core.probe.linear import LinearFit, fit_linear
from olmoearth_cli.core.probe.metrics import lower_is_better
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.feature_cache import Features
from olmoearth_pipelines.tasks.judging import Probe, judge
from olmoearth_pipelines.tasks.request import Plan, TaskRequest
from olmoearth_pipelines.tasks.transforms import Transform, fit_transform

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One run of the sweep, judged on validation."""

    normalisation: str
    pooling: str
    probe: Probe
    transform: Transform
    train_rows: int
    """Rows that the probe was fitted on."""
    val: Mapping[str, float]
    """Metrics of the validation split."""
    value: float
    """The primary one."""
    fit: LinearFit | None
    """How a linear probe was trained; None for kNN."""

    def point(self) -> dict[str, Any]:
        """The run as plain JSON."""
        point: dict[str, Any] = {"normalisation": self.normalisation, "pooling": self.pooling, "val": self.value}
        if self.fit is not None:
            point |= {"lr": self.fit.lr, "epoch": self.fit.epoch, "val_last_epoch": self.fit.val_last}
        return point


def fit_candidate(
    plan: Plan, train: Features, val: Features, *, normalisation: str, pooling: str, device: str
) -> Candidate:
    """Fit one probe and judge it on validation.

    Args:
        plan: the task's settings.
        train: features of the training split under `normalisation`.
        val: likewise of the validation split.
        normalisation: for the record.
        pooling: which of the features' vectors to use.
        device: where to compute.

    Raises:
        InputError: too few training samples, or a metric that is not defined on validation.
    """
    request, task = plan.request, plan.task
    x, y = _training_rows(train.vectors[pooling], train.targets, request)
    transform = fit_transform(x, quantise=request.quantise, pca=request.pca, seed=request.seed)
    x, val_x = transform.apply(x), transform.apply(val.vectors[pooling])
    kind, classes, fit = task.kind, task.classes, None
    if plan.method == "knn":
        k, temperature = _neighbours(plan, len(x)), request.temperature
        probe: Probe = fit_knn(x, y, kind=kind, classes=classes, k=k, temperature=temperature, device=device)
    else:
        valued = (val_x, val.targets)
        fit = fit_linear(x, y, kind=kind, classes=classes, recipe=plan.recipe, val=valued, device=device)
        probe = fit.probe
    metrics = judge(probe, val_x, val.targets, by_position=request.parity).metrics()
    return Candidate(
        normalisation=normalisation,
        pooling=pooling,
        probe=probe,
        transform=transform,
        train_rows=len(x),
        val=metrics,
        value=metrics.get(plan.metric, math.nan),
        fit=fit,
    )


def _training_rows(x: Array, y: Array, request: TaskRequest) -> tuple[Array, Array]:
    """The first rows of a seeded permutation, in file order; all where no maximum is asked for."""
    if request.max_train is None or request.max_train >= len(x):
        return x, y
    rows = np.sort(np.random.default_rng(request.seed).permutation(len(x))[: request.max_train])
    return x[rows], y[rows]


def _neighbours(plan: Plan, rows: int) -> int:
    """k, at most the number of training rows; the reference refuses more."""
    k = plan.request.k
    if k > rows and plan.request.parity:
        raise InputError(f"{plan.column}: k = {k} neighbours of {rows} training rows. Lower --k, or leave parity off.")
    return min(k, rows)


def beats(candidate: Candidate, best: Candidate | None, metric: str) -> bool:
    """Strictly better on validation; a value that is not defined beats nothing."""
    if best is None:
        return not math.isnan(candidate.value)
    return candidate.value < best.value if lower_is_better(metric) else candidate.value > best.value
