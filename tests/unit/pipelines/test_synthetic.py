import hashlib
import json
from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.warp import reproject

from olmoearth_cli.core.normalize import band_statistics
from olmoearth_pipelines.items import to_scene
from olmoearth_pipelines.landscape import BANDS, CLASSES, landscape
from olmoearth_pipelines.scene_table import without_duplicates
from olmoearth_pipelines.synthetic import Acquisition, Scenery, make_region, optical
from olmoearth_pipelines.synthetic_square import Square

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


def items_of(folder, collection="sentinel-2-l2a"):
    paths = [p for p in (folder / "catalog" / collection).glob("*.json") if p.name != "collection.json"]
    return sorted((json.loads(p.read_text()) for p in paths), key=lambda i: i["properties"]["datetime"])


def asset(folder, item, key):
    return folder / "catalog" / item["collection"] / item["assets"][key]["href"]


def test_a_reprocessed_acquisition_is_one_scene_whichever_is_read(tmp_path):
    make_region(tmp_path, replace(SMALL, periods=1, reprocessed=(0,)))
    items = items_of(tmp_path)
    folder = tmp_path / "catalog"
    base = folder / "sentinel-2-l2a"
    scenes = [to_scene(item, str(folder), root=folder, base=base) for item in items]
    kept, dropped = without_duplicates(scenes)
    assert len(scenes) == 2 * len(kept) == 2 * dropped
    assert {scene.version[0] for scene in kept} == {"05.10"}
    old, new = sorted(scenes, key=lambda scene: (scene.acquired.date(), scene.version))[:2]
    assert (old.offset_dn, new.offset_dn) == (0, 1000)
    assert old.acquired != new.acquired, "two versions of one acquisition differ by milliseconds"
    for band in ("B04", "B09", "SCL"):
        a, b = (rasterio.open(scene.assets[band]).read(1).astype(int) for scene in (old, new))
        shift = 0 if band == "SCL" else 1000
        assert np.array_equal(np.where(a > 0, a + shift, 0), b)


def test_a_period_beyond_the_zone_border_shows_the_same_ground(tmp_path):
    border = replace(SMALL, periods=1, origin=(711_000.0, 5_613_000.0), swath_edge=9)  # 6 degrees east
    make_region(tmp_path / "own", border)
    make_region(tmp_path / "other", replace(border, beyond=(0,)))
    for collection, band, absent in (("sentinel-2-l2a", "B08", 0), ("sentinel-1-rtc", "vv", -32768)):
        own, other = (items_of(tmp_path / name, collection)[0] for name in ("own", "other"))
        assert (own["properties"]["proj:epsg"], other["properties"]["proj:epsg"]) == (32631, 32632)
        assert own["geometry"] == other["geometry"]
        with rasterio.open(asset(tmp_path / "own", own, band)) as source:
            here, grid = source.read(1), (source.transform, source.crs)
        with rasterio.open(asset(tmp_path / "other", other, band)) as source:
            assert (source.crs.to_epsg(), source.nodata) == (32632, absent)
            assert list(source.shape) == other["assets"][band]["proj:shape"]
            back = np.full(here.shape, absent, here.dtype)
            reproject(rasterio.band(source, 1), back, dst_transform=grid[0], dst_crs=grid[1], dst_nodata=absent)
            corners = source.read(1)[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert (corners == absent).all(), "the grids are turned against each other"
        inner = np.s_[2:-2, 2:-2]
        assert (back[inner] != absent).all()
        # By an independent warp: every pixel comes back within one or two pixels of its place.
        assert np.corrcoef(here[inner].ravel(), back[inner].ravel())[0, 1] > 0.75
    tiles = [items_of(tmp_path / name)[0]["properties"]["s2:mgrs_tile"] for name in ("own", "other")]
    assert tiles == ["31UGS", "32UKB"]


def test_periods_start_where_they_are_told(tmp_path):
    make_region(tmp_path, replace(SMALL, start=date(2023, 10, 15), without_s2=9, without_s1=9))
    times = [datetime.fromisoformat(item["properties"]["datetime"]) for item in items_of(tmp_path)]
    first = datetime(2023, 10, 15, tzinfo=UTC)
    assert {(time - first).days // 30 for time in times} == {0, 1, 2}


def test_gaps_and_the_swath_edge_are_where_they_were_asked(tmp_path):
    make_region(tmp_path, replace(SMALL, without_s2=0, without_s1=2, swath_edge=1))
    first = datetime(2024, 1, 1, tzinfo=UTC)

    def seen(collection):
        times = [datetime.fromisoformat(i["properties"]["datetime"]) for i in items_of(tmp_path, collection)]
        return {(time - first).days // 30 for time in times}

    assert seen("sentinel-2-l2a") == {1, 2}
    assert seen("sentinel-1-rtc") == {0, 1}
    edge, whole = items_of(tmp_path)[0], items_of(tmp_path)[-1]
    for band in ("B02", "B05", "B09", "SCL"):
        with rasterio.open(asset(tmp_path, edge, band)) as source:
            assert 0.2 < (source.read(1) == 0).mean() < 0.45
        with rasterio.open(asset(tmp_path, whole, band)) as source:
            assert (source.read(1) > 0).all()


def test_a_cloudy_pass_is_bright_where_its_classes_say_cloud():
    scenery = Scenery(seed=11, size_px=180)
    land = landscape(11, 180)
    pass_ = Acquisition(datetime(2024, 6, 10, 10, 40, tzinfo=UTC), 50, 0.4)
    bands, classes = optical(scenery, land, pass_)
    blue = bands["B02"][::2, ::2].astype(int) - 1000
    assert 0.25 < np.isin(classes, (8, 9)).mean() < 0.55
    assert np.median(blue[classes == 9]) > 4000
    assert np.median(blue[np.isin(classes, (4, 5))]) < 1500
    near = bands["B08"][::2, ::2].astype(int) - 1000
    assert np.median(near[classes == 3]) < 0.75 * np.median(near[np.isin(classes, (4, 5))]), "shadows are dark"


def test_speckle_has_the_looks_of_sentinel_1():
    land = landscape(3, 240)
    one, two = (land.backscatter(200, ascending=True, seed=k) for k in (1, 2))
    # The ratio of two independent looks at one ground: variance of its logarithm is twice trigamma(4.4) = 0.5132.
    ratio = np.log(one) - np.log(two)
    assert abs(ratio.var() - 0.5132) < 0.01
    again = land.backscatter(200, ascending=False, seed=1)
    assert np.allclose(10 * np.log10(one / again), 0.8, atol=1e-3), "orbits differ by their view"


@pytest.mark.parametrize(
    ("tile", "epsg", "corner"),
    [
        # Published corners: north and south, odd and even zones, the highest band.
        ("33TWN", 32633, (499_980, 5_300_040)),
        ("29RKH", 32629, (199_980, 2_800_020)),
        ("24XWR", 32624, (499_980, 9_100_020)),
        ("19PHS", 32619, (799_980, 1_700_040)),
        ("52HGH", 32752, (699_960, 6_300_040)),
        ("20HNJ", 32720, (499_980, 6_400_000)),
    ],
)
def test_tiles_are_named_as_those_of_real_scenes(tile, epsg, corner):
    # A point 50 km inside the corner of the published tile.
    square = Square(epsg=epsg, origin=(corner[0] + 50_000.0, corner[1] - 50_000.0), size_px=12)
    assert square.mgrs_tile == tile


@pytest.mark.parametrize(
    ("wrong", "why"), [({"epsg": 4326}, "UTM zone"), ({"origin": (660_010.0, 5_613_000.0)}, "multiples of 60")]
)
def test_a_scenery_that_cannot_be_made_is_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        Scenery(**wrong)
