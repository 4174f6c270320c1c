"""A fitted probe against one split: metrics, and the metric over resampled splits (spec/evaluation.md 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.probe.knn import Knn
from olmoearth_cli.core.probe.linear import LinearProbe
from olmoearth_cli.core.probe.metrics import (
    Bootstrap,
    bootstrap,
    classification_metrics,
    confusion_of,
    metrics_of,
    micro_map,
    segmentation_metrics,
)

Array = npt.NDArray[Any]
IMAGES = 16
"""Images whose scores [16, C, H, W] lie in memory at once."""
RANKING = ("auroc", "prauc", "micro_map")
"""Metrics of the scores, not of the decisions."""


Probe = Knn | LinearProbe


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Truth and decisions of one split."""

    kind: str
    classes: int
    by_position: bool
    """True numbers the per-class F1 as the reference does (7.2)."""
    truth: Array
    """int [N] or 0/1 [N, C]; int64 [N, C, C] confusion matrices, one per image, for segmentation."""
    predicted: Array | None = None
    """As `truth`; None for segmentation."""
    scores: Array | None = None
    """[N, C]; None for segmentation."""

    def metrics(self, index: Array | None = None, *, ranking: bool = True) -> dict[str, float]:
        """All metrics, over some of the samples where `index` names them (with repetition).

        Args:
            index: int [M]; None: all.
            ranking: False leaves out the metrics of the scores, which cost most.
        """
        rows = slice(None) if index is None else index
        if self.predicted is None:
            return segmentation_metrics(self.truth[rows].sum(axis=0))
        truth, predicted = self.truth[rows], self.predicted[rows]
        scores = self.scores[rows] if ranking and self.scores is not None else None
        if self.kind == "classification":
            return classification_metrics(truth, predicted, scores, self.classes, by_position=self.by_position)
        return metrics_of(self.kind, truth, predicted, scores, self.classes)

    def resampled(self, metric: str, *, rounds: int, seed: int) -> Bootstrap:
        """One metric over resampled samples; whole images for segmentation."""
        return bootstrap(lambda index: self._one(metric, index), len(self.truth), rounds=rounds, seed=seed)

    def _one(self, metric: str, index: Array) -> float:
        if metric == "micro_map" and self.scores is not None:
            return micro_map(self.truth[index], self.scores[index])
        return self.metrics(index, ranking=metric in RANKING).get(metric, float("nan"))


def judge(probe: Probe, vectors: Array, targets: Array, *, by_position: bool) -> Judged:
    """Score a split once.

    Args:
        probe: fitted; for maps of vectors a linear one.
        vectors: [N, D], or [N, Y, X, D] for segmentation.
        targets: as in `TaskSample`, stacked.
        by_position: see `Judged`.
    """
    kind, classes = probe.kind, probe.classes
    if isinstance(probe, LinearProbe) and kind == "segmentation":
        truth, predicted, scores = _confusions(probe, vectors, targets), None, None
    else:
        scores = probe.scores(vectors)
        truth, predicted = targets, probe.predict(scores)
    return Judged(kind=kind, classes=classes, by_position=by_position, truth=truth, predicted=predicted, scores=scores)


def _confusions(probe: LinearProbe, maps: Array, targets: Array) -> npt.NDArray[np.int64]:
    """[N, C, C], one matrix per image."""
    confusions = np.zeros((len(targets), probe.classes, probe.classes), np.int64)
    for at in range(0, len(targets), IMAGES):
        labels = targets[at : at + IMAGES]
        decided = probe.predict(probe.scores_images(maps[at : at + IMAGES], labels.shape[1]))
        for i, (truth, predicted) in enumerate(zip(labels, decided, strict=True), start=at):
            confusions[i] = confusion_of(truth, predicted, probe.classes)
    return confusions
