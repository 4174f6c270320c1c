"""Searching a real STAC API on loopback."""

from datetime import date

import pytest

from olmoearth_cli.errors import CatalogError
from olmoearth_cli.geo.aoi import read_aoi
from olmoearth_cli.geo.periods import periods
from olmoearth_pipelines import stac
from olmoearth_pipelines.scene_table import CELL_PX
from tests.servers import catalog_items, serve, stac_app

PERIODS = periods(date(2024, 1, 1), 3)


@pytest.fixture(scope="module")
def cells(place):
    ((epsg, part),) = read_aoi(place.aoi).by_zone().items()
    west, _, _, north = part.bounds
    return [(epsg, int(-north // (10 * CELL_PX)), int(west // (10 * CELL_PX)))]


def test_every_page_is_read_and_every_item_counted_once(place, cells, monkeypatch):
    items = catalog_items(place.catalog, "https://example.org")
    with serve(stac_app(items)) as api:
        whole = stac.search(cells, PERIODS, [api], None)
        monkeypatch.setattr(stac, "PAGE", 2)
        app = stac_app(items)
        with serve(app) as again:
            paged = stac.search(cells, PERIODS, [again], None)
    assert sum(whole.found.values()) == len(items) > 4
    assert paged == whole
    assert len(app.state.seen) > 2, "several pages were asked for"


def test_the_table_is_that_of_the_catalogue_on_disk(place, cells):
    on_disk = stac.search(cells, PERIODS, [str(place.catalog)], None)
    with serve(stac_app(catalog_items(place.catalog, "https://example.org"))) as api:
        served = stac.search(cells, PERIODS, [api], None)
    ids = [[[s.id for s in x.scenes] for x in table.selections] for table in (on_disk, served)]
    assert ids[0] == ids[1]


def test_radar_in_another_mode_is_left_out_and_counted(place, cells):
    items = catalog_items(place.catalog, "https://example.org")
    for item in items:
        if item["collection"] == "sentinel-1-rtc":
            item["properties"]["sar:instrument_mode"] = "EW"
    with serve(stac_app(items)) as api:
        table = stac.search(cells, PERIODS, [api], None)
        assert table.modalities == ("sentinel2_l2a",)
        assert table.rejected["not IW with VV and VH"] == 3
        with pytest.raises(CatalogError, match="3 not IW with VV and VH"):
            stac.search(cells, PERIODS, [api], ("sentinel2_l2a", "sentinel1"))


def test_a_server_that_is_not_there_is_named_without_its_token(cells):
    with pytest.raises(CatalogError, match=r"127\.0\.0\.1:9/stac: the catalogue does not answer") as caught:
        stac.search(cells, PERIODS, ["http://127.0.0.1:9/stac?key=SECRET"], None)
    assert "SECRET" not in str(caught.value)
