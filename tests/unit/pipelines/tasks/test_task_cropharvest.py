from __future__ import annotations

import h5py
import numpy as np
import pytest
from sklearn.model_selection import train_test_split
from task_files import cropharvest

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.registry import open_task

TOGO, CHINA, OUTSIDE = (8.0, 1.0), (30.0, 110.0), (0.0, 30.0)
# Band b of month t is 100 t + b. Bands: VV VH, B2 B3 B4 B5 B6 B7 B8 B8A B9 B11 B12 at 2 ... 12, then five others.
SERIES = (100 * np.arange(12)[:, None] + np.arange(18)).astype(np.float64)
S2_COLUMNS = [2, 3, 4, 8, 5, 6, 7, 9, 11, 12, 2, 10]  # B02 B03 B04 B08 B05 B06 B07 B8A B11 B12, B01 <- B02, B09


def row(index, place, is_crop, *, is_test=False, dataset="togo") -> dict:
    lat, lon = place
    return {"index": index, "dataset": dataset, "is_crop": is_crop, "is_test": is_test, "lat": lat, "lon": lon}


def write(root, *, labels=None, test=None, absent=()) -> None:
    """Ten crops (even numbers) and ten others in Togo, one elsewhere and one test label."""
    rows = labels or [row(n, TOGO, int(n % 2 == 0)) for n in range(20)]
    rows = [*rows, row(90, OUTSIDE, 1), row(91, TOGO, 1, is_test=True)]
    arrays = {f"{r['index']}_{r['dataset']}": SERIES + r["index"] / 100 for r in rows if r["index"] not in absent}
    default = {"togo-eval": (np.stack([SERIES, SERIES + 1, SERIES + 2]), np.array([1, -1, 0]))}
    cropharvest(root, rows, arrays, default if test is None else test)


def test_bands_months_and_units_of_both_products(tmp_path) -> None:
    write(tmp_path)
    sample = next(open_task("cropharvest-togo", tmp_path).read("test"))
    optical, radar = sample.inputs["sentinel2_l2a"], sample.inputs["sentinel1"]
    assert optical.shape == (1, 1, 12, 12)
    assert radar.shape == (1, 1, 12, 2)
    assert optical[0, 0, 0].tolist() == S2_COLUMNS
    assert optical[0, 0, 11].tolist() == [1100 + column for column in S2_COLUMNS]
    assert radar[0, 0, 3].tolist() == [300, 301]
    assert sample.timestamps.tolist() == [[1, month, 2017] for month in range(12)]
    assert sample.missing == {}
    assert sample.target == 1


def test_china_uses_the_first_six_months(tmp_path) -> None:
    rows = [row(n, CHINA, n % 2, dataset="china") for n in range(10)]
    write(tmp_path, labels=rows, test={"china-crop": (SERIES[None], np.array([0]))})
    reader = open_task("cropharvest-prc", tmp_path)
    assert dict(reader.splits()) == {"train": 8, "val": 2, "test": 1}
    sample = next(reader.read("test"))
    assert sample.inputs["sentinel2_l2a"].shape == (1, 1, 6, 12)
    assert sample.inputs["sentinel1"][0, 0, -1].tolist() == [500, 501]
    assert sample.timestamps.tolist() == [[1, month, 2017] for month in range(6)]


def test_validation_is_a_stratified_fifth_of_the_countrys_training_labels(tmp_path) -> None:
    write(tmp_path, absent=(19,))
    reader = open_task("cropharvest-togo", tmp_path)
    assert dict(reader.splits()) == {"train": 15, "val": 4, "test": 2}
    # The package's order: crops, then the others; the file of label 19 is not there.
    names = [f"{n}_togo" for n in [*range(0, 20, 2), *range(1, 19, 2)]]
    labels = [1] * 10 + [0] * 9
    train, val = train_test_split(names, test_size=0.2, random_state=42, stratify=labels)
    assert [sample.id for sample in reader.read("val")] == sorted(val, key=names.index)
    got = {sample.id: sample for sample in reader.read("train")}
    assert set(got) == set(train)
    assert all(sample.target == (int(name.split("_")[0]) % 2 == 0) for name, sample in got.items())
    assert sum(int(sample.target) for sample in reader.read("val")) == 2
    name = train[0]
    assert got[name].inputs["sentinel1"][0, 0, 0, 0] == pytest.approx(int(name.split("_")[0]) / 100)


def test_unlabelled_test_pixels_are_left_out_and_ten_thousand_are_enough(tmp_path) -> None:
    x = np.zeros((10_003, 12, 18), dtype=np.float32)
    x[:, 0, 0] = np.arange(10_003)
    y = np.zeros(10_003, dtype=np.int64)
    y[1] = -1
    write(tmp_path, test={"togo-eval": (x, y)})
    reader = open_task("cropharvest-togo", tmp_path)
    assert reader.splits()["test"] == 10_000
    ids = [sample.id for sample in reader.read("test")]
    assert ids[:3] == ["togo-eval:0", "togo-eval:2", "togo-eval:3"]
    assert ids[-1] == "togo-eval:10000"


def test_statistics_are_those_of_the_normalising_file_with_the_fill(tmp_path) -> None:
    write(tmp_path)
    reader = open_task("cropharvest-togo", tmp_path)
    assert reader.statistics("sentinel2_l2a") is None
    with h5py.File(tmp_path / "features" / "normalizing_dict.h5", "w") as file:
        file.create_dataset("mean", data=np.arange(18.0))
        file.create_dataset("std", data=np.arange(18.0) * 2)
    table = reader.statistics("sentinel2_l2a")
    assert table.mean.tolist() == S2_COLUMNS
    assert table.std.tolist() == [2 * column for column in S2_COLUMNS]
    assert table.minimum is None
    assert reader.statistics("sentinel1").mean.tolist() == [0, 1]
    assert reader.statistics("landsat") is None


def test_a_label_file_name_that_leaves_the_folder_is_refused(tmp_path) -> None:
    rows = [row(n, TOGO, n % 2) for n in range(6)]
    write(tmp_path, labels=rows)
    text = (tmp_path / "labels.geojson").read_text().replace('"dataset": "togo"', '"dataset": "/../../x"', 1)
    (tmp_path / "labels.geojson").write_text(text)
    with pytest.raises(InputError, match="no plain file name"):
        open_task("cropharvest-togo", tmp_path).splits()


def test_one_class_alone_cannot_be_split_and_says_so(tmp_path) -> None:
    write(tmp_path, labels=[row(n, TOGO, 1) for n in range(4)])
    with pytest.raises(InputError, match="4 crop and 0 other training files"):
        open_task("cropharvest-togo", tmp_path).splits()


def test_there_are_no_label_fractions(tmp_path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match="published without label fractions"):
        next(open_task("cropharvest-togo", tmp_path).read("train", "0.01"))
