"""Pixels to what a model reads: normalised values and tokens with data. One set of rules for maps and training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from olmoearth_cli.core.finetune.task import Limits
from olmoearth_cli.core.modality import MISSING_VALUE
from olmoearth_cli.core.normalize import normalize

Array = np.ndarray
RADAR_FILL = 0.5
"""Normalised value of pixels without backscatter: the training mean."""


def patches_with_data(valid: Array, modality: str, patch_px: int) -> Array:
    """bool [T, Y, X]: True where a patch has data (spec/inputs.md section 6).

    Sentinel-1: every pixel must have data, for no-data must never turn into decibels. The others: at
    least half of the pixels, as the pretraining data had zeros at scene edges.

    Args:
        valid: bool [T, H, W], True where the pixel has data.
        modality: of the pixels.
        patch_px: patch side p; rows and columns beyond the last whole patch are left out.
    """
    t, h, w = valid.shape
    y, x = h // patch_px, w // patch_px
    share = valid[:, : y * patch_px, : x * patch_px].reshape(t, y, patch_px, x, patch_px).mean(axis=(2, 4))
    return share == 1.0 if modality == "sentinel1" else share >= 0.5  # T Y X


def tokens_with_data(seen: Array, absent: Array, band_sets: Sequence[Sequence[int]]) -> Array:
    """bool [Y, X, T, S]: True where the patch has data in the period, and the period any band of the set.

    Args:
        seen: bool [T, Y, X] from `patches_with_data`.
        absent: bool [T, C], True where the period lacks the band.
        band_sets: positions of the bands of each token.
    """
    present = np.stack([~absent[:, list(members)].all(axis=1) for members in band_sets], axis=-1)  # T S
    tokens: Array = seen.transpose(1, 2, 0)[..., None] & present
    return tokens


def model_values(
    modality: str, raw: Array, valid: Array, absent: Array, *, release: str, limits: Limits | None = None
) -> Array:
    """Normalised values, float32 [H, W, T, C].

    Args:
        modality: of the pixels.
        raw: [H, W, T, C] in the units of the stacks.
        valid: bool [H, W, T], True where the pixel has data.
        absent: bool [T, C], True where the period lacks the band: it is filled as `core.normalize` does.
        release: of the model.
        limits: values that become 0 and 1; None for those of pretraining. With limits of one's own a missing band
            becomes 0 in every release.
    """
    if absent.any():
        raw = raw.astype(np.float32)
        raw[:, :, absent] = np.nan
    values = normalize(modality, raw, release=release) if limits is None else _between(raw, limits)
    if modality == "sentinel1":
        # Bicubic resizing reaches over patch borders: give pixels without backscatter the training mean.
        values[~valid] = RADAR_FILL
    return values


def _between(raw: Array, limits: Limits) -> Array:
    low, high = (np.asarray(side, np.float64) for side in limits)
    values: Array = np.subtract(raw, low.astype(np.float32), dtype=np.float32)
    values *= (1.0 / (high - low)).astype(np.float32)
    values[~(raw > MISSING_VALUE + 1)] = 0.0  # compared so that NaN counts as missing too
    return values
