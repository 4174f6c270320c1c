"""Which pixels points and polygons label, against the rasteriser of GDAL and against pencil and paper."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from pyproj import Transformer
from rasterio.features import rasterize

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.cell_keys import cells_from
from olmoearth_pipelines.windows import targets
from olmoearth_pipelines.windows.targets import label_pixels

ZONE = 32631
ROW, COL = -561_000, 66_000


def on_earth(shape: shapely.Geometry, epsg: int = ZONE) -> shapely.Geometry:
    """A shape drawn in pixels from (ROW, COL), x to the east and y to the south, in longitude and latitude."""
    back = Transformer.from_crs(epsg, 4326, always_xy=True)
    metres = shapely.transform(shape, lambda xy: np.stack([(COL + xy[:, 0]) * 10, -(ROW + xy[:, 1]) * 10], axis=1))
    return shapely.transform(metres, back.transform, interleaved=False)


def covered(*shapes: shapely.Geometry, patch_px: int = 4) -> list[set[tuple[int, int]]]:
    """(row, column) from (ROW, COL) of each shape's pixels."""
    found = label_pixels(np.array([on_earth(shape) for shape in shapes], dtype=object), patch_px)
    cell = cells_from(found.key)
    assert (cell[:, 0] == ZONE).all()
    sets: list[set[tuple[int, int]]] = [set() for _ in shapes]
    for (_, row, col), label in zip(cell.tolist(), found.label.tolist(), strict=True):
        sets[label].add((row - ROW, col - COL))
    assert sum(map(len, sets)) == len(cell), "a pixel is listed twice for a label"
    return sets


def test_a_point_covers_the_pixels_of_its_map_cell() -> None:
    # -561000 and 66000 are multiples of 4 and 8.
    first, second = covered(shapely.Point(5.5, 2.5), shapely.Point(3.9, 4.1))
    assert first == {(row, col) for row in range(0, 4) for col in range(4, 8)}
    assert second == {(row, col) for row in range(4, 8) for col in range(0, 4)}
    assert covered(shapely.Point(5.5, 2.5), patch_px=1) == [{(2, 5)}]


def test_a_polygon_covers_the_pixels_whose_centres_it_holds() -> None:
    assert covered(shapely.box(0.6, 1.4, 3.4, 2.6)) == [{(1, 1), (1, 2), (2, 1), (2, 2)}]


def test_a_polygon_smaller_than_a_pixel_covers_the_pixel_it_lies_in() -> None:
    small = covered(shapely.box(7.1, 3.1, 7.3, 3.3), shapely.box(1, 1, 3, 3))
    assert small == [{(3, 7)}, {(1, 1), (1, 2), (2, 1), (2, 2)}]


def blobs(count: int, side: int) -> list[shapely.Geometry]:
    """Stars with holes."""
    generator = np.random.default_rng(5)
    shapes = []
    for _ in range(count):
        angle = np.sort(generator.uniform(0, 2 * np.pi, 12))
        reach = generator.uniform(3, 20, 12)
        middle = generator.uniform(25, side - 25, 2)
        ring = middle + np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]
        shapes.append(shapely.Polygon(ring).buffer(0).difference(shapely.Point(middle).buffer(2)))
    return shapes


@pytest.mark.parametrize("large_px", [2048, 16])
def test_polygons_cover_what_gdal_burns_whole_or_in_pieces(large_px, monkeypatch) -> None:
    monkeypatch.setattr(targets, "LARGE_PX", large_px)
    side, shapes = 200, blobs(30, 200)
    box = PixelBox(ZONE, ROW, COL, ROW + side, COL + side)
    metres = [
        shapely.transform(s, lambda xy: np.stack([(COL + xy[:, 0]) * 10, -(ROW + xy[:, 1]) * 10], 1)) for s in shapes
    ]
    for shape, found in zip(metres, covered(*shapes), strict=True):
        burnt = rasterize([shape], out_shape=(side, side), transform=box.transform(), all_touched=False)
        assert found == set(map(tuple, np.argwhere(burnt).tolist()))
        assert len(found) > 50


def test_a_polygon_over_the_border_of_two_zones_is_divided_there() -> None:
    strip = shapely.box(5.99, 50.0, 6.01, 50.005)  # longitude 6 divides zones 31 and 32
    cell = cells_from(label_pixels(np.array([strip], dtype=object), 4).key)
    in_31, in_32 = ((cell[:, 0] == epsg).sum() for epsg in (32631, 32632))
    # 0.02 degrees at 50 degrees north are 1434 m, 0.005 degrees are 556 m: 7973 pixels.
    assert in_31 + in_32 == pytest.approx(7973, rel=0.01)
    assert in_31 == pytest.approx(in_32, rel=0.01)


def test_points_south_of_the_equator_lie_in_a_southern_zone() -> None:
    cell = cells_from(label_pixels(np.array([shapely.Point(30.0, -1.0)], dtype=object), 4).key)
    assert set(cell[:, 0].tolist()) == {32736}
    easting, northing = Transformer.from_crs(4326, 32736, always_xy=True).transform(30.0, -1.0)
    assert (easting // 10, -northing // 10) in {(col, row) for _, row, col in cell.tolist()}
