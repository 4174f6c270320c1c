"""Collection, items, model, index, mosaics and preview of a whole map."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rio_cogeo.cogeo import cog_validate

from olmoearth_cli.core import normalize
from olmoearth_cli.errors import OutputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.embedding_map import EmbeddingMap, finish_map, write_gap, write_tile
from olmoearth_cli.maps.footprint import footprint, overall_bbox
from olmoearth_cli.maps.mlm_item import mlm_name
from olmoearth_cli.maps.preview import Palette

SCHEMAS = Path(__file__).parents[2] / "schemas"


@pytest.fixture(scope="module")
def validate():
    """pystac's validator with every schema at hand: an unknown one fails instead of asking the network."""
    validator = JsonSchemaSTACValidator()
    for path in SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text())
        validator.schema_cache[schema["$id"]] = schema

    def run(content):
        kind = pystac.STACObjectType.COLLECTION if content["type"] == "Collection" else pystac.STACObjectType.ITEM
        for uri in content["stac_extensions"]:
            assert uri in validator.schema_cache, uri
        return validator.validate(content, kind, content["stac_version"], content["stac_extensions"])

    return run


@pytest.fixture
def folder(tmp_path, spec, tile_box, result_of):
    for name, at in (("a", (0, 0)), ("b", (0, 1)), ("c", (1, 1))):
        write_tile(tmp_path, spec, result_of(name, tile_box(*at), spec))
    write_gap(tmp_path, spec, "gap", tile_box(1, 0), "no imagery in any period")
    finish_map(tmp_path, spec)
    return tmp_path


def read(path):
    return json.loads(path.read_text())


def test_everything_is_valid_stac(folder, validate):
    paths = [folder / "collection.json", folder / "model.json", *(folder / "items").glob("*.json")]
    paths += (folder / "gaps").glob("*.json")
    assert len(paths) == 6
    results = {path.name: validate(read(path)) for path in paths}
    assert len(results["a.json"]) == 6  # the core and five extensions
    assert len(results["gap.json"]) == 2


@pytest.mark.parametrize(
    "changes", [{"dtype": "float32"}, {"demo": True, "model_id": "demo/nano", "software": {"x": "1"}}]
)
def test_other_kinds_of_maps_are_valid_too(tmp_path, spec_with, tile_box, result_of, validate, changes):
    spec = spec_with(**changes)
    write_tile(tmp_path, spec, result_of("a", tile_box(), spec))
    finish_map(tmp_path, spec)
    for name in ("collection.json", "model.json", "items/a.json"):
        validate(read(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("items/a.json", lambda c: c["assets"].pop("embeddings")),
        ("items/a.json", lambda c: c["properties"]["emb:quantization"].pop("method")),
        ("items/a.json", lambda c: c["assets"]["embeddings"].update({"file:size": "12"})),
        ("items/a.json", lambda c: c["properties"].update({"proj:code": "32631"})),
        ("items/a.json", lambda c: c["properties"].pop("start_datetime")),
        ("items/a.json", lambda c: c["properties"].update({"processing:software": {}})),
        ("items/a.json", lambda c: c["assets"]["embeddings"].pop("bands")),
        ("collection.json", lambda c: c.pop("emb:dimensions")),
        ("collection.json", lambda c: c.update(links=[x for x in c["links"] if x["rel"] != "emb:model"])),
        ("collection.json", lambda c: c["providers"].pop(0)),
        ("model.json", lambda c: c["properties"].pop("mlm:input")),
        ("model.json", lambda c: c["assets"]["weights"].update(roles=["data"])),
        ("model.json", lambda c: c["properties"].pop("bands")),
    ],
)
def test_the_validation_can_fail(folder, validate, name, spoil):
    content = read(folder / name)
    spoil(content)
    with pytest.raises(pystac.errors.STACValidationError):
        validate(content)


def test_pystac_walks_from_the_collection_to_the_pixels(folder, spec):
    collection = pystac.Collection.from_file(folder / "collection.json")
    items = {item.id: item for item in collection.get_items()}
    assert sorted(items) == ["a", "b", "c"]
    for item in items.values():
        assert item.get_collection().id == collection.id == "olmoearth-embeddings-of-test"
        with rasterio.open(item.assets["embeddings"].get_absolute_href()) as tile:
            extra = item.assets["embeddings"].extra_fields
            assert list(tile.shape) == extra["proj:shape"]
            assert list(tile.transform)[:6] == extra["proj:transform"]
            assert list(tile.bounds) == extra["proj:bbox"]
            assert tuple(band["raster:scale"] for band in extra["bands"]) == tile.scales
            lonlat = rasterio.warp.transform_bounds(tile.crs, 4326, *tile.bounds, densify_pts=100)
        assert item.bbox == pytest.approx(lonlat, abs=2e-6)
    links = {link.rel: link.absolute_href for link in collection.links}
    assert links["emb:source-data"] == "https://stac.example/v1/collections/sentinel-2-l2a"
    assert Path(links["emb:model"]) == folder / "model.json"
    assert collection.extra_fields["emb:dimensions"] == spec.dimensions
    derived = [link for link in items["a"].links if link.rel == "derived_from"]
    assert [link.title for link in derived] == ["S2A_1"]  # the other scene has no address
    assert pystac.Item.from_file(folder / "model.json").properties["mlm:name"] == "OlmoEarth-v1_2-Nano"


def test_the_model_item_names_bands_in_order_with_their_scaling(folder):
    first, second = read(folder / "model.json")["properties"]["mlm:input"]
    assert (first["name"], second["name"]) == ("sentinel2_l2a", "sentinel1")
    assert first["bands"][:5] == [f"sentinel2_l2a:B{b}" for b in ("02", "03", "04", "08", "05")]
    assert second["bands"] == ["sentinel1:vv", "sentinel1:vh"]
    numbers = json.loads((Path(normalize.__file__).parent / "normalization.json").read_text())
    s1 = numbers["computed"]["sentinel1"]
    at = s1["bands"].index("vv")
    mean, std = s1["mean"][at], s1["std"][at]
    scaling = second["value_scaling"][0]
    assert scaling["type"] == "min-max"
    assert scaling["minimum"] == pytest.approx(mean - 2 * std)
    assert scaling["maximum"] == pytest.approx(mean + 2 * std)


def test_every_asset_of_the_collection_that_we_write_exists(folder):
    assets = read(folder / "collection.json")["assets"]
    names = {asset["href"] for asset in assets.values()}
    assert names >= {"./index.parquet", "./preview.tif", "./preview.png", "./mosaic_32631.vrt"}
    missing = {name for name in names if not (folder / name).exists()}
    assert missing == {"./run.json", "./scenes.json"}  # the run's own, written around this


def test_the_index_holds_tiles_and_gaps_with_the_reason(folder):
    index = geopandas.read_parquet(folder / "index.parquet").set_index("id")
    assert index["olmoearth:status"].to_dict() == {"a": "done", "b": "done", "c": "done", "gap": "gap"}
    assert index.loc["gap", "olmoearth:reason"] == "no imagery in any period"
    assert index.crs.to_epsg() == 4326
    shape, _ = footprint(PixelBox(32631, -552960, 57600, -552864, 57696))
    assert index.geometry["a"].equals(__import__("shapely").geometry.shape(shape))


def test_the_mosaic_equals_its_tiles_and_keeps_their_meaning(folder, spec, tile_box):
    with rasterio.open(folder / "mosaic_32631.vrt") as mosaic:
        assert mosaic.shape == (48, 48)
        assert mosaic.dtypes == ("int8",) * 6
        assert mosaic.nodatavals == (-128.0,) * 6
        assert (mosaic.scales, mosaic.offsets) == (spec.scale, spec.offset)
        assert mosaic.descriptions == spec.band_names
        whole = mosaic.read()
    places = {
        "a": (slice(0, 24), slice(0, 24)),
        "b": (slice(0, 24), slice(24, 48)),
        "c": (slice(24, 48),) * 2,
    }
    for name, (rows, cols) in places.items():
        with rasterio.open(folder / "tiles" / f"{name}.tif") as tile:
            assert np.array_equal(whole[:, rows, cols], tile.read())
    assert (whole[:, 24:, :24] == -128).all()  # the gap


def test_the_map_can_be_moved(folder, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "map"
    folder.rename(moved)
    with rasterio.open(moved / "mosaic_32631.vrt") as mosaic:
        assert (mosaic.read(1) != -128).any()
    assert len(list(pystac.Collection.from_file(moved / "collection.json").get_items())) == 3
    assert EmbeddingMap.open(moved).checksums().keys() == {"a", "b", "c"}


def test_the_preview_is_transparent_where_there_is_no_map(folder):
    with rasterio.open(folder / "preview.tif") as preview:
        assert preview.crs.to_epsg() == 32631
        assert (preview.count, preview.shape, preview.nodata) == (3, (48, 48), 0)
        rgb = preview.read()
    assert cog_validate(folder / "preview.tif", strict=True, quiet=True)[0]
    assert (rgb[:, 24:, :24] == 0).all()  # the gap
    assert (rgb[:, :3, :5] == 0).all()  # a corner without data
    assert (rgb[:, :24, 24:][:, 3:, 5:] > 0).all()
    assert all(len(np.unique(band)) > 50 for band in rgb)
    with rasterio.open(folder / "preview.png") as picture:
        image = picture.read()
    assert image.shape == (4, 768, 768)  # 16 x, so that a cell can be seen
    assert np.array_equal(image[:3, ::16, ::16], rgb)
    assert np.array_equal(image[3] == 0, (image[:3] == 0).all(axis=0))


def test_finishing_again_gives_the_same_bytes_whatever_the_order_of_tiles(
    folder, tmp_path_factory, spec, tile_box, result_of
):
    other = tmp_path_factory.mktemp("other")
    for name, at in (("c", (1, 1)), ("a", (0, 0)), ("b", (0, 1))):
        write_tile(other, spec, result_of(name, tile_box(*at), spec))
    write_gap(other, spec, "gap", tile_box(1, 0), "no imagery in any period")
    finish_map(other, spec)
    for name in ("preview.tif", "preview.png", "mosaic_32631.vrt", "collection.json", "model.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_components_do_not_flip_with_the_sample():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(500, 3)) * [5.0, 2.0, 1.0]
    vectors = base @ rng.normal(size=(3, 8)) + rng.normal(size=(500, 8)) * 0.01
    one, two = Palette.fit(vectors), Palette.fit(vectors[::-1][:400])
    assert (np.abs((one.axes * two.axes).sum(axis=0)) > 0.98).all()
    assert ((one.axes * two.axes).sum(axis=0) > 0).all()
    scores = (vectors - one.mean) @ one.axes
    assert np.allclose(np.corrcoef(scores.T), np.eye(3), atol=1e-6)
    assert (np.diff(scores.var(axis=0)) < 0).all()


def test_a_map_of_one_colour_still_has_a_picture(tmp_path, spec, tile_box, result_of):
    vectors = np.full((24, 24, 6), 0.25, np.float32)
    vectors[:, :23] = np.nan
    write_tile(tmp_path, spec, result_of("a", tile_box(), spec, vectors))
    finish_map(tmp_path, spec)
    with rasterio.open(tmp_path / "preview.tif") as preview:
        rgb = preview.read()
        assert preview.transform.c == tile_box().bounds_m[0] + 23 * spec.cell_m
    assert rgb.shape == (3, 24, 1), "the empty rim is cut off"
    assert (rgb == 128).all()


def test_a_map_over_two_zones_has_two_mosaics_and_one_picture(tmp_path, spec, tile_box, result_of):
    # The border of zones 31 and 32 at 6 degrees east: eastings near 700 km and 300 km.
    west = [PixelBox(32631, -552960, 71520 + 96 * k, -552864, 71616 + 96 * k) for k in (0, 1)]
    east = PixelBox(32632, -552960, 30048, -552864, 30144)
    for name, box in (("a", west[0]), ("b", west[1]), ("c", east)):
        write_tile(tmp_path, spec, result_of(name, box, spec))
    finish_map(tmp_path, spec)
    assert sorted(p.name for p in tmp_path.glob("*.vrt")) == ["mosaic_32631.vrt", "mosaic_32632.vrt"]
    with rasterio.open(tmp_path / "preview.tif") as preview:
        assert preview.crs.to_epsg() == 32631
        rgb = preview.read()
        lonlat = rasterio.warp.transform_bounds(preview.crs, 4326, *preview.bounds)
    for box in (*west, east):
        _, (w, s, e, n) = footprint(box)
        assert lonlat[0] < w < e < lonlat[2]
        assert lonlat[1] < s < n < lonlat[3]
    drawn = (rgb > 0).any(axis=0).sum()
    assert drawn == pytest.approx(3 * (24 * 24 - 15), rel=0.03)


def test_tiles_of_another_model_are_not_finished_into_one_map(folder, spec_with):
    with pytest.raises(OutputError, match=r"another weights_sha256.*--overwrite"):
        finish_map(folder, spec_with(weights_sha256="00" * 32))


def test_a_map_without_any_tile_is_a_callers_mistake(tmp_path, spec, tile_box):
    write_gap(tmp_path, spec, "gap", tile_box(), "no imagery")
    with pytest.raises(ValueError, match="no tile"):
        finish_map(tmp_path, spec)


def test_footprints_at_the_dateline_are_cut_in_two():
    # Zone 1, 16 degrees south: the zone's western edge is the dateline, near easting 179 km.
    shape, bbox = footprint(PixelBox(32701, -823000, 17850, -822000, 18150))
    assert shape["type"] == "MultiPolygon"
    west, _, east, _ = bbox
    assert 179.9 < west < 180
    assert -180 < east < -179.9
    assert overall_bbox([bbox, [179.0, -17.0, 179.5, -16.0]]) == pytest.approx(
        [179.0, -17.0, east, max(bbox[3], -16.0)]
    )
    assert overall_bbox([[5.0, 1.0, 6.0, 2.0], [6.0, 0.0, 7.0, 1.5]]) == [5.0, 0.0, 7.0, 2.0]
    assert overall_bbox([[-170.0, 1.0, -160.0, 2.0], [170.0, 0.0, 175.0, 1.5]]) == [170.0, 0.0, -160.0, 2.0]


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("allenai/OlmoEarth-v1_2-Tiny", "OlmoEarth-v1_2-Tiny"),
        ("./my model/", "OlmoEarth-model"),
        ("1x", "OlmoEarth-1x"),
        ("ü", "OlmoEarth-model"),
    ],
)
def test_model_names_fit_the_extension(model_id, name):
    assert mlm_name(model_id) == name
