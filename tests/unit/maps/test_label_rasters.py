"""From rasters of labels to map cells."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.label_cells import cells_of
from olmoearth_cli.maps.labels import read_labels

CROPLAND = (
    Path(__file__).resolve().parents[4] / "shared/data/s2-s1-monthly-haspengouw/labels/worldcereal_cropland_v2.tif"
)
DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo"
WEST, NORTH = 576000, 5529600
"""Corner of tile (0, 0), EPSG:32631; a cell is 40 m, a tile 24 cells."""
ROW0, COL0 = -5529600 // 40, 576000 // 40


def local(found):
    """(row, column) from tile (0, 0) -> target."""
    return {
        (int(row - ROW0), int(col - COL0)): target
        for (_, row, col), target in zip(found.cells, found.targets.tolist(), strict=True)
    }


def write_raster(path, values, transform, epsg=32631, nodata=None):
    with rasterio.open(
        path, "w", driver="GTiff", dtype=values.dtype, count=1, height=values.shape[0], width=values.shape[1],
        crs=f"EPSG:{epsg}", transform=transform, nodata=nodata,
    ) as target:  # fmt: skip
        target.write(values, 1)
    return path


def test_a_raster_labels_cells_by_the_majority_of_their_pixels(make_map, tmp_path):
    values = np.full((40, 40), 255, np.uint8)
    values[0:4, 0:4] = 3
    values[0, 0:4] = 9  # cell (1, 1): 12 of 3, 4 of 9
    values[4:8, 0:2] = 9  # cell (2, 1): 8 labelled pixels
    values[8:12, 0] = 9  # cell (3, 1): 4 labelled pixels, too few
    values[0:4, 4:6], values[0:4, 6:8] = 3, 9  # cell (1, 2): a tie
    path = write_raster(tmp_path / "r.tif", values, Affine(10, 0, WEST + 40, 0, -10, NORTH - 40), nodata=255)
    opened = make_map()
    table = read_labels(path)
    found = cells_of(table, opened)
    assert table.raster_values == (3, 9)
    assert local(found) == {(1, 1): 0, (2, 1): 1}
    assert found.group.tolist() == [0, 1]
    assert found.notes == ("1 cells left out: their labels divide evenly between classes",)
    pixels = cells_of(read_labels(path, task="segmentation"), opened)
    assert pixels.targets[0].tolist() == [[1] * 4, *[[0] * 4] * 3]
    assert pixels.targets[1].tolist() == [[0, 0, 1, 1]] * 4
    assert pixels.targets[2].tolist() == [[1, 1, -1, -1]] * 4


def test_a_raster_without_no_data_ends_where_it_ends(make_map, tmp_path):
    values = np.zeros((8, 8), np.uint8)
    values[:, 4:] = 1
    path = write_raster(tmp_path / "r.tif", values, Affine(10, 0, WEST - 40, 0, -10, NORTH - 40))
    assert local(cells_of(read_labels(path), make_map())) == {(1, 0): 1, (2, 0): 1}


def test_a_raster_of_numbers_gives_the_mean_of_its_valid_pixels(make_map, tmp_path):
    values = np.full((8, 4), np.nan, np.float32)
    values[0:4, 0:2], values[4:5] = [1.5, 2.5], 100
    path = write_raster(tmp_path / "r.tif", values, Affine(10, 0, WEST, 0, -10, NORTH))
    found = cells_of(read_labels(path), make_map())
    assert local(found) == {(0, 0): 2.0}
    assert found.targets.dtype == np.float64


def test_a_raster_in_another_system_and_resolution_is_read_by_the_nearest_pixel(make_map, tmp_path):
    to_laea = Transformer.from_crs(32631, 3035, always_xy=True)
    x, y = to_laea.transform(WEST + 480, NORTH - 480)
    corner = (round(x) - 1000, round(y) + 1000)
    rng = np.random.default_rng(1)
    values = rng.integers(1, 4, (16, 16), dtype=np.uint8)  # 125 m blocks
    path = write_raster(tmp_path / "r.tif", values, Affine(125, 0, corner[0], 0, -125, corner[1]), epsg=3035)
    pixels = cells_of(read_labels(path, task="segmentation"), make_map())
    row, col = np.mgrid[0:24, 0:24]
    centre_x, centre_y = to_laea.transform(WEST + col * 40 + 15, NORTH - row * 40 - 15)
    i, j = np.floor((corner[1] - centre_y) / 125), np.floor((centre_x - corner[0]) / 125)
    inside = (i >= 0) & (i < 16) & (j >= 0) & (j < 16)
    expected = values[i[inside].astype(int), j[inside].astype(int)] - 1
    got = {cell: target[1][1] for cell, target in local(pixels).items()}
    agree = [got[r, c] == e for r, c, e in zip(row[inside], col[inside], expected, strict=True) if (r, c) in got]
    assert len(agree) == 24 * 24
    assert np.mean(agree) > 0.99  # GDAL interpolates the change of system to an eighth of a pixel


def test_a_raster_elsewhere_is_refused_with_both_places(make_map, tmp_path):
    path = write_raster(tmp_path / "r.tif", np.eye(8, dtype=np.uint8), Affine(10, 0, 300000, 0, -10, NORTH))
    with pytest.raises(InputError, match=r"this raster has no labels.*on the map. Labels: 0\.\d+, 49\.\d+"):
        cells_of(read_labels(path), make_map())
    with pytest.raises(InputError, match="a raster has no fields"):
        cells_of(read_labels(path), make_map(name="other"), split_field="fold")


def test_a_raster_in_degrees_over_the_whole_world_meets_the_map(make_map, tmp_path):
    values = np.ones((180, 360), np.uint8)
    values[:, 180:] = 2
    path = write_raster(tmp_path / "w.tif", values, Affine(1, 0, -180, 0, -1, 90), epsg=4326)
    found = cells_of(read_labels(path), make_map())
    assert len(found) == 24 * 48
    assert set(found.targets.tolist()) == {1}


@pytest.mark.skipif(not CROPLAND.exists(), reason="shared data is not here")
def test_the_cropland_raster_labels_the_cells_it_covers(make_map):
    with rasterio.open(CROPLAND) as source:
        values, transform = source.read(1), source.transform
    west, north = round(transform.c), round(transform.f)
    box = PixelBox(32631, -north // 10, west // 10, -north // 10 + 96, west // 10 + 96)
    found = cells_of(read_labels(CROPLAND), make_map(box.snapped(4)))
    first_row, first_col = -(north // 40), west // 40
    assert west % 40 == 0
    shift = (-first_row * 40 - north) // 10  # rows of the raster above or below the grid's cell border
    expected = {}
    for row in range(-1, 26):
        for col in range(25):
            block = values[max(0, row * 4 - shift) : max(0, row * 4 - shift + 4), col * 4 : col * 4 + 4]
            ones, zeros = int((block == 1).sum()), int((block == 0).sum())
            if ones + zeros >= 8 and ones != zeros:
                expected[first_row + row, first_col + col] = int(ones > zeros)
    got = {(int(r), int(c)): int(t) for (_, r, c), t in zip(found.cells, found.targets, strict=True)}
    assert len(got) > 500
    assert {cell: expected.get(cell) for cell in got} == got


def test_the_demo_labels_lie_on_the_demo_truth(make_map):
    points = read_labels(DEMO / "labels.geojson")
    truth = read_labels(DEMO / "landcover.tif")
    opened = make_map(PixelBox(32631, -561300, 66000, -561300 + 252, 66252), patch_px=1)
    of_points, of_truth = cells_of(points, opened), cells_of(truth, opened, max_cells=100_000)
    by_cell = dict(zip(map(tuple, of_truth.cells.tolist()), of_truth.targets.tolist(), strict=True))
    pairs = {(int(t), by_cell[tuple(c)]) for c, t in zip(of_points.cells.tolist(), of_points.targets, strict=True)}
    assert len(of_truth) > 63_000
    assert of_points.labels_on_map > 200
    assert len({a for a, _ in pairs}) == len(pairs)  # each name is one value of the truth
