"""Embeddings as int8, by a rule that belongs to the model and not to the region.

The encoder ends in a LayerNorm, so dimension d of every token is `weight[d] * z + bias[d]` with z a
standardised value. Each band's scale and offset follow from `weight` and `bias` alone: the same
vector has the same code in every map of a model, and GDAL's linear scale/offset can say the rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NO_DATA = -128
"""Code of a cell without a vector, in all bands."""
MAX_CODE = 127
"""Codes run from -127 to 127."""
Z_RANGE = 6.0
"""Standard deviations that the codes span on either side.

z of a LayerNorm is bounded by sqrt(D - 1) only (11 for 128 dimensions), and single dimensions of trained
transformers do pass 4; beyond 6 almost nothing lies, the less as a map's vector is a mean over tokens.
The step is then 6 / 127 = 0.047 and the rounding error 0.014 standard deviations (RMS), a cosine of about
0.9999. Every run measures and records what was clipped and lost.
"""
MIN_WEIGHT = 1e-3
"""Smallest weight, as a share of the largest: a dimension that the LayerNorm switched off keeps a scale
above zero, without which GDAL and xarray would divide by zero."""
_ROWS = 16384
"""Vectors per step of a measurement, to bound its memory."""


@dataclass(frozen=True, kw_only=True)
class QuantisationLoss:
    """What int8 cost, measured on vectors with data."""

    cells: int
    """Vectors measured."""
    saturation: float
    """Share of values outside the range of the codes."""
    mean_cosine: float
    """Mean cosine between the vector and its decoded code; 1 where nothing was lost."""
    rms: float
    """Root mean square difference per value, in the vector's own units."""


@dataclass(frozen=True, eq=False)
class Quantizer:
    """value = offset + scale * code, per dimension."""

    scale: npt.NDArray[np.float32]
    """[D], above zero."""
    offset: npt.NDArray[np.float32]
    """[D]."""

    @classmethod
    def from_layernorm(cls, weight: npt.ArrayLike, bias: npt.ArrayLike) -> Quantizer:
        """The rule for a model whose last layer is a LayerNorm with these parameters, each [D]."""
        w = np.abs(np.asarray(weight, dtype=np.float32))
        b = np.asarray(bias, dtype=np.float32)
        if w.ndim != 1 or w.shape != b.shape or not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise ValueError(f"weight {w.shape} and bias {b.shape} must be finite vectors of one length")
        least = MIN_WEIGHT * max(float(w.max()), 1e-9)  # above what float32 can divide by
        scale = np.maximum(w, np.float32(least)) * np.float32(Z_RANGE / MAX_CODE)
        return cls(scale=scale.astype(np.float32), offset=b)

    def encode(self, vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int8]:
        """Nearest codes.

        Args:
            vectors: [..., D]; a vector with any value that is not finite has no data.

        Returns:
            int8 [..., D], -128 in all dimensions where there is no data.
        """
        codes = np.clip(np.rint(self._position(vectors)), -MAX_CODE, MAX_CODE)
        valid = np.isfinite(vectors).all(axis=-1, keepdims=True)
        return np.where(valid, codes, NO_DATA).astype(np.int8)

    def decode(self, codes: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        """float32 [..., D] from int8 [..., D]; NaN where there is no data."""
        values = codes.astype(np.float32) * self.scale + self.offset
        return np.where(codes == NO_DATA, np.float32(np.nan), values)

    def loss(self, vectors: npt.NDArray[np.floating[Any]]) -> QuantisationLoss:
        """Measure what `encode` loses on [..., D] vectors, those without data left out."""
        cells, clipped, cosine, squares = 0, 0, 0.0, 0.0
        for rows in _chunks(vectors.reshape(-1, vectors.shape[-1])):
            decoded = self.decode(self.encode(rows)).astype(np.float64)
            wide = rows.astype(np.float64)
            norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(decoded, axis=1)
            products = (wide * decoded).sum(axis=1)
            cosine += float(np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), 1.0).sum())
            clipped += int((np.abs(self._position(rows)) > MAX_CODE + 0.5).sum())
            squares += float(((wide - decoded) ** 2).sum())
            cells += len(rows)
        values = max(cells * vectors.shape[-1], 1)
        return QuantisationLoss(
            cells=cells,
            saturation=clipped / values,
            mean_cosine=min(cosine / cells, 1.0) if cells else 1.0,
            rms=float(np.sqrt(squares / values)),
        )

    def _position(self, vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Codes before rounding. NaN stays NaN and infinities become NaN: `encode` marks both as no data."""
        finite = np.where(np.isfinite(vectors), vectors, np.nan).astype(np.float32, copy=False)
        return np.nan_to_num((finite - self.offset) / self.scale, nan=0.0)


def _chunks(rows: npt.NDArray[np.floating[Any]]) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """[N, D] in steps, vectors without data left out."""
    for start in range(0, len(rows), _ROWS):
        chunk = rows[start : start + _ROWS]
        yield chunk[np.isfinite(chunk).all(axis=1)]
