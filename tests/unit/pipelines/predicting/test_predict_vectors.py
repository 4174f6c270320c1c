"""Polygons of a small class map, counted by hand."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from predict_models import finetuned

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_pipelines.predicting import vectors
from olmoearth_pipelines.predicting.prediction import layout_of_task

IDS = np.array([[0, 0, 1], [0, 1, 0], [255, 2, 2]], np.uint8)
PERCENT = np.array([[90, 60, 50], [30, 70, 80], [255, 40, 41]], np.uint8)


@pytest.fixture
def layout():
    return layout_of_task(finetuned().task)


@pytest.fixture
def raster(tmp_path) -> Path:
    path = tmp_path / "map" / "classes.tif"
    path.parent.mkdir()
    form = {
        "driver": "GTiff",
        "height": 3,
        "width": 3,
        "count": 2,
        "dtype": "uint8",
        "nodata": 255,
        "crs": "EPSG:32631",
    }
    with rasterio.open(path, "w", **form, transform=Affine(10, 0, 500000, 0, -10, 5600000)) as target:
        target.write(np.stack([IDS, PERCENT]))
    return path


@pytest.mark.parametrize("window", [512, 2])
def test_a_polygon_is_pixels_of_one_class_that_share_a_side(raster, layout, monkeypatch, window):
    monkeypatch.setattr(vectors, "WINDOW", window)
    frame = vectors.polygons(raster, layout)
    rows = {(row["class"], row.area_m2, row.confidence) for _, row in frame.iterrows()}
    assert rows == {
        ("water", 300, 0.6),  # 90, 60 and 30 percent
        ("water", 100, 0.8),  # touches the other only at a corner
        ("forest", 100, 0.5),
        ("forest", 100, 0.7),
        ("crops", 200, 0.405),
    }
    assert np.array_equal(frame.area, frame.area_m2)
    assert set(frame.class_id) == {0, 1, 2}


@pytest.mark.parametrize(("name", "epsg"), [("a.gpkg", 32631), ("a.geojson", 4326), ("a.parquet", 32631)])
def test_each_format_holds_the_same_polygons(raster, layout, tmp_path, name, epsg):
    path = tmp_path / name
    assert vectors.write_vector(raster, path, layout)
    frame = geopandas.read_parquet(path) if name.endswith("parquet") else geopandas.read_file(path)
    assert frame.crs.to_epsg() == epsg
    assert sorted(frame["area_m2"]) == [100, 100, 100, 200, 300]
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, "map"], "nothing is left beside it"


def test_a_second_run_leaves_its_file_alone_and_refuses_a_strangers(raster, layout, tmp_path):
    path = tmp_path / "a.gpkg"
    vectors.write_vector(raster, path, layout)
    before = path.stat().st_mtime_ns
    vectors.check_place(path, raster.parent, overwrite=False)
    assert not vectors.write_vector(raster, path, layout)
    assert path.stat().st_mtime_ns == before
    path.write_text("mine")
    with pytest.raises(OutputError, match="there already"):
        vectors.check_place(path, raster.parent, overwrite=False)
    vectors.check_place(path, raster.parent, overwrite=True)
    with pytest.raises(OutputError, match="own index"):
        vectors.check_place(raster.parent / "index.parquet", raster.parent, overwrite=True)
    assert vectors.write_vector(raster, path, layout)


def test_values_and_unknown_endings_make_no_polygons(layout):
    with pytest.raises(InputError, match="predicts values"):
        vectors.check_vector(Path("a.gpkg"), layout_of_task(finetuned("pixel_regression").task))
    with pytest.raises(InputError, match="several labels"):
        vectors.check_vector(Path("a.gpkg"), layout_of_task(finetuned("multilabel").task))
    with pytest.raises(InputError, match=r"\.gpkg"):
        vectors.check_vector(Path("a.shp"), layout)
