"""The baseline without a model: a map cell described by the composites that the encoder saw there.

An embedding is worth its cost only where it beats these numbers under the same probe, the same samples and the same
folds. So the features hold what the encoder was given: its composites, its units, its rule for what counts as seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.normalize import normalize
from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_pipelines.cube import Cube, read_cube
from olmoearth_pipelines.encode import seen_patches
from olmoearth_pipelines.scene_table import SceneTable
from olmoearth_pipelines.tile_job import READ_THREADS

__all__ = ["RawBands", "available", "raw_vectors"]

Floats = npt.NDArray[np.float32]
SQUARE_PX = 256
"""Cells in one fixed square of the grid are read together: about 100 MB at most for 12 periods of Sentinel-2."""
RELEASE = "v1.2"
"""Releases differ only in what fills a missing band, and here a missing band stays missing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RawBands:
    """Features of N map cells: modality x band x period."""

    vectors: Floats
    """[N, F], centred on 0 per column; NaN rows for cells without imagery in any period."""
    names: tuple[str, ...]
    """[F], for example `sentinel2_l2a B08 2024-01-31` (first day of the period)."""
    missing_share: float
    """Share of the values that had no imagery and were filled, over cells with any; 0 to 1."""
    notes: tuple[str, ...]
    """What was filled or left out, one line each."""


def available(emap: EmbeddingMap) -> str | None:
    """Why the map's imagery cannot be read from local files at little cost; None where it can.

    Only the files' presence is looked at. Links stay out of the reason: they may be signed.
    """
    path = emap.folder / "scenes.json"
    if not path.is_file():
        return f"{path} is missing"
    try:
        table = _table(emap)
    except InputError as error:
        return str(error)
    links = {link for scene in table.scenes() for link in scene.assets.values()}
    remote = sum(_is_remote(link) for link in links)
    if remote:
        return f"scenes are remote ({remote} of {len(links)} files)"
    gone = sum(not Path(link).is_file() for link in links)
    if gone:
        return f"scene files were moved or deleted ({gone} of {len(links)} are not where the map found them)"
    return None


def reads_of(emap: EmbeddingMap, cells: npt.NDArray[np.int64]) -> int:
    """Places that `raw_vectors` would read one by one, each in every period; about a second each."""
    return sum(1 for _ in _squares(cells, emap.spec.patch_px))


def raw_vectors(emap: EmbeddingMap, cells: npt.NDArray[np.int64], *, threads: int = READ_THREADS) -> RawBands:
    """Describe map cells by their imagery.

    A value is the mean over the cell's pixels with data, in the models' units (spec/model.md section 2; Sentinel-1 in
    decibels). A period in which the encoder did not see the cell (`encode.seen_patches`) is missing, and is filled in
    time: linearly between the nearest periods with data, the first and last held to the ends. A band that no cell
    ever has is left out; a cell that lacks a band which others have gets the column's mean. Columns are centred on
    their mean over all cells (without labels), for raw values all lie in one octant, where a cosine tells little;
    they keep their spread.

    Args:
        emap: the map. Its scenes are read again, remote ones over the network: ask `available` first.
        cells: [N, 3] EPSG code, row and column in cells of `emap.spec.patch_px` pixels; any order, repeats allowed.
        threads: band groups read side by side.

    Returns:
        One row per cell, in order.

    Raises:
        InputError: no usable `scenes.json`, or no imagery at any of the cells.
        ReadError: a scene cannot be read.
        ValueError: `cells` is empty or has another shape.
    """
    cells = np.asarray(cells, dtype=np.int64)
    if cells.ndim != 2 or cells.shape[1] != 3 or not len(cells):
        raise ValueError(f"cells has shape {cells.shape}, not [N, 3] with N > 0")
    table = _table(emap)
    modalities, periods = emap.spec.modalities, len(table.periods)
    series = {m: np.full((len(cells), len(MODALITIES[m].bands), periods), np.nan, np.float32) for m in modalities}
    for index in _squares(cells, emap.spec.patch_px):
        box = _bounds(cells[index], emap.spec.patch_px)
        cube = read_cube(box, table.for_box(box), periods, modalities, threads=threads)
        for modality in modalities:
            series[modality][index] = _cell_series(cube, modality, cells[index], emap.spec.patch_px)
    days = [period.start.date().isoformat() for period in table.periods]
    return _features(series, days, emap)


def _table(emap: EmbeddingMap) -> SceneTable:
    path = emap.folder / "scenes.json"
    again = "Restore the file, or make the map again."
    try:
        table = SceneTable.from_json(path.read_text(encoding="utf-8"))
        found = (table.periods[0].start, table.periods[-1].end, table.modalities)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not readable as the map's scenes ({type(error).__name__}). {again}") from error
    if found != (emap.spec.start, emap.spec.end, emap.spec.modalities):
        raise InputError(f"{path}: has other periods or modalities than the map's tiles. {again}")
    return table


def _is_remote(link: str) -> bool:
    return link.startswith("/vsi") or bool(urlsplit(link).scheme)


def _squares(cells: npt.NDArray[np.int64], patch_px: int) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of the cells of one fixed square after the other; squares are made of whole cells."""
    side = max(1, SQUARE_PX // patch_px)
    key = np.column_stack([cells[:, 0], cells[:, 1] // side, cells[:, 2] // side])
    _, square = np.unique(key, axis=0, return_inverse=True)
    square = square.ravel()  # numpy 2.0 alone returns a column
    order = np.argsort(square, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(square[order])) + 1)


def _bounds(cells: npt.NDArray[np.int64], patch_px: int) -> PixelBox:
    """The smallest box that holds cells of one zone. Pixels do not depend on their box (`cube`), so less is read."""
    low, high = cells.min(axis=0), cells.max(axis=0)
    row0, col0 = (int(v) * patch_px for v in low[1:])
    row1, col1 = ((int(v) + 1) * patch_px for v in high[1:])
    return PixelBox(int(low[0]), row0, col0, row1, col1)


def _cell_series(cube: Cube, modality: str, cells: npt.NDArray[np.int64], patch_px: int) -> Floats:
    """Normalised means [n, C, T] of some cells of a cube, NaN where the encoder saw nothing."""
    p, valid, values = patch_px, cube.valid[modality], cube.values[modality]  # T H W, T C H W
    t, c, h, w = values.shape
    y, x = h // p, w // p
    known = np.where(valid[:, None], values, 0).astype(np.float32)
    total = known.reshape(t, c, y, p, x, p).sum(axis=(3, 5))  # T C Y X
    count = valid.reshape(t, 1, y, p, x, p).sum(axis=(3, 5))
    rows, cols = cells[:, 1] - cube.box.row0 // p, cells[:, 2] - cube.box.col0 // p
    means = (total / np.maximum(count, 1))[:, :, rows, cols].transpose(2, 0, 1)  # n T C
    out = normalize(modality, means, release=RELEASE)
    out[~seen_patches(cube, modality, p)[:, rows, cols].T] = np.nan
    out[:, cube.absent_bands[modality]] = np.nan
    return np.ascontiguousarray(out.transpose(0, 2, 1))


def _features(series: Mapping[str, Floats], days: Sequence[str], emap: EmbeddingMap) -> RawBands:
    """Fill, drop, centre and name what was read."""
    bands = [f"{m} {band}" for m in series for band in MODALITIES[m].bands]
    raw = np.concatenate(list(series.values()), axis=1)  # N K T
    known = np.isfinite(raw)
    has_any, ever = known.any(axis=(1, 2)), known.any(axis=(0, 2))  # N, K
    if not has_any.any():
        raise InputError(f"{emap.folder}: no imagery at any of the {len(raw)} labelled cells. Check map and labels.")
    filled = fill_in_time(raw[has_any][:, ever])  # n k T
    centred = filled - np.nanmean(filled, axis=0, dtype=np.float64)
    vectors = np.full((len(raw), centred[0].size), np.nan, np.float32)
    vectors[has_any] = np.nan_to_num(centred, nan=0.0).reshape(len(centred), -1)
    missing = 1.0 - float(known[has_any][:, ever].mean())
    never = [band for band, there in zip(bands, ever, strict=True) if not there]
    lacking = int(np.isnan(filled).any(axis=(1, 2)).sum())
    notes = (
        (missing > 0, f"{missing:.1%} of the values had no imagery and were filled from other periods"),
        (lacking > 0, f"{lacking} cells lack a band in every period; the mean of the others stands in"),
        (bool(never), f"no imagery of {', '.join(never)}; left out"),
        (not has_any.all(), f"{int((~has_any).sum())} cells without any imagery"),
    )
    return RawBands(
        vectors=vectors,
        names=tuple(f"{band} {day}" for band, there in zip(bands, ever, strict=True) if there for day in days),
        missing_share=missing,
        notes=tuple(text for applies, text in notes if applies),
    )


def fill_in_time(values: Floats) -> Floats:
    """Fill NaN along the last axis: linear between the nearest known values, the outermost held; all NaN stays."""
    known = np.isfinite(values)
    last = values.shape[-1] - 1
    at = np.arange(last + 1)
    before = np.maximum.accumulate(np.where(known, at, -1), axis=-1)
    after = np.minimum.accumulate(np.where(known, at, last + 1)[..., ::-1], axis=-1)[..., ::-1]
    before, after = np.where(before < 0, after, before), np.where(after > last, before, after)
    left = np.take_along_axis(values, np.clip(before, 0, last), axis=-1)
    right = np.take_along_axis(values, np.clip(after, 0, last), axis=-1)
    share = (at - before) / np.maximum(after - before, 1)
    return np.where(known, values, left + (right - left) * share).astype(np.float32)
