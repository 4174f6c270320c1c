"""What folds are balanced over, and labels that cannot be learnt from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.probing.samples import Samples

Array = npt.NDArray[Any]
BINS = 5
"""Quantile bins of a regression target that folds are balanced over."""


def class_columns(samples: Samples) -> npt.NDArray[np.float64]:
    """How much of each class a sample holds.

    Returns:
        [N, C] of 0/1, or shares of the labelled pixels (segmentation); [N, BINS] of 0/1 for values (quantile bins).
    """
    targets = samples.targets
    if samples.kind == "multilabel":
        return targets.astype(np.float64)
    if samples.kind == "classification":
        return (targets[:, None] == np.arange(samples.classes)).astype(np.float64)
    if samples.kind == "segmentation":
        flat = targets.reshape(len(targets), -1)  # N P·P
        counts = np.stack([(flat == c).sum(axis=1) for c in range(samples.classes)], axis=1)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    edges = np.quantile(targets, np.arange(1, BINS) / BINS)
    return (np.searchsorted(edges, targets)[:, None] == np.arange(BINS)).astype(np.float64)


def likeness_columns(samples: Samples) -> npt.NDArray[np.float64]:
    """What the variogram of the labels is made of: `class_columns`, or the standardised values [N, 1]."""
    if samples.kind != "regression":
        return class_columns(samples)
    return ((samples.targets - samples.targets.mean()) / samples.targets.std())[:, None]


def check_labels(samples: Samples) -> None:
    """Refuse samples that no probe can learn from.

    Raises:
        InputError: fewer than two samples, values that are not finite, one class only, or one value only.
    """
    count = len(samples)
    if count < 2:
        raise InputError(f"{count} labelled samples: at least 2 are needed to learn from one and test on another.")
    _check_finite("vectors have values", samples.vectors)
    if samples.lonlat is not None:
        _check_finite("positions have values", samples.lonlat)
    if samples.kind == "regression":
        _check_finite("targets have values", samples.targets[:, None])
        if np.ptp(samples.targets) == 0:
            raise InputError(f"All {count} samples have the value {samples.targets[0]:g}: there is nothing to learn.")
        return
    columns = class_columns(samples)
    if samples.kind == "multilabel":
        if (columns == columns[0]).all():
            raise InputError(f"All {count} samples have the same labels: there is nothing to learn.")
        return
    present = np.flatnonzero(columns.any(axis=0))
    if len(present) < 2:
        only = f"one class only ({samples.class_names[present[0]]})" if len(present) else "no label"
        raise InputError(f"The {count} samples hold {only}: a probe needs at least 2 classes.")


def deal(columns: Array, unit: Array, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Deal whole units into folds so that every class, and the number of samples, is spread evenly.

    Units with the largest share of some class come first; each goes to the fold that holds least of what it brings.
    So rare classes are spread before common ones fill the gaps (scikit-learn's StratifiedGroupKFold orders by the
    spread of absolute counts, which lets common classes decide). No fold stays empty.

    Args:
        columns: [N, F] weights from `class_columns`.
        unit: int [N], numbered from 0 without gaps.
        folds: at most the number of units.
        seed: of the order among equals.

    Returns:
        int64 [N], the fold of each sample.
    """
    weights = np.column_stack([columns, np.ones(len(columns))])  # N F+1
    weights /= np.maximum(weights.sum(axis=0), 1e-12)
    share = np.zeros((int(unit.max()) + 1, weights.shape[1]))  # U F+1
    np.add.at(share, unit, weights)
    shuffled = np.random.default_rng(seed).permutation(len(share))
    order = shuffled[np.argsort(-share[shuffled].max(axis=1), kind="stable")]
    held = np.zeros((folds, share.shape[1]))
    chosen = np.empty(len(share), dtype=np.int64)
    for index in order:
        chosen[index] = np.argmin(held @ share[index])
        held[chosen[index]] += share[index]
    return chosen[unit]


def _check_finite(what: str, values: Array) -> None:
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        raise InputError(f"{bad} of {len(values)} {what} that are not finite. Remove these samples.")
