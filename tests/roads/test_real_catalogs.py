"""The catalogues over ../shared/data are valid STAC, readable, and say the truth about their pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from pystac.validation import RegisteredValidator
from rasterio.warp import transform_bounds

from olmoearth_pipelines.items import to_scene
from tests import real_catalogs as real

pytestmark = pytest.mark.skipif(not real.DATA.is_dir(), reason="no ../shared/data here")
CHIPS = tuple(real.TERRAMESH_TILES)
MAKERS = {
    "haspengouw": (real.haspengouw, 24),
    "majortom": (real.majortom, 1),
    "29rkh": (real.scene_29rkh, 1),
    "33twl": (real.cloudy_33twl, 5),
    "leipzig": (real.leipzig, 1),
    **{chip: (lambda folder, chip=chip: real.terramesh(folder, chip), 2) for chip in CHIPS},
}


@pytest.fixture(scope="module", params=MAKERS)
def made(request, tmp_path_factory):
    """(name, folder, catalogue, region, number of items)."""
    maker, count = MAKERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, *maker(folder), count


def scenes_of(folder: Path) -> dict[str, object]:
    """Item id -> the scene that the program makes of it."""
    paths = [p for p in folder.glob("*/*.json") if p.name != "collection.json"]
    scenes = [to_scene(json.loads(p.read_text()), str(folder), root=folder, base=p.parent) for p in paths]
    return {scene.id: scene for scene in scenes}


def pixels(path: str | Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(1)


def test_catalogues_hold_to_the_core_schemas(made):
    _, _, path, _, count = made
    catalog = pystac.Catalog.from_file(str(path))
    validator = RegisteredValidator.get_validator()
    parts = [catalog, *catalog.get_children(), *catalog.get_items(recursive=True)]
    # Core schemas only, in the version that pystac carries: those of extensions and of others lie on the web.
    for part in parts:
        content = part.to_dict()
        validator.validate_core(content, part.STAC_OBJECT_TYPE, content["stac_version"])
    assert sum(isinstance(part, pystac.Item) for part in parts) == count


def test_links_are_relative_and_lead_to_files_of_the_catalogue(made):
    _, folder, path, _, _ = made
    for item in pystac.Catalog.from_file(str(path)).get_items(recursive=True):
        content = json.loads(Path(item.self_href).read_text())
        hrefs = [part["href"] for part in (*content["links"], *content["assets"].values())]
        for href in hrefs:
            assert href.startswith("."), href
            target = (Path(item.self_href).parent / href).resolve()
            assert target.is_file() and target.is_relative_to(folder.resolve()), href


def test_every_asset_is_a_raster_of_the_products_type_in_its_crs(made):
    _, folder, _, _, count = made
    scenes = scenes_of(folder)
    assert len(scenes) == count
    for scene in scenes.values():
        for band, path in scene.assets.items():
            with rasterio.open(path) as source:
                assert source.crs.to_epsg() == scene.epsg, (scene.id, band)
                if band in ("vv", "vh"):
                    assert (source.dtypes[0], source.nodata) == ("float32", -32768)
                elif band == "SCL":
                    assert source.dtypes[0] == "uint8"
                else:
                    assert (source.dtypes[0], source.nodata) == ("uint16", 0), (scene.id, band)


def test_the_region_lies_in_the_imagery(made):
    _, folder, _, path, _ = made
    region = shapely.from_geojson(path.read_text())
    for scene in scenes_of(folder).values():
        first = next(iter(scene.assets.values()))
        with rasterio.open(first) as source:
            outline = shapely.box(*transform_bounds(source.crs, 4326, *source.bounds))
        assert outline.buffer(1e-6).covers(region), scene.id


@pytest.mark.parametrize(
    ("name", "offset"), [("majortom", 1000), ("29rkh", 0), ("33twl", 0), *zip(CHIPS, (1000, 0, 0), strict=True)]
)
def test_the_offset_by_rule_is_that_of_the_pixels(name, offset, tmp_path):
    MAKERS[name][0](tmp_path)
    for scene in scenes_of(tmp_path).values():
        if scene.modality == "sentinel2_l2a":
            assert scene.offset_dn == offset
            red = pixels(scene.assets["B04"])
            darkest = np.percentile(red[red > 0], 1)
            # Section 5.1: low values prove that there is no offset. Only the desert is too bright to prove it.
            assert darkest > 1000 if offset else (darkest < 900 or name == "29rkh")


def test_decibel_becomes_linear_power(tmp_path):
    real.haspengouw(tmp_path)
    scenes = scenes_of(tmp_path)
    months = sorted(s for s in scenes if s.startswith("S1A"))
    assert months[0] == "S1A_IW_20201115_rtc" and months[-1] == "S1A_IW_20211015_rtc" and len(months) == 12
    with rasterio.open(real.HASPENGOUW / "s1" / "S1_2021-05.tif") as source:
        decibel = source.read(2)
    power = pixels(scenes["S1A_IW_20210515_rtc"].assets["vh"])
    # The spec's own example pair, -10 dB = 0.1, fixes the formula; the rest follows pixel by pixel.
    assert np.allclose(10 * np.log10(power), decibel, atol=1e-4)
    assert -25 < np.median(decibel) < 0


def test_bands_of_the_composites_keep_their_names_and_numbers(tmp_path):
    real.haspengouw(tmp_path)
    scene = scenes_of(tmp_path)["S2A_MSIL2A_20210515"]
    assert {"B01", "B8A", "B09"}.isdisjoint(scene.assets)
    with rasterio.open(real.HASPENGOUW / "s2" / "S2L2A_2021-05.tif") as source:
        assert np.array_equal(source.read(7), pixels(scene.assets["B08"]))
        assert np.array_equal(source.read(3), pixels(scene.assets["B04"]))
        grid = (source.crs, source.transform, source.shape)
    with rasterio.open(real.HASPENGOUW_LABELS) as labels:
        assert (labels.crs, labels.transform, labels.shape) == grid
        assert set(np.unique(labels.read(1))) <= {0, 1, 255}


def test_chips_have_the_classes_that_their_metadata_counts():
    facts = json.loads((real.TERRAMESH / "metadata.json").read_text())
    numbers = {name: int(number) for number, name in facts["lulc_classes"].items()}
    for chip in CHIPS:
        classes = pixels(real.TERRAMESH / chip / "LULC.tif")
        for name, count in facts["chips"][chip]["lulc_pixels"].items():
            assert (classes == numbers[name]).sum() == count, (chip, name)
