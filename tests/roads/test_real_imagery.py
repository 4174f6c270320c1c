"""Real scenes through the whole road."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests import real_catalogs
from tests.roads.conftest import olmoearth

pytestmark = pytest.mark.skipif(not real_catalogs.DATA.is_dir(), reason="no ../shared/data here")


def embed(catalog, region, model, out, *flags):
    base = ["--aoi", str(region), "--catalog", str(catalog), "--model", str(model), "-o", str(out), "--device", "cpu"]
    return olmoearth("embed", *base, "--patch-size", "8", *flags)


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_twelve_months_of_two_sensors_with_bands_missing(model_folder, tmp_path):
    import olmoearth_cli

    catalog, region = real_catalogs.haspengouw(tmp_path / "data")
    done = embed(catalog, region, model_folder, tmp_path / "map", "--start", "2020-11-01", "--overlap", "16")
    assert done.code == 0, done.err
    record = record_of(tmp_path / "map")
    verdicts = {figure["verdict"] for figure in record["guard"]["figures"]}
    assert "contradiction" not in verdicts
    assert "consistent" in verdicts
    values = olmoearth_cli.open_map(tmp_path / "map").compute().values
    inside = np.isfinite(values[0])
    assert inside.sum() > 100
    assert values[:, inside].std(axis=1).min() > 0
    quality = next((tmp_path / "map" / "quality").glob("*.tif"))
    import rasterio

    with rasterio.open(quality) as source:
        bands = dict(zip(source.descriptions, source.read(), strict=True))
    # The published composites of December and January are empty: two periods are missing, not zeros.
    assert np.nanmax(bands["periods_sentinel2_l2a"]) == 10
    assert np.nanmax(bands["periods_sentinel1"]) == 12


def test_a_scene_at_native_resolution_with_the_offset_in_its_pixels(model_folder, tmp_path):
    catalog, region = real_catalogs.majortom(tmp_path / "data")
    flags = ["--start", "2022-07-01", "--periods", "1", "--modalities", "s2"]
    done = embed(catalog, region, model_folder, tmp_path / "map", *flags)
    assert done.code == 0, done.err
    figure = record_of(tmp_path / "map")["guard"]["figures"][0]
    assert figure["offset_by_rule"] == 1000
    assert abs(figure["z"]["B04"]) < 1


def test_published_items_of_a_cloudy_series(model_folder, tmp_path):
    catalog, region = real_catalogs.published_items(tmp_path / "data", "s2-l2a-cloudy-series-33twl")
    done = embed(catalog, region, model_folder, tmp_path / "map", "--start", "2023-08-01", "--periods", "1")
    assert done.code == 0, done.err
    scenes = json.loads((tmp_path / "map" / "scenes.json").read_text())
    first = scenes["selections"][0][6][0]
    assert scenes["scenes"][first]["id"] == "S2A_33TWL_20230815_0_L2A", "the clearest of the five"
    assert "sentinel1: none" in done.err


def test_a_desert_scene_with_three_native_resolutions(model_folder, tmp_path):
    catalog, region = real_catalogs.published_items(tmp_path / "data", "s2-l2a-scene-29rkh")
    done = embed(catalog, region, model_folder, tmp_path / "map", "--start", "2020-02-01", "--periods", "1")
    assert done.code == 0, done.err
    assert record_of(tmp_path / "map")["guard"]["contradictions"] == []
