"""Metrics of the evaluation protocol (spec/evaluation.md section 7). scikit-learn wherever it agrees with it.

Every function returns plain floats by the reference's names; NaN where a value is not defined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score

Array = npt.NDArray[Any]
IGNORE = -1
"""The only ignore value in segmentation labels."""
EPS = 1e-8
PRIMARY: Mapping[str, str] = {
    "classification": "accuracy",
    "multilabel": "f1",
    "segmentation": "miou",
    "regression": "neg_rmse",
    "pixel_regression": "neg_rmse",
}
"""Kind of target -> metric that decides (7.1)."""
CHOICES: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "auroc", "prauc"),
    "multilabel": ("f1", "macro_f1", "micro_map", "auroc", "prauc", "accuracy"),
    "segmentation": ("miou", "overall_acc", "macro_acc", "macro_f1", "micro_f1"),
    "regression": ("neg_rmse", "rmse", "mae", "r2"),
}
"""Kind of target -> metrics that a user may choose as the primary one, beside `f1_class_<i>`."""


def lower_is_better(metric: str) -> bool:
    """True for errors: smaller values win (7.1)."""
    return metric in {"mae", "rmse"}


def metrics_of(kind: str, truth: Array, predicted: Array, scores: Array | None, classes: int) -> dict[str, float]:
    """All metrics of a kind of target.

    Args:
        kind: `classification`, `multilabel`, `segmentation` or `regression`.
        truth: int [N], 0/1 [N, C], int [N, ...] with -1 ignored, or float [N, ...] with NaN ignored.
        predicted: as `truth`.
        scores: [N, C] for the ranking metrics; None leaves them out. Not used for segmentation and regression.
        classes: number of classes C.
    """
    if kind == "classification":
        return classification_metrics(truth, predicted, scores, classes)
    if kind == "multilabel":
        return multilabel_metrics(truth, predicted, scores)
    if kind == "segmentation":
        return segmentation_metrics(confusion_of(truth, predicted, classes))
    if kind in {"regression", "pixel_regression"}:
        return regression_metrics(truth, predicted)
    raise ValueError(f"kind {kind!r} is none of {', '.join(PRIMARY)}")


def confusion_of(truth: Array, predicted: Array, classes: int) -> npt.NDArray[np.int64]:
    """Confusion matrix [true, predicted] over the entries whose truth is not -1."""
    valid = truth != IGNORE
    if not valid.any():
        return np.zeros((classes, classes), dtype=np.int64)
    labels = range(classes)
    return np.asarray(confusion_matrix(truth[valid], predicted[valid], labels=labels), dtype=np.int64)


def classification_metrics(
    truth: Array, predicted: Array, scores: Array | None, classes: int, *, by_position: bool = False
) -> dict[str, float]:
    """Single-label metrics (7.2).

    Args:
        truth: int [N].
        predicted: int [N].
        scores: [N, C]; None leaves AUROC and PR-AUC out.
        classes: number of classes C.
        by_position: number the per-class F1 over the classes that occur, as the reference does; otherwise by
            class id, NaN for classes that occur in neither.
    """
    occurring = np.union1d(truth, predicted)
    f1 = f1_score(truth, predicted, labels=occurring, average=None, zero_division=0)
    values = {"accuracy": float((truth == predicted).mean()), "macro_f1": float(f1.mean())}
    if scores is not None:
        values |= _ranking(truth[:, None] == np.arange(classes), scores)
    if by_position:
        return values | {f"f1_class_{i}": float(value) for i, value in enumerate(f1)}
    by_id = dict(zip(occurring.tolist(), f1.tolist(), strict=True))
    return values | {f"f1_class_{c}": by_id.get(c, float("nan")) for c in range(classes)}


def multilabel_metrics(truth: Array, predicted: Array, scores: Array | None) -> dict[str, float]:
    """Multi-label metrics (7.2); `accuracy` is the share of samples with all labels right.

    Args:
        truth: 0/1 [N, C].
        predicted: 0/1 [N, C].
        scores: [N, C]; None leaves the ranking metrics out.
    """
    f1 = f1_score(truth, predicted, average=None, zero_division=0)
    values = {
        "accuracy": float((truth == predicted).all(axis=1).mean()),
        "f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "macro_f1": float(f1.mean()),
    }
    if scores is not None:
        values |= {"micro_map": micro_map(truth, scores), **_ranking(truth == 1, scores)}
    return values | {f"f1_class_{c}": float(value) for c, value in enumerate(f1)}


def micro_map(truth: Array, scores: Array) -> float:
    """Average precision of the flattened label and score matrices; NaN without a positive."""
    return float(average_precision_score(truth.ravel(), scores.ravel())) if truth.any() else float("nan")


def segmentation_metrics(confusion: Array, truth: Array | None = None, scores: Array | None = None) -> dict[str, float]:
    """Segmentation metrics from the confusion matrix of a whole split (7.3).

    Args:
        confusion: [C, C] true by predicted.
        truth: int [P] of the pixels, for the ranking metrics; -1 is left out.
        scores: [P, C].
    """
    m = np.asarray(confusion, dtype=np.float64)
    tp, fp, fn = m.diagonal(), m.sum(axis=0) - m.diagonal(), m.sum(axis=1) - m.diagonal()
    true_some, union = m.sum(axis=1) > 0, tp + fp + fn
    precision, recall = tp / (tp + fp + EPS), tp / (tp + fn + EPS)
    f1 = 2 * precision * recall / (precision + recall + EPS)
    values = {
        "miou": _mean((tp / (union + EPS))[union > 0]),
        "overall_acc": float(tp.sum() / (m.sum() + EPS)),
        "macro_acc": _mean(recall[true_some]),
        "macro_f1": _mean(f1[true_some]),
        "micro_f1": float(2 * tp.sum() / (2 * tp.sum() + fp.sum() + fn.sum() + EPS)),
    }
    if truth is not None and scores is not None:
        valid = truth != IGNORE
        values |= _ranking(truth[valid, None] == np.arange(len(m)), scores[valid])
    return values | {f"f1_class_{c}": float(value) for c, value in enumerate(f1)}


def regression_metrics(truth: Array, predicted: Array) -> dict[str, float]:
    """MAE, RMSE, its negative and R2 over the finite labels (7.4).

    Raises:
        ValueError: no label is finite.
    """
    finite = np.isfinite(truth)
    if not finite.any():
        raise ValueError("no finite label to score against")
    y, error = truth[finite].astype(np.float64), (predicted[finite] - truth[finite]).astype(np.float64)
    rmse = float(np.sqrt((error**2).mean()))
    r2 = 1 - (error**2).sum() / (((y - y.mean()) ** 2).sum() + EPS)
    return {"mae": float(np.abs(error).mean()), "rmse": rmse, "neg_rmse": -rmse, "r2": float(r2)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Bootstrap:
    """A metric over resampled test sets (section 6)."""

    values: npt.NDArray[np.float64]
    """[rounds]; rounds in which the metric is not defined are NaN and left out of the figures."""

    @property
    def mean(self) -> float:
        """Mean over the rounds."""
        return float(np.nanmean(self.values))

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return float(np.nanstd(self.values))

    @property
    def low(self) -> float:
        """2.5 percentile."""
        return float(np.nanpercentile(self.values, 2.5))

    @property
    def high(self) -> float:
        """97.5 percentile."""
        return float(np.nanpercentile(self.values, 97.5))


def bootstrap(measure: Callable[[Array], float], count: int, *, rounds: int = 1000, seed: int = 42) -> Bootstrap:
    """Resample `count` units with replacement and measure each time (section 6).

    Args:
        measure: from indices int [count] of the drawn units to the metric.
        count: units: samples, images, or spatial blocks.
        rounds: number of draws.
        seed: of numpy's PCG64; one `choice` call per round.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = (generator.choice(count, size=count, replace=True) for _ in range(rounds))
    return Bootstrap(values=np.array([measure(index) for index in drawn], dtype=np.float64))


def _ranking(truth: Array, scores: Array) -> dict[str, float]:
    """AUROC and PR-AUC, one-versus-rest over the classes that have both positives and negatives."""
    both = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0)) if len(truth) else np.empty(0, dtype=int)
    auroc = [float(roc_auc_score(truth[:, c], scores[:, c])) for c in both]
    prauc = [float(average_precision_score(truth[:, c], scores[:, c])) for c in both]
    return {"auroc": _mean(np.array(auroc)), "prauc": _mean(np.array(prauc))}


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")
