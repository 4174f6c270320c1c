"""Maps as one COG: every pixel where it belongs, in any reference system, clipped, whole or absent."""

from __future__ import annotations

import tracemalloc

import coded_maps as cm
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rio_cogeo.cogeo import cog_validate

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.maps.embedding_map import write_gap
from olmoearth_pipelines import export_map
from olmoearth_pipelines.export_map import MapReport, MapRequest
from olmoearth_pipelines.exporting import source, to_parquet


def export(emap, out, **changes) -> MapReport:
    return export_map.run(MapRequest(map=emap.folder, to=out, **changes), lambda *_: None)


def zone_coordinates(raster, epsg: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column (with fractions) in cells of a zone, of every pixel's centre."""
    row, col = np.mgrid[: raster.height, : raster.width]
    geo = raster.transform
    x, y = geo.c + geo.a * (col + 0.5), geo.f + geo.e * (row + 0.5)
    east, north = Transformer.from_crs(raster.crs.to_wkt(), epsg, always_xy=True).transform(x, y)
    return -north / 40, east / 40


@pytest.fixture
def emap(tmp_path):
    """Three of four squares, and a gap."""
    boxes = cm.tiles(2, 2)
    made = cm.make_map(tmp_path / "map", boxes[:3], complete=False)
    write_gap(tmp_path / "map", cm.spec(), "gap", boxes[3], "no imagery")
    return type(made).open(tmp_path / "map")


def test_the_cog_holds_every_code_in_its_place_with_names_scales_and_no_data(emap, tmp_path) -> None:
    report = export(emap, tmp_path / "out" / "map.tif")
    first = cm.tiles(1, 1)[0]
    wanted = cm.codes_of(PixelBox(first.epsg, first.row0, first.col0, first.row0 + 192, first.col0 + 192))
    wanted[24:, 24:] = -128
    with rasterio.open(tmp_path / "out" / "map.tif") as raster:
        assert np.array_equal(raster.read(), np.moveaxis(wanted, -1, 0))
        assert raster.transform.to_gdal() == (576000.0, 40.0, 0.0, 5529600.0, 0.0, -40.0)
        assert (raster.dtypes, raster.nodatavals) == (("int8",) * 3, (-128.0,) * 3)
        assert (raster.scales, raster.offsets) == (cm.SCALE, cm.OFFSET)
        assert raster.descriptions == ("e000", "e001", "e002")
        assert raster.tags()["EMB_WEIGHTS_SHA256"] == "cd" * 32
    assert cog_validate(tmp_path / "out" / "map.tif")[0]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["map.tif"]
    assert (report.tiles, report.gaps, report.complete) == (3, 1, False)
    assert "half finished" in report.notes[0]
    assert report.layers[0]["cells"] == int((wanted[..., 0] != -128).sum())


def test_float32_holds_the_vectors_that_the_codes_stand_for(emap, tmp_path) -> None:
    export(emap, tmp_path / "map.tif", dtype="float32")
    with rasterio.open(tmp_path / "map.tif") as raster:
        found = np.moveaxis(raster.read(), 0, -1)[:24, :24]
        assert np.isnan(raster.nodata) and raster.scales == (1.0,) * 3
    assert np.array_equal(found, cm.decoded(cm.codes_of(cm.tiles(1, 1)[0])), equal_nan=True)


@pytest.mark.parametrize("epsg", [3035, 4326, 32632])
def test_another_reference_system_gets_the_nearest_cell_and_never_a_mixture(emap, tmp_path, epsg) -> None:
    report = export(emap, tmp_path / "map.tif", epsg=epsg)
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.crs.to_epsg() == epsg == report.layers[0]["epsg"]
        row, col = zone_coordinates(raster, 32631)
        found = np.moveaxis(raster.read(), 0, -1)
    i, j = np.floor(row).astype(int), np.floor(col).astype(int)
    box = cm.tiles(1, 1)[0]
    y, x = i - box.row0 // 4, j - box.col0 // 4
    on_map = (y >= 0) & (x >= 0) & (y < 48) & (x < 48) & ~((y >= 24) & (x >= 24))
    wanted = np.where(on_map[..., None], cm.codes_at(i, j), -128)
    clear = (np.abs(row % 1 - 0.5) < 0.499) & (np.abs(col % 1 - 0.5) < 0.499)  # not on a border of two cells
    assert clear.mean() > 0.99
    assert np.array_equal(found[clear], wanted[clear])
    assert (found[..., 0] != -128).sum() > 1000


def test_a_coarser_resolution_takes_every_nth_cell(emap, tmp_path) -> None:
    export(emap, tmp_path / "map.tif", resolution=120.0)
    with rasterio.open(tmp_path / "map.tif") as raster:
        row, col = zone_coordinates(raster, 32631)
        found = np.moveaxis(raster.read(), 0, -1)
        assert raster.transform.a == 120
        assert (raster.transform.c % 120, raster.transform.f % 120) == (0, 0)
    known = found[..., 0] != -128
    wanted = cm.codes_at(np.floor(row).astype(int), np.floor(col).astype(int))
    assert known.sum() > 100
    assert np.array_equal(found[known], wanted[known])


def test_a_region_keeps_the_cells_whose_centre_lies_inside(emap, tmp_path) -> None:
    # A triangle in metres of the zone, as the user's longitudes and latitudes.
    triangle = shapely.Polygon([(576_130, 5_529_470), (577_700, 5_529_330), (576_400, 5_528_100)])
    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True)
    region = tmp_path / "region.geojson"
    dense = shapely.segmentize(triangle, 20)
    region.write_text(shapely.to_geojson(shapely.transform(dense, to_degrees.transform, interleaved=False)))
    report = export(emap, tmp_path / "map.tif", aoi=str(region))
    with rasterio.open(tmp_path / "map.tif") as raster:
        found = np.moveaxis(raster.read(), 0, -1)
        row, col = zone_coordinates(raster, 32631)
        assert raster.bounds.left >= 576_120 and raster.bounds.right <= 577_720
    inside = shapely.contains_xy(triangle, col * 40, -row * 40)
    wanted = np.where(inside[..., None], cm.codes_at(np.floor(row).astype(int), np.floor(col).astype(int)), -128)
    assert np.array_equal(found, wanted)
    assert report.layers[0]["cells"] == int((wanted[..., 0] != -128).sum()) > 300


def zone_pair() -> list[PixelBox]:
    """Two tiles of zone 31 and one of zone 32 that overlaps them by half a tile, at 52 degrees north and 6 east."""
    found = []
    for epsg, lon, count in ((32631, 5.995, 2), (32632, 5.99, 1)):
        x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, 52)
        found += [square(epsg, 96, int(-y // 960), int(x // 960) + k) for k in range(count)]
    return found


def test_two_zones_become_one_raster_in_which_the_main_zone_wins(tmp_path) -> None:
    emap = cm.make_map(tmp_path / "map", zone_pair(), thirds=[1, 1, 2])
    export(emap, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.crs.to_epsg() == 32631
        third = raster.read(3)
        row, col = zone_coordinates(raster, 32631)
    main = np.zeros(third.shape, dtype=bool)
    for box in zone_pair()[:2]:
        main |= (row * 4 > box.row0) & (row * 4 < box.row1) & (col * 4 > box.col0) & (col * 4 < box.col1)
    assert set(np.unique(third).tolist()) == {-128, 1, 2}
    own = cm.codes_at(np.floor(row).astype(int), np.floor(col).astype(int))[..., 2]
    assert (third[main & (own != -128)] == 1).all()
    assert set(np.unique(third[~main]).tolist()) == {-128, 2}


def test_zones_far_apart_need_a_reference_system_for_all(tmp_path) -> None:
    emap = cm.make_map(tmp_path / "map", [*cm.tiles(1, 1), *cm.tiles(1, 1, epsg=32634)])
    with pytest.raises(InputError, match=r"EPSG:32634.*--epsg"):
        export(emap, tmp_path / "map.tif")
    report = export(emap, tmp_path / "map.tif", epsg=4326, resolution=0.001)
    assert report.layers[0]["cells"] > 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsg": 999999}, "999999"),
        ({"epsg": 4978}, "plane"),
        ({"resolution": 0.0}, "above 0"),
        ({"epsg": 3035, "resolution": 0.0004}, "larger one"),
        ({"shard": True}, "--shard"),
        ({"geometry": "cell"}, "--geometry"),
        ({"format": "netcdf"}, "zarr"),
        ({"aoi": "100,0,101,1"}, "does not meet the map"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(emap, tmp_path, changes, words) -> None:
    out = tmp_path / "out" / "map.tif"
    with pytest.raises(InputError, match=words):
        export(emap, out, **changes)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_float32_map_has_no_rule_for_int8(tmp_path) -> None:
    emap = cm.make_map(tmp_path / "map", cm.tiles(1, 1), dtype="float32", scale=None, offset=None)
    with pytest.raises(InputError, match="belongs to the model"):
        export(emap, tmp_path / "map.tif", dtype="int8")


def test_a_damaged_tile_stops_the_export_and_keeps_the_older_file(emap, tmp_path) -> None:
    out = tmp_path / "out" / "map.tif"
    export(emap, out)
    before = out.read_bytes()
    damaged = emap.tiles[-1].path
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with pytest.raises(InputError, match=damaged.name):
        export(emap, out, overwrite=True)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["map.tif"]


def test_a_folder_or_an_older_file_is_not_replaced_unasked(emap, tmp_path) -> None:
    (tmp_path / "map.tif").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        export(emap, tmp_path / "map.tif", overwrite=True)
    export(emap, tmp_path / "other.tif")
    with pytest.raises(OutputError, match="--overwrite"):
        export(emap, tmp_path / "other.tif")


@pytest.mark.parametrize("ending", ["tif", "zarr", "parquet"])
def test_memory_does_not_grow_with_the_map(tmp_path, monkeypatch, ending) -> None:
    # Windows and row groups that are far smaller than either map.
    monkeypatch.setattr(source, "WINDOW_BYTES", 100_000)
    monkeypatch.setattr(source, "block_side", lambda *_: 32)
    monkeypatch.setattr(to_parquet, "ROW_GROUP_BYTES", 100_000)
    peaks = []
    for side in (2, 4):
        boxes = [square(32631, 512, -1080 + i, 112 + j) for i in range(side) for j in range(side)]
        emap = cm.make_map(tmp_path / f"map{side}", boxes, repeats=16)
        if not peaks:
            export(emap, tmp_path / f"first.{ending}")  # what is imported and cached counts for none
        tracemalloc.start()
        export(emap, tmp_path / f"map{side}.{ending}", threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = (16 - 4) * 128 * 128 * 48
    assert peaks[1] - peaks[0] < grown / 4, peaks
