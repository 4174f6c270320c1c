"""The windows that labels make, before any image is read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines.windows.label_set import OPEN, TEST, TRAIN, VAL, LabelSet, read_label_set
from olmoearth_pipelines.windows.plan import WindowPlan, even_quotas, middle_px, plan_windows

ZONE = 32631
ROW, COL = -8768 * 64, 1032 * 64  # a corner of the grid of 64 px windows


def written(path: Path, header: str, *points: tuple[float, float, str]) -> str:
    """A CSV of points at (row, column, attributes) in pixels from (ROW, COL)."""
    to_lonlat = Transformer.from_crs(ZONE, 4326, always_xy=True)
    lines = [f"lon,lat,{header}"]
    for row, col, text in points:
        lon, lat = to_lonlat.transform((COL + col) * 10, -(ROW + row) * 10)
        lines.append(f"{lon:.9f},{lat:.9f},{text}")
    path.write_text("\n".join(lines))
    return str(path)


def planned(labels: LabelSet, **options: int) -> WindowPlan:
    return plan_windows(labels, **{"window_px": 64, "patch_px": 4, **options})


def test_points_fill_windows_of_the_grid(tmp_path) -> None:
    path = written(tmp_path / "p.csv", "c", (1, 1, "a"), (62, 5, "b"), (70, 1, "b"), (3.9, 3.9, "a"))
    plan = planned(read_label_set(path))
    assert plan.place.tolist() == [[ZONE, ROW, COL], [ZONE, ROW + 64, COL]]
    expected = np.full((2, 64, 64), -1)
    expected[0, 0:4, 0:4] = 0
    expected[0, 60:64, 4:8] = 1
    expected[1, 4:8, 0:4] = 1
    np.testing.assert_array_equal([plan.target(0), plan.target(1)], expected)
    assert plan.strata.tolist() == [[16, 16], [0, 16]]
    assert (plan.labels.tolist(), plan.first.tolist(), plan.role.tolist()) == ([3, 1], [0, 2], [OPEN, OPEN])
    assert plan.box(1) == PixelBox(ZONE, ROW + 64, COL, ROW + 128, COL + 64)


def test_where_classes_differ_nothing_is_labelled(tmp_path) -> None:
    path = written(tmp_path / "p.csv", "c", (1, 1, "a"), (2, 2, "b"), (9, 9, "b"), (70, 1, "a"), (70, 2, "b"))
    plan = planned(read_label_set(path))
    assert len(plan) == 1  # the second window has nothing but a dispute
    assert np.argwhere(plan.target(0) >= 0).tolist() == [[r, c] for r in range(8, 12) for c in range(8, 12)]
    assert plan.notes == ("32 pixels lie where labels of different classes meet; nothing is learned there",)


def test_numbers_that_meet_count_with_their_mean(tmp_path) -> None:
    path = written(tmp_path / "p.csv", "v", (1, 1, "1.5"), (2, 2, "4.5"), (9, 9, "7"))
    target = planned(read_label_set(path)).target(0)
    assert target.dtype == np.float32
    assert (target[:4, :4] == 3).all() and (target[8:12, 8:12] == 7).all()
    assert np.isfinite(target).sum() == 32


def test_a_label_of_a_place_lies_in_the_middle_cell(tmp_path) -> None:
    path = written(tmp_path / "p.csv", "c", (101, 42, "a"), (9, 9, "b"))
    plan = planned(read_label_set(path, kind="classification"))
    assert middle_px(64, 4) == 32
    # (101, 42) lies in the cell that begins at (100, 40), (9, 9) in that at (8, 8).
    assert plan.place.tolist() == [[ZONE, ROW + 8 - 32, COL + 8 - 32], [ZONE, ROW + 100 - 32, COL + 40 - 32]]
    assert [int(plan.target(0)), int(plan.target(1))] == [1, 0]
    assert middle_px(40, 8) == 16  # five cells: the third


def test_labels_in_one_cell_are_one_place(tmp_path) -> None:
    path = written(tmp_path / "p.csv", "c", (1, 1, "a"), (2, 2, "a"), (9, 9, "a"), (10, 10, "b"), (20, 20, "b"))
    plan = planned(read_label_set(path, kind="classification"))
    assert [int(plan.target(n)) for n in range(len(plan))] == [0, 1]
    assert plan.labels.tolist() == [2, 1]
    assert plan.notes == (
        "2 cells hold several labels; each is one window",
        "1 cells left out: their labels are of different classes",
    )


def test_numbers_and_flags_of_one_cell_are_joined(tmp_path) -> None:
    numbers = written(tmp_path / "n.csv", "v", (1, 1, "1.5"), (2, 2, "4.5"), (9, 9, "7"))
    plan = planned(read_label_set(numbers, kind="regression"))
    assert [float(plan.target(n)) for n in range(2)] == [3, 7]
    flags = written(tmp_path / "f.csv", "x,y_,z", (1, 1, "1,0,0"), (2, 2, "0,0,1"), (9, 9, "0,1,0"))
    plan = planned(read_label_set(flags, field="x,y_,z"))
    assert [plan.target(n).tolist() for n in range(2)] == [[1, 0, 1], [0, 1, 0]]
    assert plan.target(0).dtype == np.uint8


def test_labels_of_two_splits_in_one_window_make_two_windows(tmp_path) -> None:
    path = written(
        tmp_path / "p.csv", "c,use", (1, 1, "a,train"), (9, 9, "b,train"), (1, 1, "b,test"), (41, 41, "a,val")
    )
    plan = planned(read_label_set(path, field="c", split="field:use"))
    assert plan.role.tolist() == [TRAIN, VAL, TEST]
    assert len({tuple(place) for place in plan.place.tolist()}) == 1
    labelled = [np.argwhere(plan.target(n) >= 0)[0].tolist() for n in range(3)]
    assert labelled == [[0, 0], [40, 40], [0, 0]]
    assert [int(plan.target(n).max()) for n in range(3)] == [1, 0, 1]
    names = [plan.name(n) for n in range(3)]
    assert names == [f"{ZONE}-r-08768-c001032-64{end}" for end in ("", "-val", "-test")]


def raster(path: Path, values: np.ndarray, row: int, col: int, nodata: float | None = None) -> str:
    """A GeoTIFF whose pixels lie on the grid, from (row, column) off (ROW, COL)."""
    height, width = values.shape
    box = PixelBox(ZONE, ROW + row, COL + col, ROW + row + height, COL + col + width)
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": values.dtype}
    with rasterio.open(path, "w", crs=f"EPSG:{ZONE}", transform=box.transform(), nodata=nodata, **profile) as out:
        out.write(values[None])
    return str(path)


def test_a_raster_gives_every_window_its_own_pixels(tmp_path) -> None:
    values = np.random.default_rng(3).choice(np.array([0, 10, 30], np.uint8), (100, 150))
    values[:, 64 + 20 :] = 0  # the last column of windows holds no label
    plan = planned(read_label_set(raster(tmp_path / "c.tif", values, -20, -20, nodata=0)))
    whole = np.full((256, 256), -1)  # windows (-1, -1) to (2, 2)
    whole[44:144, 44:194] = np.where(values == 0, -1, np.where(values == 10, 0, 1))
    expected = {(ROW + r - 64, COL + c - 64): whole[r : r + 64, c : c + 64] for r in (0, 64, 128) for c in (0, 64)}
    assert {(row, col) for _, row, col in plan.place.tolist()} == set(expected)
    for number, (_, row, col) in enumerate(plan.place.tolist()):
        np.testing.assert_array_equal(plan.target(number), expected[row, col])
        assert plan.strata[number].tolist() == [(expected[row, col] == c).sum() for c in (0, 1)]
    assert len({plan.name(n) for n in range(len(plan))}) == 6


def test_a_raster_of_numbers_is_labelled_where_it_has_data(tmp_path) -> None:
    values = np.random.default_rng(3).normal(size=(64, 64)).astype(np.float32)
    values[:10] = np.nan
    plan = planned(read_label_set(raster(tmp_path / "n.tif", values, 0, 0)))
    assert len(plan) == 1
    np.testing.assert_array_equal(plan.target(0), values)


def test_a_raster_on_the_border_of_two_zones_has_no_window_twice(tmp_path) -> None:
    path = tmp_path / "z.tif"
    west, north, step = 5.95, 50.05, 0.0005
    profile = {"driver": "GTiff", "width": 200, "height": 100, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
    with rasterio.open(path, "w", transform=rasterio.Affine(step, 0, west, 0, -step, north), **profile) as out:
        out.write(np.random.default_rng(1).integers(1, 3, (1, 100, 200), dtype=np.uint8))
    plan = planned(read_label_set(str(path)))
    lon = plan.lonlat()[:, 0]
    assert set(plan.place[lon < 6, 0].tolist()) == {32631}
    assert set(plan.place[lon > 6, 0].tolist()) == {32632}
    # 0.1 x 0.05 degrees are 7.17 x 5.56 km: 97 windows of 640 m, and some more along the edges.
    assert 97 <= len(plan) <= 97 * 1.4


def test_a_sample_takes_rare_classes_first(tmp_path) -> None:
    common = [(64 * k + 1, 1, "common") for k in range(40)]
    rare = [(64 * k + 1, 65, "rare") for k in range(5)]
    labels = read_label_set(written(tmp_path / "p.csv", "c", *common, *rare))
    plan = planned(labels, max_windows=12)
    held = (plan.strata > 0).sum(axis=0)
    assert held.tolist() == [7, 5]
    assert plan.notes == ("12 of 45 windows sampled, evenly over the classes (seed 42)",)
    again, other = planned(labels, max_windows=12), planned(labels, max_windows=12, seed=1)
    np.testing.assert_array_equal(again.place, plan.place)
    assert other.place.tolist() != plan.place.tolist()


def test_quotas_are_even_and_small_groups_whole() -> None:
    def taken(count: list[int], size: int, weight: list[float] | None = None) -> list[int]:
        return even_quotas(np.array(count), np.array(weight or [1.0] * len(count)), size).tolist()

    assert taken([100, 3, 50], 33) == [15, 3, 15]
    assert taken([5, 5], 20) == [5, 5]
    assert taken([5, 5, 5], 2) == [1, 1, 0]
    assert taken([100, 100, 100], 50, [0.6, 0.2, 0.2]) == [30, 10, 10]


def test_names_are_safe_and_differ(tmp_path) -> None:
    points = [(4 * k, 4 * k % 28, "ab"[k % 2]) for k in range(30)]
    plan = planned(read_label_set(written(tmp_path / "p.csv", "c", *points), kind="classification"))
    names = [plan.name(n) for n in range(len(plan))]
    assert len(set(names)) == 30
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) for name in names)


def test_labels_that_all_contradict_each_other_are_refused(tmp_path) -> None:
    path = written(tmp_path / "p.csv", "c", (1, 1, "a"), (2, 2, "b"))
    with pytest.raises(InputError, match=r"no window holds a label .16 pixels lie where labels of different classes"):
        planned(read_label_set(path))
