"""Stored numbers to the models' physical units (spec/inputs.md section 5). Pure functions of arrays."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
S1_NO_DATA = -32768.0
"""Sentinel-1 RTC pixels without data."""
LEAST_POWER = 1e-10
"""Linear power below this counts as this: -100 dB."""
CLEAR_CLASSES = (4, 5, 6, 7)
"""Scene classes of Sentinel-2 that are clear: vegetation, bare, water, unclassified (section 8)."""


def remove_offset(dn: Array, offset_dn: int) -> Array:
    """Take the processing offset from Sentinel-2 digital numbers (section 5.1).

    Args:
        dn: uint16, 0 = no data.
        offset_dn: 1000 where the stored pixels carry it, else 0.

    Returns:
        uint16 of the same shape. Valid pixels that would fall to 0 become 1; no data stays 0.
    """
    if not offset_dn:
        return dn
    shifted = np.maximum(dn, offset_dn + 1) - np.uint16(offset_dn)
    return np.where(dn > 0, shifted, 0).astype(np.uint16)


def to_decibel(power: Array) -> Array:
    """Linear Sentinel-1 power to decibels (section 5.2); no data and non-finite values become NaN."""
    missing = ~np.isfinite(power) | (power == S1_NO_DATA)
    with np.errstate(invalid="ignore"):
        decibel = 10.0 * np.log10(np.maximum(power, LEAST_POWER))
    return np.where(missing, np.nan, decibel).astype(np.float32)


def has_power(power: Array) -> Array:
    """True where a Sentinel-1 pixel holds a measurement."""
    return np.isfinite(power) & (power != S1_NO_DATA)


def is_clear(classes: Array) -> Array:
    """True where the Sentinel-2 scene class is a clear one."""
    return np.isin(classes, CLEAR_CLASSES)
