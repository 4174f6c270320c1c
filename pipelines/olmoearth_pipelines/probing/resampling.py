"""Confidence intervals by drawing whole units (blocks, label features) with replacement, without scoring anew.

Accuracy, F1 and mIoU need three counts per class (right, true, predicted), errors need five sums: each unit's are
added up once, and a draw only weighs them. Ranking metrics need the order of the scores, which is sorted once. Both
give what `metrics_of` gives on the drawn samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.probe.metrics import EPS, IGNORE, Bootstrap, bootstrap

Array = npt.NDArray[Any]
Measure = Callable[[Array], float]
"""From the number of times that each of U units was drawn, float64 [U], to the metric."""
RANKING = frozenset({"auroc", "prauc", "micro_map"})


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """N held-out samples with what a probe said about them."""

    kind: str
    """`classification`, `multilabel`, `segmentation` or `regression`."""
    truth: Array
    """[N, ...] as in `metrics_of`."""
    predicted: Array
    """As `truth`."""
    scores: Array
    """[N, C], [N, C, P, P] or [N]."""
    unit: npt.NDArray[np.int64]
    """[N], numbered from 0 without gaps: what is drawn whole."""

    @property
    def units(self) -> int:
        """Number of units U."""
        return int(self.unit.max()) + 1


def interval(metric: str, tested: HeldOut, *, rounds: int = 1000, seed: int = 42) -> Bootstrap:
    """A metric over resampled units.

    Args:
        metric: a name of `metrics.CHOICES`, or `f1_class_<i>`.
        tested: what is resampled.
        rounds: number of draws.
        seed: of the draws.
    """
    if metric in RANKING:
        measure = _ranking(metric, tested)
    elif tested.kind == "regression":
        measure = _error(metric, tested)
    elif tested.kind == "multilabel" and metric == "accuracy":
        measure = _share((tested.truth == tested.predicted).all(axis=1), tested.unit)
    else:
        measure = _counted(metric, counts_of(tested), tested.kind)

    def measured(drawn: Array) -> float:
        return measure(np.bincount(drawn, minlength=tested.units).astype(np.float64))

    return bootstrap(measured, tested.units, rounds=rounds, seed=seed)


def counts_of(tested: HeldOut) -> npt.NDArray[np.float64]:
    """Labels that are right, true and predicted, by unit and class: [U, 3, C]."""
    truth, predicted, units, classes = tested.truth, tested.predicted, tested.units, tested.scores.shape[1]
    if tested.kind == "multilabel":
        each = np.stack([truth * predicted, truth, predicted], axis=1).astype(np.float64)  # N 3 C
        counts = np.zeros((units, 3, classes))
        np.add.at(counts, tested.unit, each)
        return counts
    kept = truth.ravel() != IGNORE
    owner, y, z = (flat[kept] for flat in (np.repeat(tested.unit, truth[0].size), truth.ravel(), predicted.ravel()))
    pairs = ((owner[y == z], y[y == z]), (owner, y), (owner, z))
    tables = [np.bincount(at * classes + c, minlength=units * classes).reshape(-1, classes) for at, c in pairs]
    return np.stack(tables, axis=1).astype(np.float64)


def _counted(metric: str, counts: Array, kind: str) -> Measure:
    rows, shape = counts.reshape(len(counts), -1), counts.shape[1:]  # U 3·C
    formula = _formula(metric, kind)
    return lambda weight: formula(*(weight @ rows).reshape(shape))


def _formula(metric: str, kind: str) -> Callable[[Array, Array, Array], float]:
    """The metric from the counts [C] of what is right, true and predicted."""
    if metric.startswith("f1_class_"):
        number = int(metric.removeprefix("f1_class_"))
        return lambda right, true, predicted: float(_f1(right, true, predicted, kind)[number])
    if metric == "macro_f1":
        return lambda right, true, predicted: _macro_f1(right, true, predicted, kind)
    formulas = {
        "accuracy": lambda right, true, _: float(right.sum() / (true.sum() + EPS)),
        "overall_acc": lambda right, true, _: float(right.sum() / (true.sum() + EPS)),
        "macro_acc": lambda right, true, _: _mean((right / (true + EPS))[true > 0]),
        "f1": _micro_f1,
        "micro_f1": _micro_f1,
        "miou": _miou,
    }
    return formulas[metric]


def _micro_f1(right: Array, true: Array, predicted: Array) -> float:
    return float(2 * right.sum() / (true.sum() + predicted.sum() + EPS))


def _miou(right: Array, true: Array, predicted: Array) -> float:
    union = true + predicted - right
    return _mean((right / (union + EPS))[union > 0])


def _macro_f1(right: Array, true: Array, predicted: Array, kind: str) -> float:
    """Over the classes that are true (segmentation), that are true or predicted (classification), or over all."""
    kept = {"segmentation": true > 0, "classification": true + predicted > 0}.get(kind, true >= 0)
    return _mean(_f1(right, true, predicted, kind)[kept])


def _f1(right: Array, true: Array, predicted: Array, kind: str) -> Array:
    """[C]; a class neither true nor predicted is NaN in classification and 0 elsewhere, as in `metrics_of`."""
    absent = np.nan if kind == "classification" else 0.0
    both = true + predicted
    return np.where(both > 0, 2 * right / np.maximum(both, 1), absent)


def _share(right: Array, unit: Array) -> Measure:
    hits, size = np.bincount(unit, weights=right), np.bincount(unit)
    return lambda weight: float(weight @ hits / (weight @ size))


def _error(metric: str, tested: HeldOut) -> Measure:
    """From sums of 1, y, y², e² and |e|; y is centred first, or y² would drown its own spread."""
    y, error = tested.truth - tested.truth.mean(), tested.predicted - tested.truth
    columns = (np.ones_like(y), y, y**2, error**2, np.abs(error))
    sums = np.stack([np.bincount(tested.unit, weights=column) for column in columns], axis=1)  # U 5

    def measure(weight: Array) -> float:
        n, total, squares, squared_error, absolute = weight @ sums
        if metric == "mae":
            return float(absolute / n)
        if metric == "r2":
            return float(1 - squared_error / (max(squares - total**2 / n, 0) + EPS))
        rmse = float(np.sqrt(squared_error / n))
        return -rmse if metric == "neg_rmse" else rmse

    return measure


def _ranking(metric: str, tested: HeldOut) -> Measure:
    """AUROC and average precision from scores that are sorted once per class; the weight of a sample is its unit's."""
    truth, scores, unit = tested.truth, tested.scores, tested.unit
    positive = truth == 1 if tested.kind == "multilabel" else truth[:, None] == np.arange(scores.shape[1])  # N C
    if metric == "micro_map":
        columns = [(positive.ravel(), scores.ravel(), np.repeat(unit, scores.shape[1]))]
    else:
        columns = [(positive[:, c], scores[:, c], unit) for c in range(scores.shape[1])]
    ranked = [_Ranked(*column) for column in columns]
    one = {"auroc": _Ranked.area, "prauc": _Ranked.average_precision, "micro_map": _Ranked.micro_map}[metric]

    def measure(weight: Array) -> float:
        values = np.array([one(column, weight) for column in ranked])
        return _mean(values[np.isfinite(values)])

    return measure


class _Ranked:
    """One column of scores, highest first."""

    def __init__(self, positive: Array, scores: Array, unit: Array) -> None:
        order = np.argsort(-scores, kind="stable")
        self.positive, self.unit = positive[order], unit[order]
        self.last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
        """Position of the last of each run of equal scores: equal scores pass a threshold together."""

    def area(self, weight: Array) -> float:
        """Area under the ROC curve; NaN unless both positives and negatives were drawn."""
        hits, drawn = self._passed(weight)
        misses = drawn - hits
        if hits[-1] == 0 or misses[-1] == 0:
            return float("nan")
        return float(np.trapezoid(hits, misses) / (hits[-1] * misses[-1]))

    def average_precision(self, weight: Array) -> float:
        """Sum of the steps in recall times the precision there; NaN unless both positives and negatives were drawn."""
        hits, drawn = self._passed(weight)
        return self.micro_map(weight) if hits[-1] < drawn[-1] else float("nan")

    def micro_map(self, weight: Array) -> float:
        """Average precision; NaN without a positive."""
        hits, drawn = self._passed(weight)
        if hits[-1] == 0:
            return float("nan")
        precision = hits[1:] / np.maximum(drawn[1:], 1)
        return float((np.diff(hits) * precision).sum() / hits[-1])

    def _passed(self, weight: Array) -> tuple[Array, Array]:
        """Weight of the positives, and of all, at or above each distinct score; both start at 0."""
        drawn = weight[self.unit]
        hits = np.cumsum(drawn * self.positive)[self.last]
        return np.append(0, hits), np.append(0, np.cumsum(drawn)[self.last])


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")
