"""Catalogue and pixels from real servers on loopback give the map that files on disk give."""

from __future__ import annotations

import json

import pytest

from tests.roads.conftest import checksums, olmoearth
from tests.servers import Flaky, catalog_items, file_app, serve, serve_s3, stac_app


@pytest.fixture(scope="module")
def local_map(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "map"
    done = olmoearth("embed", *place.flags("-o", str(folder)))
    assert done.code == 0, done.err
    return folder


def test_a_stac_api_and_range_requests_give_the_same_bytes(place, local_map, tmp_path):
    with serve(file_app(place.catalog.parent)) as files:
        app = stac_app(catalog_items(place.catalog, files))
        with serve(app) as api:
            done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--catalog", api))
    assert done.code == 0, done.err
    assert checksums(tmp_path / "map") == checksums(local_map)
    asked = [search for search in app.state.seen if search.get("bbox")]
    assert asked
    west, south, east, north = asked[0]["bbox"]
    assert east - west > 0.6, "the whole selection cell is searched, not the region"


def test_a_busy_server_is_asked_again(place, local_map, tmp_path):
    with serve(Flaky(file_app(place.catalog.parent), failures=3)) as files:
        with serve(Flaky(stac_app(catalog_items(place.catalog, files)), failures=2)) as api:
            done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--catalog", api))
    assert done.code == 0, done.err
    assert checksums(tmp_path / "map") == checksums(local_map)


def test_s3_gives_the_same_bytes(place, local_map, tmp_path, monkeypatch):
    with serve_s3(place.catalog.parent, "scenes") as address:
        for name, value in {
            "AWS_S3_ENDPOINT": address,
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        with serve(stac_app(catalog_items(place.catalog, "s3://scenes"))) as api:
            done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--catalog", api))
    assert done.code == 0, done.err
    assert checksums(tmp_path / "map") == checksums(local_map)


def test_a_catalogue_that_answers_html_is_one_clear_error(place, tmp_path):
    with serve(Flaky(None, garbage="<html>maintenance</html>")) as api:
        done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--catalog", f"{api}/?sig=SECRET"))
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "SECRET" not in done.err
    assert "STAC API" in done.err or "does not answer" in done.err
    assert not (tmp_path / "map").exists()


def test_a_region_without_scenes_says_what_was_looked_for(place, tmp_path):
    with serve(stac_app(catalog_items(place.catalog, "http://127.0.0.1:9"))) as api:
        flags = place.flags("-o", str(tmp_path / "map"), "--catalog", api, "--aoi", "20.0,10.0,20.02,10.02")
        done = olmoearth("embed", *flags)
    assert done.code == 2
    for word in ("sentinel-2-l2a", "2024-01-01", "0 items found", "--catalog"):
        assert word in done.err
    assert not (tmp_path / "map").exists()


def test_scenes_that_cannot_be_fetched_are_gaps_without_links(place, tmp_path):
    items = catalog_items(place.catalog, "http://127.0.0.1:9/dead")
    for item in items:
        for asset in item["assets"].values():
            asset["href"] += "?sig=SECRET"
    with serve(stac_app(items)) as api:
        flags = place.flags("-o", str(tmp_path / "map"), "--catalog", api, "--guard", "off")
        done = olmoearth("embed", *flags)
    assert done.code == 3, done.err
    record = (tmp_path / "map" / "run.json").read_text()
    assert "SECRET" not in done.err + record
    assert json.loads(record)["complete"] is False
