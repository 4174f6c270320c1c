"""How far labels are alike: the range of their variogram decides how large blocks must be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
PLACES_AT_MOST = 2000
"""Places whose pairs are compared: 2 million pairs tell a range to within a lag."""
LAGS = 24
PAIRS_AT_LEAST = 30
"""Pairs per lag, the usual minimum of geostatistics (Journel and Huijbregts 1978)."""
CANDIDATES = 80
"""Ranges tried in the fit."""
STRUCTURE = 0.1
"""Smallest share of the variance that must be spatial before a range is believed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Variogram:
    """Empirical semivariance over distance."""

    lag_m: Array
    """[L] mean distance of the pairs in each lag, metres."""
    semivariance: Array
    """[L]; for one-hot classes the share of pairs whose labels differ (a join count)."""
    pairs: npt.NDArray[np.int64]
    """[L] number of pairs."""
    places: int
    """Places that the pairs are made of."""


def label_range_m(values: Array, xy: Array, *, seed: int = 42) -> float | None:
    """Distance up to which labels are alike.

    A spherical model (nugget + sill) is fitted with the weights pairs / lag², which count short lags most. Where
    likeness still changes at half the extent, half the extent is the answer.

    Args:
        values: [N, F] one-hot classes, class shares, or standardised values.
        xy: [N, 2] metres on a plane.
        seed: of the subsample.

    Returns:
        The range in metres; None where the labels show none (too few pairs, or neighbours as unlike as strangers).
    """
    variogram = empirical_variogram(values, xy, seed=seed)
    if len(variogram.lag_m) < 4:
        return None
    lag, gamma = variogram.lag_m, variogram.semivariance
    weight = np.sqrt(variogram.pairs) / np.maximum(lag, lag[lag > 0].min())
    losses = {}
    for candidate in np.geomspace(lag[lag > 0].min(), lag[-1], CANDIDATES):
        nugget, sill, loss = _fit(gamma, _spherical(lag / candidate), weight)
        if sill >= STRUCTURE * (nugget + sill):
            losses[float(candidate)] = loss
    if not losses:
        return None
    best = min(losses, key=losses.__getitem__)
    return best if _significant(variogram, best) else None


def empirical_variogram(values: Array, xy: Array, *, seed: int = 42) -> Variogram:
    """Semivariance of all pairs up to half the extent, in lags that widen geometrically.

    Args:
        values: [N, F].
        xy: [N, 2] metres.
        seed: of the subsample of at most `PLACES_AT_MOST` places.
    """
    from scipy.spatial.distance import pdist

    if len(xy) > PLACES_AT_MOST:
        drawn = np.sort(np.random.default_rng(seed).choice(len(xy), PLACES_AT_MOST, replace=False))
        values, xy = values[drawn], xy[drawn]
    distance = pdist(xy)
    near = (distance <= distance.max(initial=0.0) / 2) & (distance < np.inf)
    half = pdist(values, "sqeuclidean")[near] / 2
    distance = distance[near]
    if len(distance) < 4 * PAIRS_AT_LEAST or not distance.max() > 0:
        none = np.empty(0)
        return Variogram(lag_m=none, semivariance=none, pairs=none.astype(np.int64), places=len(xy))
    first = max(np.partition(distance, PAIRS_AT_LEAST)[PAIRS_AT_LEAST], distance[distance > 0].min())
    edges = np.geomspace(first, distance.max(), LAGS)
    at = np.searchsorted(edges, distance, side="left").clip(max=LAGS - 1)  # lag 0: up to the first edge
    pairs = np.bincount(at, minlength=LAGS)
    kept = pairs >= PAIRS_AT_LEAST
    mean = [np.bincount(at, weights=w, minlength=LAGS)[kept] / pairs[kept] for w in (distance, half)]
    return Variogram(lag_m=mean[0], semivariance=mean[1], pairs=pairs[kept], places=len(xy))


def _spherical(ratio: Array) -> Array:
    inside = np.minimum(ratio, 1)
    return 1.5 * inside - 0.5 * inside**3


def _fit(gamma: Array, shape: Array, weight: Array) -> tuple[float, float, float]:
    """Non-negative nugget and sill by weighted least squares, and the residual norm."""
    from scipy.optimize import nnls

    design = np.stack([np.ones_like(shape), shape], axis=1) * weight[:, None]
    (nugget, sill), loss = nnls(design, gamma * weight)
    return float(nugget), float(sill), float(loss)


def _significant(variogram: Variogram, range_m: float) -> bool:
    """Whether pairs nearer than half the range differ less than pairs beyond it, by three standard errors.

    A pair's half squared difference is about as variable as its mean is large; pairs share places, so there is no
    more independent evidence than there are places.
    """
    near = variogram.lag_m <= max(range_m / 2, variogram.lag_m[0])
    far = ~near & (variogram.lag_m >= min(range_m, variogram.lag_m[-1]))
    pairs = variogram.pairs[near].sum()
    alike = np.average(variogram.semivariance[near], weights=variogram.pairs[near])
    unlike = np.average(variogram.semivariance[far], weights=variogram.pairs[far])
    error = unlike / np.sqrt(min(pairs, variogram.places))
    return bool(unlike - alike > 3 * error)
