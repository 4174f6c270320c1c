"""Reading labels: every format gives the same table, and what cannot be used is said so."""

from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine

from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.label_targets import natural_order
from olmoearth_cli.maps.labels import read_labels

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
REPOSITORY = Path(__file__).resolve().parents[3]
LEIPZIG = DATA / "s2-leipzig-landcover-points" / "leipzig_points.geojson"
CORSICA = DATA / "points-s1s2-monthly-corsica-2022" / "labels.csv"
CROPLAND = DATA / "s2-s1-monthly-haspengouw" / "labels" / "worldcereal_cropland_v2.tif"
UTM = rasterio.CRS.from_epsg(32631)


def shared(path):
    return pytest.param(path, marks=pytest.mark.skipif(not path.exists(), reason=f"{path} is not here"))


def frame(points=((5.0, 50.0), (5.1, 50.1), (5.2, 50.2), (5.3, 50.3)), crs=4326, **columns):
    columns = columns or {"class": ["water", "forest", "water", "built"]}
    return geopandas.GeoDataFrame(columns, geometry=[shapely.Point(p) for p in points], crs=crs)


def csv(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def numbers_file(path, **columns):
    """A GeoPackage of points with these columns."""
    count = len(next(iter(columns.values())))
    frame([(5 + i / 1000, 50) for i in range(count)], **columns).to_file(path)
    return path


def write_raster(path, values, nodata=None, **options):
    values = np.atleast_3d(np.asarray(values).T).T  # C H W
    profile = {"driver": "GTiff", "crs": UTM, "transform": Affine(10, 0, 576000, 0, -10, 5529600)} | options
    with rasterio.open(
        path,
        "w",
        dtype=values.dtype,
        count=len(values),
        height=values.shape[1],
        width=values.shape[2],
        nodata=nodata,
        **profile,
    ) as target:
        target.write(values)
    return path


def test_the_same_labels_in_every_format_give_the_same_table(tmp_path):
    source = frame()
    source.to_file(tmp_path / "a.geojson")
    source.to_crs(32631).to_file(tmp_path / "a.gpkg")
    source.to_crs(3035).to_parquet(tmp_path / "a.parquet")
    source.to_crs(32631).to_file(tmp_path / "a.shp")
    pd.DataFrame({"LON": source.geometry.x, "Lat": source.geometry.y, "class": source["class"]}).to_csv(
        tmp_path / "a.csv", index=False
    )
    for name in ("a.geojson", "a.gpkg", "a.parquet", "a.shp", "a.csv"):
        table = read_labels(tmp_path / name)
        assert (table.kind, table.field, table.class_names) == (
            "classification",
            "class",
            ("built", "forest", "water"),
        )
        assert table.targets.tolist() == [2, 1, 2, 0], name
        assert table.targets.dtype == np.int64
        assert np.allclose(shapely.get_coordinates(table.geometry), shapely.get_coordinates(source.geometry), atol=1e-8)
        assert table.columns["class"].tolist() == ["water", "forest", "water", "built"]


@pytest.mark.parametrize("header", ["longitude,latitude,v", "X,Y,v", "lng;LAT;v", "\ufefflon\tlat\tv"])
def test_coordinate_columns_go_by_several_names_and_separators(tmp_path, header):
    mark = next(c for c in ",;\t" if c in header)
    rows = "\n".join(mark.join(row) for row in (("5", "50", "a"), ("6", "51", "b")))
    table = read_labels(csv(tmp_path / "t.csv", f"{header}\n{rows}\n"))
    assert shapely.get_coordinates(table.geometry).tolist() == [[5, 50], [6, 51]]


def test_projected_x_and_y_are_not_taken_for_degrees(tmp_path):
    with pytest.raises(InputError, match=r"x \(576000 to 576010\).*no longitudes"):
        read_labels(csv(tmp_path / "t.csv", "x,y,v\n576000,5529600,a\n576010,5529610,b\n"))
    with pytest.raises(InputError, match="no columns lon and lat"):
        read_labels(csv(tmp_path / "u.csv", "east,north,v\n5,50,a\n"))
    with pytest.raises(InputError, match=r"'5,1' in row 1"):
        read_labels(csv(tmp_path / "v.csv", "lon;lat;v\n5,1;50,0;a\n"))


def test_rows_without_place_or_target_are_left_out_and_counted(tmp_path):
    path = csv(
        tmp_path / "t.csv", "lon,lat,crop,note\n5,50,maize,i\n,50,maize,j\n5.1,50,,k\n5.2,50,wheat,\n5.3,50,NA,l\n"
    )
    table = read_labels(path, field="crop")
    assert table.targets.tolist() == [0, 1]
    assert table.columns.index.tolist() == [0, 3]
    assert "1 of 5 features without a geometry left out" in table.notes
    assert "2 of 4 labels without a value in 'crop' left out" in table.notes


def test_none_is_a_class_and_blanks_around_names_are_not(tmp_path):
    table = read_labels(csv(tmp_path / "t.csv", "lon,lat,crop\n5,50,None\n5.1,50, maize\n5.2,50,maize \n"))
    assert table.class_names == ("maize", "None")
    assert table.targets.tolist() == [1, 0, 0]


def test_multipoints_become_points_that_share_their_feature(tmp_path):
    shapes = [shapely.MultiPoint([(5, 50), (5.1, 50)]), shapely.Point(5.2, 50), shapely.LineString([(5, 50), (6, 50)])]
    geopandas.GeoDataFrame({"class": ["a", "b", "a"]}, geometry=shapes, crs=4326).to_file(tmp_path / "m.geojson")
    table = read_labels(tmp_path / "m.geojson")
    assert shapely.get_coordinates(table.geometry).tolist() == [[5, 50], [5.1, 50], [5.2, 50]]
    assert table.targets.tolist() == [0, 0, 1]
    assert table.columns.index.tolist() == [0, 0, 1]
    assert any("1 LineString left out" in note for note in table.notes)


def test_invalid_polygons_are_mended_and_heights_dropped(tmp_path):
    bow = shapely.Polygon([(5, 50), (5.2, 50.2), (5.2, 50), (5, 50.2)])
    flat = shapely.Polygon([(6, 50, 9), (6.2, 50, 9), (6.2, 50.2, 9)])
    geopandas.GeoDataFrame({"class": ["a", "b"]}, geometry=[bow, flat], crs=4326).to_parquet(tmp_path / "p.parquet")
    table = read_labels(tmp_path / "p.parquet")
    assert shapely.is_valid(table.geometry).all()
    assert shapely.area(table.geometry[0]) == pytest.approx(0.02)
    assert not shapely.has_z(table.geometry).any()
    assert "1 invalid polygons mended" in table.notes


def test_a_polygon_across_the_dateline_is_cut_there(tmp_path):
    over = shapely.Polygon([(179.9, 10), (-179.9, 10), (-179.9, 10.1), (179.9, 10.1)])
    shapes = [over, over.reverse(), shapely.box(179, 10, 179.1, 10.1)]
    geopandas.GeoDataFrame({"class": ["a", "a", "b"]}, geometry=shapes, crs=4326).to_file(tmp_path / "d.gpkg")
    table = read_labels(tmp_path / "d.gpkg")
    assert shapely.area(table.geometry).tolist() == pytest.approx([0.02, 0.02, 0.01], rel=1e-5)


def test_of_several_layers_one_must_be_named(tmp_path):
    path = tmp_path / "two.gpkg"
    frame().to_file(path, layer="points")
    pyogrio.write_dataframe(pd.DataFrame({"style": ["a table without geometry"]}), path, layer="layer_styles")
    assert read_labels(path).class_names == ("built", "forest", "water")
    frame(**{"class": ["x", "y", "x", "y"]}).to_file(path, layer="others")
    with pytest.raises(InputError, match=r"2 layers.*two.gpkg#points, two.gpkg#others"):
        read_labels(path)
    assert read_labels(f"{path}#others").class_names == ("x", "y")
    with pytest.raises(InputError, match="no layer 'roads'"):
        read_labels(f"{path}#roads")


def test_the_field_is_found_by_its_name_or_asked_for(tmp_path):
    path = numbers_file(tmp_path / "f.gpkg", id=[1, 2, 3, 4], Crop=["a", "b", "a", "b"], soil=["s", "t", "t", "s"])
    table = read_labels(path)
    assert table.field == "Crop"
    assert any("--field" in note for note in table.notes)
    unknown = numbers_file(tmp_path / "g.gpkg", plant=["a", "b", "a"], soil=["s", "t", "t"], year=[2020, 2020, 2020])
    with pytest.raises(InputError, match=r"--field: plant, soil\."):
        read_labels(unknown)
    with pytest.raises(InputError, match=r"no field 'plants'. Did you mean 'plant'"):
        read_labels(unknown, field="plants")


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        ([10, 2, 2, 10], "classification", ("2", "10")),
        ([1.0, 2.0, 2.0, 1.0], "classification", ("1", "2")),
        ([1.5, 2.0, 2.0, 1.5], "regression", ()),
        ([1, 2, 3, 4], "regression", ()),
        (["7", "11", "7", "11"], "classification", ("7", "11")),
        ([True, False, True, False], "classification", ("False", "True")),
    ],
)
def test_the_kind_of_target_follows_from_the_values(tmp_path, values, kind, names):
    table = read_labels(numbers_file(tmp_path / "k.parquet.gpkg", v=values))
    assert (table.kind, table.class_names) == (kind, names)
    assert any(f"taken as {kind}" in note and "--task" in note for note in table.notes)


def test_up_to_fifty_whole_numbers_are_classes(tmp_path):
    for distinct, kind in ((50, "classification"), (51, "regression")):
        path = numbers_file(tmp_path / f"{distinct}.gpkg", v=[i % distinct for i in range(2 * distinct)])
        assert read_labels(path).kind == kind
    assert len(read_labels(tmp_path / "51.gpkg", task="classification").class_names) == 51


def test_the_task_overrules_what_the_values_look_like(tmp_path):
    path = numbers_file(tmp_path / "t.gpkg", v=[3, 1, 1, 3])
    table = read_labels(path, task="regression")
    assert table.targets.tolist() == [3.0, 1.0, 1.0, 3.0]
    assert table.targets.dtype == np.float64
    assert not any("taken as" in note for note in table.notes)
    floats = numbers_file(tmp_path / "u.gpkg", v=[0.5, 1.5, 0.5, 1.5])
    assert read_labels(floats, task="classification").class_names == ("0.5", "1.5")
    with pytest.raises(ValueError, match="task"):
        read_labels(path, task="guess")


def test_class_ids_do_not_depend_on_the_order_of_rows(tmp_path):
    names = ["class 10", "class 9", "Beta", "alpha", "class 9"]
    one = read_labels(numbers_file(tmp_path / "a.gpkg", v=names))
    other = read_labels(numbers_file(tmp_path / "b.gpkg", v=names[::-1]))
    assert one.class_names == other.class_names == ("alpha", "Beta", "class 9", "class 10")
    assert one.targets.tolist() == other.targets.tolist()[::-1] == [3, 2, 1, 0, 2]
    assert natural_order(["10", "-1", "2.5", "9"]) == ("-1", "2.5", "9", "10")
    assert natural_order(["2", "a2", "a10", "10"]) == ("2", "10", "a2", "a10")


def test_lists_of_classes_are_multi_label_only_where_the_task_says_so(tmp_path):
    path = numbers_file(tmp_path / "m.gpkg", v=["forest;water", "water", "built | forest", "forest;"])
    table = read_labels(path, task="multilabel")
    assert table.class_names == ("built", "forest", "water")
    assert table.targets.tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert table.targets.dtype == np.uint8
    plain = read_labels(path)
    assert plain.kind == "classification"
    assert any("75% of its values" in note and "--task multilabel" in note for note in plain.notes)


def test_several_fields_of_zeros_and_ones_are_multi_label(tmp_path):
    path = numbers_file(tmp_path / "m.gpkg", water=[1, 0, 1], forest=[0, 1, 1], built=[2, 0, 1])
    table = read_labels(path, field="water, forest")
    assert (table.kind, table.field, table.class_names) == ("multilabel", "forest,water", ("forest", "water"))
    assert table.targets.tolist() == [[0, 1], [1, 0], [1, 1]]
    with pytest.raises(InputError, match="'built' holds 2"):
        read_labels(path, field="water,built")
    with pytest.raises(InputError, match="not regression"):
        read_labels(path, field="water,forest", task="regression")
    with pytest.raises(InputError, match=r"no field 'forst'. Did you mean 'forest'"):
        read_labels(path, field="water,forst")
    with pytest.raises(InputError, match="several 0/1 fields"):
        read_labels(path, field="water", task="multilabel")


def test_values_that_cannot_be_learned_are_refused_with_examples(tmp_path):
    path = csv(
        tmp_path / "t.csv",
        "lon,lat,mix,one,inf,id2\n"
        + "".join(
            f"5,{50 + i / 1000},{'forest' if i else 12},wood,{'inf' if i == 3 else i / 7},n{i}\n" for i in range(60)
        ),
    )
    with pytest.raises(InputError, match=r"mixes numbers and text.*12 and 'forest'"):
        read_labels(path, field="mix")
    assert read_labels(path, field="mix", task="classification").class_names == ("12", "forest")
    with pytest.raises(InputError, match=r"one class only \('wood'\)"):
        read_labels(path, field="one")
    with pytest.raises(InputError, match="1 infinite"):
        read_labels(path, field="inf")
    with pytest.raises(InputError, match="identifiers"):
        read_labels(path, field="id2")
    with pytest.raises(InputError, match="'forest', which is no number"):
        read_labels(path, field="mix", task="regression")


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_files_that_hold_no_usable_place_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "none.gpkg")
    (tmp_path / "bad.gpkg").write_bytes(b"no database")
    with pytest.raises(InputError, match="cannot be read as labels"):
        read_labels(tmp_path / "bad.gpkg")
    frame(crs=None).to_file(tmp_path / "nocrs.shp")
    with pytest.raises(InputError, match="no coordinate reference system"):
        read_labels(tmp_path / "nocrs.shp")
    frame().iloc[:0].to_file(tmp_path / "empty.gpkg")
    with pytest.raises(InputError, match="is empty"):
        read_labels(tmp_path / "empty.gpkg")
    csv(tmp_path / "nothing.csv", "")
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "nothing.csv")
    line = geopandas.GeoDataFrame({"class": ["a"]}, geometry=[shapely.LineString([(5, 50), (6, 50)])], crs=4326)
    line.to_file(tmp_path / "line.gpkg")
    with pytest.raises(InputError, match="found 1 LineString"):
        read_labels(tmp_path / "line.gpkg")


def test_coordinates_beyond_the_globe_hint_at_a_swap(tmp_path):
    with pytest.raises(InputError, match=r"latitudes from 120 to 121 .*swapped"):
        read_labels(csv(tmp_path / "s.csv", "lon,lat,v\n10,120,a\n11,121,b\n"))
    with pytest.raises(InputError, match="longitudes from 190 to 191"):
        read_labels(csv(tmp_path / "t.csv", "lon,lat,v\n190,12,a\n191,12,b\n"))


def test_points_cannot_be_segmented(tmp_path):
    frame().to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match=r"4 points.*polygons"):
        read_labels(tmp_path / "a.gpkg", task="segmentation")


def test_a_raster_tells_its_classes_and_their_names(tmp_path):
    path = write_raster(tmp_path / "r.tif", np.array([[0, 1, 2], [2, 2, 255]], np.uint8), nodata=255)
    (tmp_path / "r.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category>bare</Category><Category>forest &amp; shrub'
        "</Category></CategoryNames></PAMRasterBand></PAMDataset>"
    )
    table = read_labels(path)
    assert (table.kind, table.raster, table.raster_band, table.raster_values) == ("classification", path, 1, (0, 1, 2))
    assert table.class_names == ("bare", "forest & shrub", "2")
    assert table.geometry is None
    assert read_labels(path, task="segmentation").kind == "segmentation"


def test_rasters_of_numbers_are_regression(tmp_path):
    heights = write_raster(tmp_path / "h.tif", np.array([[0.5, 1.0], [np.nan, 3.0]], np.float32))
    assert (read_labels(heights).kind, read_labels(heights).raster_values) == ("regression", ())
    with pytest.raises(InputError, match=r"fractions such as 0.5"):
        read_labels(heights, task="classification")
    many = write_raster(tmp_path / "m.tif", np.arange(-30, 30, dtype=np.int16).reshape(6, 10))
    assert read_labels(many).kind == "regression"
    assert read_labels(many, task="classification").raster_values == tuple(range(-30, 30))
    one = write_raster(tmp_path / "o.tif", np.ones((3, 3), np.uint8))
    with pytest.raises(InputError, match="one class only"):
        read_labels(one)
    with pytest.raises(InputError, match="no pixel with data"):
        read_labels(write_raster(tmp_path / "e.tif", np.zeros((3, 3), np.uint8), nodata=0))
    with pytest.raises(InputError, match="no coordinate reference system"):
        read_labels(write_raster(tmp_path / "c.tif", np.eye(3, dtype=np.uint8), crs=None))
    with pytest.raises(InputError, match="multilabel"):
        read_labels(one, task="multilabel")


def test_all_strips_of_a_large_raster_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("olmoearth_cli.maps.label_raster.SCANNED_PIXELS", 64)
    values = np.ones((100, 32), np.uint8)
    values[99, 31] = 7
    path = write_raster(tmp_path / "r.tif", values, blockysize=4)
    assert read_labels(path).raster_values == (1, 7)


@pytest.mark.parametrize("path", [shared(LEIPZIG)])
def test_the_leipzig_points_are_read_as_their_readme_says(path):
    table = read_labels(path)
    counts = dict(zip(table.class_names, np.bincount(table.targets).tolist(), strict=True))
    assert counts == {"forest": 28, "pasture": 20, "urban": 36, "water": 13}


@pytest.mark.parametrize("path", [shared(CORSICA)])
def test_the_corsican_parcels_have_several_fields_and_empty_crops(path):
    with pytest.raises(InputError, match="Name one with --field: ewoc_code, landcover10, croptype_fr, croptype28"):
        read_labels(path)
    table = read_labels(path, field="croptype_fr")
    assert len(table.columns) == len(table.geometry) == 307
    assert len(table.class_names) == 18
    assert read_labels(path, field="ewoc_code").kind == "classification"


@pytest.mark.parametrize("path", [shared(CROPLAND)])
def test_the_cropland_raster_is_two_classes_and_a_band_of_percentages(path):
    table = read_labels(path)
    assert (table.kind, table.field, table.raster_values) == ("classification", "cropland", (0, 1))
    assert any("band 1 (cropland) of 2" in note for note in table.notes)
    chance = read_labels(path, field="probability_cropland")
    assert (chance.kind, chance.raster_band) == ("regression", 2)
    with pytest.raises(InputError, match=r"no band 'crops'. Its bands: cropland, probability_cropland"):
        read_labels(path, field="crops")


def test_the_shipped_demo_labels_are_eight_classes():
    table = read_labels(REPOSITORY / "examples" / "demo" / "labels.geojson")
    assert (len(table.geometry), len(table.class_names)) == (257, 8)
    assert read_labels(REPOSITORY / "examples" / "demo" / "landcover.tif").raster_values == tuple(range(1, 9))
