"""Real items of every provider (spec/inputs.md sections 5.1, 7 and 9)."""

from pathlib import Path

import pytest

from olmoearth_pipelines.items import Rejected, to_scene
from olmoearth_pipelines.providers import default_catalogs, find_product, product
from olmoearth_pipelines.scene_table import without_duplicates
from olmoearth_pipelines.stac import redact, sign
from tests.unit.pipelines.conftest import item

PC, ES, CDSE = "planetary-computer", "earth-search", "cdse"
S2 = "sentinel-2-l2a"


@pytest.mark.parametrize(
    ("catalog", "path", "offset"),
    [
        (PC, f"{PC}/{S2}/S2A_MSIL2A_20240823T174901_R141_T13TDE_20240824T013055.json", 1000),
        (PC, f"{PC}/{S2}/S2A_MSIL2A_20200601T080611_R078_T35MNM_20201027T072253.json", 0),
        (ES, f"earth-search-v1/{S2}/S2A_13TDE_20231008_0_L2A.json", 0),
        (ES, f"earth-search-v1/{S2}/S2B_33TWN_20220226_0_L2A.json", 0),
        (ES, f"earth-search-v1/{S2}/S2A_52HGH_20221007_0_L2A.json", 0),
        (ES, "earth-search-v1/sentinel-2-c1-l2a/S2A_T13TDE_20240402T174230_L2A.json", 1000),
        (CDSE, f"cdse/{S2}/S2A_MSIL2A_20200703T103031_N0500_R108_T32TMT_20230613T212700.json", 1000),
    ],
)
def test_the_offset_follows_the_provider_not_the_date(catalog, path, offset):
    scene = to_scene(item(path), catalog)
    assert scene.offset_dn == offset
    assert len(scene.assets) == 13
    assert scene.epsg and 32601 <= scene.epsg <= 32760


def test_earth_search_nir_is_b08_and_nir08_is_b8a():
    scene = to_scene(item(f"earth-search-v1/{S2}/S2A_13TDE_20231008_0_L2A.json"), ES)
    assert scene.assets["B08"].endswith("/B08.tif")
    assert scene.assets["B8A"].endswith("/B8A.tif")


def test_radar_of_planetary_computer():
    path = f"{PC}/sentinel-1-rtc/S1A_IW_GRDH_1SDV_20240325T055038_20240325T055103_053134_066FC4_rtc.json"
    scene = to_scene(item(path), PC)
    assert (scene.modality, set(scene.assets), scene.offset_dn) == ("sentinel1", {"vv", "vh"}, 0)
    wrong = item(path)
    wrong["properties"]["sar:polarizations"] = ["HH"]
    with pytest.raises(Rejected, match="not IW with VV and VH"):
        to_scene(wrong, PC)


@pytest.mark.parametrize(
    ("catalog", "path", "words"),
    [
        (PC, f"{PC}/sentinel-1-grd/S1B_IW_GRDH_1SDV_20200503T140443_20200503T140510_021418_028A93.json", "amplitude"),
        (PC, f"{PC}/landsat-c2-l2/LC08_L2SP_202033_20220327_02_T1.json", "Level 2"),
        ("usgs", "usgs/landsat-c2-l2/LC08_L2SP_047027_20201204_02_T1.json", "Level 2"),
        (ES, "earth-search-v1/landsat-c2-l2/LC08_L2SP_033032_20231008_02_T1.json", "Level 2"),
        ("/disk", "earth-search-v0/sentinel-s2-l2a-cogs/S2A_17SPR_20221106_0_L2A.json", "unknown collection"),
    ],
)
def test_products_that_the_models_cannot_read_are_refused_with_the_reason(catalog, path, words):
    with pytest.raises(Rejected, match=words):
        to_scene(item(path), catalog)


def test_one_acquisition_processed_twice_is_kept_once():
    folder = f"earth-search-v1/{S2}"
    names = [
        "S2A_32TMT_20200302_0_L2A",
        "S2A_32TMT_20200302_1_L2A",
        "S2A_32TNT_20200305_0_L2A",
        "S2A_32TNT_20200305_1_L2A",
    ]
    scenes = [to_scene(item(f"{folder}/{name}.json"), ES) for name in names]
    for order in (scenes, scenes[::-1]):
        kept, dropped = without_duplicates(order)
        assert sorted(s.id for s in kept) == [names[1], names[3]]
        assert dropped == 2
        assert all(s.offset_dn == 0 for s in kept)


def test_split_granules_of_one_datatake_are_both_kept():
    first = to_scene(item(f"{PC}/{S2}/S2A_MSIL2A_20240823T174901_R141_T13TDE_20240824T013055.json"), PC)
    import shapely

    west, south, east, north = shapely.from_wkb(first.footprint_wkb).bounds
    middle = (south + north) / 2
    from dataclasses import replace

    halves = [
        replace(first, id=str(k), footprint_wkb=shapely.to_wkb(shapely.box(west, a, east, b)))
        for k, (a, b) in enumerate([(south, middle), (middle, north)])
    ]
    kept, dropped = without_duplicates(halves)
    assert (len(kept), dropped) == (2, 0)


@pytest.mark.parametrize(
    "broken", [None, 3, [], {}, {"id": "x"}, {"id": "x", "properties": {}, "assets": {}, "geometry": None}]
)
def test_malformed_items_are_counted_not_fatal(broken):
    with pytest.raises(Rejected):
        to_scene(broken, PC)


def local(href):
    return {
        "id": "../../etc/passwd",
        "collection": S2,
        "geometry": {"type": "Polygon", "coordinates": [[[5, 50], [6, 50], [6, 51], [5, 51], [5, 50]]]},
        "properties": {"datetime": "2024-01-01T00:00:00Z"},
        "assets": {"B02": {"href": href}},
    }


@pytest.mark.parametrize(
    "href",
    ["/etc/passwd", "../../x.tif", "/vsicurl/http://x/y.tif", "<VRTDataset/>", "file:///etc/passwd", "ftp://x/y.tif"],
)
def test_links_that_lead_out_of_a_catalogue_are_refused(tmp_path, href):
    with pytest.raises(Rejected):
        to_scene(local(href), str(tmp_path), root=tmp_path, base=tmp_path / "a")
    with pytest.raises(Rejected):
        to_scene(local(href), "https://example.org/stac")


def test_links_inside_a_catalogue_and_web_addresses_are_taken(tmp_path):
    scene = to_scene(local("./B02.tif"), str(tmp_path), root=tmp_path, base=tmp_path / "a")
    assert Path(scene.assets["B02"]) == (tmp_path / "a" / "B02.tif").resolve()
    assert to_scene(local("https://x.org/B02.tif"), "https://x.org/stac").assets["B02"].startswith("https://")


def test_layouts_are_told_apart_by_asset_names_in_a_catalogue_of_ones_own():
    assert find_product("/disk", S2, ["B02", "B03"]).key == f"{PC}/{S2}"
    assert find_product("/disk", S2, ["blue", "green"]).key == f"{ES}/{S2}"
    assert find_product("/disk", S2, ["B02_10m"]).key == f"{CDSE}/{S2}"
    assert find_product("/disk", S2, ["foo"]) is None


def test_default_catalogues_follow_what_is_asked():
    assert default_catalogs(None) == (PC,)
    assert default_catalogs(("sentinel2_l2a",)) == (ES,)
    assert default_catalogs(("sentinel1", "landsat")) == (PC, "usgs")


def test_messages_never_carry_tokens():
    assert redact("https://user:pw@x.org/a/b.tif?sig=SECRET#f") == "https://x.org/a/b.tif"
    assert sign("https://x.org/a.tif", product(f"{ES}/{S2}")) == "https://x.org/a.tif"
