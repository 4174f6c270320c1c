"""From labels to map cells: what lies on a cell by hand, or by a slower route."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import shapely
from pyproj import Transformer

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.embedding_map import EmbeddingMap, write_gap
from olmoearth_cli.maps.label_cells import cells_of
from olmoearth_cli.maps.labels import LabelTable

WEST, NORTH = 576000, 5529600
"""Corner of tile (0, 0), EPSG:32631; a cell is 40 m, a tile 24 cells."""
ROW0, COL0 = -5529600 // 40, 576000 // 40


def to_lonlat(shapes, epsg=32631):
    change = Transformer.from_crs(epsg, 4326, always_xy=True).transform
    return shapely.transform(np.asarray(shapes, dtype=object), change, interleaved=False)


def at(row, col, row_m=20.0, col_m=20.0):
    """A point in cell (row, col) counted from tile (0, 0), metres from the cell's north-western corner."""
    return shapely.Point(WEST + col * 40 + col_m, NORTH - row * 40 - row_m)


def patch(row0, col0, row1, col1):
    """A rectangle over cells [row0, row1) x [col0, col1), fractions allowed."""
    return shapely.box(WEST + col0 * 40, NORTH - row1 * 40, WEST + col1 * 40, NORTH - row0 * 40)


def labels(shapes, targets, kind="classification", epsg=32631, **columns):
    targets = np.asarray(targets)
    classes = {"multilabel": targets.shape[-1], "regression": 0}.get(kind, int(targets.max()) + 1)
    return LabelTable(
        source="labels.gpkg",
        kind=kind,
        field="class",
        class_names=tuple(f"c{i}" for i in range(classes)),
        geometry=to_lonlat(shapes, epsg),
        targets=targets,
        columns=pd.DataFrame(columns, index=range(len(targets))),
        notes=(),
    )


def local(found):
    """(row, column) from tile (0, 0) -> target."""
    return {
        (int(row - ROW0), int(col - COL0)): target
        for (_, row, col), target in zip(found.cells, found.targets.tolist(), strict=True)
    }


def test_a_point_labels_the_cell_that_holds_it(make_map):
    corners = [at(5, 7, 0.5, 0.5), at(5, 8, 39.5, 39.5), at(0, 0, 0.5, 0.5), at(23, 47, 39.5, 39.5)]
    found = cells_of(labels(corners, [0, 1, 2, 1]), make_map())
    assert local(found) == {(5, 7): 0, (5, 8): 1, (0, 0): 2, (23, 47): 1}
    assert found.targets.dtype == np.int64
    assert found.group.tolist() == [2, 0, 1, 3]
    assert (found.labels, found.labels_on_map) == (4, 4)
    assert found.cells[:, 0].tolist() == [32631] * 4
    assert np.allclose(found.lonlat[0], shapely.get_coordinates(to_lonlat([at(0, 0)]))[0], atol=1e-9)
    assert not found.warnings
    assert not found.notes


def test_polygons_give_no_label_to_cells_without_a_vector(make_map):
    found = cells_of(labels([patch(0, 0, 4, 6), patch(10, 10, 11, 11)], [0, 1]), make_map(holes=True))
    # Rows 0 to 2 of columns 0 to 4 have no vector.
    assert {cell for cell, target in local(found).items() if target == 0} == {
        *((row, 5) for row in range(3)),
        *((3, col) for col in range(6)),
    }
    assert found.notes == ("15 cells under polygons left out: the map has no data there",)


def test_polygons_wholly_without_data_say_so(make_map) -> None:
    with pytest.raises(InputError, match=r"4 cells under polygons left out: the map has no data there.*has data"):
        cells_of(labels([patch(0, 0, 1, 2), patch(1, 1, 2, 3)], [0, 1]), make_map(holes=True))


def test_several_points_in_a_cell_are_one_sample_by_majority(make_map):
    shapes = [at(1, 1), at(1, 1, 5, 5), at(2, 2), at(2, 2, 5, 5), at(2, 2, 9, 9), at(3, 3), at(3, 3, 5, 5), at(4, 4)]
    found = cells_of(labels(shapes, [0, 0, 1, 0, 1, 0, 1, 1]), make_map())
    assert local(found) == {(1, 1): 0, (2, 2): 1, (4, 4): 1}
    assert found.group.tolist() == [0, 2, 7]
    assert found.notes == (
        "3 cells hold several labels; each is one sample (the most frequent class counts)",
        "1 cells left out: their labels divide evenly between classes",
    )


def test_several_numbers_are_averaged_and_several_class_lists_joined(make_map):
    shapes = [at(1, 1), at(1, 1, 5, 5), at(2, 2)]
    found = cells_of(labels(shapes, [1.0, 4.0, 7.5], kind="regression"), make_map())
    assert local(found) == {(1, 1): 2.5, (2, 2): 7.5}
    lists = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.uint8)
    found = cells_of(labels(shapes, lists, kind="multilabel"), make_map(name="other"))
    assert local(found) == {(1, 1): [1, 1, 0], (2, 2): [0, 0, 1]}
    assert found.targets.dtype == np.uint8


def test_points_of_a_multipoint_and_cells_of_a_polygon_share_a_group(make_map):
    table = labels([at(1, 1), at(9, 9), patch(3, 3, 5, 5)], [0, 0, 1])
    table = replace(table, columns=pd.DataFrame(index=[4, 4, 6]))
    found = cells_of(table, make_map())
    assert found.group.tolist() == [4, 6, 6, 6, 6, 4]


def test_a_polygon_labels_the_cells_whose_centre_it_holds(make_map):
    rng = np.random.default_rng(3)
    blobs = [
        shapely.Point(WEST + x, NORTH - y).buffer(r)
        for x, y, r in zip(rng.uniform(0, 1920, 8), rng.uniform(0, 960, 8), rng.uniform(30, 300, 8), strict=True)
    ]
    covered = {
        (row, col) for row in range(24) for col in range(48) if any(blob.contains(at(row, col)) for blob in blobs)
    }
    found = cells_of(labels(blobs, [7.0] * 8, kind="regression"), make_map())
    assert len(covered) > 100
    assert set(local(found)) == covered


def test_holes_and_parts_of_polygons_count(make_map):
    ring = patch(2, 2, 7, 7).difference(patch(4, 4, 5, 5))
    parts = shapely.union_all([ring, patch(10, 10, 11, 12)])
    found = cells_of(labels([parts, at(20, 20)], [0, 1]), make_map())
    assert len(found) == 25 - 1 + 2 + 1
    assert (4, 4) not in local(found)


def test_a_polygon_smaller_than_a_cell_labels_the_cell_it_lies_in(make_map):
    small = patch(5.05, 6.05, 5.3, 6.3)
    found = cells_of(labels([small, patch(8, 8, 9, 10)], [0, 1]), make_map())
    assert local(found) == {(5, 6): 0, (8, 8): 1, (8, 9): 1}


def test_a_narrow_polygon_without_a_centre_gives_no_cell_and_is_counted(make_map):
    sliver = patch(5.05, 2, 5.25, 20)
    found = cells_of(labels([sliver, at(1, 1)], [0, 1]), make_map())
    assert local(found) == {(1, 1): 1}
    assert found.labels_on_map == 2
    assert "1 polygons on the map give no cell: they hold no cell's centre" in found.notes
    assert any("1 of 2 classes have no cell on the map: c0" in text for text in found.warnings)
    with pytest.raises(InputError, match=r"1 labels lie on the map, but no cell.*centre"):
        cells_of(labels([sliver], [0]), make_map(name="other"))


def test_where_polygons_of_different_classes_overlap_nothing_is_labelled(make_map):
    shapes = [patch(2, 2, 4, 6), patch(2, 4, 4, 8), patch(3, 7, 4, 9), at(20, 20)]
    found = cells_of(labels(shapes, [0, 1, 1, 2]), make_map())
    assert local(found) == {
        **{(r, c): 0 for r in (2, 3) for c in (2, 3)},
        **{(r, c): 1 for r in (2, 3) for c in (6, 7)},
        (3, 8): 1,
        (20, 20): 2,
    }
    assert any("4 cells lie where labels of different targets overlap" in note for note in found.notes)
    assert found.group[found.cells[:, 2] == COL0 + 7].tolist() == [1, 1]


def test_majority_takes_cells_that_are_covered_by_half(make_map):
    # Of 16 pixels: 12 in column 2; 8 and 8 of two classes in column 5; 4 of 16 in column 9; 4 + 8 in column 12.
    shapes = [patch(2, 2.25, 3, 5.5), patch(2, 5.5, 3, 9.25), patch(2, 12.25, 3, 12.5), patch(2, 12.5, 3, 13)]
    found = cells_of(labels(shapes, [0, 1, 0, 1]), make_map(), polygons="majority")
    assert local(found) == {(2, 2): 0, (2, 3): 0, (2, 4): 0, (2, 6): 1, (2, 7): 1, (2, 8): 1, (2, 12): 1}
    assert "1 cells left out: their labels divide evenly between classes" in found.notes


def test_majority_is_measured_inside_cells_of_one_pixel(make_map, tile_box):
    opened = make_map(tile_box(0, 0), patch_px=1)
    # 10 m cells: the polygon covers three quarters of the first and a quarter of the last.
    shape = shapely.box(WEST + 2.5, NORTH - 10, WEST + 22.5, NORTH)
    found = cells_of(labels([shape], [1]), opened, polygons="majority")
    assert (found.cells[:, 2] - WEST // 10).tolist() == [0, 1]


def test_segmentation_labels_pixels_of_cells_that_are_half_labelled(make_map):
    shapes = [patch(2, 2, 3, 2.75), patch(2, 2.5, 3, 3.25), patch(5, 5, 6, 5.25)]
    table = labels(shapes, [0, 1, 1], kind="segmentation")
    found = cells_of(table, make_map())
    assert (found.targets.dtype, found.targets.shape) == (np.int64, (1, 4, 4))
    assert found.targets[0].tolist() == [[0, 0, -1, 1]] * 4


def test_labels_outside_are_counted_and_none_inside_is_an_error(make_map):
    opened = make_map()
    found = cells_of(labels([at(1, 1), at(1, 48), at(-1, 3), patch(30, 30, 33, 33)], [0, 0, 1, 1]), opened)
    assert (found.labels, found.labels_on_map, len(found)) == (4, 1, 1)
    assert found.warnings[0] == "1 of 4 labels lie on the map"
    away = labels([at(500, 500), at(600, 600)], [0, 1])
    with pytest.raises(
        InputError, match=r"none of the 2 labels lies on the map. Labels: 4\.\d+, 49\.\d+.*map .*: 4\.0"
    ):
        cells_of(away, opened)
    swapped = replace(away, geometry=shapely.transform(to_lonlat([at(1, 1), at(2, 2)]), lambda xy: xy[:, ::-1]))
    with pytest.raises(InputError, match="longitude and latitude swapped"):
        cells_of(swapped, opened)


def test_a_half_finished_map_is_used_as_far_as_it_goes(make_map, tile_box):
    opened = make_map(tile_box(0, 0), complete=False)
    write_gap(opened.folder, opened.spec, "gap", tile_box(0, 1), "no imagery")
    opened = EmbeddingMap.open(opened.folder)
    found = cells_of(labels([at(1, 1), at(2, 2), at(1, 30)], [0, 1, 1]), opened)
    assert len(found) == 2
    assert "1 tiles are finished, 1 are gaps" in found.warnings[0]
    assert found.warnings[1] == "2 of 3 labels lie on the map"


def test_the_split_of_a_label_goes_with_its_cells(make_map):
    table = labels([at(3, 3), patch(1, 1, 2, 3)], [0, 1], fold=[7, 8], hole=["a", None])
    assert cells_of(table, make_map(), split_field="fold").split.tolist() == ["8", "8", "7"]
    for name, message in (("folds", "no such field. Its fields: fold, hole"), ("hole", "1 of 2 labels have no value")):
        with pytest.raises(InputError, match=message):
            cells_of(table, make_map(name=name), split_field=name)
    with pytest.raises(ValueError, match="polygons"):
        cells_of(table, make_map(name="x"), polygons="touched")


@pytest.fixture
def two_zones(make_map):
    """Tiles of two zones that overlap around a point on their border."""

    def make(lon=6.0, lat=49.9, zones=(32631, 32632), **changes):
        boxes = []
        for epsg in zones:
            x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
            col, row = int(x // 960), int(-y // 960)
            boxes += [PixelBox(epsg, (row + i) * 96, (col + j) * 96, (row + i + 1) * 96, (col + j + 1) * 96)
                      for i in (-1, 0, 1) for j in (-1, 0, 1)]  # fmt: skip
        return make_map(*boxes, **changes)

    return make


def test_a_polygon_on_a_zone_border_labels_its_ground_once(two_zones):
    field = shapely.box(5.995, 49.897, 6.005, 49.903)
    table = replace(labels([at(0, 0)], [1]), geometry=np.array([field], dtype=object))
    found = cells_of(table, two_zones())
    west = found.cells[:, 0] == 32631
    assert set(found.cells[:, 0].tolist()) == {32631, 32632}
    assert (found.lonlat[west, 0] < 6).all()
    assert (found.lonlat[~west, 0] >= 6).all()
    area = Transformer.from_crs(4326, 3035, always_xy=True).transform
    expected = shapely.area(shapely.transform(field, area, interleaved=False)) / 1600
    assert len(found) == pytest.approx(expected, rel=0.03)
    assert found.group.tolist() == [0] * len(found)


def test_a_point_that_two_zones_hold_is_taken_from_its_own(two_zones):
    points = np.array([shapely.Point(6.002, 49.9), shapely.Point(5.998, 49.9), shapely.Point(6.0000001, 49.9)])
    table = replace(labels([at(0, 0)] * 3, [0, 1, 2]), geometry=points)
    opened = two_zones()
    found = cells_of(table, opened)
    by_target = {int(t): int(c[0]) for c, t in zip(found.cells, found.targets, strict=True)}
    assert by_target == {0: 32632, 1: 32631, 2: 32632}
    only_31 = replace(opened, tiles=tuple(tile for tile in opened.tiles if tile.box.epsg == 32631))
    assert cells_of(table, only_31).cells[:, 0].tolist()[0] == 32631


def test_points_agree_with_reading_points(two_zones):
    rng = np.random.default_rng(0)
    lonlat = np.column_stack([rng.uniform(5.99, 6.01, 40), rng.uniform(49.893, 49.907, 40)])
    opened = two_zones(dtype="float32")
    table = replace(labels([at(0, 0)] * 40, np.arange(40) / 7, kind="regression"), geometry=shapely.points(lonlat))
    found = cells_of(table, opened)
    vectors = opened.read_cells(found.cells)
    by_point = opened.read_points(lonlat[found.group])
    both = np.isfinite(vectors).all(axis=1)
    assert both.sum() > 30
    assert np.array_equal(vectors[both], by_point[both])


def test_a_sample_keeps_the_shares_of_classes_and_spreads_over_tiles(make_map, tile_box):
    boxes = [tile_box(i, j) for i in (0, 1) for j in (0, 1)]
    shapes = [patch(0, 0, 48, 36), patch(0, 36, 47, 48), patch(47, 36, 48, 48)]
    table = labels(shapes, [0, 1, 2])
    found = cells_of(table, make_map(*boxes), max_cells=460)
    assert len(found) == 460
    assert any("460 of 2304 labelled cells sampled" in note for note in found.notes)
    # 12 cells of the rare class stay; 100 of the others first, the other 248 in proportion 1628 : 464.
    assert np.bincount(found.targets).tolist() == [293, 155, 12]
    tile = (found.cells[:, 1] - ROW0) // 24 * 2 + (found.cells[:, 2] - COL0) // 24
    assert np.bincount(tile, minlength=4).min() > 70
    again = cells_of(table, make_map(*boxes[::-1], name="turned"), max_cells=460)
    assert np.array_equal(again.cells, found.cells)
    other = cells_of(table, make_map(*boxes, name="seed"), max_cells=460, seed=1)
    assert not np.array_equal(other.cells, found.cells)


def test_the_sample_does_not_depend_on_the_size_of_tiles_or_on_pruning(make_map, tile_box):
    small = [tile_box(i, j) for i in (0, 1) for j in (0, 1)]
    whole = PixelBox(32631, small[0].row0, small[0].col0, small[3].row1, small[3].col1)
    table = labels([patch(0, 0, 48, 36), patch(0, 36, 48, 48)], [0, 1])
    one = cells_of(table, make_map(*small), max_cells=50)  # 576 cells a tile: pruned after each
    other = cells_of(table, make_map(whole, name="whole"), max_cells=50)
    assert len(one) == 50
    assert np.array_equal(one.cells, other.cells)
    assert np.array_equal(one.targets, other.targets)


def test_a_polygon_of_a_continent_is_cut_to_the_map(make_map):
    table = replace(labels([at(0, 0)], [1]), geometry=np.array([shapely.box(-120, -20, 150, 80)], dtype=object))
    assert len(cells_of(table, make_map())) == 24 * 48


def test_a_polygon_across_the_dateline_labels_both_sides_once(two_zones):
    parts = shapely.MultiPolygon([shapely.box(179.993, 9.997, 180, 10.003), shapely.box(-180, 9.997, -179.993, 10.003)])
    table = replace(labels([at(0, 0)], [1]), geometry=np.array([parts], dtype=object))
    found = cells_of(table, two_zones(180.0, 10.0, (32660, 32601)))
    by_zone = {epsg: found.lonlat[found.cells[:, 0] == epsg, 0] for epsg in (32660, 32601)}
    assert (by_zone[32660] > 179.99).all()
    assert (by_zone[32601] < -179.99).all()
    width = 0.014 * 111_320 * np.cos(np.radians(10))
    assert len(found) == pytest.approx(width * 0.006 * 110_600 / 1600, rel=0.03)
