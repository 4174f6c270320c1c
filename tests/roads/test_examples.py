"""The example scripts run as they stand, in a folder laid out like examples/demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.roads.conftest import environment

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = EXAMPLES / "probe"
SETTINGS = """[embed]
catalog = "catalog/catalog.json"
model = "{model}"
start = "2024-01-01"
periods = 3
patch_size = 8
window = 32
overlap = 16
tile_size = 128
device = "cpu"

[finetune]
epochs = 2
window = 16
patch_size = 8
block_km = 0.4
bootstrap = 20
lr = 1e-3
device = "cpu"

[predict]
catalog = "catalog/catalog.json"
start = "2024-01-01"
device = "cpu"
"""


@pytest.fixture(scope="module")
def trial(place, tmp_path_factory) -> Path:
    """A small region with the files that the demo folder has, and `olmoearth` to be found."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(place.folder, folder / "trial")
    (folder / "trial" / "olmoearth.toml").write_text(SETTINGS.format(model=place.model))
    program = folder / "bin" / "olmoearth"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m olmoearth_cli.app "$@"\n')
    program.chmod(0o755)
    return folder / "trial"


def run(script: str, folder: Path, *, of: Path = SCRIPTS) -> str:
    """Standard output of a script that must succeed."""
    env = environment()
    env["PATH"] = f"{folder.parent / 'bin'}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        [str(of / script)], cwd=folder, env=env, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_points_become_figures_a_class_map_and_a_page(trial):
    out = run("probe-points.sh", trial)
    assert "kNN (k 20): accuracy" in out and "linear probe (rate" in out
    assert "kNN on raw bands" in out
    with rasterio.open(trial / "classes.tif") as source:
        ids = source.read(1)
        names = [source.tags()[f"CLASS_{i}"] for i in range(int(ids[ids != source.nodata].max()) + 1)]
    assert len(np.unique(ids)) > 2
    page = (trial / "report.html").read_text()
    assert all(name in page for name in names)


def test_both_splits_are_set_side_by_side(trial):
    lines = run("compare-splits.sh", trial).splitlines()
    assert [line.split()[:2] for line in lines] == [["spatial", "kNN"], ["random", "kNN"]]
    assert "blocks of land" in (trial / "knn-spatial.txt").read_text()
    assert "5 folds, random" in (trial / "knn-random.txt").read_text()


def test_methods_are_compared_on_the_same_land_and_the_better_one_draws_a_map(trial):
    shutil.copy(trial / "region.geojson", trial / "heldout.geojson")
    out = run("compare.sh", trial, of=EXAMPLES / "finetune")
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "majority class",
        "raw bands, kNN",
        "raw bands, linear probe",
        "kNN",
        "linear probe",
        "fine-tuned, frozen start, 1 of 2 epochs, then all rates x 0.1",
        "fine-tuned, layer-wise rates x 0.65",
    ]
    assert "DEMO WEIGHTS" in out
    assert out.splitlines()[-1] == "predictions/heldout"
    with rasterio.open(trial / "predictions" / "heldout" / "classes.tif") as source:
        assert (source.read(1) != source.nodata).any()


def test_the_demo_folder_has_what_the_scripts_ask_for():
    demo = SCRIPTS.parent / "demo"
    assert (demo / "region.geojson").is_file() and (demo / "labels.geojson").is_file()
    assert {"catalog", "model"} <= {line.split(" =")[0] for line in (demo / "olmoearth.toml").read_text().splitlines()}
