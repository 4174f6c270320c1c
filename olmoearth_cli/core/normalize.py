"""Physical units to model values, and what to put where a single band is missing. No torch.

`y = (x - lo) / (hi - lo)` per band, never clipped (spec/model.md section 2). The numbers are the pretraining
set's and ship with the package in `normalization.json`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from olmoearth_cli.core.modality import MISSING_VALUE, MODALITIES

logger = logging.getLogger(__name__)

Array = np.ndarray
RELEASES = ("v1", "v1.1", "v1.2", "v1.3")


@dataclass(frozen=True, kw_only=True)
class BandRange:
    """What maps to 0 and to 1, per band; float64 [C]."""

    lo: Array
    """Value that becomes 0."""
    hi: Array
    """Value that becomes 1."""


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """Training mean and standard deviation per band, in physical units; float64 [C]."""

    mean: Array
    """Mean over the pretraining set."""
    std: Array
    """Standard deviation over the pretraining set."""


def normalize(modality: str, values: Array, *, release: str) -> Array:
    """Map physical values to model values.

    Missing bands (NaN or -99999) become what the release saw in training: v1 gets the value of the present
    band with the nearest wavelength at the same pixel, or 0 where there is none; later releases get 0.
    Whole periods without data should be masked, not filled.

    Args:
        modality: name of the modality.
        values: [..., C] in the physical units of spec/inputs.md, bands in canonical order.
        release: `v1`, `v1.1`, `v1.2` or `v1.3`.

    Returns:
        float32 [..., C]. Within 2e-7 of float64 arithmetic: a band's `lo` is subtracted first.

    Raises:
        ValueError: unknown modality or release, or another number of bands.
    """
    if release not in RELEASES:
        raise ValueError(f"release {release!r} is not one of {', '.join(RELEASES)}")
    values = _checked(modality, values)
    limits = band_range(modality)
    missing = _missing(values)
    if missing is not None and release == "v1":
        values = _copy_nearest_band(modality, values, missing)
        missing = _missing(values)
    out = np.subtract(values, limits.lo.astype(np.float32), dtype=np.float32)
    out *= (1.0 / (limits.hi - limits.lo)).astype(np.float32)
    if missing is not None:
        _warn_if_many(
            modality,
            missing,
            limit=0.0 if release == "v1" else _facts()["missing_band_fill"]["warn_if_fraction_filled_exceeds"],
        )
        out[missing] = 0.0
    return out


@cache
def band_range(modality: str) -> BandRange:
    """The values that a modality's bands are scaled by: computed where training did so, else predefined."""
    _known(modality)
    strategy = _facts()["strategy_by_modality"][modality]
    entry = _facts()[strategy][modality]
    if tuple(entry["bands"]) != MODALITIES[modality].bands:
        raise AssertionError(f"normalization.json lists other bands for {modality} than the modality table")
    low, high = ("lo", "hi") if strategy == "computed" else ("min", "max")
    return BandRange(lo=np.array(entry[low], np.float64), hi=np.array(entry[high], np.float64))


@cache
def band_statistics(modality: str) -> BandStatistics:
    """Training mean and standard deviation of a modality's bands.

    Raises:
        ValueError: unknown modality, or one without statistics.
    """
    _known(modality)
    entry = _facts()["computed"].get(modality)
    if entry is None:
        raise ValueError(f"{modality} has no training statistics; it is scaled by fixed limits.")
    return BandStatistics(mean=np.array(entry["mean"], np.float64), std=np.array(entry["std"], np.float64))


@cache
def _facts() -> dict[str, Any]:
    text = (files("olmoearth_cli.core") / "normalization.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts


def _known(modality: str) -> None:
    if modality not in MODALITIES:
        raise ValueError(f"modality {modality!r} is not one of {', '.join(MODALITIES)}")


def _checked(modality: str, values: Array) -> Array:
    _known(modality)
    values = np.asarray(values)
    bands = len(MODALITIES[modality].bands)
    if values.ndim == 0 or values.shape[-1] != bands:
        raise ValueError(
            f"{modality} has {bands} bands, but the last axis of the array has "
            f"{values.shape[-1] if values.ndim else 0} (shape {values.shape})."
        )
    return values


def _missing(values: Array) -> Array | None:
    """bool [..., C], True where a value is NaN or -99999; None where nothing is."""
    if values.dtype.kind in "ub":
        return None
    # One comparison finds both: NaN compares false, and no product reaches below -99998.
    missing = ~(values > MISSING_VALUE + 1)
    return missing if missing.any() else None


def _copy_nearest_band(modality: str, values: Array, missing: Array) -> Array:
    """Fill missing bands from the present band of nearest nominal wavelength; ties to the shorter one.

    Only values that were present are copied, and only within a spectral list: Landsat's thermal bands are a
    list of their own (spec/model.md section 2).
    """
    lists = _facts()["missing_band_fill"]["v1"]["nominal_wavelength_nm"].get(modality, [])
    index = MODALITIES[modality].bands.index
    out = np.array(values, dtype=np.result_type(values, np.float32))
    for wavelengths in lists:
        for band, nm in wavelengths.items():
            todo = missing[..., index(band)].copy()
            others = sorted((abs(other_nm - nm), other_nm, other) for other, other_nm in wavelengths.items())
            for _, _, other in others[1:]:
                if not todo.any():
                    break
                take = todo & ~missing[..., index(other)]
                out[..., index(band)][take] = values[..., index(other)][take]
                todo &= ~take
    return out


_warned: set[str] = set()


def _warn_if_many(modality: str, missing: Array, *, limit: float) -> None:
    """Say once per modality that some pixels had more of their bands filled with 0 than training had."""
    if modality in _warned:
        return
    share = missing.mean(axis=-1)
    partly = share[share < 1]
    if partly.size and partly.max() > limit:
        _warned.add(modality)
        logger.warning(
            "%s: up to %.0f %% of a pixel's bands are missing and set to 0; training had at most 20 %%",
            modality,
            100 * partly.max(),
        )
