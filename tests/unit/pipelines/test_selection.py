"""The choice of scenes: a function of cell and catalogue, not of listing order (spec/inputs.md section 4)."""

import math
from datetime import UTC, date, datetime

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.geo.periods import periods
from olmoearth_pipelines.scene_table import CELL_PX, SceneTable, choose, lonlat_bounds, wrapped
from tests.unit.pipelines.conftest import scene

EPSG, CELL = 32631, (-110, 11)
BOX = square(EPSG, CELL_PX, *CELL)
PERIODS = periods(date(2024, 1, 1), 2)


def part(west, south, east, north) -> bytes:
    """WKB of a fraction of the cell."""
    w, s, e, n = lonlat_bounds(EPSG, *CELL)
    box = shapely.box(w + west * (e - w), s + south * (n - s), w + east * (e - w), s + north * (n - s))
    return shapely.to_wkb(box)


WHOLE = part(-0.1, -0.1, 1.1, 1.1)


def chosen(*scenes, period=0, modality="sentinel2_l2a"):
    selections = choose([(EPSG, *CELL)], PERIODS, scenes)
    return next(s for s in selections if s.period == period and s.modality == modality)


def test_the_clearest_scene_that_covers_the_cell_is_enough():
    selection = chosen(scene("cloudy", wkb=WHOLE, cloud=60), scene("clear", wkb=WHOLE, cloud=3))
    assert [s.id for s in selection.scenes] == ["clear", "cloudy"]
    assert selection.accepted == 1


def test_scenes_are_added_until_the_cell_is_covered():
    west, east = part(-0.1, -0.1, 0.55, 1.1), part(0.5, -0.1, 1.1, 1.1)
    selection = chosen(scene("w", wkb=west, cloud=1), scene("w2", wkb=west, cloud=2), scene("e", wkb=east, cloud=9))
    assert [s.id for s in selection.scenes] == ["w", "e", "w2"]
    assert selection.accepted == 2


def test_a_sliver_is_not_accepted():
    selection = chosen(scene("sliver", wkb=part(0, 0, 0.05, 1), cloud=0), scene("whole", wkb=WHOLE, cloud=50))
    # The sliver lies wholly inside the cell: a tenth of its own footprint is new, which the rule accepts.
    assert selection.scenes[0].id == "sliver"
    beyond = part(-3, 0, 0.05, 1)
    selection = chosen(scene("sliver", wkb=beyond, cloud=0), scene("whole", wkb=WHOLE, cloud=50))
    assert selection.scenes[0].id == "whole"
    assert selection.accepted == 1


def test_radar_is_newest_first():
    scenes = [scene(f"d{day}", modality="sentinel1", wkb=WHOLE, day=day) for day in (3, 20, 11)]
    assert [s.id for s in chosen(*scenes, modality="sentinel1").scenes] == ["d20", "d11", "d3"]


def test_a_period_holds_its_first_day_and_not_its_last():
    first = scene("first", wkb=WHOLE, acquired=datetime(2024, 1, 1, tzinfo=UTC))
    last = scene("last", wkb=WHOLE, acquired=datetime(2024, 1, 31, tzinfo=UTC))
    assert [s.id for s in chosen(first, last).scenes] == ["first"]
    assert [s.id for s in chosen(first, last, period=1).scenes] == ["last"]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_order_of_a_listing_changes_nothing(data):
    scenes = [
        scene(f"s{k}", wkb=WHOLE if k % 3 else part(0, 0, 0.2 * k, 1), cloud=float(k % 2), day=1 + k % 5)
        for k in range(8)
    ]
    shuffled = data.draw(st.permutations(scenes))
    assert choose([(EPSG, *CELL)], PERIODS, scenes) == choose([(EPSG, *CELL)], PERIODS, shuffled)


def test_a_table_survives_json_and_finds_the_cells_of_a_box():
    selections = choose([(EPSG, *CELL)], PERIODS, [scene("a", wkb=WHOLE, assets={"B02": "x.tif"}, day=7)])
    table = SceneTable(PERIODS, selections, {"sentinel-2-l2a": 1}, {"why": 2}, ("remark",))
    again = SceneTable.from_json(table.to_json())
    assert again == table
    assert again.modalities == ("sentinel2_l2a",)
    inside = PixelBox(EPSG, BOX.row0 + 5, BOX.col0 + 5, BOX.row0 + 9, BOX.col0 + 9)
    assert again.for_box(inside) == selections
    assert again.for_box(PixelBox(EPSG, 0, 0, 4, 4)) == ()


@pytest.mark.parametrize("epsg", [32701, 32760])
def test_a_cell_at_the_dateline_finds_scenes_on_both_sides(epsg):
    to_utm = Transformer.from_crs(4326, epsg, always_xy=True)
    x, y = to_utm.transform(180.0 if epsg == 32760 else -180.0, -16.5)
    cell = (math.floor(-y / 10 / CELL_PX), math.floor(x / 10 / CELL_PX))
    west, south, east, north = lonlat_bounds(epsg, *cell)
    assert east - west < 1
    boxes = wrapped(west, south, east, north)
    assert len(boxes) == 2
    assert all(-180 <= b[0] < b[2] <= 180 for b in boxes)
    split = shapely.MultiPolygon([shapely.box(179, -18, 180, -15), shapely.box(-180, -18, -179, -15)])
    selections = choose([(epsg, *cell)], PERIODS, [scene("over", wkb=shapely.to_wkb(split))])
    assert selections[0].accepted == 1
    half = shapely.box(-180, -18, -179, -15)
    selections = choose([(epsg, *cell)], PERIODS, [scene("half", wkb=shapely.to_wkb(half))])
    assert selections[0].accepted == 1, "covers a part of the cell only, which the rule accepts"
