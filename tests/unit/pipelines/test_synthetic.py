import hashlib
import json

import numpy as np
import pystac
import pytest
import rasterio

from olmoearth_cli.core.normalize import band_statistics
from olmoearth_pipelines.landscape import BANDS, CLASSES, landscape
from olmoearth_pipelines.synthetic import Scenery, make_region

SMALL = Scenery(seed=5, size_px=120, periods=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("synthetic")
    make_region(made, SMALL)
    return made


def digest(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    make_region(tmp_path, SMALL)
    assert digest(tmp_path) == digest(folder)


def test_the_catalogue_is_valid_stac(folder):
    catalog = pystac.Catalog.from_file(str(folder / "catalog" / "catalog.json"))
    catalog.validate()
    items = list(catalog.get_items(recursive=True))
    for item in items:
        item.validate()
    assert {item.collection_id for item in items} == {"sentinel-2-l2a", "sentinel-1-rtc"}


def test_pixels_carry_the_offset_and_the_products_own_numbers(folder):
    path = next((folder / "catalog").rglob("B04.tif"))
    with rasterio.open(path) as source:
        values = source.read(1)
        assert (source.dtypes[0], source.nodata, source.res) == ("uint16", 0, (10, 10))
    assert values[values > 0].min() > 1000
    with rasterio.open(path.with_name("B01.tif")) as source:
        assert source.res == (60, 60)
    with rasterio.open(next((folder / "catalog").rglob("vv.tif"))) as source:
        power = source.read(1)
        assert (source.dtypes[0], source.nodata) == ("float32", -32768)
    assert 0 < np.median(power) < 1


def test_fields_are_green_when_their_crop_is():
    land = landscape(3, 180)
    red, nir = BANDS.index("B04"), BANDS.index("B08")

    def ndvi(name, day):
        here = land.classes == CLASSES.index(name) + 1
        r = land.reflectance(day)
        return float(((r[nir] - r[red]) / (r[nir] + r[red]))[here].mean())

    assert ndvi("winter_cereal", 135) > 0.75
    assert ndvi("winter_cereal", 225) < 0.35
    assert ndvi("maize", 215) > 0.75
    assert ndvi("maize", 120) < 0.35
    assert ndvi("broadleaf", 200) > ndvi("broadleaf", 20) + 0.3
    assert ndvi("water", 180) < 0.1


def test_values_lie_where_the_models_were_trained():
    statistics = band_statistics("sentinel2_l2a")
    values = np.mean([landscape(3, 180).reflectance(day).mean(axis=(1, 2)) for day in (20, 110, 200, 290)], axis=0)
    assert (abs((values - statistics.mean) / statistics.std) < 1.5).all()


def test_labels_agree_with_the_land_cover(folder):
    labels = json.loads((folder / "labels.geojson").read_text())["features"]
    assert {f["properties"]["class"] for f in labels} <= set(CLASSES)
    import geopandas

    points = geopandas.read_file(folder / "labels.geojson").to_crs(SMALL.epsg)
    with rasterio.open(folder / "landcover.tif") as source:
        found = [CLASSES[v[0] - 1] for v in source.sample([(p.x, p.y) for p in points.geometry])]
    assert found == list(points["class"])


def test_sizes_that_do_not_fit_the_coarse_bands_are_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 12"):
        make_region(tmp_path, Scenery(size_px=130))
