"""Labelled cells of a map, found tile by tile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_cli.maps.cell_keys import cells_at, centres, holders, keys_of
from olmoearth_cli.maps.cell_pool import Found
from olmoearth_cli.maps.cell_votes import (
    Marks,
    PerCell,
    any_class,
    majority,
    mean_value,
    pixel_codes,
    well_covered,
    without_overlaps,
)
from olmoearth_cli.maps.label_files import POLYGON
from olmoearth_cli.maps.label_raster import opened_raster, pixels_over
from olmoearth_cli.maps.label_shapes import meeting, place_points, places_inside, projected, smaller_than_a_cell
from olmoearth_cli.maps.labels import LabelTable
from olmoearth_cli.maps.reading import read_seen, utm_zone
from olmoearth_cli.maps.tile_files import TileEntry

Ints = npt.NDArray[np.int64]
FEWEST_STEPS = 4
"""A polygon's share of a cell is measured on the cell's pixels, at least on 4 x 4 places."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """The finished tiles of a map as ground to look for labels on."""

    tiles: tuple[TileEntry, ...]
    patch_px: int

    def cells(self, box: PixelBox, numbers: Ints) -> Ints:
        """[K, 3] cells of a tile from their numbers in it, counted row by row."""
        p, width = self.patch_px, box.width // self.patch_px
        rows, cols = box.row0 // p + numbers // width, box.col0 // p + numbers % width
        return np.stack([np.full_like(numbers, box.epsg), rows, cols], axis=-1)

    def seen(self, box: PixelBox, marks: Marks) -> Marks:
        """The marks on cells with a vector: no sample is spent on cells without data."""
        with_data = read_seen(next(tile for tile in self.tiles if tile.box == box))
        return marks.take(with_data.ravel()[marks.cell])

    def own(self, box: PixelBox, marks: Marks) -> Marks:
        """The marks on ground that no tile of another zone covers better: none counts twice at a zone's border."""
        if len({tile.box.epsg for tile in self.tiles}) == 1:
            return marks
        numbers, member = np.unique(marks.cell, return_inverse=True)
        lonlat = centres(self.cells(box, numbers), self.patch_px)
        zone = utm_zone(lonlat)
        foreign = np.flatnonzero(zone != box.epsg)
        if not len(foreign):
            return marks
        elsewhere = holders(self.tiles, cells_at(lonlat[foreign], zone[foreign], self.patch_px), self.patch_px) >= 0
        keep = np.ones(len(numbers), dtype=np.bool_)
        keep[foreign[elsewhere]] = False
        return marks.take(keep[member])


@dataclass(kw_only=True, eq=False)
class Search:
    """Walks over the tiles with labels on them and counts what it leaves out."""

    table: LabelTable
    ground: Ground
    polygons: str
    """`covered`: cells whose centre a polygon holds; `majority`: cells it covers by half and more than any other."""
    tally: Counter[str] = field(default_factory=Counter)
    """Reason -> number of cells or labels."""
    on_map: npt.NDArray[np.bool_] = field(init=False)
    """[N] True for points and polygons that meet a finished tile."""

    codes: Ints = field(init=False)
    """[N] equal numbers for equal targets; class ids for classes."""

    def __post_init__(self) -> None:
        self.on_map = np.zeros(len(self.table.columns), dtype=np.bool_)
        targets = self.table.targets
        if targets is None or (targets.ndim == 1 and targets.dtype == np.int64):
            self.codes = np.empty(0, dtype=np.int64) if targets is None else targets
        else:
            self.codes = np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1)

    def run(self) -> Iterator[Found]:
        """Labelled cells, one tile at a time."""
        return self._raster() if self.table.raster is not None else self._shapes()

    def _raster(self) -> Iterator[Found]:
        """Cells of a raster with labels on at least half of their pixels."""
        table, p = self.table, self.ground.patch_px
        assert table.raster is not None
        values = np.asarray(table.raster_values)
        with opened_raster(table.raster) as source:
            for tile in self.ground.tiles:
                pixels = pixels_over(source, table.raster_band, tile.box)
                if pixels is None or np.ma.getmaskarray(pixels).all():
                    continue
                row, col = np.nonzero(~np.ma.getmaskarray(pixels))
                found = np.asarray(pixels.data[row, col])
                code = found.astype(np.float64) if table.kind == "regression" else np.searchsorted(values, found)
                marks = _marks(code, np.zeros(len(row), dtype=np.int64), row, col, steps=p, width=tile.box.width)
                marks = self.ground.seen(tile.box, well_covered(marks, p * p))
                yield self._found(tile.box, self.ground.own(tile.box, marks))

    def _shapes(self) -> Iterator[Found]:
        """Cells of points and polygons."""
        assert self.table.geometry is not None
        shapes, ground = self.table.geometry, self.ground
        is_point = shapely.get_type_id(shapes) < POLYGON
        if self.polygons == "covered" and self.table.kind != "segmentation":
            is_point |= smaller_than_a_cell(shapes, ground.patch_px * PIXEL_M) & ~is_point
        points, areas = np.flatnonzero(is_point), np.flatnonzero(~is_point)
        lonlat = shapely.get_coordinates(shapely.point_on_surface(shapes[points]))
        cells, at = place_points(lonlat, ground.tiles, ground.patch_px)
        tile, area = meeting(shapes[areas], ground.tiles)
        self.on_map[points[at >= 0]] = True
        self.on_map[areas[area]] = True
        marked = np.zeros(len(self.table.columns), dtype=np.bool_)
        for position in np.union1d(at[at >= 0], tile).tolist():
            box = ground.tiles[position].box
            inside = np.sort(areas[area[tile == position]])
            marks = self._area_marks(box, inside, marked)
            here = at == position
            yield self._found(box, _joined(marks, self._point_marks(box, points[here], cells[here])))
        self.tally["narrow"] = int((self.on_map & ~is_point & ~marked).sum())

    def _point_marks(self, box: PixelBox, labels: npt.NDArray[np.intp], cells: Ints) -> Marks:
        p = self.ground.patch_px
        row, col = cells[:, 1] - box.row0 // p, cells[:, 2] - box.col0 // p
        return _marks(self.codes[labels], labels, row, col, steps=1, width=box.width // p)

    def _area_marks(self, box: PixelBox, labels: npt.NDArray[np.intp], marked: npt.NDArray[np.bool_]) -> Marks:
        """Marks of polygons on a tile: one per cell, or one per pixel for segmentation."""
        assert self.table.geometry is not None
        p, steps = self.ground.patch_px, self._steps()
        polygon, row, col = places_inside(projected(self.table.geometry[labels], box), box, p * PIXEL_M / steps)
        source = labels[polygon]
        marked[source] = True
        marks = _marks(self.codes[source], source, row, col, steps=steps, width=box.width // p * steps)
        seen = self.ground.seen(box, marks)
        self.tally["blind"] += len(np.unique(marks.cell)) - len(np.unique(seen.cell))
        marks, lost = without_overlaps(self.ground.own(box, seen), steps * steps)
        self.tally["overlaps"] += lost
        if self.table.kind == "segmentation":
            return well_covered(marks, steps * steps)
        if self.polygons == "majority":
            marks, tied = majority(well_covered(marks, steps * steps))
            self.tally["ties"] += tied
        return marks

    def _steps(self) -> int:
        """Places along a cell's side at which polygons are looked up."""
        if self.table.kind == "segmentation":
            return self.ground.patch_px
        return 1 if self.polygons == "covered" else max(self.ground.patch_px, FEWEST_STEPS)

    def _found(self, box: PixelBox, marks: Marks) -> Found:
        """One target per cell from all its marks."""
        kind = self.table.kind
        cell, label, target = self._merged(marks)
        if kind == "classification":
            stratum = target
        elif kind == "segmentation":
            stratum = _middle_class(target).astype(np.int64)
        else:
            stratum = np.zeros(len(cell), dtype=np.int64)
        return Found(key=keys_of(self.ground.cells(box, cell)), target=target, label=label, stratum=stratum)

    def _merged(self, marks: Marks) -> PerCell:
        kind, targets = self.table.kind, self.table.targets
        if kind == "segmentation":
            return pixel_codes(marks, self.ground.patch_px)
        if targets is not None:
            self.tally["shared"] += int((np.unique(marks.cell, return_counts=True)[1] > 1).sum())
        if kind == "regression":
            return mean_value(marks, marks.code if targets is None else targets[marks.label])
        if kind == "multilabel":
            assert targets is not None
            return any_class(marks, targets[marks.label])
        marks, tied = majority(marks)
        self.tally["ties"] += tied
        return marks.cell, marks.label, marks.code


def _marks(
    code: npt.NDArray[Any],
    label: npt.NDArray[Any],
    row: npt.NDArray[Any],
    col: npt.NDArray[Any],
    *,
    steps: int,
    width: int,
) -> Marks:
    """Marks at (row, column) of a grid of `width` columns, with `steps` x `steps` places in a cell."""
    return Marks(
        cell=row // steps * (width // steps) + col // steps,
        code=code,
        label=label.astype(np.int64),
        place=row % steps * steps + col % steps,
    )


def _joined(one: Marks, other: Marks) -> Marks:
    return Marks(
        **{
            name: np.concatenate([getattr(one, name), getattr(other, name)])
            for name in ("cell", "code", "label", "place")
        }
    )


def _middle_class(pixels: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """[K] the middle one of a cell's sorted labels [K, P, P]: its main class, wherever one fills more than half."""
    ordered = np.sort(pixels.reshape(len(pixels), -1), axis=1)
    unlabelled = (ordered < 0).sum(axis=1)
    return ordered[np.arange(len(ordered)), (unlabelled + ordered.shape[1]) // 2]
