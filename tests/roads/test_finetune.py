"""`olmoearth finetune` as users run it: labels and a catalogue in a folder, a checkpoint and a page out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from olmoearth_cli.core.finetune.saved import load_finetuned
from tests.html_page import Page
from tests.roads.conftest import Finished, olmoearth

SETTINGS = """
[embed]
catalog = "catalog/catalog.json"
start = 2024-01-01
periods = 3
model = "model"

[finetune]
epochs = 2
window = 16
patch_size = 8
block_km = 0.4
bootstrap = 20
recipe = "head"
device = "cpu"
"""


def make_user(place, folder: Path) -> Path:
    """Labels, imagery, a model and settings, and nothing else."""
    shutil.copytree(place.catalog.parent, folder / "catalog")
    shutil.copytree(place.model, folder / "model")
    shutil.copy(place.folder / "labels.geojson", folder)
    (folder / "olmoearth.toml").write_text(SETTINGS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(place, tmp_path_factory) -> Path:
    return make_user(place, tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def trained(folder) -> Finished:
    return olmoearth("finetune", cwd=folder)


def test_bare_it_makes_a_checkpoint_and_a_page_and_says_what_it_inferred(folder, trained) -> None:
    assert trained.code == 0, trained.err
    assert trained.out == "runs/labels\n"
    for part in (
        *("labels: labels.geojson (the only ones here)", "learning segmentation", "training: loss", "epoch, 2 of 2"),
        *("raw bands, kNN", "warning: DEMO WEIGHTS", "report: runs/labels/report.html"),
        *("next: olmoearth predict --model runs/labels --aoi region.geojson",),
    ):
        assert part in trained.err, part
    kept = load_finetuned(folder / "runs" / "labels")
    assert kept.task.field == "class" and kept.task.window_px == 16 and kept.task.head.patch_px == 8
    page = Page((folder / "runs" / "labels" / "report.html").read_text(encoding="utf-8"))
    assert all(name in page.text for name in kept.task.class_names) and page.all("svg", "map")


def test_the_same_command_again_reads_no_catalogue_and_gives_the_same_report(folder, trained, here) -> None:
    assert trained.code == 0, trained.err
    (folder / "catalog").rename(folder / "away")
    try:
        done = here("finetune", "--json", cwd=folder)
    finally:
        (folder / "away").rename(folder / "catalog")
    assert done.code == 0, done.err
    report = json.loads(done.out, parse_constant=pytest.fail)
    assert report["unchanged"] is True and report["out"] == "runs/labels" and report["demo"] is True
    assert report["page"] == "runs/labels/report.html"
    assert len(report["legs"][0]["epochs"]) == 2 and report["recipe"] == "head only"
    assert "as cut before" in done.err and "nothing to do" in done.err


def test_a_page_that_is_missing_is_written_again_with_its_pictures(folder, trained, here) -> None:
    assert trained.code == 0, trained.err
    run = folder / "runs" / "labels"
    notes = json.loads((run / "report.json").read_text(encoding="utf-8"))["notes"]
    assert any("learning segmentation" in note for note in notes)
    page = (run / "report.html").read_bytes()
    assert b"Samples" in page
    (run / "report.html").unlink()
    done = here("finetune", "-q", cwd=folder)
    assert done.code == 0, done.err
    assert (run / "report.html").read_bytes() == page


def test_a_plan_counts_windows_and_steps_and_writes_nothing(place, tmp_path, here) -> None:
    made = make_user(place, tmp_path)
    before = {path.name for path in made.iterdir()}
    done = here("finetune", "--plan", "--json", "--sweep", "lr=1e-3,1e-2", cwd=made)
    assert done.code == 0, done.err
    assert {path.name for path in made.iterdir()} == before
    figures = json.loads(done.out, parse_constant=pytest.fail)
    assert figures["steps"] == 2 * 2 * -(-figures["windows"]["train"] // 8) and figures["bytes_to_read"] > 0
    assert figures["kind"] == "segmentation" and figures["step_s"] > 0 and figures["seconds"] > 0


def test_a_plan_takes_the_windows_that_are_there(trained, folder, here) -> None:
    assert trained.code == 0, trained.err
    figures = json.loads(here("finetune", "--plan", "--json", "-o", "runs/other", cwd=folder).out)
    report = json.loads((folder / "runs" / "labels" / "report.json").read_text())
    assert figures["windows"] == report["windows"] and figures["bytes_to_read"] == 0
    assert figures["parameters"] == report["parameters"]
    assert not (folder / "runs" / "other").exists()


def test_what_contradicts_itself_or_the_folder_is_refused_before_anything_is_read(folder, trained, here) -> None:
    done = here("finetune", "--dataset", "datasets/labels", "--year", "2023", cwd=folder)
    assert done.code == 2 and done.out == "" and "--year with --dataset" in done.err
    done = here("finetune", "--report", "labels.geojson", cwd=folder)
    assert done.code != 0 and "no page of `olmoearth finetune`" in done.err
    done = here("finetune", "--llrd", "0.65", "--recipe", "full", cwd=folder)
    assert done.code != 0 and "other settings" in done.err and "recipe.llrd" in done.err


def test_windows_of_an_earlier_run_are_a_source_of_their_own(folder, trained, here) -> None:
    done = here("finetune", "--dataset", "datasets/labels", "--lr", "1e-3", "--no-baselines", "-q", cwd=folder)
    assert done.code != 0 and "runs/labels" in done.err  # the run of the labels lies where this one would
    flags = ["--lr", "1e-3", "--no-baselines", "-q", "-o", "runs/second", "--report", "second.html"]
    done = here("finetune", "--dataset", "datasets/labels", *flags, cwd=folder)
    assert done.code == 0, done.err
    assert done.out == "runs/second\n" and (folder / "second.html").is_file()
    assert done.err.count("\n") == done.err.count("warning: ")
