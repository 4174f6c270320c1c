"""How good answers are: metrics with intervals, the same for a fine-tuned model and for what it is compared with.

What is judged is what was labelled. A label map that is complete is judged pixel by pixel (spec/evaluation.md 7.3).
Where few places are labelled (points, polygons) the label of a place fills the p x p pixels of its map cell, and
p x p copies are not p x p observations: there a cell is judged once, its most frequent label (mean value) against the
mean of the answers for its labelled pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.probe.decide import decide
from olmoearth_cli.core.probe.metrics import CHOICES, IGNORE, PRIMARY, confusion_of, metrics_of
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.finetuning.report import Score
from olmoearth_pipelines.probing.plane import numbered
from olmoearth_pipelines.probing.resampling import RANKING, HeldOut, interval

Array = npt.NDArray[Any]
BLOCKS_AT_LEAST = 5
"""Blocks of land from which they are what is drawn; with fewer, windows are."""


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """By what a task is judged."""

    kind: str
    """Of the targets, as in `HeadSpec`."""
    classes: int
    """C; 1 for regression."""
    patch_px: int
    """Side p of a map cell."""
    sparse: bool
    """True where cells are judged in place of pixels."""
    metric: str
    """What selects and is reported."""

    @property
    def judged(self) -> str:
        """Kind of target that the metrics see."""
        return "regression" if self.kind == "pixel_regression" else self.kind

    @property
    def ranks(self) -> bool:
        """True where metrics look at the order of the probabilities."""
        return self.judged in {"classification", "multilabel"}

    @property
    def per_pixel(self) -> bool:
        """True for label maps."""
        return self.kind in {"segmentation", "pixel_regression"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """M labelled pixels, cells or windows of a split, with the answers to them."""

    truth: Array
    """int64 [M] class ids, uint8 0/1 [M, C], float64 [M] values."""
    predicted: Array
    """As `truth`."""
    scores: Array | None
    """float32 [M, C] probabilities, for ranking; None for label maps and values."""
    window: npt.NDArray[np.int64]
    """[M] position of the window in its split."""


def choose_metric(kind: str, classes: int, *, sparse: bool, asked: str | None) -> str:
    """The metric of a task: what was asked for, or the usual one of the kind.

    Raises:
        InputError: the kind has no such metric; names those it has.
    """
    judged = "regression" if kind == "pixel_regression" else kind
    if asked is None:
        return "overall_acc" if kind == "segmentation" and sparse else PRIMARY[kind]
    by_class = [f"f1_class_{i}" for i in range(classes)] if judged != "regression" else []
    if asked not in (*CHOICES[judged], *by_class):
        offered = ", ".join(CHOICES[judged]) + (f", f1_class_0 to {by_class[-1]}" if by_class else "")
        raise InputError(f"--metric {asked}: {kind} has {offered}.")
    return asked


def gather(parts: Iterable[tuple[Array, Array, Array]], yardstick: Yardstick) -> Judged:
    """What is labelled of a split, with the answers.

    Args:
        parts: scores (as of `HeadSpec.scores`: [n, C], [n], [n, C, H, W] or [n, H, W]), targets (as in
            `FinetuneBatch`) and positions int64 [n] of the windows in their split.
        yardstick: by what they are judged.
    """
    truths, decided, scores, owners = [], [], [], []
    for answers, targets, window in parts:
        truth, kept, owner = _labelled(answers, targets, window, yardstick)
        truths.append(truth)
        owners.append(owner)
        decided.append(decide(yardstick.judged, kept))
        if yardstick.ranks:  # the probabilities of complete label maps would take gigabytes
            scores.append(kept)
    return Judged(
        truth=np.concatenate(truths),
        predicted=np.concatenate(decided),
        scores=np.concatenate(scores) if yardstick.ranks else None,
        window=np.concatenate(owners),
    )


def value_of(judged: Judged, yardstick: Yardstick) -> float:
    """The metric alone; NaN where it is not defined."""
    return _metrics(judged, yardstick, ranked=yardstick.metric in RANKING)[yardstick.metric]


def score_of(
    name: str, judged: Judged, yardstick: Yardstick, groups: npt.NDArray[np.int64], *, rounds: int, seed: int
) -> Score:
    """All metrics, and the interval of the one that decides.

    Args:
        name: of the method.
        judged: its answers.
        yardstick: by what they are judged.
        groups: [windows of the split] block of land, -1 for none.
        rounds: draws of the bootstrap; 0 for no interval.
        seed: of the draws.
    """
    metrics = _metrics(judged, yardstick, ranked=True)
    unit = _units(judged.window, groups)
    low = high = None
    if rounds and unit.max() > 0:
        held = HeldOut(
            kind=yardstick.judged,
            truth=judged.truth,
            predicted=judged.predicted,
            scores=judged.scores if judged.scores is not None else _no_scores(judged, yardstick),
            unit=unit,
        )
        drawn = interval(yardstick.metric, held, rounds=rounds, seed=seed)
        if np.isfinite(drawn.values).any():
            low, high = drawn.low, drawn.high
    return Score(name=name, value=metrics[yardstick.metric], low=low, high=high, metrics=metrics)


def confusion(judged: Judged, yardstick: Yardstick) -> tuple[tuple[int, ...], ...] | None:
    """[C][C] true by predicted; None for regression and multi-label."""
    if yardstick.judged not in {"classification", "segmentation"}:
        return None
    matrix = confusion_of(judged.truth, judged.predicted, yardstick.classes)
    return tuple(tuple(int(count) for count in row) for row in matrix)


def by_cell(targets: Array, side: int) -> Array:
    """[n, H, W] to [n, Y, X, p * p]."""
    n, rows, columns = targets.shape
    cells = targets.reshape(n, rows // side, side, columns // side, side)
    return cells.swapaxes(2, 3).reshape(n, rows // side, columns // side, side * side)


def cell_targets(cells: Array, yardstick: Yardstick) -> Array:
    """One target per cell.

    Args:
        cells: [M, p * p] pixels, some of each labelled.
        yardstick: of the task.

    Returns:
        int64 [M], the most frequent class (the lowest of equals), or float64 [M], the mean value.
    """
    if yardstick.judged == "regression":
        return np.asarray(np.nanmean(cells, axis=1, dtype=np.float64))
    row, pixel = np.nonzero(cells != IGNORE)
    key = row * yardstick.classes + cells[row, pixel].astype(np.int64)
    return np.bincount(key, minlength=len(cells) * yardstick.classes).reshape(len(cells), -1).argmax(axis=1)


def labelled_pixels(targets: Array, yardstick: Yardstick) -> npt.NDArray[np.bool_]:
    """True where there is a label; of the shape of the targets."""
    return np.isfinite(targets) if yardstick.judged == "regression" else np.asarray(targets != IGNORE)


def _labelled(scores: Array, targets: Array, window: Array, yardstick: Yardstick) -> tuple[Array, Array, Array]:
    if not yardstick.per_pixel:
        if yardstick.judged == "regression":
            return targets.astype(np.float64), scores, window
        return targets, scores, window
    if yardstick.judged == "regression":
        scores = scores[:, None]
    scores = np.moveaxis(scores, 1, -1)  # n H W C
    pixels = _of_cells if yardstick.sparse else _of_pixels
    truth, answers, owner = pixels(scores, targets, window, yardstick)
    return truth, answers[:, 0] if yardstick.judged == "regression" else answers, owner


def _of_pixels(scores: Array, targets: Array, window: Array, yardstick: Yardstick) -> tuple[Array, Array, Array]:
    known = labelled_pixels(targets, yardstick)
    owner = np.broadcast_to(window[:, None, None], targets.shape)[known]
    truth = targets[known]
    return truth.astype(np.float64 if yardstick.judged == "regression" else np.int64), scores[known], owner


def _of_cells(scores: Array, targets: Array, window: Array, yardstick: Yardstick) -> tuple[Array, Array, Array]:
    side = yardstick.patch_px
    pixels = by_cell(targets, side)  # n Y X pp
    known = labelled_pixels(pixels, yardstick)
    some = known.any(axis=-1)  # n Y X
    answers = np.stack([by_cell(scores[..., c], side)[some] for c in range(scores.shape[-1])], axis=-1)  # M pp C
    weight = known[some][..., None]
    mean = (answers * weight).sum(axis=1) / weight.sum(axis=1)
    owner = np.broadcast_to(window[:, None, None], some.shape)[some]
    return cell_targets(pixels[some], yardstick), mean.astype(np.float32), owner


def _metrics(judged: Judged, yardstick: Yardstick, *, ranked: bool) -> dict[str, float]:
    scores = judged.scores if ranked else None
    return metrics_of(yardstick.judged, judged.truth, judged.predicted, scores, yardstick.classes)


def _no_scores(judged: Judged, yardstick: Yardstick) -> Array:
    """Zeros [M, C] that take no memory: the interval of a label map reads their shape only."""
    return np.broadcast_to(np.float32(0), (len(judged.truth), yardstick.classes))


def _units(window: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What is drawn whole, numbered from 0: blocks of land where all windows have one and there are enough."""
    group = groups[window]
    if (group >= 0).all() and len(np.unique(group)) >= BLOCKS_AT_LEAST:
        return numbered(group)
    return numbered(window)
