"""From labels to the map cells they lie on, with one target each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from rasterio.warp import transform_bounds

from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.cell_keys import cells_from, centres
from olmoearth_cli.maps.cell_pool import LEAST_PER_CLASS, CellPool, Found
from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_cli.maps.footprint import footprint, overall_bbox
from olmoearth_cli.maps.label_marks import Ground, Search
from olmoearth_cli.maps.labels import LabelTable

POLYGON_RULES = ("covered", "majority")
LEFT_OUT = {
    "shared": "{n} cells hold several labels; each is one sample",
    "ties": "{n} cells left out: their labels divide evenly between classes",
    "overlaps": "{n} cells lie where labels of different targets overlap; nothing is learned from the overlap",
    "blind": "{n} cells under polygons left out: the map has no data there",
    "narrow": "{n} polygons on the map give no cell: they hold no cell's centre",
}
"""What a search leaves out or joins -> note."""
SEVERAL_VALUES = {
    "classification": "the most frequent class counts",
    "multilabel": "all their classes count",
    "regression": "their mean counts",
}
"""Kind of target -> what becomes of several labels in a cell."""
TARGET_TYPES = {"multilabel": np.uint8, "regression": np.float64}


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledCells:
    """N map cells with targets, sorted by zone, row and column."""

    cells: npt.NDArray[np.int64]
    """[N, 3] EPSG code, row, column; rows and columns count cells of the zone's global grid."""
    targets: npt.NDArray[Any]
    """int64 [N] class ids; uint8 0/1 [N, C]; int64 [N, P, P] class ids per pixel, -1 unlabelled; float64 [N]."""
    group: npt.NDArray[np.int64]
    """[N] number of the feature that a cell's label came from; for a raster each cell is its own."""
    lonlat: npt.NDArray[np.float64]
    """[N, 2] the cells' centres in degrees (WGS84)."""
    split: npt.NDArray[np.object_] | None
    """[N] value of the split field as text; None where none was asked."""
    labels: int
    """Points and polygons given; labelled cells on the map for a raster."""
    labels_on_map: int
    """Those of them that lie on finished tiles."""
    notes: tuple[str, ...]
    """What was joined, left out or sampled."""
    warnings: tuple[str, ...]
    """What makes the result less than the labels promise."""

    def __len__(self) -> int:
        return len(self.cells)


def cells_of(
    table: LabelTable,
    embeddings: EmbeddingMap,
    *,
    polygons: str = "covered",
    max_cells: int = 50_000,
    seed: int = 42,
    split_field: str | None = None,
) -> LabelledCells:
    """Find the cells of a map that labels lie on. No vector is read: cells without data are among them.

    A point labels the cell that holds it; several points in a cell are one sample (most frequent class, ties left
    out; mean; all classes). A polygon labels every cell whose centre it holds (`covered`; one smaller than a cell
    labels the cell it lies in) or the cells of which it covers at least half, and more than others do
    (`majority`). Where polygons with different targets overlap, nothing is labelled. A raster labels cells with
    data on at least half of their 10 m pixels, by the most frequent class or the mean. For segmentation, polygons and
    rasters label pixels, and cells with at least half of their pixels labelled are taken.

    Args:
        table: labels.
        embeddings: the map; only its finished tiles count.
        polygons: `covered` or `majority`.
        max_cells: of more cells a sample is taken: evenly over the map, each class in proportion.
        seed: of the sample. It depends on the cells' places alone, not on tiles or their order.
        split_field: attribute that says which split a label belongs to.

    Raises:
        InputError: no label on the map, no cell for them, or no such split field.
        ValueError: unknown rule for polygons, or max_cells below 1.
    """
    if polygons not in POLYGON_RULES or max_cells < 1:
        raise ValueError(f"polygons {polygons!r} is none of {POLYGON_RULES}, or max_cells {max_cells} is below 1")
    split = None if split_field is None else _split_values(table, split_field)
    tiles = tuple(tile for tile in embeddings.tiles if tile.status == "done")
    patch_px = embeddings.spec.patch_px
    search = Search(table=table, ground=Ground(tiles=tiles, patch_px=patch_px), polygons=polygons)
    pool = CellPool(max_cells, max(1, len(table.class_names)), seed)
    for found in search.run():
        pool.add(found)
    chosen, total = pool.chosen(), int(pool.count.sum())
    given, on_map = (len(table.columns), int(search.on_map.sum())) if table.raster is None else (total, total)
    if chosen is None:
        raise _no_cell(table, embeddings, search)
    cells = cells_from(chosen.key)
    notes = _notes(search.tally, table.kind)
    if total > max_cells:
        notes.append(_sample_note(len(chosen), total, table, seed))
    return LabelledCells(
        cells=cells,
        targets=chosen.target.astype(TARGET_TYPES.get(table.kind, np.int64)),
        group=_groups(table, chosen),
        lonlat=centres(cells, patch_px),
        split=None if split is None else split[chosen.label],
        labels=given,
        labels_on_map=on_map,
        notes=tuple(notes),
        warnings=tuple(_warnings(table, embeddings, pool, given, on_map)),
    )


def _groups(table: LabelTable, chosen: Found) -> npt.NDArray[np.int64]:
    if table.raster is not None:
        return np.arange(len(chosen), dtype=np.int64)
    return table.columns.index.to_numpy(dtype=np.int64)[chosen.label]


def _split_values(table: LabelTable, name: str) -> npt.NDArray[np.object_]:
    """[N] the split of each label as text."""
    if table.raster is not None:
        raise InputError(f"{table.source}: a raster has no fields; --split field:{name} needs points or polygons.")
    if name not in table.columns:
        fields = ", ".join(map(str, table.columns))
        raise InputError(f"{table.source}: --split field:{name}: there is no such field. Its fields: {fields}.")
    column = table.columns[name]
    empty = int(column.isna().sum())
    if empty:
        raise InputError(
            f"{table.source}: --split field:{name}: {empty} of {len(column)} labels have no value in it. Fill it in."
        )
    return column.astype(str).to_numpy(dtype=object)


def _notes(tally: Counter[str], kind: str) -> list[str]:
    notes = {reason: text.format(n=tally[reason]) for reason, text in LEFT_OUT.items() if tally[reason]}
    if "shared" in notes:
        notes["shared"] += f" ({SEVERAL_VALUES[kind]})"
    return list(notes.values())


def _sample_note(taken: int, total: int, table: LabelTable, seed: int) -> str:
    classes = f", each class in proportion, rare ones up to {LEAST_PER_CLASS} cells" if table.class_names else ""
    return f"{taken} of {total} labelled cells sampled evenly over the map{classes} (seed {seed})"


def _warnings(table: LabelTable, embeddings: EmbeddingMap, pool: CellPool, given: int, on_map: int) -> list[str]:
    found = []
    if not embeddings.complete:
        gaps = sum(tile.status == "gap" for tile in embeddings.tiles)
        found.append(
            f"the map is not complete ({len(embeddings.tiles) - gaps} tiles are finished, {gaps} are gaps); "
            "labels elsewhere have no cell"
        )
    if on_map < given:
        found.append(f"{on_map} of {given} labels lie on the map")
    if table.kind == "classification" and (pool.count == 0).any():
        absent = [name for name, count in zip(table.class_names, pool.count, strict=True) if not count]
        found.append(f"{len(absent)} of {len(table.class_names)} classes have no cell on the map: {', '.join(absent)}")
    return found


def _no_cell(table: LabelTable, embeddings: EmbeddingMap, search: Search) -> InputError:
    there = overall_bbox([footprint(tile.box)[1] for tile in search.ground.tiles])
    on_map = int(search.on_map.sum())
    if on_map:
        why = "; ".join(_notes(search.tally, table.kind)) or "none covers half of a cell"
        return InputError(
            f"{table.source}: {on_map} labels lie on the map, but no cell gets a target from them ({why}). "
            "Give larger polygons, or points, where the map has data."
        )
    bounds = _bounds(table)
    hint = " Are longitude and latitude swapped?" if _would_fit_swapped(table, there) else ""
    if table.raster is not None:
        what = "this raster has no labels, on half of a cell or more,"
    else:
        what = f"none of the {len(table.columns)} labels lies"
    return InputError(
        f"{table.source}: {what} on the map. "
        f"Labels: {_box_text(bounds)}; map {embeddings.folder}: {_box_text(there)} (west, south, east, north).{hint} "
        "Give labels inside the map, or make a map of their region."
    )


def _bounds(table: LabelTable) -> list[float]:
    """West, south, east, north of the labels in degrees."""
    if table.raster is None:
        return list(map(float, shapely.total_bounds(table.geometry)))
    with rasterio.open(table.raster) as source:
        return list(transform_bounds(source.crs, "EPSG:4326", *source.bounds))


def _would_fit_swapped(table: LabelTable, there: list[float]) -> bool:
    """True where most labels would lie in the map's bounds with their coordinates exchanged."""
    if table.geometry is None:
        return False
    low_x, low_y, high_x, high_y = shapely.bounds(table.geometry).T
    lat, lon = (low_x + high_x) / 2, (low_y + high_y) / 2
    fits = (lon >= there[0]) & (lon <= there[2]) & (lat >= there[1]) & (lat <= there[3])
    return bool(fits.mean() > 0.5)


def _box_text(bounds: list[float]) -> str:
    return ", ".join(f"{value:.5g}" for value in bounds)
