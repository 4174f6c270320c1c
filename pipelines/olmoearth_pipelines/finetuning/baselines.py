"""What fine-tuning is compared with: the same training labels learned, and the same labels judged, at less cost.

Cells are rows here: every labelled map cell of a label map, or a window where it has one target. A row has two vectors,
the encoder's before training and its raw bands; kNN and a linear probe learn from each (spec/evaluation.md sections 4
and 5). Rows of many windows are too many to keep: of those to learn from a part is drawn, those to judge pass by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from olmoearth_cli.core.finetune.batch import FinetuneBatch
from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.probe.knn import K, fit_knn
from olmoearth_cli.core.probe.metrics import CHOICES, PRIMARY
from olmoearth_cli.core.probe.pooling import centre_patch
from olmoearth_cli.core.probe.recipe import LinearRecipe
from olmoearth_pipelines.finetuning.data import Numbers, in_order
from olmoearth_pipelines.finetuning.evaluate import (
    Array,
    Yardstick,
    by_cell,
    cell_targets,
    gather,
    labelled_pixels,
    score_of,
)
from olmoearth_pipelines.finetuning.raw import Columns, raw_cells
from olmoearth_pipelines.finetuning.report import Score
from olmoearth_pipelines.finetuning.setup import Setup

ROWS = 20_000
"""Rows of a split that are learned from, or chosen by."""
PATCHES_AT_ONCE = 4096
ENCODER, RAW = "encoder", "raw bands"
Answer = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""From vectors [n, D] to scores [n, C], [n, C, p, p] or [n]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """n labelled cells or windows."""

    vectors: dict[str, npt.NDArray[np.float32]]
    """{ENCODER: [n, D], RAW: [n, F] with NaN}."""
    targets: Array
    """[n], 0/1 [n, C] or the pixels of cells [n, p * p]."""
    window: Numbers
    """[n] position of the window in its split."""

    def __len__(self) -> int:
        return len(self.window)

    def at(self, index: Array) -> Rows:
        """Some of them."""
        vectors = {name: values[index] for name, values in self.vectors.items()}
        return Rows(vectors=vectors, targets=self.targets[index], window=self.window[index])


def compare(setup: Setup, split: str, note: Callable[[str], None], *, rounds: int) -> tuple[Score, ...]:
    """Majority, and kNN and linear probe on raw bands and on the encoder before training.

    Args:
        setup: of the run.
        split: that is judged.
        note: told where not all labels are learned from.
        rounds: draws of the intervals; 0 for none.
    """
    plan, yardstick = setup.plan, setup.plan.yardstick
    network = _before_training(setup)
    train, val = (_drawn(setup, network, name, note) for name in ("train", "val"))
    methods: dict[str, tuple[str, Answer]] = {_BLIND[yardstick.judged == "regression"]: (ENCODER, _blind(setup))}
    columns = Columns.of(train.vectors[RAW])
    for rows in (train, val):
        rows.vectors[RAW] = columns.vectors(rows.vectors[RAW])
    for source, prefix in ((RAW, "raw bands, "), (ENCODER, "")):
        methods[f"{prefix}kNN"] = (source, _knn(train, source, yardstick))
        methods[f"{prefix}linear probe"] = (source, _linear(train, val, source, setup))
    answers: dict[str, list[tuple[Array, Array, Array]]] = {name: [] for name in methods}
    for rows in _rows(setup, network, split):
        rows.vectors[RAW] = columns.vectors(rows.vectors[RAW])
        for name, (source, answer) in methods.items():
            answers[name].append(_as_maps(answer(rows.vectors[source]), rows, yardstick))
    return tuple(
        score_of(
            name,
            gather(parts, yardstick),
            yardstick,
            setup.survey.groups[split],
            rounds=rounds,
            seed=plan.recipe.seed,
        )
        for name, parts in answers.items()
    )


_BLIND = {True: "mean value", False: "majority class"}


def _before_training(setup: Setup) -> FinetuneModel:
    """The encoder that training began with; its head only says how to pool."""
    plan = setup.plan
    spec = HeadSpec(
        kind=plan.head.kind,
        classes=plan.head.classes,
        width=plan.head.width,
        patch_px=plan.head.patch_px,
        centre=plan.head.centre,
    )
    network = FinetuneModel(plan.model, build_head(spec), precision=plan.recipe.precision)
    return network.eval().requires_grad_(False)


def _drawn(setup: Setup, network: FinetuneModel, split: str, note: Callable[[str], None]) -> Rows:
    """Rows to learn from, at most `ROWS`: each gets a random number, and the smallest stay."""
    generator = np.random.default_rng([setup.plan.recipe.seed, ROWS])
    kept: Rows | None = None
    keys = np.empty(0)
    seen = 0
    for rows in _rows(setup, network, split):
        seen += len(rows)
        keys = np.concatenate([keys, generator.random(len(rows))])
        kept = rows if kept is None else _joined(kept, rows)
        if len(kept) > 2 * ROWS:
            stay = np.sort(np.argsort(keys)[:ROWS])
            kept, keys = kept.at(stay), keys[stay]
    assert kept is not None
    if seen > ROWS:
        note(f"baselines use {ROWS} of {seen} labelled {split} cells, drawn at random")
        kept = kept.at(np.sort(np.argsort(keys)[:ROWS]))
    return kept


def _joined(a: Rows, b: Rows) -> Rows:
    return Rows(
        vectors={name: np.concatenate([a.vectors[name], b.vectors[name]]) for name in a.vectors},
        targets=np.concatenate([a.targets, b.targets]),
        window=np.concatenate([a.window, b.window]),
    )


@torch.no_grad()
def _rows(setup: Setup, network: FinetuneModel, split: str) -> Iterator[Rows]:
    """The labelled rows of a split, some windows at a time."""
    plan, reader = setup.plan, setup.reader
    task = plan.source.task
    patches = (task.window_px // plan.head.patch_px) ** 2
    parts = in_order(setup.survey.numbers[split], max(1, min(plan.batch_size, PATCHES_AT_ONCE // patches)))
    periods = {name: task.periods if _is_series(name) else 1 for name in plan.modalities}
    at = 0
    for part, batch in zip(parts, reader.batches(parts), strict=True):
        windows = [reader.window(int(number)) for number in part]
        encoded = network.features(batch).cpu().numpy()
        raw = raw_cells(windows, batch, periods, task.normalisation)  # n Y X F
        position = np.arange(at, at + len(part))
        at += len(part)
        yield _rows_of(encoded, raw, batch, position, plan.yardstick, centre=plan.head.centre)


def _rows_of(
    encoded: Array, raw: Array, batch: FinetuneBatch, position: Numbers, yardstick: Yardstick, *, centre: bool
) -> Rows:
    assert batch.targets is not None
    targets = batch.targets.numpy()
    if not yardstick.per_pixel:
        if centre:
            encoded, raw = (centre_patch(torch.from_numpy(maps)).numpy() for maps in (encoded, raw))
        else:
            raw = _mean(raw)
        return Rows(vectors={ENCODER: encoded, RAW: raw}, targets=targets, window=position)
    cells = by_cell(targets, yardstick.patch_px)  # n Y X pp
    some = labelled_pixels(cells, yardstick).any(axis=-1)
    owner = np.broadcast_to(position[:, None, None], some.shape)[some]
    return Rows(vectors={ENCODER: encoded[some], RAW: raw[some]}, targets=cells[some], window=owner)


def _mean(raw: Array) -> Array:
    """Mean over the cells of a window, [n, Y, X, F] to [n, F]; NaN where none has the value."""
    known = np.isfinite(raw)
    total = np.where(known, raw, 0).sum(axis=(1, 2), dtype=np.float64)
    count = known.sum(axis=(1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _is_series(name: str) -> bool:
    from olmoearth_cli.core.modality import MODALITIES

    return MODALITIES[name].multitemporal


def _learnable(rows: Rows, yardstick: Yardstick) -> tuple[str, Array]:
    """Kind and targets as a probe takes them."""
    if not yardstick.per_pixel:
        return yardstick.kind, rows.targets
    if yardstick.judged == "regression":
        return "regression", cell_targets(rows.targets, yardstick)
    if yardstick.sparse:
        return "classification", cell_targets(rows.targets, yardstick)
    side = yardstick.patch_px
    return "segmentation", rows.targets.reshape(-1, side, side)


def _knn(train: Rows, source: str, yardstick: Yardstick) -> Answer:
    kind, targets = _learnable(train, yardstick)
    return fit_knn(train.vectors[source], targets, kind=kind, classes=yardstick.classes, k=min(K, len(train))).scores


def _linear(train: Rows, val: Rows, source: str, setup: Setup) -> Answer:
    from olmoearth_cli.core.probe.linear import fit_linear

    yardstick = setup.plan.yardstick
    kind, targets = _learnable(train, yardstick)
    recipe = LinearRecipe(metric=_selecting(kind, yardstick), seed=setup.plan.recipe.seed)
    fit = fit_linear(
        train.vectors[source],
        targets,
        kind=kind,
        classes=yardstick.classes,
        recipe=recipe.for_samples(len(train)),
        val=(val.vectors[source], _learnable(val, yardstick)[1]),
    )
    return fit.probe.scores


def _selecting(kind: str, yardstick: Yardstick) -> str:
    """By what a probe's rate is chosen: the task's metric, or its counterpart for single cells."""
    if yardstick.metric in CHOICES[kind] or (yardstick.metric.startswith("f1_class_") and kind != "regression"):
        return yardstick.metric
    if kind != "classification":
        return PRIMARY[kind]
    return "accuracy" if yardstick.metric in {"overall_acc", "micro_f1"} else "macro_f1"


def _blind(setup: Setup) -> Answer:
    """The shares of the training labels, or their mean: the same for all."""
    yardstick, counts = setup.plan.yardstick, setup.survey.counts["train"]
    if yardstick.judged == "regression":
        return lambda vectors: np.full(len(vectors), setup.survey.target[0], np.float32)
    total = len(setup.survey.numbers["train"]) if yardstick.kind == "multilabel" else counts.sum()
    shares = (counts / total).astype(np.float32)
    return lambda vectors: np.tile(shares, (len(vectors), 1))


def _as_maps(scores: Array, rows: Rows, yardstick: Yardstick) -> tuple[Array, Array, Array]:
    """Answers for rows in the form of a network's answers: a cell is a label map of p x p pixels."""
    if not yardstick.per_pixel:
        return scores, rows.targets, rows.window
    side = yardstick.patch_px
    targets = rows.targets.reshape(-1, side, side)
    leading = 1 if yardstick.judged == "regression" else 2
    if scores.ndim == leading:
        scores = np.broadcast_to(scores[..., None, None], (*scores.shape, side, side))
    return scores, targets, rows.window
