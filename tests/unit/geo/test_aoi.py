import json

import geopandas
import pytest
import shapely
from pyproj import Geod

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.aoi import read_aoi
from olmoearth_cli.geo.tiles import Windowing, blocks_of


def geojson(path, *geometries):
    features = [
        {"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(g)) if g is not None else None}
        for g in geometries
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


SQUARE = shapely.box(5.3, 50.6, 5.32, 50.61)


def test_a_box_on_the_command_line():
    aoi = read_aoi("5.3,50.6,5.32,50.61")
    expected = abs(Geod(ellps="WGS84").geometry_area_perimeter(SQUARE)[0]) / 1e6
    assert aoi.area_km2 == pytest.approx(expected)
    assert aoi.name == "bbox_5_3_50_6_5_32_50_61"
    assert set(aoi.by_zone()) == {32631}


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "parquet"])
def test_formats_and_projections_give_the_same_region(tmp_path, suffix):
    frame = geopandas.GeoDataFrame(geometry=[SQUARE], crs=4326).to_crs(3035 if suffix != "geojson" else 4326)
    path = tmp_path / f"my region.{suffix}"
    frame.to_parquet(path) if suffix == "parquet" else frame.to_file(path)
    aoi = read_aoi(path)
    assert aoi.name == "my_region"
    assert shapely.symmetric_difference(aoi.geometry, SQUARE).area < 1e-8


def test_several_polygons_and_holes_stay(tmp_path):
    ring = SQUARE.difference(shapely.box(5.305, 50.602, 5.315, 50.608))
    path = geojson(tmp_path / "a.geojson", ring, shapely.box(5.4, 50.6, 5.41, 50.61), shapely.Point(0, 0))
    aoi = read_aoi(path)
    assert len(aoi.geometry.geoms) == 2
    assert not shapely.contains(aoi.geometry, shapely.Point(5.31, 50.605))


def test_a_bow_tie_is_mended(tmp_path):
    bow = shapely.Polygon([(5.3, 50.6), (5.32, 50.61), (5.32, 50.6), (5.3, 50.61)])
    aoi = read_aoi(geojson(tmp_path / "a.geojson", bow))
    assert aoi.geometry.is_valid
    assert aoi.area_km2 == pytest.approx(read_aoi("5.3,50.6,5.32,50.61").area_km2 / 2, rel=1e-3)


ACROSS = [
    "179.99,-16.5,-179.99,-16.49",
    shapely.box(179.99, -16.5, 180.01, -16.49),
    shapely.box(-180.01, -16.5, -179.99, -16.49),
    shapely.Polygon([(179.99, -16.5), (-179.99, -16.5), (-179.99, -16.49), (179.99, -16.49)]),
    shapely.MultiPolygon([shapely.box(179.99, -16.5, 180, -16.49), shapely.box(-180, -16.5, -179.99, -16.49)]),
]


@pytest.mark.parametrize("drawn", ACROSS, ids=["box", "beyond 180", "below -180", "jumping", "divided"])
def test_every_way_to_draw_over_the_dateline_is_the_same_region(tmp_path, drawn):
    aoi = read_aoi(drawn if isinstance(drawn, str) else geojson(tmp_path / "a.geojson", drawn))
    west, _, east, _ = aoi.geometry.bounds
    assert (west, east) == (-180, 180)
    assert aoi.area_km2 == pytest.approx(2.36, rel=0.02)
    blocks = blocks_of(aoi, Windowing(window_px=64, overlap_px=32, patch_px=4).block_px)
    assert set(blocks) == {32701, 32760}
    assert sum(map(len, blocks.values())) < 80


def test_a_region_on_the_equator_lies_in_two_zones():
    assert set(read_aoi("17.99,-0.01,18.01,0.01").by_zone()) == {32633, 32733, 32634, 32734}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3", "four numbers"),
        ("5,50,5,51", "empty"),
        ("5,51,6,50", "minx,miny,maxx,maxy"),
        ("5,nan,6,51", "four numbers"),
        ("5,84,6,86", "84"),
        ("5,-85,6,-79", "-80"),
        ("5,50,6,120", "beyond 90"),
        ("nowhere.geojson", "no such file"),
    ],
)
def test_boxes_and_files_that_cannot_be_used_say_why(text, words):
    with pytest.raises(InputError, match=words):
        read_aoi(text)


def test_files_without_a_polygon_say_what_they_hold(tmp_path):
    cases = {
        "points": ([shapely.Point(5, 50), shapely.Point(6, 50)], "2 Point"),
        "line": ([shapely.LineString([(5, 50), (6, 50)])], "1 LineString"),
        "empty": ([], "no geometry"),
        "none": ([None], "every geometry is empty"),
        "flat": ([shapely.Polygon([(5, 50), (6, 51), (5, 50)])], "nothing is left"),
    }
    for name, (geometries, words) in cases.items():
        with pytest.raises(InputError, match=words):
            read_aoi(geojson(tmp_path / f"{name}.geojson", *geometries))


def test_garbage_and_a_missing_crs_are_refused(tmp_path):
    (tmp_path / "a.geojson").write_text("{not json")
    with pytest.raises(InputError, match="cannot be read"):
        read_aoi(tmp_path / "a.geojson")
    geopandas.GeoDataFrame(geometry=[SQUARE]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match="no coordinate reference system"):
        read_aoi(tmp_path / "b.parquet")
