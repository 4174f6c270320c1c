"""What may happen to vectors between the encoder and a probe, alike for all splits (spec/evaluation.md 3 and 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.probe.compress import Components, power_codes, power_values, saturated_share, subsample

Array = npt.NDArray[Any]
CHUNK = 256
"""Vectors, or maps of vectors, that are transformed at once."""
FIT_ROWS = 200_000
"""Vectors that principal components are fitted on, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform:
    """Through int8 and back, then principal components; nothing where neither was asked for."""

    quantise: bool
    components: Components | None
    saturation: float | None
    """Share of the training vectors' codes at either end; None without quantisation."""

    @property
    def kept_variance(self) -> float | None:
        """Share of the training vectors' variance in the components; None without them."""
        return None if self.components is None else self.components.variance_kept

    def apply(self, vectors: Array) -> Array:
        """[..., D] to [..., D] or [..., K]; the same array where there is nothing to do."""
        if not self.quantise and self.components is None:
            return vectors
        width = vectors.shape[-1] if self.components is None else len(self.components.directions)
        out = np.empty((*vectors.shape[:-1], width), np.float32)
        for at in range(0, len(vectors), CHUNK):
            some = vectors[at : at + CHUNK]
            some = power_values(power_codes(some)) if self.quantise else some
            out[at : at + CHUNK] = some if self.components is None else self.components.apply(some)
        return out


def fit_transform(train: Array, *, quantise: bool, pca: int | None, seed: int) -> Transform:
    """Fit on the training vectors.

    Args:
        train: [N, D] or [N, Y, X, D].
        quantise: True for the signed-square-root codes (9.1).
        pca: components to keep, fitted on what the codes give back; None: all dimensions.
        seed: of the draw where there are more than 200,000 vectors to fit on.

    Raises:
        InputError: more components than vectors or dimensions.
    """
    rounded = Transform(quantise=quantise, components=None, saturation=_saturation(train) if quantise else None)
    if pca is None:
        return rounded
    rows = rounded.apply(subsample(train.reshape(-1, train.shape[-1]), FIT_ROWS, seed))
    return Transform(quantise=quantise, components=Components.of(rows, pca), saturation=rounded.saturation)


def _saturation(train: Array) -> float:
    chunks = [train[at : at + CHUNK] for at in range(0, len(train), CHUNK)]
    shares = [saturated_share(power_codes(chunk)) for chunk in chunks]
    return float(np.average(shares, weights=[len(chunk) for chunk in chunks]))
