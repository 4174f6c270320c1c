"""What makes a split say too much or too little: neighbours on both sides, copies, lopsided or missing classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_pipelines.probing.plane import kilometres
from olmoearth_pipelines.probing.samples import Samples

Array = npt.NDArray[Any]
Sides = tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
"""[N] learnt from, [N] tested: one pair per fold."""
MAJORITY = 0.9
"""Share of one class from which on accuracy says little."""
NAMED_AT_MOST = 8
"""Classes that a message spells out."""
CLOSE_SHARE = 0.1
"""Share of test samples close to training samples from which on a warning is due."""


def balance_warnings(samples: Samples, columns: Array, sides: Sequence[Sides], unit: Array) -> tuple[str, ...]:
    """Classes that the folds cannot judge fairly.

    Args:
        samples: of any kind; values (regression) have no classes and give no warning.
        columns: [N, C] from `strata.class_columns`.
        sides: per fold, who is learnt from and who is tested.
        unit: int [N], the block or label feature of each sample.
    """
    if samples.kind == "regression":
        return ()
    holds = columns > 0  # N C
    members = holds.sum(axis=0)
    share = columns.sum(axis=0) / columns.sum()
    places = np.array([len(np.unique(unit[held])) for held in holds.T])
    unlearnt = np.zeros(len(members), dtype=bool)
    for learnt, tested in sides:
        unlearnt |= holds[tested].any(axis=0) & ~holds[learnt].any(axis=0)
    few = (members > 0) & (members < max(len(sides), 2))
    found = (
        (members == 0, "No sample of {}: the probe will never predict it."),
        (few, "Fewer samples than folds of {}: such a score is hardly more than chance."),
        ((places == 1) & ~few, "All samples of {} lie in a single block or label feature: none is learnt elsewhere."),
        (unlearnt, "In some fold {} is tested but not learnt: those samples cannot be right."),
    )
    warnings = [text.format(_named(samples, np.flatnonzero(which))) for which, text in found if which.any()]
    if samples.kind != "multilabel" and share.max() > MAJORITY:
        name = samples.class_names[int(share.argmax())]
        warnings.append(f"{share.max():.0%} of the labels are {name}: read macro F1 and the per-class scores.")
    return tuple(warnings)


def leakage_messages(
    samples: Samples, xy: Array | None, sides: Sequence[Sides], *, blocks: bool, range_m: float | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How far tested samples lie from what was learnt, and what lies on both sides.

    Args:
        samples: vectors, cells and label features are compared.
        xy: [N, 2] metres; None where the samples have no place.
        sides: per fold, who is learnt from and who is tested.
        blocks: True where whole blocks were held out: neighbours across an edge are then expected.
        range_m: distance up to which labels are alike; None where unknown.

    Returns:
        Notes and warnings.
    """
    notes, warnings = [], []
    if xy is not None:
        nearest = np.concatenate([_nearest(xy[learnt], xy[tested]) for learnt, tested in sides])
        middle = float(np.median(nearest))
        farther = ": a score on land farther from any label may be lower" if range_m and middle < range_m else ""
        notes.append(f"Half of the tested samples lie within {kilometres(middle)} km of a training sample{farther}.")
        close = float((nearest < range_m).mean()) if range_m else 0.0
        if range_m and not blocks and close > CLOSE_SHARE:
            warnings.append(
                f"{close:.0%} of the tested samples lie nearer to a training sample than the {kilometres(range_m)} km "
                "up to which labels are alike: the score overstates what to expect on other land. Use --split spatial."
            )
    if samples.cells is not None:
        touching = _touching(samples.cells, sides)
        if not blocks and touching > CLOSE_SHARE:
            warnings.append(
                f"{touching:.0%} of the tested samples touch a training cell, and cells see their neighbours."
            )
    return tuple(notes), (*warnings, *_copies(samples, sides))


def _copies(samples: Samples, sides: Sequence[Sides]) -> list[str]:
    rows = np.ascontiguousarray(samples.vectors)
    one = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    keys = [(np.unique(one, return_inverse=True)[1], "have exactly the vector of a training sample")]
    if samples.cells is not None:
        cell = np.unique(samples.cells, axis=0, return_inverse=True)[1].reshape(-1)
        keys.append((cell, "lie in the same map cell as a training sample"))
    keys.append((samples.group, "belong to the label feature of a training sample"))
    found = []
    for key, text in keys:
        shared = sum(int(np.isin(key[tested], key[learnt]).sum()) for learnt, tested in sides)
        if shared:
            total = sum(int(tested.sum()) for _, tested in sides)
            found.append(f"{shared} of {total} tested samples {text}: the score is too good by as much.")
    return found


def _nearest(learnt: Array, tested: Array) -> Array:
    """Distance of each tested place to the nearest place learnt from."""
    from scipy.spatial import KDTree

    return np.asarray(KDTree(learnt).query(tested)[0])


def _touching(cells: Array, sides: Sequence[Sides]) -> float:
    """Share of tested samples whose cell is, or touches at an edge or corner, a cell learnt from."""
    from scipy.spatial import KDTree

    apart = cells.astype(np.float64) * (1e9, 1, 1)  # zones never touch
    touching = [
        np.isfinite(KDTree(apart[learnt]).query(apart[tested], p=np.inf, distance_upper_bound=1.5)[0])
        for learnt, tested in sides
    ]
    return float(np.concatenate(touching).mean())


def _named(samples: Samples, classes: Array) -> str:
    names = [samples.class_names[c] for c in classes]
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more
