"""Labels of one to three files: what is learned, one list of classes, and who is for training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.windows.label_set import OPEN, TEST, TRAIN, VAL, read_label_set, stem


def table(path: Path, header: str, *rows: str) -> str:
    path.write_text("\n".join([header, *rows]))
    return str(path)


@pytest.fixture
def crops(tmp_path) -> str:
    rows = [f"5.0{k},50.0,{name},{use}" for k, (name, use) in enumerate(zip("abcabc", "tttvvx", strict=True))]
    named = [row.replace(",t", ",train").replace(",v", ",Validation").replace(",x", ",test") for row in rows]
    return table(tmp_path / "crops.csv", "lon,lat,crop,use", *named)


@pytest.fixture
def raster(tmp_path) -> str:
    path = tmp_path / "cover.tif"
    profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
    with rasterio.open(path, "w", transform=Affine(10, 0, 640_000, 0, -10, 5_600_000), **profile) as out:
        out.write(np.arange(64, dtype=np.uint8).reshape(1, 8, 8) % 3)
    return str(path)


def test_classes_are_learned_pixel_by_pixel_unless_the_user_says_otherwise(crops) -> None:
    plain, asked = read_label_set(crops, field="crop"), read_label_set(crops, field="crop", kind="classification")
    assert (plain.kind, asked.kind) == ("segmentation", "classification")
    assert plain.class_names == ("a", "b", "c")
    assert plain.per_pixel and not asked.per_pixel
    assert any("--task classification" in note for note in plain.notes)


def test_numbers_are_learned_pixel_by_pixel_too(tmp_path) -> None:
    path = table(tmp_path / "n.csv", "lon,lat,height", "5,50,1.5", "5.1,50,2.5")
    found = read_label_set(path)
    assert (found.kind, found.class_names) == ("pixel_regression", ())
    assert found.labels_per_class() is None


def test_fields_of_zeros_and_ones_are_classes_of_a_window(tmp_path) -> None:
    path = table(tmp_path / "m.csv", "lon,lat,a,b", "5,50,1,0", "5.1,50,1,1", "5.2,50,0,0")
    found = read_label_set(path, field="a,b")
    assert found.kind == "multilabel"
    assert found.labels_per_class().tolist() == [2, 1]


def test_a_field_says_who_is_for_training(crops) -> None:
    found = read_label_set(crops, field="crop", split="field:use")
    assert found.sources[0].role.tolist() == [TRAIN, TRAIN, TRAIN, VAL, VAL, TEST]
    assert found.labels_per_class().tolist() == [1, 1, 1]


def test_without_such_a_field_the_labels_are_dealt_later(crops) -> None:
    assert read_label_set(crops, field="crop").sources[0].role.tolist() == [OPEN] * 6


def test_a_field_that_is_not_there_or_holds_something_else_is_refused(crops) -> None:
    with pytest.raises(InputError, match=r"no such field. Its fields: .*crop, use"):
        read_label_set(crops, field="crop", split="field:fold")
    with pytest.raises(InputError, match="holds a, b, c; its values must be train, val or test"):
        read_label_set(crops, field="crop", split="field:crop")
    with pytest.raises(InputError, match="choose spatial, random, or field:NAME"):
        read_label_set(crops, field="crop", split="folds")


def test_test_labels_of_their_own_take_the_ids_of_the_training_classes(crops, tmp_path) -> None:
    other = table(tmp_path / "test.csv", "lon,lat,crop", "6,50,c", "6.1,50,a")
    found = read_label_set(crops, field="crop", test_labels=other)
    assert [source.role.tolist() for source in found.sources] == [[TRAIN] * 6, [TEST] * 2]
    assert found.sources[1].targets.tolist() == [2, 0]


def test_classes_that_are_tested_but_not_learned_are_refused(crops, tmp_path) -> None:
    other = table(tmp_path / "test.csv", "lon,lat,crop", "6,50,c", "6.1,50,vine")
    with pytest.raises(InputError, match=r"vine: not among the classes of .*crops.csv \(a, b, c\)"):
        read_label_set(crops, field="crop", test_labels=other)
    with pytest.raises(InputError, match="both divide the labels"):
        read_label_set(crops, field="crop", test_labels=other, split="field:use")


def test_a_raster_is_learned_pixel_by_pixel_only(raster) -> None:
    found = read_label_set(raster)
    assert (found.kind, found.sparse, found.class_names) == ("segmentation", False, ("0", "1", "2"))
    with pytest.raises(InputError, match="a raster labels pixels, and --task classification"):
        read_label_set(raster, kind="classification")
    with pytest.raises(InputError, match="a raster has no fields"):
        read_label_set(raster, split="field:use")


def test_labels_near_the_poles_have_no_utm_zone(tmp_path) -> None:
    path = table(tmp_path / "p.csv", "lon,lat,c", "5,50,a", "5,86,b", "5,51,b")
    with pytest.raises(InputError, match=r"1 of 3 labels lie outside UTM .* first: feature 1"):
        read_label_set(path)


def test_polygons_without_area_are_left_out(tmp_path) -> None:
    path = tmp_path / "p.geojson"
    rings = {"a": [[5, 50], [5.1, 50], [5.1, 50.1], [5, 50]], "flat": [[5, 50], [5.5, 50], [6, 50], [5, 50]]}
    rings["b"] = [[6, 50], [6.1, 50], [6.1, 50.1], [6, 50]]
    parts = [
        {"type": "Feature", "properties": {"c": name}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        for name, ring in rings.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": parts}))
    found = read_label_set(str(path))
    assert found.sources[0].table.columns.index.tolist() == [0, 2]
    assert found.labels_per_class().tolist() == [1, 1, 0]
    assert "1 polygons without area left out" in found.notes


def test_the_digest_follows_the_content_and_not_the_file(crops, tmp_path) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_text(Path(crops).read_text())
    moved = tmp_path / "moved.csv"
    moved.write_text(Path(crops).read_text().replace("5.03", "5.04"))
    first = read_label_set(crops, field="crop")
    assert read_label_set(str(copy), field="crop").digest() == first.digest()
    assert read_label_set(str(moved), field="crop").digest() != first.digest()
    assert read_label_set(crops, field="crop", split="field:use").digest() != first.digest()
    assert read_label_set(crops, field="crop", kind="classification").digest() != first.digest()


def test_a_folder_is_named_after_the_file() -> None:
    assert [stem("a/crops.gpkg#fields"), stem("b/cover.tif")] == ["crops", "cover"]
