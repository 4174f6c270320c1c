from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from olmoearth_cli.core.model import OlmoEarthModel, random_model
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.protocol import TaskResult
from olmoearth_pipelines.tasks.published import column_name, columns_of, is_comparable, published_average, published_for
from olmoearth_pipelines.tasks.registry import TASKS
from olmoearth_pipelines.tasks.request import TaskRequest
from olmoearth_pipelines.tasks.table import Skipped, run_table, to_json, to_markdown

REPORTED = Path(__file__).parents[5] / "shared" / "spec" / "reported_results.json"
S1, S2 = "sentinel1", "sentinel2_l2a"
QUICK = TaskRequest(rounds=10, recipe={"epochs": 40, "eval_interval": 40, "lrs": (0.1,)})


@pytest.fixture(scope="module")
def nano() -> OlmoEarthModel:
    return random_model("v1.2-nano", seed=1)


@pytest.fixture(scope="module")
def reported() -> dict:
    if not REPORTED.is_file():
        pytest.skip("the specification folder ../shared/spec is not here")
    return json.loads(REPORTED.read_text(encoding="utf-8"))


@pytest.fixture
def floods(tmp_path: Path) -> Path:
    """Sen1Floods11 in its prepared layout: the right half of each tile is water, 9 dB darker."""
    generator = torch.Generator().manual_seed(0)
    home = tmp_path / "data" / "floods"
    home.mkdir(parents=True)
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        labels = torch.zeros(count, 1, 64, 64, dtype=torch.int64)
        labels[..., 32:] = 1
        noise = torch.randn(count, 2, 64, 64, generator=generator)
        torch.save({"s1": noise - 11.0 - 9.0 * labels, "labels": labels}, home / f"flood_{split}_data.pt")
    return tmp_path / "data"


def run(model: OlmoEarthModel, data: Path, request: TaskRequest, out: Path, names=None) -> list:
    reports = run_table(model, data, names, request, out=out)
    return [report for report in reports if isinstance(report, (TaskResult, Skipped))]


def test_what_is_there_is_run_and_what_is_not_is_listed(nano, floods: Path, tmp_path: Path) -> None:
    reports = run(nano, floods, QUICK, tmp_path / "out")
    assert len(reports) == 24
    (result,) = [report for report in reports if isinstance(report, TaskResult)]
    assert result.content["column"] == "Sen1Floods11 S1"
    assert result.content["test"]["miou"] > 0.8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "Sen1Floods11_S1.json",
        "table.json",
        "table.md",
    ]
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["results"][0]["test"] == result.content["test"] and len(table["skipped"]) == 23
    text = (tmp_path / "out" / "table.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| Sen1Floods11 | S1 | linear | miou |")]
    v1 = published_for("sen1floods11", (S1,), "v1-nano")[0].value
    assert row.endswith(f"| {v1:.1f} [1] |") and "[1] v1-nano: " in text
    assert "- m-eurosat S2: " in text


def test_a_finished_column_is_taken_from_the_output_folder_unless_the_settings_differ(nano, floods, tmp_path) -> None:
    out = tmp_path / "out"
    run(nano, floods, QUICK, out, ["sen1floods11"])
    path = out / "Sen1Floods11_S1.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"note": "kept"}))
    (kept,) = run(nano, floods, QUICK, out, ["sen1floods11"])
    assert kept.content["note"] == "kept"
    (anew,) = run(nano, floods, replace(QUICK, seed=1), out, ["sen1floods11"])
    assert "note" not in anew.content and json.loads(path.read_text())["seed"] == 1
    (other,) = run(random_model("v1.2-nano", seed=2), floods, replace(QUICK, seed=1), out, ["sen1floods11"])
    assert other.content["model"]["weights_sha256"] != anew.content["model"]["weights_sha256"]


def test_a_folder_without_any_benchmark_is_an_error_that_says_what_was_looked_for(nano, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing could be run. Sen1Floods11 S1: .*flood_train_data.pt"):
        run(nano, tmp_path, QUICK, tmp_path / "out", ["sen1floods11"])
    assert not (tmp_path / "out").exists()


def result(**more: object) -> dict:
    """A finished column as the table needs it."""
    row = {
        "task": "m-eurosat",
        "modalities": [S2],
        "column": "m-eurosat S2",
        "regime": "knn",
        "metric": "accuracy",
        "model": {"name": "demo", "architecture": "v1-base", "weights_sha256": "ab" * 32, "demo": True},
        "val": {"accuracy": 0.951},
        "test": {"accuracy": 0.9449},
        "bootstrap": {"metric": "accuracy", "low": 0.93, "high": 0.96},
        "settings": {"partition": None, "max_train": None, "max_samples": None},
    }
    return row | more


def test_the_table_sets_the_published_figure_beside_ours_and_names_demo_weights() -> None:
    text = to_markdown([result()], [Skipped(column="MADOS S2", why="not here")])
    assert "| m-eurosat | S2 | knn | accuracy | 95.1 | 94.5 | 93.0 to 96.0 | 94.7 [1] |" in text
    assert "[1] v1-base: v1 report (arXiv 2511.13655v1), kNN and linear probe, test" in text
    assert "Demo weights" in text and "- MADOS S2: not here" in text
    plain = result(model=result()["model"] | {"demo": False})
    assert "Demo weights" not in to_markdown([plain])
    assert to_json([plain])["results"][0]["published"] == [
        {
            "source": "v1-base: v1 report (arXiv 2511.13655v1), kNN and linear probe, test",
            "value": 94.7,
            "split": "test",
        }
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "macro_f1", "val": {"macro_f1": 0.9}, "test": {"macro_f1": 0.9}},
        {"regime": "linear"},
        {"settings": {"partition": "0.01", "max_train": None, "max_samples": None}},
        {"settings": {"partition": None, "max_train": None, "max_samples": 10}},
    ],
)
def test_no_published_figure_stands_beside_a_run_that_differs_from_the_published(change: dict) -> None:
    text = to_markdown([result(**change)])
    assert "94.7" not in text and "No published figure" in text


def test_an_interval_of_another_metric_is_not_shown() -> None:
    spread = {"metric": "micro_map", "low": 0.1, "high": 0.2}
    assert "| 95.1 | 94.5 | - |" in to_markdown([result(bootstrap=spread)])


def test_every_published_figure_of_v1_is_the_reports(reported: dict) -> None:
    table = reported["table1_knn_and_linear_probe"]
    rows = {row["model"]: row["values"] for row in table["rows"]}
    for size in ("Nano", "Tiny", "Base", "Large"):
        for task in TASKS.values():
            for modalities in columns_of(task):
                wanted = rows[f"OlmoEarth v1 {size}"][column_name(task.name, modalities)]
                assert published_for(task.name, modalities, f"v1-{size.lower()}")[0].value == wanted
        assert published_average(f"v1-{size.lower()}").value == table["average_over_24_columns"][f"OlmoEarth v1 {size}"]
    assert published_average("v1.2-tiny").value == 62.8 and published_average("v1.2-small") is None


def test_the_tasks_have_exactly_the_reports_24_columns_with_its_regimes_and_metrics(reported: dict) -> None:
    columns = [column_name(task.name, modalities) for task in TASKS.values() for modalities in columns_of(task)]
    assert sorted(columns) == sorted(row["id"] for row in reported["table1_knn_and_linear_probe"]["columns"])
    for task in TASKS.values():
        for modalities in columns_of(task):
            assert is_comparable(column_name(task.name, modalities), task.method, task.metric)


def test_v1_2_base_shows_the_ablations_validation_values_and_then_the_row_of_v1(reported: dict) -> None:
    chosen = [row for row in reported["table5_positional_encoding"]["rows"] if row["variant"] == "3D_RoPE_mixed"]
    figures = published_for("pastis", (S2,), "v1.2-base")
    assert [(figure.value, figure.split) for figure in figures] == [
        (reported["table3_ablation_v1_2_base"]["rows"][0]["PASTIS"], "val"),
        (chosen[0]["values"]["PASTIS S2"], "val"),
        (50.6, "test"),
    ]
    assert figures[-1].source.startswith("v1-base: ")
    assert [figure.value for figure in published_for("nandi", (S1,), "v1.2-base")] == [32.3, 26.5]
    assert published_for("m-eurosat", (S2,), "my-own-model") == []


def test_cashew_shows_the_patch_sizes_of_v1(reported: dict) -> None:
    by_patch = reported["v1_report_table8_cashew_patch_size"]["OlmoEarth Base"]
    figures = published_for("m-cashewplant", (S2,), "v1-base")[1:]
    assert {figure.source.rpartition(" ")[2]: figure.value for figure in figures} == {
        p: v[0] for p, v in by_patch.items()
    }
