"""A class map as a small picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.errors import RasterioError

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.probing.class_layout import Colour, colours

STRETCH = (2.0, 98.0)
"""Percentiles of the values that get the ramp's first and last colour."""
_RAMP = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)
"""Five colours of viridis, evenly spaced."""
ABSENT: Colour = (225, 225, 225)
"""Multi-label cells in which no class is more likely than not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassPicture:
    """An image with its place and its legend."""

    rgba: npt.NDArray[np.uint8]
    """[H, W, 4], transparent where there is no data; without the empty rim."""
    epsg: int
    transform: Affine
    """From (column, row) to metres in `epsg`."""
    legend: tuple[tuple[str, Colour], ...]
    """Class names and their colours; lowest and highest value drawn for a regression."""


def picture(out: Path, max_side: int = 900) -> ClassPicture:
    """Draw a class map, from its overviews where that suffices.

    Args:
        out: what `write_class_map` wrote.
        max_side: largest side in pixels; smaller maps keep one pixel per cell.

    Raises:
        InputError: not a class map.
    """
    try:
        with rasterio.open(out) as source:
            step = max(1.0, max(source.shape) / max_side)
            height, width = (max(1, round(side / step)) for side in source.shape)
            values = source.read(out_shape=(source.count, height, width))
            full = source.transform  # north up
            geo = Affine(full.a * source.width / width, 0.0, full.c, 0.0, full.e * source.height / height, full.f)
            tags, epsg, nodata = source.tags(), source.crs.to_epsg(), source.nodata
    except RasterioError as error:
        raise InputError(f"{out}: cannot be read ({error}). Make the class map again.") from error
    if tags.get("KIND") not in _DRAW:
        raise InputError(f"{out}: is no class map of `olmoearth probe`. Give the file that --predict wrote.")
    names = [tags[f"CLASS_{number}"] for number in range(sum(key.startswith("CLASS_") for key in tags))]
    rgb, seen, legend = _DRAW[tags["KIND"]](values, nodata, names)
    rgba = np.concatenate([rgb, np.where(seen, 255, 0)[..., None]], axis=-1).astype(np.uint8)
    rgba[~seen] = 0
    rgba, geo = _cropped(rgba, geo)
    return ClassPicture(rgba=rgba, epsg=epsg, transform=geo, legend=legend)


_Drawn = tuple[npt.NDArray[Any], npt.NDArray[np.bool_], tuple[tuple[str, Colour], ...]]


def _classes(values: npt.NDArray[Any], nodata: float, names: list[str]) -> _Drawn:
    table = colours(names)
    seen = values[0] != nodata
    return np.array(table)[np.where(seen, values[0], 0)], seen, tuple(zip(names, table, strict=True))


def _labels(values: npt.NDArray[Any], nodata: float, names: list[str]) -> _Drawn:
    """The likeliest class of each cell, where it is more likely than not."""
    table = [*colours(names), ABSENT]
    seen = values[0] != nodata
    shown = np.where(values.max(axis=0) > 50, values.argmax(axis=0), len(names))
    return np.array(table)[shown], seen, tuple(zip([*names, "none"], table, strict=True))


def _values(values: npt.NDArray[Any], nodata: float, names: list[str]) -> _Drawn:
    seen = np.isfinite(values[0])
    low, high = np.percentile(values[0][seen], STRETCH) if seen.any() else (0.0, 1.0)
    rgb = shades(np.where(seen, values[0], low), low, high)
    ends = tuple((f"{value:.4g}", _colour(row)) for value, row in ((low, _RAMP[0]), (high, _RAMP[-1])))
    return rgb, seen, ends


def shades(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Colours [..., 3] of values [...], from dark blue at `low` to yellow at `high`; clipped to these."""
    at = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(_RAMP) - 1)
    rgb = np.stack([np.interp(at, np.arange(len(_RAMP)), _RAMP[:, c]) for c in range(3)], axis=-1)
    return np.rint(rgb).astype(np.uint8)


_DRAW = {"classification": _classes, "segmentation": _classes, "multilabel": _labels, "regression": _values}


def _colour(row: npt.NDArray[np.float64]) -> Colour:
    r, g, b = (int(value) for value in row)
    return r, g, b


def _cropped(rgba: npt.NDArray[np.uint8], geo: Affine) -> tuple[npt.NDArray[np.uint8], Affine]:
    """Without the empty rim: tiles are larger than the region."""
    seen = rgba[..., 3] > 0
    if not seen.any():
        return rgba, geo
    rows, cols = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    cut = rgba[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    return cut, Affine(geo.a, 0.0, geo.c + geo.a * cols[0], 0.0, geo.e, geo.f + geo.e * rows[0])
