"""The input guard on real scenes with known radiometry, and on made ones with known faults."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines.guard import check_scenes
from olmoearth_pipelines.items import to_scene
from tests.unit.pipelines.conftest import footprint, real, scene, write_tif

ORIGIN = (600_000.0, 5_600_000.0)
BOX = PixelBox(32631, -560_000, 60_000, -560_000 + 120, 60_000 + 120)


def optical(folder, red, classes, offset):
    rng = np.random.default_rng(0)
    values = rng.normal(red, 30, (120, 120)).clip(1).astype(np.uint16)
    assets = {b: write_tif(folder / f"{b}.tif", values, ORIGIN, 10) for b in ("B02", "B03", "B04", "B12")}
    assets["SCL"] = write_tif(folder / "SCL.tif", np.full((60, 60), classes, np.uint8), ORIGIN, 20)
    return scene("s2", assets=assets, wkb=footprint(ORIGIN, 1200), offset_dn=offset)


@pytest.mark.parametrize(
    ("red", "classes", "offset", "verdict"),
    [
        (400, 4, 0, "consistent"),
        (1400, 4, 1000, "consistent"),
        (1400, 4, 0, "contradiction"),
        (400, 4, 1000, "contradiction"),
        (3000, 5, 0, "inconclusive"),
        (3000, 5, 1000, "inconclusive"),
    ],
)
def test_dark_land_proves_the_offset_and_bright_land_proves_nothing(tmp_path, red, classes, offset, verdict):
    report = check_scenes([optical(tmp_path, red, classes, offset)], [BOX])
    assert report.figures[0]["verdict"] == verdict
    assert bool(report.contradictions) == (verdict == "contradiction")
    if report.contradictions:
        assert "offset" in report.contradictions[0] and "--guard warn" in report.contradictions[0]


@pytest.mark.parametrize(
    ("median", "units"), [(0.1, "linear power"), (-12.0, "decibels"), (180.0, "raw amplitude counts")]
)
def test_radar_units_are_told_apart(tmp_path, median, units):
    rng = np.random.default_rng(0)
    values = (median * rng.gamma(4.4, 1 / 4.4, (120, 120))).astype(np.float32)
    assets = {b: write_tif(tmp_path / f"{b}.tif", values, ORIGIN, 10, nodata=-32768) for b in ("vv", "vh")}
    report = check_scenes([scene("s1", modality="sentinel1", assets=assets, wkb=footprint(ORIGIN, 1200))], [BOX])
    assert report.figures[0]["units_by_pixels"] == units
    assert bool(report.contradictions) == (units != "linear power")


def test_level_2_landsat_is_told_by_its_cirrus_band(tmp_path):
    for level, value in ((1, 4600), (2, 20000)):
        assets = {
            b: write_tif(tmp_path / f"{level}{b}.tif", np.full((40, 40), value, np.uint16), ORIGIN, 30)
            for b in ("B1", "B9")
        }
        report = check_scenes([scene("l", modality="landsat", assets=assets, wkb=footprint(ORIGIN, 1200))], [BOX])
        assert bool(report.contradictions) == (level == 2)


def test_landsat_without_the_cirrus_band_is_refused(tmp_path):
    band = write_tif(tmp_path / "B1.tif", np.full((40, 40), 11_000, np.uint16), ORIGIN, 30)
    held = scene("l", modality="landsat", assets={"B1": band}, wkb=footprint(ORIGIN, 1200))
    report = check_scenes([held], [BOX])
    assert "no cirrus band B9" in report.contradictions[0]


def test_warnings_that_differ_in_the_scene_only_are_one_line(tmp_path):
    bright = optical(tmp_path, 14000, 9, 0)
    report = check_scenes([replace(bright, id=name) for name in ("a", "b", "c")], [BOX])
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("a and 2 more: ")


def test_a_zone_beyond_the_projections_reach_does_not_disturb(tmp_path):
    far = PixelBox(32646, -560, 50_000, -440, 50_120)  # on the equator, 90 degrees to the east
    figure = check_scenes([optical(tmp_path, 400, 4, 0)], [far, BOX]).figures[0]
    assert figure["verdict"] == "consistent", figure


def test_an_unreadable_scene_proves_nothing(tmp_path):
    broken = scene("b", modality="sentinel1", assets={"vv": str(tmp_path / "no.tif")}, wkb=footprint(ORIGIN, 1200))
    report = check_scenes([broken], [BOX])
    assert report.figures[0]["verdict"] == "unreadable"
    assert not report.contradictions


def test_far_values_are_a_warning_that_names_the_bands(tmp_path):
    report = check_scenes([optical(tmp_path, 14000, 9, 0)], [BOX])
    assert "B02" in report.warnings[0]
    assert not report.contradictions


def scenes_of(folder, collection="sentinel-2-l2a"):
    found = []
    for path in sorted(real(folder).rglob("item-local.json")):
        found.append(
            to_scene(
                {**json.loads(path.read_text()), "collection": collection}, "/disk", root=path.parent, base=path.parent
            )
        )
    return found


def area_of(path):
    with rasterio.open(path) as source:
        b = source.bounds
        return PixelBox(
            source.crs.to_epsg(), int(-b.top / 10), int(b.left / 10), int(-b.bottom / 10), int(b.right / 10)
        )


def test_five_real_scenes_whose_catalogue_declares_an_offset_that_is_gone():
    scenes = scenes_of("s2-l2a-cloudy-series-33twl")
    report = check_scenes(scenes, [area_of(scenes[0].assets["B04"])])
    assert [f["verdict"] for f in report.figures] == ["consistent"] * 5
    assert [round(f["p1_B04"] / 10) for f in report.figures] == [22, 17, 34, 13, 28]
    assert 200 < np.median([f["median_dark"] for f in report.figures if "median_dark" in f]) < 700
    wrong = check_scenes([replace(s, offset_dn=1000) for s in scenes], [area_of(scenes[0].assets["B04"])])
    assert len(wrong.contradictions) == 5
    assert all("already without the offset" in line and "nan" not in line for line in wrong.contradictions)


def test_a_real_desert_proves_nothing_and_looks_like_the_training_data():
    scenes = scenes_of("s2-l2a-scene-29rkh")
    report = check_scenes(scenes, [area_of(scenes[0].assets["B04"])])
    figure = report.figures[0]
    assert figure["verdict"] == "inconclusive"
    assert figure["p1_B04"] > 2000
    assert len(figure["z"]) == 12
    assert max(map(abs, figure["z"].values())) < 3
    assert not report.contradictions
    assert not report.warnings


def test_real_radar_in_decibels_contradicts_a_product_of_linear_power(tmp_path):
    months = sorted((real("s2-s1-monthly-haspengouw") / "s1").glob("*.tif"))[:2]
    scenes = []
    for month in months:
        with rasterio.open(month) as source:
            stored, box = source.read(), area_of(month)
            west, north = source.bounds.left, source.bounds.top
        for k, band in enumerate(("vv", "vh")):
            write_tif(tmp_path / month.stem / f"{band}.tif", stored[k], (west, north), 10, nodata=np.nan)
        links = {band: str(tmp_path / month.stem / f"{band}.tif") for band in ("vv", "vh")}
        scenes.append(scene(month.stem, modality="sentinel1", assets=links))
    report = check_scenes(scenes, [box])
    assert [f["units_by_pixels"] for f in report.figures] == ["decibels"] * 2
    assert len(report.contradictions) == 2
    assert "S1_2020-11: the pixels are decibels (median -9.691" in report.contradictions[0]
    # The same scenes in the unit that the product should have.
    for month in months:
        for band in ("vv", "vh"):
            path = tmp_path / month.stem / f"{band}.tif"
            with rasterio.open(path) as source:
                decibels, corner = source.read(1), (source.bounds.left, source.bounds.top)
            path.unlink()
            write_tif(path, 10 ** (decibels / 10), corner, 10, nodata=-32768)
    report = check_scenes(scenes, [box])
    assert [f["verdict"] for f in report.figures] == ["consistent"] * 2
    assert not report.contradictions + report.warnings
    assert all(abs(z) < 1 for f in report.figures for z in f["z"].values())


def test_a_real_landsat_level_1_scene_has_the_training_datas_counts():
    folder = real("landsat8-l1tp-marburg")
    bands = [f"B{n}" for n in range(1, 12)]
    links = {band: str(next(folder.glob(f"*_{band}.TIF"))) for band in bands}
    report = check_scenes([scene("LC08", modality="landsat", assets=links)], [area_of(links["B1"])])
    assert report.figures[0]["verdict"] == "consistent"
    assert sorted(report.figures[0]["z"]) == sorted(bands)
    assert all(abs(z) < 1 for z in report.figures[0]["z"].values())
    assert not report.contradictions + report.warnings


def test_a_real_scene_that_still_carries_the_offset():
    folder = real("s2-l2a-majortom-0u-199r")
    assets = {b: str(folder / f"{b}.tif") for b in ("B02", "B04", "B12")}
    held = scene("congo", assets=assets, offset_dn=1000)
    report = check_scenes([held], [area_of(assets["B04"])])
    assert report.figures[0]["p1_B04"] > 1000
    assert not report.contradictions
