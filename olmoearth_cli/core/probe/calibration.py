"""Temperature scaling: scores that mean what they say (Guo et al. 2017, doi:10.48550/arXiv.1706.04599).

One number T softens (T > 1) or sharpens (T < 1) all scores: softmax(log p / T). It never changes a decision. Where
the labels of a class are independent, the pair (1 - p, p) is scaled in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
IGNORE = -1
"""The only ignore value in segmentation labels."""
FLOOR = 1e-6
"""Smallest score that is told apart from none: the logarithm of a class without any vote must stay finite."""
BOUNDS = (0.1, 50.0)
"""Temperatures searched; separable samples would otherwise ask for 0."""
FITTED_AT_MOST = 50_000
"""Choices that a fit looks at, drawn with a fixed seed: one number needs no more."""
BINS = 15
"""Equal-width bins of the confidence in the expected calibration error."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature, and what it does to the calibration error."""

    temperature: float
    """Fitted on all samples given; 1.0 where nothing is to be calibrated, or where that would not help."""
    error_before: float
    """Expected calibration error of the scores as they are; NaN for regression."""
    error_after: float
    """The same with temperatures that were fitted without the samples they are judged on."""


def apply_temperature(scores: Array, temperature: float, kind: str) -> npt.NDArray[np.float32]:
    """Scale scores by a temperature.

    Args:
        scores: [N, C] or [N, C, P, P] that sum to 1 over C, or [N, C] of independent shares (multi-label); [N]
            values (regression) come back as they are. NaN stays NaN.
        temperature: T, positive.
        kind: `classification`, `multilabel`, `segmentation` or `regression`.

    Returns:
        float32, as `scores`.

    Raises:
        ValueError: a temperature that is not positive and finite.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature {temperature}; it must be positive and finite")
    if kind == "regression" or temperature == 1:
        return np.asarray(scores, dtype=np.float32)
    if kind == "multilabel":
        both = np.stack([1 - scores, scores], axis=1)  # N 2 C
        return _scaled(both, temperature)[:, 1].astype(np.float32)
    return _scaled(scores, temperature).astype(np.float32)


def calibrate(scores: Array, targets: Array, parts: Array, kind: str) -> Calibration:
    """Fit a temperature to held-out scores by their negative log-likelihood.

    The error afterwards is cross-fitted: each part is scaled by the temperature that the other parts ask for. Where it
    does not fall, the scores stay as they are: a few right classes without any vote can decide the likelihood of a
    kNN, whose shares are nearly honest already.

    Args:
        scores: [N, C] or [N, C, P, P] as in `apply_temperature`, all finite, none seen in training.
        targets: int [N], 0/1 [N, C], or int [N, P, P] with -1 ignored.
        parts: int [N], the fold of each sample; with one part only, the error afterwards is that of the fit itself.
        kind: `classification`, `multilabel`, `segmentation` or `regression` (nothing to calibrate).
    """
    if kind == "regression" or not len(scores):
        return Calibration(temperature=1.0, error_before=float("nan"), error_after=float("nan"))
    shares, truth, part = _choices(scores, targets, parts, kind)
    if not len(truth):
        return Calibration(temperature=1.0, error_before=float("nan"), error_after=float("nan"))
    temperature = _fit(shares, truth)
    names = np.unique(part)
    after = np.empty_like(shares)
    for name in names:
        inside = part == name
        own = _fit(shares[~inside], truth[~inside]) if len(names) > 1 else temperature
        after[inside] = _scaled(shares[inside], own)
    error, scaled = calibration_error(shares, truth), calibration_error(after, truth)
    if scaled >= error:
        return Calibration(temperature=1.0, error_before=error, error_after=error)
    return Calibration(temperature=temperature, error_before=error, error_after=scaled)


def calibration_error(shares: Array, truth: Array, *, bins: int = BINS) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of confidence.

    Args:
        shares: [M, C] that sum to 1.
        truth: int [M].
        bins: equal-width bins of the largest share.
    """
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == truth
    at = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (low, high]
    gap = np.bincount(at, weights=confidence, minlength=bins) - np.bincount(at, weights=right, minlength=bins)
    return float(np.abs(gap).sum() / len(truth))


def _choices(scores: Array, targets: Array, parts: Array, kind: str) -> tuple[Array, Array, Array]:
    """Every kind as choices among classes: shares [M, C], truth [M] and part [M]."""
    if kind == "multilabel":
        p = scores.astype(np.float64).ravel()
        return np.stack([1 - p, p], axis=1), targets.ravel().astype(int), np.repeat(parts, targets.shape[1])
    if kind == "classification":
        return scores.astype(np.float64), targets, parts
    flat = np.moveaxis(scores, 1, -1).reshape(-1, scores.shape[1]).astype(np.float64)  # N·P·P C
    labelled = targets.ravel() != IGNORE
    part = np.repeat(parts, targets[0].size)
    return flat[labelled], targets.ravel()[labelled], part[labelled]


def _fit(shares: Array, truth: Array) -> float:
    """The most likely temperature, its logarithm expected within 1 of 0: few or separable samples leave it near 1."""
    from scipy.optimize import minimize_scalar

    if len(truth) > FITTED_AT_MOST:
        drawn = np.random.default_rng(0).choice(len(truth), FITTED_AT_MOST, replace=False)
        shares, truth = shares[drawn], truth[drawn]
    logs = np.log(np.clip(shares, FLOOR, 1))  # M C
    of_truth = logs[np.arange(len(truth)), truth]

    def surprise(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        likelihood = (np.log(np.exp(logs * sharpness).sum(axis=1)) - of_truth * sharpness).mean()
        return float(likelihood + log_temperature**2 / (2 * len(truth)))

    found = minimize_scalar(surprise, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def _scaled(shares: Array, temperature: float) -> Array:
    """softmax(log p / T) over axis 1, written as powers of p over its maximum so that nothing under- or overflows."""
    p = np.clip(shares, FLOOR, 1)
    weights = (p / p.max(axis=1, keepdims=True)) ** (1 / temperature)
    return weights / weights.sum(axis=1, keepdims=True)
