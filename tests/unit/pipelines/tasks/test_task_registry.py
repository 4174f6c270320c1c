from __future__ import annotations

import json
from pathlib import Path

import pytest

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.registry import TASKS, find_task, open_task

S2, S1, L8 = "sentinel2_l2a", "sentinel1", "landsat"
# spec/evaluation.md 10.1, 5.2 and 2: kind, classes, side, modalities, method, metric, patch, batch, learning rate.
TABLE = {
    "m-bigearthnet": ("multilabel", 43, 120, (S2,), "knn", "f1", 4, 32, 0.1),
    "m-so2sat": ("classification", 17, 32, (S2,), "knn", "accuracy", 4, 32, 0.1),
    "m-brick-kiln": ("classification", 2, 64, (S2,), "knn", "accuracy", 4, 32, 0.1),
    "m-forestnet": ("classification", 12, 332, (L8,), "knn", "accuracy", 4, 32, 0.1),
    "m-eurosat": ("classification", 10, 64, (S2,), "knn", "accuracy", 4, 32, 0.1),
    "breizhcrops": ("classification", 9, 1, (S2,), "linear", "accuracy", 1, 128, 0.1),
    "cropharvest-togo": ("classification", 2, 1, (S2, S1), "linear", "accuracy", 1, 32, 0.1),
    "cropharvest-prc": ("classification", 2, 1, (S2, S1), "linear", "accuracy", 1, 32, 0.1),
    "m-cashewplant": ("segmentation", 7, 256, (S2,), "linear", "miou", 4, 8, 0.1),
    "m-SA-crop-type": ("segmentation", 10, 256, (S2,), "linear", "miou", 4, 8, 0.1),
    "pastis": ("segmentation", 19, 64, (S2, S1), "linear", "miou", 4, 8, 0.1),
    "mados": ("segmentation", 15, 80, (S2,), "linear", "miou", 4, 128, 0.01),
    "sen1floods11": ("segmentation", 2, 64, (S1,), "linear", "miou", 4, 128, 0.1),
    "awf": ("classification", 9, 32, (S2, S1, L8), "knn", "accuracy", 4, 32, 0.1),
    "nandi": ("classification", 6, 4, (S2, S1, L8), "knn", "accuracy", 4, 32, 0.1),
}
WITHOUT_FRACTIONS = {"breizhcrops", "cropharvest-togo", "cropharvest-prc", "awf", "nandi"}


@pytest.mark.parametrize("name", TABLE)
def test_each_row_is_that_of_the_reports_table(name) -> None:
    t = TASKS[name]
    row = (t.kind, t.classes, t.side_px, t.modalities, t.method, t.metric, t.patch_px, t.batch_size, t.lr)
    assert row == TABLE[name]
    fractions = () if name in WITHOUT_FRACTIONS else ("0.01", "0.02", "0.05", "0.10", "0.20", "0.50")
    assert t.partitions == fractions


def test_the_registry_holds_these_tasks_and_no_other() -> None:
    assert list(TASKS) == list(TABLE)


def test_the_published_table_has_the_same_tasks_methods_and_metrics() -> None:
    path = Path(__file__).parents[4].parent / "shared" / "spec" / "reported_results.json"
    if not path.is_file():
        pytest.skip("no ../shared/spec here")
    columns = json.loads(path.read_text())["table1_knn_and_linear_probe"]["columns"]
    short = {"S2": S2, "S1": S1, "L8": L8}
    methods, metrics = {"kNN": "knn", "LP": "linear"}, {"accuracy": "accuracy", "mIoU": "miou", "micro F1": "f1"}
    assert {column["task"].casefold() for column in columns} == {name.casefold() for name in TASKS}
    for column in columns:
        task = find_task(column["task"])
        assert task.method == methods[column["method"]]
        assert task.metric == metrics[column["metric"]]
        assert {short[name] for name in column["modality"].split("+")} <= set(task.modalities)


def test_an_unknown_task_gets_the_nearest_name(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no task 'm-euroset'\. Did you mean m-eurosat\?"):
        open_task("m-euroset", tmp_path)
    with pytest.raises(InputError, match="Known: m-bigearthnet, m-so2sat"):
        find_task("zzz")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("m-eurosat", r"not found: default_partition.json, band_stats.json .*classification_v1.0/m-eurosat/"),
        ("m-cashewplant", r"segmentation_v1.0/m-cashew-plant/"),
        ("breizhcrops", r"not found: classmapping.csv, 2017/L1C/frh01.csv, 2017/L1C/frh01.h5"),
        ("cropharvest-prc", r"not found: labels.geojson, features/arrays .*test_features/china-crop\*.h5"),
        ("pastis", r"not found: pastis_r_train/months.pt"),
        ("mados", r"not found: MADOS_train.pt"),
        ("sen1floods11", r"not found: flood_train_data.pt"),
        ("awf", r"not found: config.json, windows/20250822"),
        ("nandi", r"not found: config.json, windows/groundtruth_polygon_split_window_32"),
    ],
)
def test_a_wrong_folder_is_told_what_is_missing_and_what_is_expected(tmp_path, name, missing) -> None:
    with pytest.raises(
        InputError, match=rf"not the data of {name}: {missing}" if "not" in missing else missing
    ) as caught:
        open_task(name, tmp_path)
    assert "Expected layout: " in str(caught.value)
    with pytest.raises(InputError, match="there is no such folder"):
        open_task(name, tmp_path / "absent")
