"""What a probe is worth on land it has not seen (spec/evaluation.md sections 4 to 7).

Every sample is scored once, by a probe that learnt from the other folds only, and the metric is taken over all these
held-out answers. Rate and epoch of a linear probe are chosen on a fold that is neither learnt from nor tested.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.probe.calibration import Calibration, calibrate
from olmoearth_cli.core.probe.decide import decide
from olmoearth_cli.core.probe.knn import TEMPERATURE, K, Knn, fit_knn
from olmoearth_cli.core.probe.metrics import CHOICES, PRIMARY, confusion_of, lower_is_better, metrics_of
from olmoearth_cli.core.probe.recipe import LinearRecipe
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.probing.plane import numbered
from olmoearth_pipelines.probing.resampling import HeldOut, counts_of, interval
from olmoearth_pipelines.probing.samples import Array, Samples
from olmoearth_pipelines.probing.splits import Folds
from olmoearth_pipelines.probing.strata import class_columns, deal

if TYPE_CHECKING:
    from olmoearth_cli.core.probe.linear import LinearProbe

Mask = npt.NDArray[np.bool_]
UNITS_AT_LEAST = 10
"""Independent units below which an interval is a rough guess."""
VALIDATION_PARTS = 10
"""One part in ten of the training samples chooses rate and epoch where no fold is set apart for it."""


@dataclass(frozen=True, kw_only=True)
class KnnMethod:
    """Cosine kNN."""

    k: int = K
    """Neighbours; fewer where there are fewer training samples."""
    temperature: float = TEMPERATURE
    """Of the vote."""

    name = "knn"


@dataclass(frozen=True, kw_only=True)
class LinearMethod:
    """Linear probe; the best of the recipe's learning rates, by fold."""

    recipe: LinearRecipe = field(default_factory=LinearRecipe)
    """Its `metric` is replaced by the one that the evaluation reports."""

    name = "linear"


@dataclass(frozen=True, kw_only=True)
class MajorityMethod:
    """The least that a probe has to beat: the labels' shares or mean alone, blind to the vectors."""

    name = "majority"


Method = KnnMethod | LinearMethod | MajorityMethod


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class; None where a figure is not defined."""

    name: str
    support: int
    """Labels of this class among the tested ones (pixels for segmentation)."""
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A method judged on held-out samples."""

    method: str
    """`knn`, `linear` or `majority`."""
    metric: str
    """The primary metric."""
    value: float
    """Of the primary metric, over all held-out answers together."""
    low: float
    """2.5 percentile over resampled units; NaN where there are no two units."""
    high: float
    """97.5 percentile."""
    metrics: dict[str, float]
    """All metrics of the kind, as in `metrics_of`."""
    per_class: tuple[ClassScore, ...]
    """In the order of the class ids; empty for regression."""
    confusion: npt.NDArray[np.int64] | None
    """[C, C] true by predicted; None for multi-label and regression."""
    scores: npt.NDArray[np.float32]
    """[N, C], [N, C, P, P] or [N], not calibrated; NaN where a sample was never tested."""
    predicted: Array
    """[N, ...] like the targets; -1 (regression: NaN) where a sample was never tested."""
    tested: Mask
    """[N], True for the samples that were held out once."""
    calibration: Calibration
    """Temperature of the scores, and their calibration error before and after."""
    k: int | None = None
    """Smallest number of neighbours used; None for other methods."""
    lrs: tuple[float, ...] = ()
    """Learning rate chosen in each fold (linear)."""
    epochs: tuple[int, ...] = ()
    """Epoch kept in each fold (linear)."""
    lr: float | None = None
    """Learning rate chosen overall (linear)."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """Wall time, bootstrap included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    """What the probe of one fold said, and how it was chosen."""

    scores: npt.NDArray[np.float32]
    k: int | None = None
    lr: float | None = None
    epoch: int | None = None
    value: float | None = None
    """On the validation samples."""
    notes: tuple[str, ...] = ()


def evaluate(
    samples: Samples, folds: Folds, method: Method, *, metric: str | None = None, bootstrap: int = 1000, seed: int = 42
) -> Evaluation:
    """Judge a method.

    Args:
        samples: what to learn and to test.
        folds: of these samples, from `make_folds`.
        method: what to judge.
        metric: primary metric; None takes the one of the published tables for this kind of target.
        bootstrap: draws for the interval; 0 leaves it out.
        seed: of the draws, and of the validation part where none is set apart.

    Raises:
        InputError: a metric that this kind of target does not have.
        ValueError: folds of other samples.
    """
    started = time.perf_counter()
    if len(folds.fold) != len(samples):
        raise ValueError(f"folds of {len(folds.fold)} samples, but there are {len(samples)}")
    metric = _primary(samples, metric)
    answers = [_answer(samples, folds, fold, method, metric=metric, seed=seed) for fold in range(folds.count)]
    scores, predicted = _gathered(samples, folds, answers)
    held = folds.fold >= 0
    tested = HeldOut(
        kind=samples.kind,
        truth=samples.targets[held],
        predicted=predicted[held],
        scores=scores[held],
        unit=numbered(folds.unit[held]),
    )
    metrics = metrics_of(samples.kind, tested.truth, tested.predicted, tested.scores, samples.classes)
    low, high, doubts = _interval(metric, tested, bootstrap, seed)
    parts = folds.fold[held] if folds.count > 1 else tested.unit % 2
    return Evaluation(
        method=method.name,
        metric=metric,
        value=metrics[metric],
        low=low,
        high=high,
        metrics=metrics,
        per_class=_per_class(samples, tested),
        confusion=_confusion(samples, tested),
        scores=scores,
        predicted=predicted,
        tested=held,
        calibration=calibrate(tested.scores, tested.truth, parts, samples.kind),
        k=min((a.k for a in answers if a.k is not None), default=None),
        lrs=tuple(a.lr for a in answers if a.lr is not None),
        epochs=tuple(a.epoch for a in answers if a.epoch is not None),
        lr=_overall_lr(answers, metric),
        notes=tuple(dict.fromkeys(note for a in answers for note in a.notes)) + doubts,
        seconds=time.perf_counter() - started,
    )


def fit_final(samples: Samples, method: KnnMethod | LinearMethod, evaluation: Evaluation) -> Knn | LinearProbe:
    """The probe to use on a map: fitted on all samples, with what the evaluation chose.

    Args:
        samples: all labelled samples.
        method: that was judged.
        evaluation: of this method; gives the learning rate and the median of the epochs kept (linear).
    """
    vectors, targets, kind, classes = samples.vectors, samples.targets, samples.kind, samples.classes
    if isinstance(method, KnnMethod):
        k = min(method.k, len(samples))
        return fit_knn(vectors, targets, kind=kind, classes=classes, k=k, temperature=method.temperature)
    from olmoearth_cli.core.probe.linear import fit_linear

    if evaluation.lr is None:
        raise ValueError(f"the evaluation is of {evaluation.method}, which chose no learning rate")
    epochs = max(int(np.median(evaluation.epochs)), 1)
    recipe = replace(method.recipe, lrs=(evaluation.lr,), epochs=epochs, select_best=False)
    return fit_linear(vectors, targets, kind=kind, classes=classes, recipe=recipe).probe


def _primary(samples: Samples, metric: str | None) -> str:
    if metric is None:
        return PRIMARY[samples.kind]
    by_class = [f"f1_class_{c}" for c in range(samples.classes)] if samples.kind != "regression" else []
    if metric not in (*CHOICES[samples.kind], *by_class):
        offered = ", ".join(CHOICES[samples.kind]) + (f", f1_class_0 to {by_class[-1]}" if by_class else "")
        raise InputError(f"--metric {metric}: {samples.kind} has {offered}.")
    return metric


def _answer(samples: Samples, folds: Folds, fold: int, method: Method, *, metric: str, seed: int) -> _Answers:
    """Learn without a fold, and answer for it."""
    learnt, tested = folds.sides(fold)
    if isinstance(method, MajorityMethod):
        # Of all labels in cross-validation: a class that is rare in a fold is common outside it, so the shares of the
        # other folds alone answer worse than chance (0.05 instead of 0.17 on eight even classes in blocks).
        known = learnt if folds.fixed else learnt | tested
        return _Answers(scores=_blind(samples, known, int(tested.sum())))
    if isinstance(method, KnnMethod):
        return _knn(samples, learnt, tested, method)
    chooses = folds.validation(fold)
    notes: tuple[str, ...] = ()
    if chooses is None:
        chooses = _part_of(samples, folds, learnt, seed)
        notes = ("No samples are set apart to choose the learning rate: a part of the training samples does.",)
    recipe = replace(method.recipe, metric=metric)
    return _linear(samples, learnt & ~chooses, chooses, tested, recipe, notes)


def _knn(samples: Samples, learnt: Mask, tested: Mask, method: KnnMethod) -> _Answers:
    k = min(method.k, int(learnt.sum()))
    probe = fit_knn(
        samples.vectors[learnt],
        samples.targets[learnt],
        kind=samples.kind,
        classes=samples.classes,
        k=k,
        temperature=method.temperature,
    )
    fewer = f"{k} neighbours instead of {method.k}: there are no more training samples."
    return _Answers(scores=probe.scores(samples.vectors[tested]), k=k, notes=(fewer,) if k < method.k else ())


def _linear(
    samples: Samples, learnt: Mask, chooses: Mask, tested: Mask, recipe: LinearRecipe, notes: tuple[str, ...]
) -> _Answers:
    from olmoearth_cli.core.probe.linear import fit_linear

    fit = fit_linear(
        samples.vectors[learnt],
        samples.targets[learnt],
        kind=samples.kind,
        classes=samples.classes,
        recipe=recipe,
        val=(samples.vectors[chooses], samples.targets[chooses]),
    )
    scores = fit.probe.scores(samples.vectors[tested])
    return _Answers(scores=scores, lr=fit.lr, epoch=fit.epoch, value=fit.val_value, notes=notes)


def _blind(samples: Samples, known: Mask, count: int) -> npt.NDArray[np.float32]:
    """Shares of the classes, or the mean value, of the known labels: the same answer for every sample."""
    targets = samples.targets[known]
    if samples.kind == "regression":
        return np.full(count, targets.mean(), dtype=np.float32)
    if samples.kind == "multilabel":
        return np.tile(targets.mean(axis=0, dtype=np.float64).astype(np.float32), (count, 1))
    labelled = targets[targets >= 0]
    shares = np.bincount(labelled, minlength=samples.classes) / max(len(labelled), 1)
    inner = targets.shape[1:]  # P P, or nothing
    return np.broadcast_to(shares.reshape(1, -1, *(1 for _ in inner)), (count, samples.classes, *inner)).astype(
        np.float32
    )


def _part_of(samples: Samples, folds: Folds, learnt: Mask, seed: int) -> Mask:
    """About a tenth of the samples learnt from, whole units where there are some to spare."""
    for key in (folds.unit, samples.group, np.arange(len(samples))):
        unit = numbered(key[learnt])
        units = int(unit.max()) + 1
        if units > 1:
            parts = min(VALIDATION_PARTS, units)
            part = deal(class_columns(samples)[learnt], unit, parts, seed) == parts - 1  # the rarest units lie in 0
            chosen = np.zeros(len(samples), dtype=bool)
            chosen[np.flatnonzero(learnt)[part]] = True
            return chosen
    raise InputError("One training sample only: none is left to choose the learning rate. Label more samples.")


def _gathered(samples: Samples, folds: Folds, answers: list[_Answers]) -> tuple[npt.NDArray[np.float32], Array]:
    """Scores and decisions of all folds in the order of the samples."""
    scores = np.full((len(samples), *answers[0].scores.shape[1:]), np.nan, dtype=np.float32)
    for fold, answer in enumerate(answers):
        scores[folds.fold == fold] = answer.scores
    held = folds.fold >= 0
    decided = decide(samples.kind, scores[held])
    values = samples.kind == "regression"
    predicted = np.full(
        (len(samples), *decided.shape[1:]), np.nan if values else -1, np.float32 if values else np.int64
    )
    predicted[held] = decided
    return scores, predicted


def _interval(metric: str, tested: HeldOut, rounds: int, seed: int) -> tuple[float, float, tuple[str, ...]]:
    """95 % percentile interval, and what to think of it."""
    if rounds < 1:
        return float("nan"), float("nan"), ()
    if tested.units < 2:
        return float("nan"), float("nan"), ("No interval: all tested samples lie in one block or label feature.",)
    drawn = interval(metric, tested, rounds=rounds, seed=seed)
    if not np.isfinite(drawn.values).any():
        return float("nan"), float("nan"), (f"No interval: {metric} is not defined on these samples.",)
    few = f"The interval rests on {tested.units} independent blocks or label features: take it as a rough guess."
    return drawn.low, drawn.high, (few,) if tested.units < UNITS_AT_LEAST else ()


def _per_class(samples: Samples, tested: HeldOut) -> tuple[ClassScore, ...]:
    if samples.kind == "regression":
        return ()
    table = counts_of(tested).sum(axis=0)  # 3 C
    return tuple(
        ClassScore(
            name=name,
            support=int(true),
            precision=float(right / predicted) if predicted else None,
            recall=float(right / true) if true else None,
            f1=float(2 * right / (true + predicted)) if true + predicted else None,
        )
        for name, (right, true, predicted) in zip(samples.class_names, table.T, strict=True)
    )


def _confusion(samples: Samples, tested: HeldOut) -> npt.NDArray[np.int64] | None:
    if samples.kind not in {"classification", "segmentation"}:
        return None
    return confusion_of(tested.truth, tested.predicted, samples.classes)


def _overall_lr(answers: list[_Answers], metric: str) -> float | None:
    """The rate that most folds chose; among equals the one with the best mean validation value."""
    chosen = [answer for answer in answers if answer.lr is not None]
    if not chosen:
        return None
    sign = -1 if lower_is_better(metric) else 1

    def standing(lr: float | None) -> tuple[int, float]:
        values = [answer.value for answer in chosen if answer.lr == lr]
        known = [value for value in values if value is not None and np.isfinite(value)]
        return len(values), sign * float(np.mean(known)) if known else -np.inf

    return max((answer.lr for answer in chosen), key=standing)
