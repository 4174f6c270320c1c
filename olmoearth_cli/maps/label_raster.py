"""Labels from a raster: which classes it holds, and its values on a tile's 10 m pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.shutil import copy as gdal_copy
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.label_targets import MOST_CLASSES, number_name

RASTER_ENDINGS = (".tif", ".tiff")
SCANNED_PIXELS = 4_000_000
"""Pixels of a raster that are in memory at once while its values are listed."""
MOST_VALUES = 1000
"""A raster of classes has at most so many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RasterLabels:
    """What a raster of labels holds."""

    kind: str
    """`classification`, `segmentation` or `regression`."""
    band: int
    """Counted from 1."""
    field: str
    """Description of the band, else `band 1`."""
    values: npt.NDArray[np.int64]
    """[C] pixel value of each class id, ascending; empty for regression."""
    class_names: tuple[str, ...]
    """[C] category names of the file, else the values as text; empty for regression."""
    notes: tuple[str, ...]


def describe_raster(path: Path, *, field: str | None, task: str | None) -> RasterLabels:
    """Read a raster once, strip by strip, to know its classes.

    Args:
        path: a GeoTIFF.
        field: description or number of the band; None takes the first.
        task: `classification`, `segmentation`, `regression`, or None to infer it.

    Raises:
        InputError: unreadable, no reference system, no such band, or values that do not fit the task.
    """
    if task == "multilabel":
        raise InputError(f"{path}: a raster has one value per pixel; --task multilabel needs points or polygons.")
    with opened_raster(path) as source:
        if source.crs is None:
            raise InputError(f"{path}: has no coordinate reference system. Set it (gdal_edit.py -a_srs) and try again.")
        band, notes = _band(source, path, field)
        name = source.descriptions[band - 1] or f"band {band}"
        most = MOST_CLASSES if task is None else 1 if task == "regression" else MOST_VALUES
        values = _distinct(source, band, most)
        categories = _categories(source, band)
    where = f"{path}: {name}"
    whole = bool((values == np.floor(values)).all())
    kind = task or ("classification" if whole and len(values) <= MOST_CLASSES else "regression")
    if task is None:
        notes.append(f"taken as {kind}: {_seen(values)}; --task overrules")
    _check_values(values, where, kind=kind, whole=whole)
    classes = values.astype(np.int64) if kind != "regression" else np.empty(0, dtype=np.int64)
    return RasterLabels(
        kind=kind,
        band=band,
        field=name,
        values=classes,
        class_names=_class_names(classes, categories),
        notes=tuple(notes),
    )


def pixels_over(source: DatasetReader, band: int, box: PixelBox) -> npt.NDArray[Any] | None:
    """Pixel values on the 10 m pixels of a box, by the nearest source pixel.

    Returns:
        Masked array [H, W], masked where the raster has no label; None where it does not meet the box.
    """
    if not _meets(source, box):
        return None
    with WarpedVRT(
        source,
        crs=f"EPSG:{box.epsg}",
        transform=box.transform(),
        width=box.width,
        height=box.height,
        resampling=Resampling.nearest,
        # Without it, ground outside a raster that declares no no-data value would read as class 0.
        add_alpha=ColorInterp.alpha not in source.colorinterp,
    ) as warped:
        values, alpha = warped.read([band, warped.colorinterp.index(ColorInterp.alpha) + 1])  # H W each
    nodata = source.nodatavals[band - 1]
    # The alpha of a raster with several bands is 0 only where all of them have no data.
    absent = (alpha == 0) | ~np.isfinite(values)
    if nodata is not None:
        absent |= values == nodata
    return np.ma.masked_array(values, mask=absent)


def _meets(source: DatasetReader, box: PixelBox) -> bool:
    """True where the box may have pixels of the raster. From the box to the raster: UTM cannot hold the world."""
    west, south, east, north = transform_bounds(f"EPSG:{box.epsg}", source.crs, *box.bounds_m)
    left, right = sorted((source.bounds.left, source.bounds.right))
    bottom, top = sorted((source.bounds.bottom, source.bounds.top))
    over_dateline = west > east
    return over_dateline or bool(west < right and left < east and south < top and bottom < north)


@contextmanager
def opened_raster(path: Path) -> Iterator[DatasetReader]:
    """The open raster.

    Raises:
        InputError: it cannot be opened, or a read inside the block fails.
    """
    try:
        with rasterio.open(path) as source:
            yield source
    except RasterioError as error:
        raise InputError(f"{path}: cannot be read as a raster of labels ({error}).") from None


def _band(source: DatasetReader, path: Path, field: str | None) -> tuple[int, list[str]]:
    names = [description or str(i + 1) for i, description in enumerate(source.descriptions)]
    listed = ", ".join(names)
    if field is None:
        note = [f"band 1 ({names[0]}) of {len(names)} taken; --field names another: {listed}"]
        return 1, note if len(names) > 1 else []
    if field in names:
        return names.index(field) + 1, []
    if field.isdecimal() and 1 <= int(field) <= len(names):
        return int(field), []
    raise InputError(f"{path}: has no band {field!r}. Its bands: {listed}.")


def _distinct(source: DatasetReader, band: int, most: int) -> npt.NDArray[np.float64]:
    """Distinct finite values, ascending; stops soon after more than `most` were met, or a fraction."""
    high = source.block_shapes[band - 1][0]
    rows = math.ceil(max(1, SCANNED_PIXELS // source.width) / high) * high
    seen = np.empty(0, dtype=np.float64)
    for top in range(0, source.height, rows):
        window = Window(0, top, source.width, min(rows, source.height - top))
        values = source.read(band, window=window, masked=True).compressed()
        found = _unique(values).astype(np.float64)
        seen = np.union1d(seen, found[np.isfinite(found)])
        if len(seen) > most or (seen != np.floor(seen)).any():
            break
    return seen


def _unique(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return np.flatnonzero(np.bincount(values))  # many times faster than sorting millions of bytes
    return np.unique(values)


def _check_values(values: npt.NDArray[np.float64], where: str, *, kind: str, whole: bool) -> None:
    if not len(values):
        raise InputError(f"{where}: holds no pixel with data.")
    if kind == "regression":
        return
    if not whole or len(values) > MOST_VALUES:
        found = f"fractions such as {values[values != np.floor(values)][0]:.6g}" if not whole else f"over {MOST_VALUES}"
        raise InputError(f"{where}: {kind} needs whole numbers as classes; it holds {found}. Use --task regression.")
    if len(values) < 2:
        raise InputError(f"{where}: has one class only ({values[0]:.0f}): there is nothing to tell apart.")


def _seen(values: npt.NDArray[np.float64]) -> str:
    if len(values) > MOST_CLASSES:
        return f"more than {MOST_CLASSES} values"
    shown = ", ".join(map(number_name, values[:5]))
    return f"{len(values)} values ({shown}{', ...' if len(values) > 5 else ''})"


def _class_names(values: npt.NDArray[np.int64], categories: Sequence[str]) -> tuple[str, ...]:
    """Category names where the file has them; made distinct by the value where two classes share one."""
    names = [categories[v] if 0 <= v < len(categories) and categories[v] else str(v) for v in values.tolist()]
    return tuple(n if names.count(n) == 1 else f"{n} ({v})" for n, v in zip(names, values.tolist(), strict=True))


def _categories(source: DatasetReader, band: int) -> list[str]:
    """GDAL's category names, value 0 first. rasterio does not show them; GDAL's own description does."""
    with MemoryFile(ext=".vrt") as memory:
        gdal_copy(source, memory.name, driver="VRT")
        described = ElementTree.fromstring(memory.read())
    found = described.findall(f"VRTRasterBand[@band='{band}']/CategoryNames/Category")
    return [(category.text or "").strip() for category in found]
