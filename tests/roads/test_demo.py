"""The shipped example is what the generator makes, and it maps as the README says."""

import json
from pathlib import Path

import numpy as np
import rasterio

from olmoearth_pipelines.synthetic import Scenery, make_region
from tests.roads.conftest import olmoearth

DEMO = Path(__file__).parents[2] / "examples" / "demo"


def test_the_generator_makes_the_shipped_files_again(tmp_path):
    make_region(tmp_path, Scenery(seed=7))
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    shipped = [p for p in made if (DEMO / p).is_file()]
    assert shipped == made
    for name in made:
        if name.suffix == ".tif":
            with rasterio.open(tmp_path / name) as a, rasterio.open(DEMO / name) as b:
                assert np.array_equal(a.read(), b.read()), name
                assert a.transform == b.transform
        else:
            assert json.loads((tmp_path / name).read_text()) == json.loads((DEMO / name).read_text())


def test_the_demo_folder_needs_no_flag_but_the_region(tmp_path):
    done = olmoearth("embed", "--aoi", "region.geojson", "-o", str(tmp_path / "map"), "--plan", "--json", cwd=DEMO)
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert figures["periods"] == 12
    assert set(figures["scenes"]) == {"sentinel2_l2a", "sentinel1"}


def test_the_demo_weights_say_what_they_are():
    config = json.loads((DEMO / "demo-weights" / "config.json").read_text())
    assert config["olmoearth"]["demo"] is True
    assert "nothing was learned" in config["olmoearth"]["statement"]
