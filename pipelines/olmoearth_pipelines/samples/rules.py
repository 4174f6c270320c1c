"""What must hold in every sample (spec/pretraining.md sections 1.4 to 1.6): for writers before, for validation after.

Values prove units as in the input guard: no decibel image stays above -1 dB, no image of digital numbers below 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.modality import MISSING_VALUE, MODALITIES
from olmoearth_pipelines.samples.sample_file import MASKS, PERIODS, SampleData

Array = npt.NDArray[Any]
DTYPES = {
    "sentinel2_l2a": "uint16",
    "sentinel1": "float32",
    "landsat": "uint16",
    "worldcover": "uint8",
    "srtm": "int32",
    "openstreetmap_raster": "uint8",
    "wri_canopy_height_map": "uint8",
    "cdl": "uint8",
    "worldcereal": "float32",
}
"""As written; a reader takes any."""
LIMITS = {
    "sentinel2_l2a": (0, 65535),
    "sentinel1": (-100, 100),
    "landsat": (0, 65535),
    "worldcover": (0, 100),
    "srtm": (-32768, 9000),
    "openstreetmap_raster": (0, 1),
    "wri_canopy_height_map": (0, 254),
    "cdl": (0, 255),
    "worldcereal": (0, 100),
}
"""Least and largest value; -100 dB is the floor of the conversion from power, and voids of SRTM are kept."""
LEAST_DB = -1.0
"""No image in decibels lies above this everywhere; power and amplitudes do."""
LARGEST_REFLECTANCE = 2.0
"""No image of digital numbers lies below this everywhere, unless it is empty."""


def check_sample(sample: SampleData, side_px: int) -> list[str]:
    """What is wrong with a sample, or with the tile it is cut from.

    Args:
        sample: its content.
        side_px: side that its rasters must have.

    Returns:
        One line for each finding; empty where all is well. A wrong dtype is not among them (`odd_dtypes`).
    """
    findings = [*_place(sample.latlon), *_dates(sample.timestamps), *_presence(sample)]
    for name, values in sample.images.items():
        findings += _image(name, values, side_px)
    return findings


def odd_dtypes(sample: SampleData) -> list[str]:
    """Arrays whose dtype is not the published one."""
    found = {"latlon": (sample.latlon.dtype, "float32"), "timestamps": (sample.timestamps.dtype, "int32")}
    found |= {name: (values.dtype, DTYPES[name]) for name, values in sample.images.items()}
    return [f"{name} is {dtype}, not {wanted}" for name, (dtype, wanted) in found.items() if dtype != np.dtype(wanted)]


def empty_periods(values: Array) -> list[int]:
    """Timesteps of a tile that are 0 in all bands: such a mosaic counts as missing (section 1.5).

    Args:
        values: [H, W, t, C] of a whole tile; a quarter of it may be empty.
    """
    return [int(k) for k in np.flatnonzero(~values.any(axis=(0, 1, 3)))]


def _place(latlon: Array) -> Iterator[str]:
    if latlon.shape != (2,):
        yield f"latlon has shape {latlon.shape}, not (2,)"
    elif not (abs(latlon[0]) <= 90 and abs(latlon[1]) <= 180):
        yield f"latlon {latlon.tolist()} is no (latitude, longitude) in degrees"


def _dates(stamps: Array) -> Iterator[str]:
    if stamps.shape != (PERIODS, 3):
        yield f"timestamps have shape {stamps.shape}, not ({PERIODS}, 3)"
        return
    try:
        dates = [date(int(year), int(month) + 1, int(day)) for day, month, year in stamps]
    except ValueError as error:
        yield f"timestamps are no (day, month 0-11, year) dates ({error})"
        return
    if any(later <= earlier for earlier, later in pairwise(dates)):
        yield f"timestamps do not increase: {', '.join(map(str, dates))}"


def _presence(sample: SampleData) -> Iterator[str]:
    series = {name for name in sample.images if MODALITIES[name].multitemporal}
    if set(sample.present) != series:
        yield f"{MASKS} has {sorted(sample.present)}, but the satellite products are {sorted(series)}"
        return
    for name, seen in sample.present.items():
        if seen.shape != (PERIODS,):
            yield f"{MASKS}/{name} has shape {seen.shape}, not ({PERIODS},)"
        elif not seen.any():
            yield f"{name} has no timestep: leave the whole product out"
        elif sample.images[name].ndim == 4 and sample.images[name].shape[2] != seen.sum():
            yield f"{name} has {sample.images[name].shape[2]} timesteps, {MASKS} marks {seen.sum()} as present"
    if not any(seen.all() for seen in sample.present.values()):
        yield f"no satellite product has all {PERIODS} timesteps"


def _image(name: str, values: Array, side_px: int) -> Iterator[str]:
    modality = MODALITIES[name]
    periods = values.shape[2] if modality.multitemporal and values.ndim == 4 else 1
    wanted = (side_px, side_px, periods, len(modality.bands))
    if values.shape != wanted:
        yield f"{name} has shape {values.shape}, not {wanted}"
        return
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    least, largest = LIMITS[name]
    if not np.isfinite([low, high]).all() or low == MISSING_VALUE:
        yield f"{name} has NaN, infinity or {MISSING_VALUE:.0f}: leave whole timesteps out instead"
    elif name == "sentinel1" and low > LEAST_DB:
        yield f"{name} has no value below {LEAST_DB:.0f}: power or amplitude, not decibels (10 log10 of linear power)"
    elif low < least or high > largest:
        yield f"{name} has values {low:g} to {high:g}, outside {least} to {largest}"
    elif name in ("sentinel2_l2a", "landsat") and 0 < high <= LARGEST_REFLECTANCE:
        yield f"{name} has no value above {high:g}: reflectance, not digital numbers"
