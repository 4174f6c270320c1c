"""One look at all windows before training: which of them can be learned from, how often each class occurs, and what
is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.finetune.heads import HeadSpec
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.finetuning.data import Numbers, WindowReader
from olmoearth_pipelines.windows.window import SPLITS, Window, WindowTask

SHOWN = 3
"""Names in a message."""
SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """What a set of windows holds for a head."""

    numbers: Mapping[str, Numbers]
    """Split -> windows with imagery and labels."""
    groups: Mapping[str, Numbers]
    """Split -> block of land of each of these windows; -1 for none."""
    labelled: Mapping[str, int]
    """Split -> labelled cells (a target per pixel) or windows."""
    counts: Mapping[str, npt.NDArray[np.int64]]
    """Split -> [C] labelled pixels or windows of each class; empty for regression."""
    target: tuple[float, float]
    """Mean and unbiased standard deviation of the training values (regression)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """Of one window."""

    id: str
    usable: bool
    group: int
    cells: int = 0
    counts: npt.NDArray[np.int64]
    values: tuple[int, float, float] = (0, 0.0, 0.0)
    """Count, mean and sum of squared distances from it."""


def survey(
    reader: WindowReader, head: HeadSpec, note: Callable[[str], None], warn: Callable[[str], None], *, own_labels: bool
) -> Survey:
    """Read every window once and judge whether they can be learned from.

    Args:
        reader: of the windows.
        head: that is to learn.
        note: told what is left out.
        warn: told of classes that cannot be judged.
        own_labels: True where the labels are the user's, who can label more; a published benchmark is as it is.

    Raises:
        InputError: targets that are no class or no number, too few labels, no window to learn from or to choose by.
    """
    task = reader.source.task
    found: dict[str, list[_Seen]] = {}
    numbers: dict[str, Numbers] = {}
    for split in SPLITS:
        order = reader.source.split(split)
        with ThreadPoolExecutor(reader.threads) as pool:
            seen = list(pool.map(lambda number: _look(reader, number, head, task), order))
        usable = np.array([one.usable for one in seen], dtype=bool)
        numbers[split] = order[usable] if len(order) else order
        found[split] = [one for one in seen if one.usable]
        if not usable.all():
            dark = _some([one.id for one in seen if not one.usable])
            note(
                f"{int((~usable).sum())} of {len(seen)} {split} windows have no imagery under a label: {dark} left out"
            )
    none = np.zeros(0 if head.regresses else head.classes, np.int64)
    counts = {split: np.sum([none, *(one.counts for one in seen)], axis=0) for split, seen in found.items()}
    _check_splits(numbers, task)
    if not head.regresses:
        _check_classes(counts, task, warn, own_labels=own_labels)
    return Survey(
        numbers=numbers,
        groups={split: np.array([one.group for one in seen], dtype=np.int64) for split, seen in found.items()},
        labelled={split: sum(one.cells for one in seen) for split, seen in found.items()},
        counts=counts,
        target=_moments([one.values for one in found["train"]]) if head.regresses else (0.0, 1.0),
    )


def _look(reader: WindowReader, number: int, head: HeadSpec, task: WindowTask) -> _Seen:
    window = reader.window(int(number))
    _check_target(window, head, task)
    nothing = _Seen(
        id=window.id, usable=False, group=window.group, counts=np.zeros(0 if head.regresses else head.classes, np.int64)
    )
    if not reader.shows(window, centre=head.centre):
        return nothing
    batch = reader.batch(np.array([number]))
    assert batch.targets is not None
    target = batch.targets[0].numpy()
    labelled = np.isfinite(target) if head.regresses else target >= 0
    if not labelled.any():
        return nothing
    values = np.asarray(target, np.float64)[labelled] if head.regresses else np.empty(0)
    mean = float(values.mean()) if len(values) else 0.0
    return _Seen(
        id=window.id,
        usable=True,
        group=window.group,
        cells=1 if head.per_window else int(_cells(labelled, head.patch_px).sum()),
        counts=nothing.counts if head.regresses else _class_counts(target, labelled, head),
        values=(len(values), mean, float(((values - mean) ** 2).sum())),
    )


def _cells(labelled: npt.NDArray[np.bool_], side: int) -> npt.NDArray[np.bool_]:
    """bool [Y, X], True for cells with any label."""
    rows, columns = labelled.shape
    return np.asarray(labelled.reshape(rows // side, side, columns // side, side).any(axis=(1, 3)))


def _class_counts(target: Any, labelled: npt.NDArray[np.bool_], head: HeadSpec) -> npt.NDArray[np.int64]:
    if head.kind == "multilabel":
        return (target == 1).astype(np.int64)
    return np.bincount(np.asarray(target, np.int64)[labelled].ravel(), minlength=head.classes)


def _check_target(window: Window, head: HeadSpec, task: WindowTask) -> None:
    target = np.asarray(window.target)
    if head.regresses:
        missing = head.per_window and bool(np.isnan(target))
        if missing or np.isinf(target).any():
            what = "NaN" if missing else "infinite"
            raise InputError(
                f"window {window.id}: the target of `{task.field}` is {what}. Give it a number, or leave the label out."
            )
        return
    lowest, highest = (0, 1) if head.kind == "multilabel" else (-1, head.classes - 1)
    if target.size and (target.min() < lowest or target.max() > highest):
        strange = sorted({int(v) for v in np.unique(target) if v < lowest or v > highest})
        raise InputError(
            f"window {window.id}: the target has the class ids {', '.join(map(str, strange[:SHOWN]))}; `{task.field}` "
            f"has the {len(task.class_names)} classes 0 to {len(task.class_names) - 1}. Correct the labels, or the map "
            "of class ids to names."
        )


def _check_splits(numbers: Mapping[str, Numbers], task: WindowTask) -> None:
    for split, purpose in (("train", "learn from"), ("val", "choose the epoch by")):
        if not len(numbers[split]):
            sizes = ", ".join(f"{len(found)} {name}" for name, found in numbers.items())
            raise InputError(
                f"{task.name}: no labelled window with imagery to {purpose} ({sizes}). Label more places, choose "
                "smaller blocks with --block-km, or divide in another way with --split."
            )


def _check_classes(
    counts: Mapping[str, npt.NDArray[np.int64]],
    task: WindowTask,
    warn: Callable[[str], None],
    *,
    own_labels: bool,
) -> None:
    names = np.array(task.class_names, dtype=object)
    anywhere = np.sum(list(counts.values()), axis=0) > 0
    untaught = names[anywhere & (counts["train"] == 0)]
    if len(untaught):
        problem = f"{task.name}: no training label of {_some(untaught)}, which other splits have."
        if own_labels:
            raise InputError(
                f"{problem} Label these classes in more places, choose smaller blocks with --block-km, or divide in "
                "another way with --split."
            )
        warn(f"{problem} They cannot be learned.")
    if not anywhere.all():
        warn(f"no window has a label of {_some(names[~anywhere])}")
    for split in ("val", "test"):
        unjudged = names[anywhere & (counts[split] == 0)]
        if len(unjudged) and counts[split].sum():
            warn(f"no {split} label of {_some(unjudged)}: not judged there")


def _moments(parts: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Mean and unbiased standard deviation of values whose windows' counts, means and squares are known."""
    n, means, squares = (np.array(column, dtype=np.float64) for column in zip(*parts, strict=True))
    if n.sum() < 2:
        raise InputError(f"{int(n.sum())} training values; a regression needs at least 2. Add labels with values.")
    mean = float((n * means).sum() / n.sum())
    variance = float((squares + n * (means - mean) ** 2).sum() / (n.sum() - 1))
    return mean, max(variance**0.5, SMALLEST_DEVIATION)


def _some(names: Any) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
