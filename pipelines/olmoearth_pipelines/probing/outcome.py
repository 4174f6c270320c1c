"""What a probe came to, in numbers: one record for the terminal, for `--json` and for the HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from olmoearth_cli import __version__
from olmoearth_pipelines.probing.evaluate import Evaluation
from olmoearth_pipelines.probing.samples import Samples
from olmoearth_pipelines.probing.splits import Folds
from olmoearth_pipelines.probing.strata import class_columns

SCATTER_POINTS = 500
"""Held-out values that a regression's record keeps, evenly spread."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the vectors and the labels came from."""

    labels: str
    field: str
    map: str | None = None
    """Folder of the embedding map; None for a file of vectors."""
    model: str | None = None
    weights_sha256: str | None = None
    demo: bool = False
    """True where the model's weights say nothing about the land."""


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What happened, in numbers; what `--json` prints. None stands for what is not defined or was not asked."""

    probe: str
    """`knn` or `linear`."""
    kind: str
    metric: str
    value: float | None
    low: float | None
    """95 % interval of `value`."""
    high: float | None
    metrics: dict[str, float | None]
    k: int | None
    lr: float | None
    samples: int
    class_names: list[str]
    class_counts: list[int]
    split: dict[str, Any]
    per_class: list[dict[str, Any]]
    confusion: list[list[int]] | None
    """[true][predicted]."""
    baselines: list[dict[str, Any]]
    """`name`, `value`, `low`, `high` of what the map has to beat, on the same held-out samples."""
    calibration: dict[str, float | None] | None
    scatter: dict[str, list[float]] | None
    """`true` and `predicted` held-out values of a regression, at most 500."""
    warnings: list[str]
    notes: list[str]
    map: str | None
    labels: str
    field: str
    model: str | None
    weights_sha256: str | None
    demo: bool
    settings: dict[str, Any]
    command: str
    seconds: float
    """From labels to metrics, baselines and bootstrap included, reading left out."""
    saved: str | None = None
    predict: dict[str, Any] | None = None
    where_to_label: str | None = None
    report: str | None = None
    version: str = __version__


def compose(
    samples: Samples,
    folds: Folds,
    judged: Evaluation,
    baselines: Sequence[tuple[str, Evaluation]],
    origin: Origin,
    *,
    notes: Sequence[str],
    warnings: Sequence[str],
    **about: Any,
) -> ProbeReport:
    """The record of an evaluation.

    Args:
        samples: that were judged.
        folds: how they were divided.
        judged: the probe over the map.
        baselines: name and evaluation of what it is compared with.
        origin: where vectors and labels came from.
        notes: remarks of reading; those of the split and the evaluation are added.
        warnings: likewise.
        about: `settings`, `command` and `seconds` as in `ProbeReport`.
    """
    return ProbeReport(
        probe=judged.method,
        kind=samples.kind,
        metric=judged.metric,
        value=_number(judged.value),
        low=_number(judged.low),
        high=_number(judged.high),
        metrics={name: _number(value) for name, value in judged.metrics.items()},
        k=judged.k,
        lr=judged.lr,
        samples=len(samples),
        class_names=list(samples.class_names),
        class_counts=_counts(samples),
        split=_split(folds),
        per_class=[asdict(score) for score in judged.per_class],
        confusion=None if judged.confusion is None else judged.confusion.tolist(),
        baselines=[
            {"name": name, "value": _number(b.value), "low": _number(b.low), "high": _number(b.high)}
            for name, b in baselines
        ],
        calibration=_calibration(judged, samples.kind),
        scatter=_scatter(samples, judged),
        warnings=list(dict.fromkeys([*warnings, *folds.warnings])),
        notes=list(dict.fromkeys([*notes, *folds.notes, *judged.notes])),
        **asdict(origin),
        **about,
    )


def _counts(samples: Samples) -> list[int]:
    """Samples (labelled pixels for segmentation) of each class."""
    if samples.kind == "regression":
        return []
    return [int(count) for count in class_columns(samples).sum(axis=0)]


def _split(folds: Folds) -> dict[str, Any]:
    words = {"spatial": "blocks of land", "random": "random", "field": "values of a field"}
    how = "train, validation and test as given" if folds.fixed else f"{folds.count} folds, {words[folds.how]}"
    side = f" of {folds.block_km:.3g} km" if folds.block_km else ""
    return {
        "how": folds.how,
        "folds": folds.count,
        "block_km": folds.block_km,
        "units": len(np.unique(folds.unit)),
        "description": how + side,
    }


def _calibration(judged: Evaluation, kind: str) -> dict[str, float | None] | None:
    if kind == "regression":
        return None
    fitted = judged.calibration
    return {
        "temperature": fitted.temperature,
        "ece_before": _number(fitted.error_before),
        "ece_after": _number(fitted.error_after),
    }


def _scatter(samples: Samples, judged: Evaluation) -> dict[str, list[float]] | None:
    if samples.kind != "regression":
        return None
    held = np.flatnonzero(judged.tested)
    chosen = held[:: -(-len(held) // SCATTER_POINTS)]
    return {"true": samples.targets[chosen].tolist(), "predicted": judged.predicted[chosen].tolist()}


def _number(value: float | None) -> float | None:
    """NaN and infinities have no place in JSON."""
    return float(value) if value is not None and math.isfinite(value) else None
