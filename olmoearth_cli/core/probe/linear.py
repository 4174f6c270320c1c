"""Fitting a linear probe (spec/evaluation.md section 5): one linear layer on frozen embeddings, chosen on validation.

All learning rates of the recipe are trained side by side (`core.probe.replicas`); after every interval each is
validated, and the state with the best primary metric is kept.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from olmoearth_cli.core.probe.heads import Head, pixels_per_patch
from olmoearth_cli.core.probe.linear_probe import CHUNK, VALUES_AT_ONCE, LinearProbe, chunks
from olmoearth_cli.core.probe.losses import standardisation
from olmoearth_cli.core.probe.metrics import IGNORE, PRIMARY, lower_is_better, metrics_of, segmentation_metrics
from olmoearth_cli.core.probe.recipe import LinearRecipe
from olmoearth_cli.core.probe.replicas import Replicas, initial_weights
from olmoearth_cli.core.probe.threads import single_threaded_operations
from olmoearth_cli.errors import InputError

__all__ = ["LinearFit", "LinearProbe", "LinearRecipe", "fit_linear", "train_from"]

Array = npt.NDArray[Any]
Pair = tuple[Array, Array]
"""Features and targets."""
THREADS_FROM = 2**26
"""Multiply-accumulates of a step (about 1 ms on one core) from which several threads pay."""
RANKING = {"auroc", "prauc", "micro_map"}
"""Metrics of scores; the others need decisions only."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearFit:
    """A fitted probe and how it was chosen."""

    probe: LinearProbe
    """The kept state."""
    lr: float
    """Its learning rate."""
    epoch: int
    """Epochs that the kept state was trained for."""
    val_value: float | None
    """The selecting metric of the kept state on the validation samples; None without any."""
    val_last: float | None
    """The same after the last epoch at that learning rate."""


def fit_linear(
    train_x: Array,
    train_y: Array,
    *,
    kind: str,
    classes: int,
    recipe: LinearRecipe,
    val: Pair | None = None,
    device: str = "cpu",
) -> LinearFit:
    """Train a linear probe at every learning rate of the recipe and keep the best on `val`.

    Args:
        train_x: float [N, D], or feature maps [N, Y, X, D] for a spatial kind; may be memory-mapped.
        train_y: int [N] (-1 ignored); 0/1 [N, C]; int [N, H, H] (-1 ignored); float [N] or [N, H, H] (NaN ignored).
        kind: one of `heads.KINDS`.
        classes: number of classes C; 1 for regression.
        recipe: hyper-parameters.
        val: features and targets to select on, shaped as in training.
        device: where to compute.

    Raises:
        InputError: too few training labels, or a metric that is not defined on `val`.
        ValueError: shapes, class ids or features that do not fit; several learning rates but no `val`.
    """
    if val is None and len(recipe.lrs) > 1:
        raise ValueError(f"{len(recipe.lrs)} learning rates and no validation samples to choose by")
    if recipe.dice and kind != "segmentation":
        raise ValueError(f"the dice term is for segmentation, not {kind}")
    spatial = Head(kind=kind, classes=classes).spatial
    train = _checked(train_x, train_y, kind, classes)
    if not _labelled(train[1], kind).any():
        raise InputError(
            f"none of the {len(train_x)} training samples is labelled. Add labels inside the training split."
        )
    side = pixels_per_patch(train_y.shape[1:3], train[0].shape[1:3]) if spatial else 1
    head, target = Head(kind=kind, classes=classes, side=side), (0.0, 1.0)
    if kind in {"regression", "pixel_regression"}:
        target = standardisation(train_y)
        train = (train[0], (train_y - target[0]) / target[1])
    checked = None if val is None else _checked(*val, kind, classes)
    if checked is not None and checked[0].shape[-1] != train[0].shape[-1]:
        raise ValueError(f"{checked[0].shape[-1]} dimensions in validation, {train[0].shape[-1]} in training")
    initial = initial_weights(head, train[0].shape[-1], recipe.seed)
    return train_from(initial, train, checked, head=head, recipe=recipe, target=target, device=device)


def train_from(
    initial: tuple[Tensor, Tensor],
    train: Pair,
    val: Pair | None,
    *,
    head: Head,
    recipe: LinearRecipe,
    target: tuple[float, float] = (0.0, 1.0),
    device: str = "cpu",
) -> LinearFit:
    """Train from given weights.

    Args:
        initial: weight [O, D] and bias [O].
        train: features, [N, Y, X, D] for a spatial head, and targets, standardised for regression.
        val: likewise, with targets in their own units.
        head: what the outputs mean.
        recipe: hyper-parameters.
        target: mean and standard deviation that standardised the targets.
        device: where to compute.

    Raises:
        InputError: too few training samples, or a metric that is not defined on `val`.
    """
    if head.normalises and min(len(train[0]), recipe.batch_size) < 2:
        raise InputError(
            f"a batch norm needs batches of at least 2 training samples: there are {len(train[0])}, "
            f"in batches of {recipe.batch_size}. Add labels, or raise the batch size."
        )
    replicas = Replicas(initial, head=head, recipe=recipe, device=device)
    keeper, order = _Keeper(recipe, head), np.random.default_rng(recipe.seed)
    patches = math.prod(train[0].shape[1:-1])
    small = replicas.parameters.numel() * recipe.batch_size * patches < THREADS_FROM
    with single_threaded_operations() if small else nullcontext():
        for epoch in range(recipe.epochs):
            if epoch % recipe.eval_interval == 0:
                replicas.restart()
            _train_epoch(replicas, train, epoch, order)
            last = epoch + 1 == recipe.epochs
            if last or (recipe.select_best and (epoch + 1) % recipe.eval_interval == 0 and val is not None):
                probes = [_probe_of(replicas, r, target) for r in range(len(recipe.lrs))]
                keeper.see(probes, epoch + 1, None if val is None else _values(probes, val, keeper.metric))
    return keeper.best()


class _Keeper:
    """Of each learning rate, the state to keep."""

    def __init__(self, recipe: LinearRecipe, head: Head) -> None:
        self.recipe, self.metric = recipe, recipe.metric or PRIMARY[head.kind]
        self.sign = -1.0 if lower_is_better(self.metric) else 1.0
        self.kept: list[LinearFit | None] = [None] * len(recipe.lrs)
        self.last: list[float | None] = []

    def see(self, probes: list[LinearProbe], epoch: int, values: list[float] | None) -> None:
        """Keep what is strictly better; without selection or values, what is newest."""
        self.last = list(values) if values is not None else [None] * len(probes)
        for r, (probe, value) in enumerate(zip(probes, self.last, strict=True)):
            newest = not self.recipe.select_best or value is None
            if newest or self._rank(value) > self._rank_kept(r):
                lr = self.recipe.lrs[r]
                self.kept[r] = LinearFit(probe=probe, lr=lr, epoch=epoch, val_value=value, val_last=value)

    def best(self) -> LinearFit:
        """The state of the best learning rate; the first of equal ones."""
        r = max(range(len(self.kept)), key=self._rank_kept)
        fit = self.kept[r]
        if fit is None or (fit.val_value is not None and math.isnan(fit.val_value)):
            raise InputError(
                f"{self.metric} is not defined on the validation samples at any learning rate. "
                "Give validation samples with labels of every class concerned, select by another metric, or lower "
                f"the learning rate ({', '.join(f'{lr:g}' for lr in self.recipe.lrs)}): the probe may have diverged."
            )
        return replace(fit, val_last=self.last[r])

    def _rank_kept(self, r: int) -> float:
        fit = self.kept[r]
        return -math.inf if fit is None else self._rank(fit.val_value)

    def _rank(self, value: float | None) -> float:
        return -math.inf if value is None or math.isnan(value) else self.sign * value


def _train_epoch(replicas: Replicas, train: Pair, epoch: int, order: np.random.Generator) -> None:
    x, y = train
    starts = list(range(0, len(x), replicas.recipe.batch_size))
    if replicas.head.normalises and len(x) - starts[-1] == 1 and len(starts) > 1:
        starts.pop()  # one row has no variance: it joins the batch before
    for batch, chosen in enumerate(np.split(order.permutation(len(x)), starts[1:])):
        labels = y[chosen]
        if not _labelled(labels, replicas.head.kind).any():
            continue  # the loss of a batch without labels is 0 / 0
        features = torch.as_tensor(x[chosen], dtype=torch.float32, device=replicas.parameters.device)
        targets = torch.as_tensor(labels, dtype=torch.float32 if labels.dtype.kind == "f" else torch.int64)
        replicas.step(features, targets.to(features.device), epoch + batch / len(starts))


def _probe_of(replicas: Replicas, replica: int, target: tuple[float, float]) -> LinearProbe:
    weight, bias, *norm = replicas.tensors(replica)
    stacked = torch.stack([replicas.mean, replicas.variance, *norm]) if norm else None
    return LinearProbe(head=replicas.head, weight=weight, bias=bias, norm=stacked, target=target)


def _values(probes: list[LinearProbe], val: Pair, metric: str) -> list[float]:
    """The metric of each probe; NaN for one that has diverged."""
    x, y = val
    kind, classes = probes[0].kind, probes[0].classes
    if not _labelled(y, kind).any():
        return [math.nan] * len(probes)
    if kind == "segmentation":
        figures = [segmentation_metrics(confusion) for confusion in _confusions(probes, x, y)]
    else:
        figures = []
        for probe in probes:
            scores = probe.scores_images(x, y.shape[1]) if probe.head.spatial else probe.scores(x)
            if not np.isfinite(scores).all():
                figures.append({metric: math.nan})
                continue
            decided, ranked = probe.predict(scores), scores if metric in RANKING else None
            if (kind, metric) == ("classification", "accuracy"):  # without the other metrics: they took 40 % of a fit
                figures.append({metric: float((y == decided).mean())})
            else:
                figures.append(metrics_of(kind, y, decided, ranked, classes))
    if any(metric not in found for found in figures):
        raise ValueError(f"{metric!r} is not a metric of {kind}: {', '.join(figures[0])}")
    return [found[metric] for found in figures]


def _confusions(probes: list[LinearProbe], x: Array, y: Array) -> npt.NDArray[np.int64]:
    """[R, C, C]; each feature map is read once for all probes."""
    classes, size = probes[0].classes, (y.shape[1], y.shape[2])
    counts = torch.zeros(len(probes), classes * classes, dtype=torch.int64)
    rows = max(1, VALUES_AT_ONCE // (classes * math.prod(size)))
    for maps, labels in zip(chunks(x, rows), chunks(y, rows), strict=True):
        features = torch.as_tensor(maps, dtype=torch.float32, device=probes[0].weight.device)
        truth = torch.as_tensor(labels, dtype=torch.int64, device=features.device)
        for r, probe in enumerate(probes):
            pairs = truth * classes + probe.pixels(features, size).argmax(dim=1)
            counts[r] += torch.bincount(pairs[truth != IGNORE], minlength=classes**2).cpu()
    return counts.view(-1, classes, classes).numpy()


def _labelled(targets: Array, kind: str) -> npt.NDArray[np.bool_]:
    return np.isfinite(targets) if kind in {"regression", "pixel_regression"} else np.asarray(targets != IGNORE)


def _checked(x: Array, y: Array, kind: str, classes: int) -> Pair:
    """Features (cells as maps of one patch where every pixel has a target) and targets that fit together."""
    spatial = Head(kind=kind, classes=classes).spatial
    axes = {"multilabel": 2, "segmentation": 3, "pixel_regression": 3}.get(kind, 1)
    if len(x) != len(y) or y.ndim != axes or x.ndim not in ({2, 4} if spatial else {2}):
        raise ValueError(f"features {list(x.shape)} and targets {list(y.shape)} do not fit a {kind} probe")
    if spatial and y.shape[1] != y.shape[2]:
        raise ValueError(f"label maps of {y.shape[1]} by {y.shape[2]} pixels; they must be square")
    if kind == "multilabel" and y.shape[1] != classes:
        raise ValueError(f"{y.shape[1]} columns of labels for {classes} classes")
    if kind in {"classification", "segmentation"} and y.size and not (y.min() >= IGNORE and y.max() < classes):
        raise ValueError(f"class ids from {y.min()} to {y.max()}; {classes} classes have ids from 0, and -1 is ignored")
    if not all(np.isfinite(some).all() for some in chunks(x, CHUNK)):
        raise ValueError("features with values that are not finite")
    if kind == "classification" and (y == IGNORE).any():
        x, y = x[y != IGNORE], y[y != IGNORE]
    return (x[:, None, None] if spatial and x.ndim == 2 else x), y
