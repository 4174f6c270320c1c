"""A box of the grid and its chosen scenes to arrays in the models' units: the multitemporal stack.

The key property: a pixel's values are a function of its selection cell and that cell's scenes alone. Any box
that holds the pixel gives the same bytes. So nothing here may look at the box as a whole to decide about a
pixel: grids are anchored to the cell (read.py), and whether a scene's footprint matters is decided per fixed
square of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import shapely

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox, square
from olmoearth_pipelines.providers import product
from olmoearth_pipelines.radiometry import S1_NO_DATA, has_power, is_clear, remove_offset, to_decibel
from olmoearth_pipelines.read import ReadError, read_bands
from olmoearth_pipelines.scene import Scene, Selection
from olmoearth_pipelines.scene_table import CELL_PX, projected

__all__ = ["Cube", "ReadError", "read_cube"]

Array = np.ndarray
FINEST_SNAP_PX = 4
"""Boxes are read on multiples of 40 m, so that 10, 20 and 40 m grids nest (spec/inputs.md section 2)."""
SQUARE_PX = 128
"""Fixed squares in which a scene's footprint is looked at."""
FOOTPRINT_MARGIN_M = 300.0
"""Footprints are a little smaller than the data; a scene counts this far beyond its own."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Bands that are read on one grid and mosaicked together (the band sets of release v1, where all are there)."""

    bands: tuple[str, ...]
    resolution_m: int
    """Grid on which they are warped; repeated to 10 m afterwards."""
    classes: str | None = None
    """Class layer that goes with them."""


GROUPS = {
    "sentinel2_l2a": (
        Group(bands=("B02", "B03", "B04", "B08"), resolution_m=10, classes="SCL"),
        Group(bands=("B05", "B06", "B07", "B8A", "B11", "B12"), resolution_m=20),
        Group(bands=("B01", "B09"), resolution_m=40),
    ),
    "sentinel1": (Group(bands=("vv", "vh"), resolution_m=10),),
    "landsat": (
        Group(bands=("B8",), resolution_m=10),
        Group(bands=("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11"), resolution_m=20),
    ),
}
"""Modality -> groups, as in pretraining (spec/inputs.md section 1)."""


@dataclass(frozen=True, kw_only=True)
class Cube:
    """The multitemporal stack of a box."""

    box: PixelBox
    values: dict[str, Array]
    """[T, C, H, W]: sentinel2_l2a and landsat uint16 digital numbers (0 = no data), sentinel1 float32 dB (NaN)."""
    valid: dict[str, Array]
    """bool [T, H, W], True where every band group of the period has data."""
    absent_bands: dict[str, Array]
    """bool [T, C], True where all of the period's scenes over the box lack the band."""
    clear: Array | None
    """bool [T, H, W], True where the Sentinel-2 class layer says clear; None without a class layer."""
    used: tuple[str, ...]
    """Ids of the scenes that were read."""
    bytes_read: int
    """Decoded bytes."""


@dataclass(kw_only=True)
class _Mosaic:
    """One group of one period over one cell's part of the box, on the group's own grid."""

    values: Array
    """[C, H, W]."""
    filled: Array
    """bool [H, W]."""
    clear: Array | None
    used: list[str]
    bytes_read: int = 0


def read_cube(
    box: PixelBox, selections: Sequence[Selection], periods_count: int, modalities: Sequence[str], *, threads: int = 8
) -> Cube:
    """Read a box.

    Args:
        box: in 10 m pixels; may span several selection cells.
        selections: the choices of the cells that the box meets.
        periods_count: T.
        modalities: what to read.
        threads: bands groups read side by side.

    Returns:
        The stack, oldest period first.

    Raises:
        ReadError: a chosen scene cannot be read.
    """
    outer = box.snapped(FINEST_SNAP_PX)
    shape = (periods_count, outer.height, outer.width)
    values = {m: _empty(m, shape) for m in modalities}
    filled = {m: np.zeros(shape, bool) for m in modalities}
    absent = {m: _absent(m, selections, periods_count) for m in modalities}
    has_classes = any("SCL" in s.assets for x in selections for s in x.scenes)
    clear = np.zeros(shape, bool) if "sentinel2_l2a" in modalities and has_classes else None
    jobs = list(_jobs(outer, selections, modalities))
    for part, selection, _ in jobs:
        rows, cols = part.slices_in(outer)
        # Until a group says otherwise. A band that only other cells of the box have would be zeros here.
        lacking = ~_held(selection) & ~absent[selection.modality][selection.period]
        filled[selection.modality][selection.period, rows, cols] = not lacking.any()
    used: set[str] = set()
    total = 0
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for (part, selection, group), mosaic in zip(jobs, pool.map(lambda job: _mosaic(*job), jobs), strict=True):
            m, t = selection.modality, selection.period
            rows, cols = part.slices_in(outer)
            times = group.resolution_m // PIXEL_M
            index = [MODALITIES[m].bands.index(b) for b in group.bands]
            values[m][t, index, rows, cols] = _repeat(mosaic.values, times)
            filled[m][t, rows, cols] &= _repeat(mosaic.filled, times)
            if clear is not None and mosaic.clear is not None:
                clear[t, rows, cols] = _repeat(mosaic.clear, times)
            used.update(mosaic.used)
            total += mosaic.bytes_read
    rows, cols = box.slices_in(outer)
    return Cube(
        box=box,
        values={m: v[:, :, rows, cols] for m, v in values.items()},
        valid={m: v[:, rows, cols] for m, v in filled.items()},
        absent_bands=absent,
        clear=None if clear is None else clear[:, rows, cols],
        used=tuple(sorted(used)),
        bytes_read=total,
    )


def _empty(modality: str, shape: tuple[int, int, int]) -> Array:
    t, h, w = shape
    full = (t, len(MODALITIES[modality].bands), h, w)
    return np.full(full, np.nan, np.float32) if modality == "sentinel1" else np.zeros(full, np.uint16)


def _absent(modality: str, selections: Sequence[Selection], periods_count: int) -> Array:
    """bool [T, C]: bands that none of a period's scenes has."""
    bands = MODALITIES[modality].bands
    absent = np.ones((periods_count, len(bands)), bool)
    for selection in selections:
        if selection.modality == modality:
            absent[selection.period] &= ~_held(selection)
    return absent


def _held(selection: Selection) -> Array:
    """bool [C]: bands that at least one of the scenes has."""
    held = {band for scene in selection.scenes for band in scene.assets}
    return np.array([band in held for band in MODALITIES[selection.modality].bands])


def _jobs(
    outer: PixelBox, selections: Sequence[Selection], modalities: Sequence[str]
) -> list[tuple[PixelBox, Selection, Group]]:
    """What can be read side by side: (part of the box in one cell, that cell's choice, band group)."""
    jobs = []
    for selection in selections:
        part = square(selection.epsg, CELL_PX, *selection.cell).intersection(outer)
        if part.empty or selection.modality not in modalities:
            continue
        for group in GROUPS[selection.modality]:
            jobs += [(part, selection, each) for each in _split(group, selection.scenes)]
    return jobs


def _split(group: Group, scenes: Sequence[Scene]) -> list[Group]:
    """A group's bands by the scenes that have them, for a scene that lacks a band must not leave zeros in it."""
    by_scenes: dict[tuple[bool, ...], list[str]] = {}
    for band in group.bands:
        by_scenes.setdefault(tuple(band in scene.assets for scene in scenes), []).append(band)
    present = [tuple(bands) for having, bands in by_scenes.items() if any(having)]
    return [replace(group, bands=b, classes=None if k else group.classes) for k, b in enumerate(present)]


def _mosaic(part: PixelBox, selection: Selection, group: Group) -> _Mosaic:
    """Walk the scenes in order; every pixel keeps the first one that has data there."""
    times = group.resolution_m // PIXEL_M
    shape = (part.height // times, part.width // times)
    radar = selection.modality == "sentinel1"
    start = np.full((len(group.bands), *shape), S1_NO_DATA if radar else 0, np.float32 if radar else np.uint16)
    mosaic = _Mosaic(values=start, filled=np.zeros(shape, bool), clear=None, used=[])
    for scene in selection.scenes:
        if group.bands[0] not in scene.assets:
            continue
        reach = _reach(scene.footprint_wkb, part, times)
        open_pixels = ~mosaic.filled & reach
        if open_pixels.any():
            _add(mosaic, scene, group, part, open_pixels)
        if mosaic.filled.all():
            break
    if radar:
        mosaic.values = to_decibel(mosaic.values)
        mosaic.values[:, ~mosaic.filled] = np.nan
    return mosaic


def _add(mosaic: _Mosaic, scene: Scene, group: Group, part: PixelBox, open_pixels: Array) -> None:
    """Fill open pixels from one scene."""
    row = product(scene.product)
    radar = scene.modality == "sentinel1"
    values = read_bands(
        scene,
        row,
        group.bands,
        part,
        resolution_m=group.resolution_m,
        dtype="float32" if radar else "uint16",
        fill=S1_NO_DATA if radar else 0,
    )
    mosaic.bytes_read += values.nbytes
    mosaic.used.append(scene.id)
    # Sentinel-1 needs both polarisations; the optical sensors count as no data only where all bands are 0.
    here = open_pixels & (has_power(values).all(axis=0) if radar else (values > 0).any(axis=0))
    if not here.any():
        return
    values = values if radar else remove_offset(values, scene.offset_dn)
    mosaic.values[:, here] = values[:, here]
    if group.classes and group.classes in scene.assets:
        classes = read_bands(
            scene, row, [group.classes], part, resolution_m=group.resolution_m, dtype="uint8", fill=0, nearest=True
        )[0]
        mosaic.bytes_read += classes.nbytes
        if mosaic.clear is None:
            mosaic.clear = np.zeros(mosaic.filled.shape, bool)
        mosaic.clear[here] = is_clear(classes)[here]
    mosaic.filled |= here


def _reach(footprint_wkb: bytes, part: PixelBox, times: int) -> Array:
    """bool [H, W] on the group's grid: the fixed squares that a scene's footprint touches."""
    flags = np.zeros((part.height, part.width), bool)
    for i, j in part.squares(SQUARE_PX):
        if _touches(footprint_wkb, part.epsg, i, j):
            inside = square(part.epsg, SQUARE_PX, i, j).intersection(part)
            rows, cols = inside.slices_in(part)
            flags[rows, cols] = True
    return flags[::times, ::times]


@lru_cache(maxsize=200_000)
def _touches(footprint_wkb: bytes, epsg: int, i: int, j: int) -> bool:
    box = shapely.box(*square(epsg, SQUARE_PX, i, j).bounds_m)
    return bool(shapely.intersects(_grown(epsg, footprint_wkb), box))


@lru_cache(maxsize=5_000)
def _grown(epsg: int, footprint_wkb: bytes) -> shapely.Geometry:
    grown = shapely.buffer(projected(epsg, footprint_wkb), FOOTPRINT_MARGIN_M, join_style="mitre")
    shapely.prepare(grown)
    return grown


def _repeat(values: Array, times: int) -> Array:
    """Pixels repeated `times` x `times` (nearest neighbour), as the pretraining data were."""
    return values if times == 1 else values.repeat(times, axis=-2).repeat(times, axis=-1)
