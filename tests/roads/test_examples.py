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

SCRIPTS = Path(__file__).parents[2] / "examples" / "probe"
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


def run(script: str, folder: Path) -> str:
    """Standard output of a script that must succeed."""
    env = environment()
    env["PATH"] = f"{folder.parent / 'bin'}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        [str(SCRIPTS / script)], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
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


def test_the_demo_folder_has_what_the_scripts_ask_for():
    demo = SCRIPTS.parent / "demo"
    assert (demo / "region.geojson").is_file() and (demo / "labels.geojson").is_file()
    assert {"catalog", "model"} <= {line.split(" =")[0] for line in (demo / "olmoearth.toml").read_text().splitlines()}
