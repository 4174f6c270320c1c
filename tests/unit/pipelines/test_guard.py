"""The input guard on real scenes with known radiometry, and on made ones with known faults."""

import json

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
    from dataclasses import replace

    wrong = check_scenes([replace(s, offset_dn=1000) for s in scenes], [area_of(scenes[0].assets["B04"])])
    assert len(wrong.contradictions) == 5


def test_a_real_scene_that_still_carries_the_offset():
    folder = real("s2-l2a-majortom-0u-199r")
    assets = {b: str(folder / f"{b}.tif") for b in ("B02", "B04", "B12")}
    held = scene("congo", assets=assets, offset_dn=1000)
    report = check_scenes([held], [area_of(assets["B04"])])
    assert report.figures[0]["p1_B04"] > 1000
    assert not report.contradictions
