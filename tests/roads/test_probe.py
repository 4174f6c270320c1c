"""`olmoearth probe` as users run it: a map, labels, figures, and what is made of them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio

from tests.roads.conftest import olmoearth
from tests.unit.pipelines.tasks.task_files import geobench_sample, geobench_tables


@pytest.fixture(scope="module")
def mapped(place, tmp_path_factory) -> Path:
    """A folder as a user has it after `embed`: one map, one file of labels."""
    folder = tmp_path_factory.mktemp("mapped")
    done = olmoearth("embed", *place.flags("-o", str(folder / "embeddings" / "place"), "--quiet"))
    assert done.code == 0, done.err
    shutil.copy(place.folder / "labels.geojson", folder)
    shutil.copy(place.folder / "landcover.tif", folder)
    return folder


def test_bare_it_takes_the_only_map_and_labels_and_says_what_they_are_worth(mapped, here):
    done = here("probe", "knn", "--json", cwd=mapped)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["probe"] == "knn"
    assert report["metric"] == "accuracy"
    assert report["low"] <= report["value"] <= report["high"]
    assert [b["name"] for b in report["baselines"]] == ["raw bands", "majority class"]
    assert report["split"]["how"] == "spatial"
    assert report["demo"] is True
    assert sum(report["class_counts"]) == report["samples"]
    assert np.sum(report["confusion"]) == report["samples"]
    assert "labels: labels.geojson" in done.err
    assert "DEMO WEIGHTS" in here("probe", "knn", "--raw", "no", cwd=mapped).out


def test_the_same_question_has_the_same_answer(mapped, here):
    first, second = (here("probe", "linear", "--raw", "no", "--json", cwd=mapped) for _ in range(2))
    a, b = json.loads(first.out), json.loads(second.out)
    a.pop("seconds"), b.pop("seconds")
    assert a == b


def test_it_leaves_a_class_map_a_probe_a_page_and_places_to_label(mapped, tmp_path, here):
    flags = ["--predict", "c.tif", "--save", "p.safetensors", "--report", "r.html", "--where-to-label", "5"]
    done = here("probe", "linear", *flags, "--raw", "no", "--json", cwd=copied(mapped, tmp_path))
    assert done.code == 0, done.err
    report = json.loads(done.out)
    with rasterio.open(tmp_path / "place" / "c.tif") as classes:
        ids, confidence = classes.read()
        assert classes.nodata == 255
    known = ids != 255
    assert set(np.unique(ids[known])) <= set(range(len(report["class_names"])))
    assert confidence[known].max() <= 100
    places = json.loads((tmp_path / "place" / "where-to-label.geojson").read_text())["features"]
    assert len(places) == 5
    page = (tmp_path / "place" / "r.html").read_text()
    assert "DEMO WEIGHTS" in page and all(name in page for name in report["class_names"])
    again = here("probe", "linear", *flags, "--raw", "no", "--json", cwd=tmp_path / "place")
    assert json.loads(again.out)["predict"]["unchanged"] is True


def test_a_map_that_is_half_finished_serves_with_what_it_has(mapped, tmp_path, here):
    folder = copied(mapped, tmp_path)
    tiles = sorted((folder / "embeddings" / "place" / "items").glob("*.json"))
    assert len(tiles) > 1
    tiles[0].unlink()
    (folder / "embeddings" / "place" / "run.json").unlink()
    done = here("probe", "knn", "--raw", "no", "--json", cwd=folder)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert any("not finished" in line or "half" in line or "complete" in line for line in report["warnings"]), report
    whole = json.loads(here("probe", "knn", "--raw", "no", "--json", cwd=mapped).out)
    assert report["samples"] < whole["samples"]


def test_a_raster_of_labels_can_be_segmented(mapped, tmp_path, here):
    flags = ["--labels", "landcover.tif", "--task", "segmentation", "--max-cells", "300", "--raw", "no", "--json"]
    done = here("probe", "knn", *flags, "--predict", str(tmp_path / "s.tif"), cwd=mapped)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["metric"] == "miou"
    assert 250 < report["samples"] <= 300
    with rasterio.open(tmp_path / "s.tif") as classes:
        assert classes.res == (10, 10)  # pixels, not cells


def test_settings_come_from_the_file_of_the_folder(mapped, tmp_path, here):
    folder = copied(mapped, tmp_path)
    (folder / "olmoearth.toml").write_text('[probe]\nraw = "no"\nsplit = "random"\n[probe.knn]\nk = 3\n')
    report = json.loads(here("probe", "knn", "--json", cwd=folder).out)
    assert report["k"] == 3
    assert report["split"]["how"] == "random"
    assert any("--split spatial" in line for line in report["warnings"]), report["warnings"]


def test_vectors_named_as_scikit_learn_does_are_understood(tmp_path, here):
    ids = np.arange(30) % 2
    np.savez(tmp_path / "v.npz", X=np.eye(4)[ids] + np.linspace(0, 0.1, 120).reshape(30, 4), y=ids)
    flags = ["probe", "knn", "--vectors", "v.npz", "-k", "3", "--json"]
    done = here(*flags, cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["field"] == "y"


def test_vectors_with_places_that_are_none_are_refused(tmp_path, here):
    ids = np.arange(30) % 2
    np.savez(tmp_path / "v.npz", vectors=np.eye(4)[ids], crop=ids, lon=np.full(30, 500.0), lat=np.zeros(30))
    table = pd.DataFrame({"vectors": list(np.eye(4)[ids]), "crop": ids, "geometry": "somewhere"})
    table.to_parquet(tmp_path / "v.parquet")
    for file, words in (("v.npz", "no longitudes and latitudes"), ("v.parquet", "no GeoParquet")):
        done = here("probe", "knn", "--vectors", file, cwd=tmp_path)
        assert done.code == 2
        assert words in done.err


def test_vectors_without_a_map_are_judged_on_the_field_that_divides_them(tmp_path, here):
    rng = np.random.default_rng(0)
    ids = np.arange(60) % 2
    vectors = rng.normal(size=(60, 6)) + 8 * np.eye(6)[ids]
    fold = np.array(["train", "val", "test"])[np.arange(60) // 2 % 3]
    np.savez(tmp_path / "v.npz", vectors=vectors, crop=np.array(["maize", "wheat"])[ids], fold=fold)
    flags = ["--vectors", "v.npz", "--field", "crop", "--split", "field:fold", "-k", "5", "--json"]
    done = here("probe", "knn", *flags, cwd=tmp_path)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["value"] == 1.0
    assert np.sum(report["confusion"]) == 20
    assert report["map"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--labels", "nowhere.gpkg"], ["nowhere.gpkg"]),
        (["--map", "nowhere"], ["nowhere", "no such folder"]),
        (["--field", "clas"], ["'clas'", "Did you mean 'class'?"]),
        (["--split", "fields:x"], ["--split fields:x", "field:NAME"]),
        (["--split", "field:nowhere"], ["nowhere"]),
        (["--labels", "far.csv"], ["far.csv", "none of the 3 labels", "-61, 10, -60, 11"]),
        (["--labels", "one.csv"], ["one class only", "'a'"]),
        (["--labels", "mixed.csv"], ["mixes numbers and text"]),
        (["--predict", "classes.png"], ["--predict classes.png", ".tif"]),
        (["--report", "gone/", "--raw", "no"], [".html"]),
        (["--vectors", "v.npz"], ["v.npz"]),
        (["--vectors", "v.npz", "--labels", "labels.geojson"], ["--vectors", "--labels"]),
        (["--task", "regression"], ["no number"]),
        (["--task", "m-eurosta", "--data", "."], ["m-eurosta", "m-eurosat"]),
        (["--task", "m-eurosat"], ["--data"]),
        (["--task", "m-eurosat", "--data", "."], ["m-eurosat", "band_stats.json"]),
        (["--metric", "miou"], ["miou", "accuracy"]),
        (["--pca", "4", "--no-sweep"], ["--no-sweep, --pca", "for benchmarks only"]),
        (["--task", "m-eurosat", "--data", ".", "--save", "p.safetensors"], ["leave --save out"]),
        (["--predict", "landcover.tif", "--save", "p.safetensors"], ["landcover.tif", "no class map", "--overwrite"]),
        (["--where-to-label", "3"], ["where-to-label.geojson", "1 of its 1 places"]),
        (["--labels", "latin.csv"], ["latin.csv", "UTF-8"]),
    ],
)
def test_bad_input_is_one_message_and_leaves_no_file(mapped, tmp_path, flags, words, here):
    folder = copied(mapped, tmp_path)
    write_csv(folder / "far.csv", [("a", -60, 10), ("b", -60, 11), ("a", -61, 10)])
    inside = json.loads((folder / "labels.geojson").read_text())["features"][0]["geometry"]["coordinates"]
    write_csv(folder / "one.csv", [("a", *inside)] * 3)
    write_csv(folder / "mixed.csv", [("1", *inside), ("b", *inside)])
    (folder / "latin.csv").write_text("class,lon,lat\nGebäude,5,50\n", encoding="latin-1")
    filled = {"type": "Feature", "geometry": None, "properties": {"rank": 1, "class": "water"}}
    (folder / "where-to-label.geojson").write_text(json.dumps({"features": [filled]}))
    if not {"--labels", "--vectors", "--data"} & set(flags) and "m-eurosat" not in flags:
        flags = [*flags, "--labels", "labels.geojson"]
    before = sorted(path for path in folder.rglob("*"))
    done = here("probe", "knn", *flags, cwd=folder)
    assert done.code == 2, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert sorted(path for path in folder.rglob("*")) == before


def test_the_dice_loss_of_labels_without_pixels_is_refused(mapped, tmp_path, here):
    folder = copied(mapped, tmp_path)
    done = here("probe", "linear", "--dice", cwd=folder)
    assert done.code == 2
    assert "--dice is for --task segmentation, not for classification" in done.err


def test_the_same_map_is_found_again_whatever_figures_were_asked_for(mapped, tmp_path, here):
    folder = copied(mapped, tmp_path)
    flags = ["probe", "knn", "--raw", "no", "--predict", "c.tif", "--json"]
    first, again = (here(*flags, "--bootstrap", rounds, cwd=folder) for rounds in ("100", "0"))
    assert (first.code, again.code) == (0, 0), again.err
    assert json.loads(again.out)["predict"]["unchanged"]
    assert not list(folder.glob(".*"))


def test_a_benchmark_task_is_run_and_tabled_beside_the_published_figures(tmp_path, model_folder, here):
    write_eurosat(tmp_path / "geobench" / "classification_v1.0" / "m-eurosat")
    common = ["--data", str(tmp_path), "--model", str(model_folder), "--device", "cpu", "--patch-size", "8"]
    done = here(
        "probe",
        "knn",
        "--task",
        "m-eurosat",
        "--data",
        str(tmp_path / "geobench"),
        *common[2:],
        "-k",
        "3",
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    assert "m-eurosat" in done.out and "accuracy" in done.out
    table = here(
        "probe", "table", *common, "--tasks", "m-eurosat,pastis", "-o", str(tmp_path / "t"), "--json", cwd=tmp_path
    )
    assert table.code == 0, table.err
    rows = json.loads(table.out)
    assert [row["column"] for row in rows["results"]] == ["m-eurosat S2"]
    assert rows["results"][0]["split_sizes"] == {"train": 12, "val": 6, "test": 6}
    assert {skipped["column"] for skipped in rows["skipped"]} >= {"PASTIS S2"}
    assert (tmp_path / "t" / "table.md").read_text().count("m-eurosat") == 1


def copied(mapped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mapped, tmp_path / "place"))


def write_csv(path: Path, rows: list[tuple]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "lon", "lat"])
        writer.writerows(rows)


def write_eurosat(folder: Path) -> None:
    """Twenty-four samples of 64 x 64 pixels in GEO-Bench's format, three classes that brightness tells apart."""
    names = [f"B{i}" for i in range(24)]
    bands = ["01 - Coastal aerosol", "02 - Blue", "03 - Green", "04 - Red", "05 - Vegetation Red Edge"]
    bands += ["06 - Vegetation Red Edge", "07 - Vegetation Red Edge", "08 - NIR", "08A - Vegetation Red Edge"]
    bands += ["09 - Water vapour", "10 - SWIR - Cirrus", "11 - SWIR", "12 - SWIR"]
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        planes = {band: rng.normal(800 + 300 * (i % 3), 40, (64, 64)).clip(1).astype(np.uint16) for band in bands}
        geobench_sample(folder, name, planes, label=i % 3)
    splits = {"train": names[:12], "valid": names[12:18], "test": names[18:]}
    geobench_tables(folder, {band: 2000.0 for band in bands}, splits, {})
