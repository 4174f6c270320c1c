"""Labelled samples whose spatial structure is known, for the tests of honest validation."""

from __future__ import annotations

from typing import Any

import numpy as np

from olmoearth_pipelines.probing.samples import Samples

LON, LAT = 10.0, 50.0
M_PER_DEGREE = 111_320.0


def lonlat_of(xy: np.ndarray) -> np.ndarray:
    """Degrees near 10 E 50 N for metres east and north."""
    return np.stack([LON + xy[:, 0] / (M_PER_DEGREE * np.cos(np.radians(LAT))), LAT + xy[:, 1] / M_PER_DEGREE], axis=1)


def smooth(rng: np.random.Generator, xy: np.ndarray, length_m: float) -> np.ndarray:
    """A smooth random function of position: 200 plane waves with a Gaussian covariance of this length."""
    waves = rng.normal(size=(200, 2)) / length_m
    return np.cos(xy @ waves.T + rng.uniform(0, 2 * np.pi, 200)) @ rng.normal(size=200) / 10


def positions(rng: np.random.Generator, n: int, extent_m: float = 20_000) -> np.ndarray:
    return rng.uniform(0, extent_m, (n, 2))


def samples_of(targets: np.ndarray, *, kind: str = "classification", **given: Any) -> Samples:
    """Samples with noise for vectors and every sample its own label feature, unless given."""
    n = len(targets)
    if kind == "regression":
        classes = 0
    elif kind == "multilabel":
        classes = targets.shape[1]
    else:
        classes = int(targets.max()) + 1
    given = {
        "class_names": tuple("abcdefgh"[:classes]),
        "vectors": np.random.default_rng(7).normal(size=(n, 8)).astype(np.float32),
        "lonlat": None,
        "group": np.arange(n),
        **given,
    }
    return Samples(kind=kind, targets=targets, **given)


def land(seed: int, n: int = 600, *, length_m: float = 1500, dimensions: int = 24) -> Samples:
    """Labels that are smooth in space, and vectors that are functions of position with nothing to say about labels."""
    rng = np.random.default_rng(seed)
    xy = positions(rng, n)
    vectors = np.stack([smooth(rng, xy, length_m / 2) for _ in range(dimensions)], axis=1)
    labels = (smooth(rng, xy, length_m) > 0).astype(np.int64)
    return samples_of(labels, vectors=vectors.astype(np.float32), lonlat=lonlat_of(xy))
