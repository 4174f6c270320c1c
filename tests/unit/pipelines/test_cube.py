"""Scenes to stacks: mosaics, missing data, and the property that a pixel does not know its box."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines.cube import ReadError, read_cube
from olmoearth_pipelines.scene import Selection
from olmoearth_pipelines.scene_table import CELL_PX
from tests.unit.pipelines.conftest import footprint, scene, write_tif

ORIGIN = (600_000.0, 5_600_000.0)
BOX = PixelBox(32631, -560_000, 60_000, -560_000 + 60, 60_000 + 60)
NATIVE = {"B01": 60, "B09": 60} | {b: 20 for b in ("B05", "B06", "B07", "B8A", "B11", "B12", "SCL")}


def selections(box, *scenes, period=0, modality="sentinel2_l2a"):
    return tuple(Selection(box.epsg, cell, period, modality, scenes, len(scenes)) for cell in box.squares(CELL_PX))


def optical(folder, name, value, *, bands=MODALITIES["sentinel2_l2a"].bands, side_m=1200, origin=ORIGIN, **more):
    """A scene of constant value, or of what `value(band, rows, cols)` gives."""
    assets = {}
    for band in (*bands, "SCL"):
        metres = NATIVE.get(band, 10)
        n = side_m // metres
        rows, cols = np.mgrid[0:n, 0:n]
        values = value(band, rows * metres, cols * metres) if callable(value) else np.full((n, n), value)
        kind = np.uint8 if band == "SCL" else np.uint16
        values = np.full((n, n), 4) if band == "SCL" else values
        assets[band] = write_tif(
            folder / name / f"{band}.tif", values.astype(kind), origin, metres, more.get("epsg", 32631)
        )
    wkb = footprint(origin, side_m, more.get("epsg", 32631))
    return scene(name, assets=assets, wkb=wkb, **more)


def radar(folder, name, vv, vh, **more):
    assets = {
        band: write_tif(folder / name / f"{band}.tif", v.astype(np.float32), ORIGIN, 10, nodata=-32768)
        for band, v in (("vv", vv), ("vh", vh))
    }
    return scene(name, modality="sentinel1", assets=assets, wkb=footprint(ORIGIN, 10 * len(vv)), **more)


def test_the_first_scene_with_data_gives_the_pixel_and_the_offset_goes_scene_by_scene(tmp_path):
    half = optical(tmp_path, "half", lambda b, r, c: np.where(c < 300, 1500, 0), offset_dn=1000)
    full = optical(tmp_path, "full", 700)
    cube = read_cube(BOX, selections(BOX, half, full), 1, ["sentinel2_l2a"])
    values = cube.values["sentinel2_l2a"][0]
    assert (values[:, :, :28] == 500).all()
    assert (values[:, :, 34:] == 700).all()
    assert cube.valid["sentinel2_l2a"].all()
    assert cube.clear.all()
    assert cube.used == ("full", "half")
    assert not cube.absent_bands["sentinel2_l2a"].any()


def test_a_later_scene_is_not_opened_once_every_pixel_has_data(tmp_path):
    good, broken = optical(tmp_path, "good", 900), optical(tmp_path, "broken", 800)
    for path in broken.assets.values():
        Path(path).write_bytes(b"not a tif")
    cube = read_cube(BOX, selections(BOX, good, broken), 1, ["sentinel2_l2a"])
    assert (cube.values["sentinel2_l2a"] == 900).all()
    with pytest.raises(ReadError, match="broken, B0"):
        read_cube(BOX, selections(BOX, broken, good), 1, ["sentinel2_l2a"])


def test_a_missing_file_is_an_error_and_never_a_hole(tmp_path):
    gone = optical(tmp_path, "gone", 900)
    (tmp_path / "gone" / "B11.tif").unlink()
    with pytest.raises(ReadError, match="gone, B11") as caught:
        read_cube(BOX, selections(BOX, gone), 1, ["sentinel2_l2a"])
    assert str(tmp_path) not in str(caught.value)


def test_coarse_bands_are_repeated_as_in_pretraining(tmp_path):
    steps = optical(tmp_path, "steps", lambda b, r, c: 1000 + r // NATIVE.get(b, 10) + 100 * (c // NATIVE.get(b, 10)))
    cube = read_cube(BOX, selections(BOX, steps), 1, ["sentinel2_l2a"])
    names = MODALITIES["sentinel2_l2a"].bands
    values = dict(zip(names, cube.values["sentinel2_l2a"][0], strict=True))
    rows, cols = np.mgrid[0:60, 0:60]
    assert np.array_equal(values["B02"], 1000 + rows + 100 * cols)
    assert np.array_equal(values["B11"], 1000 + rows // 2 + 100 * (cols // 2))
    blocks = values["B01"].reshape(15, 4, 15, 4)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert values["B01"][8, 8] == pytest.approx(1000 + 1 / 1 + 100, abs=40)


def test_periods_and_bands_without_data_are_missing(tmp_path):
    bands = ("B02", "B03", "B04", "B08", "B05")
    cube = read_cube(BOX, selections(BOX, optical(tmp_path, "few", 900, bands=bands), period=1), 3, ["sentinel2_l2a"])
    assert cube.valid["sentinel2_l2a"].any(axis=(1, 2)).tolist() == [False, True, False]
    absent = dict(zip(MODALITIES["sentinel2_l2a"].bands, cube.absent_bands["sentinel2_l2a"][1], strict=True))
    assert [band for band, away in absent.items() if not away] == list(bands)


def test_a_scene_without_a_band_leaves_no_zeros_in_it(tmp_path):
    every = MODALITIES["sentinel2_l2a"].bands
    poor = optical(tmp_path, "poor", 300, bands=tuple(b for b in every if b not in ("B08", "B8A", "B01")))
    rich = optical(tmp_path, "rich", 600)
    cube = read_cube(BOX, selections(BOX, poor, rich), 1, ["sentinel2_l2a"])
    values = dict(zip(every, cube.values["sentinel2_l2a"][0], strict=True))
    for band in every:
        assert (values[band] == (600 if band in ("B08", "B8A", "B01") else 300)).all(), band
    assert cube.valid["sentinel2_l2a"].all()
    assert cube.clear.all()
    assert not cube.absent_bands["sentinel2_l2a"].any()


def test_a_radar_scene_without_one_polarisation_leaves_the_other_to_the_next(tmp_path):
    flat = np.full((120, 120), 0.1)
    first, second = radar(tmp_path, "a", flat, flat), radar(tmp_path, "b", flat / 10, flat / 10)
    only_vv = replace(first, assets={"vv": first.assets["vv"]})
    cube = read_cube(BOX, selections(BOX, only_vv, second, modality="sentinel1"), 1, ["sentinel1"])
    assert cube.values["sentinel1"][0, 0] == pytest.approx(-10.0, abs=1e-4)
    assert cube.values["sentinel1"][0, 1] == pytest.approx(-20.0, abs=1e-4)
    alone = read_cube(BOX, selections(BOX, only_vv, modality="sentinel1"), 1, ["sentinel1"])
    assert alone.absent_bands["sentinel1"].tolist() == [[False, True]]
    assert np.isnan(alone.values["sentinel1"][0, 1]).all()


def test_radar_is_mosaicked_in_power_and_no_data_never_becomes_decibels(tmp_path):
    n = 120
    first = np.full((n, n), 0.1)
    first[:, 20:] = -32768
    second = np.full((n, n), 0.01)
    second[:30] = np.nan
    scenes = [radar(tmp_path, "a", first, first), radar(tmp_path, "b", second, second)]
    cube = read_cube(BOX, selections(BOX, *scenes, modality="sentinel1"), 1, ["sentinel1"])
    values, valid = cube.values["sentinel1"][0], cube.valid["sentinel1"][0]
    assert values[:, :, :19] == pytest.approx(-10.0, abs=1e-4)
    assert values[:, 31:, 21:] == pytest.approx(-20.0, abs=1e-4)
    assert not valid[:29, 21:].any()
    assert np.isnan(values[:, ~valid]).all()
    assert np.nanmin(values) > -21


@pytest.fixture(scope="module")
def textured(tmp_path_factory):
    """A scene with texture and holes, in its own zone and seen from the next."""
    rng = np.random.default_rng(3)
    noise = rng.integers(1, 9000, (360, 360))
    noise[rng.random(noise.shape) < 0.02] = 0

    def value(band, rows, cols):
        return noise[: len(rows), : len(cols)]

    folder = tmp_path_factory.mktemp("textured")
    first = optical(folder, "first", lambda b, r, c: np.where(c < 1500, value(b, r, c), 0), side_m=3600, offset_dn=1000)
    second = optical(folder, "second", value, side_m=3600)
    return first, second


@pytest.mark.parametrize("epsg", [32631, 32632])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_pixel_does_not_know_its_box(textured, epsg, data):
    from pyproj import Transformer

    x, y = Transformer.from_crs(32631, epsg, always_xy=True).transform(ORIGIN[0] + 1800, ORIGIN[1] - 1800)
    row, col = round(-y / 10) - 80, round(x / 10) - 80
    whole = PixelBox(epsg, row, col, row + 160, col + 160)
    top, left = data.draw(st.integers(0, 140)), data.draw(st.integers(0, 140))
    height, width = data.draw(st.integers(1, 160 - top)), data.draw(st.integers(1, 160 - left))
    part = PixelBox(epsg, row + top, col + left, row + top + height, col + left + width)
    large = read_cube(whole, selections(whole, *textured), 1, ["sentinel2_l2a"])
    small = read_cube(part, selections(part, *textured), 1, ["sentinel2_l2a"])
    rows, cols = part.slices_in(whole)
    for a, b in ((large.values, small.values), (large.valid, small.valid)):
        assert np.array_equal(a["sentinel2_l2a"][..., rows, cols], b["sentinel2_l2a"])
    assert large.values["sentinel2_l2a"].std() > 100


def test_a_box_over_a_cell_border_uses_each_cells_own_scenes(tmp_path):
    edge = -(-int(ORIGIN[0] / 10) // CELL_PX) * CELL_PX
    row = -(int(ORIGIN[1] / 10) // CELL_PX * CELL_PX) - CELL_PX // 2
    origin = (edge * 10 - 1200.0, -row * 10 + 600.0)
    box = PixelBox(32631, row, edge - 20, row + 40, edge + 20)
    west = optical(tmp_path, "west", 300, side_m=2400, origin=origin)
    east = optical(tmp_path, "east", 600, side_m=2400, origin=origin)
    cells = box.squares(CELL_PX)
    assert len(cells) == 2
    chosen = [Selection(32631, cell, 0, "sentinel2_l2a", (s,), 1) for cell, s in zip(cells, (west, east), strict=True)]
    values = read_cube(box, chosen, 1, ["sentinel2_l2a"]).values["sentinel2_l2a"]
    assert (values[..., :20] == 300).all()
    assert (values[..., 20:] == 600).all()


def test_a_band_that_only_the_neighbouring_cell_has_is_missing_and_not_zero(tmp_path):
    edge = -(-int(ORIGIN[0] / 10) // CELL_PX) * CELL_PX
    row = -(int(ORIGIN[1] / 10) // CELL_PX * CELL_PX) - CELL_PX // 2
    origin = (edge * 10 - 1200.0, -row * 10 + 600.0)
    box = PixelBox(32631, row, edge - 20, row + 40, edge + 20)
    poor = optical(tmp_path, "poor", 300, bands=("B02", "B03", "B04", "B08"), side_m=2400, origin=origin)
    rich = optical(tmp_path, "rich", 600, side_m=2400, origin=origin)
    pairs = zip(box.squares(CELL_PX), (poor, rich), strict=True)
    cube = read_cube(box, [Selection(32631, c, 0, "sentinel2_l2a", (s,), 1) for c, s in pairs], 1, ["sentinel2_l2a"])
    assert not cube.absent_bands["sentinel2_l2a"].any()
    assert not cube.valid["sentinel2_l2a"][..., :20].any()
    assert cube.valid["sentinel2_l2a"][..., 20:].all()


def test_landsat_bands_reach_the_grid_as_in_pretraining(tmp_path):
    assets = {}
    for k, band in enumerate(MODALITIES["landsat"].bands):
        metres = 15 if band == "B8" else 30
        values = np.full((1200 // metres, 1200 // metres), 5000 + 100 * k, np.uint16)
        assets[band] = write_tif(tmp_path / f"{band}.tif", values, ORIGIN, metres)
    held = scene("l8", modality="landsat", assets=assets, wkb=footprint(ORIGIN, 1200))
    cube = read_cube(BOX, selections(BOX, held, modality="landsat"), 1, ["landsat"])
    assert cube.values["landsat"][0, :, 30, 30].tolist() == [5000 + 100 * k for k in range(11)]
    assert cube.valid["landsat"].all()
    assert cube.clear is None
