"""Smaller embeddings: signed square root, percentile codes, principal components (spec/evaluation.md section 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

from olmoearth_cli.errors import InputError

Array = npt.NDArray[Any]
POWER_SCALE = 127.5
"""Of the signed-square-root codes (9.1)."""
BITS = (8, 4, 2, 1)
"""Widths of the percentile codes."""
SAMPLE = 10_000
"""Embeddings that quantiles are taken from, about as many as in the reference."""


def power_codes(values: Array) -> npt.NDArray[np.int8]:
    """Signed square root in 8 bits (9.1): float of any shape to -127 ... 127; -128 stays free for no data.

    Raises:
        ValueError: NaN among the values.
    """
    x = _without_nan(values)
    scaled = np.sign(x) * np.sqrt(np.abs(x)) * np.float32(POWER_SCALE)
    return np.rint(np.clip(scaled, -127, 127)).astype(np.int8)


def power_values(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Back from `power_codes`."""
    root = codes.astype(np.float32) / np.float32(POWER_SCALE)
    return np.sign(root) * np.square(root)


def saturated_share(codes: npt.NDArray[np.int8]) -> float:
    """Share of the codes at either end: values of about 0.992 and more, whose size is lost."""
    return float((np.abs(codes.astype(np.int16)) >= 127).mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class Percentiles:
    """Per dimension, 2^bits buckets of about equal population (9.2)."""

    quantiles: npt.NDArray[np.float32]
    """[D, n + 1] boundaries of the buckets, rising."""
    midpoints: npt.NDArray[np.float32]
    """[D, n] what a code stands for."""

    @classmethod
    def of(cls, embeddings: Array, bits: int, *, seed: int = 42) -> Percentiles:
        """Measure on embeddings [N, D], at most 10,000 of them, drawn with `seed`.

        Raises:
            ValueError: another number of bits than 8, 4, 2 or 1, or NaN among the embeddings.
        """
        if bits not in BITS:
            raise ValueError(f"{bits} bits; percentile codes have 8, 4, 2 or 1")
        rows, buckets = _without_nan(subsample(embeddings, SAMPLE, seed)).astype(np.float64), 2**bits
        quantiles = np.quantile(rows, np.arange(buckets + 1) / buckets, axis=0).T
        midpoints = np.quantile(rows, (np.arange(buckets) + 0.5) / buckets, axis=0).T
        return cls(quantiles=quantiles.astype(np.float32), midpoints=midpoints.astype(np.float32))

    def codes(self, embeddings: Array) -> npt.NDArray[np.uint8]:
        """[..., D] to codes of that shape; a value on a boundary falls into the bucket below.

        Raises:
            ValueError: another number of dimensions, or NaN among the embeddings.
        """
        dimensions, buckets = self.midpoints.shape
        if embeddings.shape[-1] != dimensions:
            raise ValueError(f"{embeddings.shape[-1]} dimensions; the percentiles are of {dimensions}")
        rows = _without_nan(embeddings).reshape(-1, dimensions)
        below = [np.searchsorted(self.quantiles[d], rows[:, d], side="left") for d in range(dimensions)]
        codes = np.clip(np.stack(below, axis=1) - 1, 0, buckets - 1)
        return codes.astype(np.uint8).reshape(embeddings.shape)

    def values(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Back from `codes`."""
        return self.midpoints[np.arange(len(self.midpoints)), codes]


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Principal components: fit once, apply to every split and map (9.3)."""

    mean: npt.NDArray[np.float64]
    """[D]."""
    directions: npt.NDArray[np.float64]
    """[K, D], orthonormal, the largest variance first."""
    variance_kept: float
    """Share of the variance that K dimensions hold."""

    @classmethod
    def of(cls, embeddings: Array, dimensions: int) -> Components:
        """Fit K = `dimensions` components on embeddings [N, D], in double precision and without randomness.

        Raises:
            InputError: more components than embeddings or dimensions.
        """
        if not 1 <= dimensions <= min(embeddings.shape):
            raise InputError(
                f"{dimensions} principal components of {len(embeddings)} embeddings of {embeddings.shape[1]} "
                f"dimensions. Ask for 1 to {min(embeddings.shape)}."
            )
        fitted = PCA(dimensions, svd_solver="covariance_eigh").fit(np.asarray(embeddings, dtype=np.float64))
        share = float(fitted.explained_variance_ratio_.sum())
        return cls(mean=fitted.mean_, directions=fitted.components_, variance_kept=share)

    def apply(self, embeddings: Array) -> npt.NDArray[np.float32]:
        """[..., D] to [..., K]."""
        return ((embeddings - self.mean) @ self.directions.T).astype(np.float32)


def subsample(rows: Array, limit: int, seed: int) -> Array:
    """At most `limit` of the rows, drawn without replacement and kept in order."""
    if len(rows) <= limit:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), size=limit, replace=False))]


def _without_nan(values: Array) -> npt.NDArray[np.float32]:
    x = np.asarray(values, dtype=np.float32)
    if np.isnan(x).any():
        raise ValueError(f"{int(np.isnan(x).sum())} values are NaN; mask cells without data first")
    return x
