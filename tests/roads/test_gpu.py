"""Checks for a machine with a CUDA device: `python -m pytest -m gpu`."""

import numpy as np
import pytest

import olmoearth_cli
from tests.roads.conftest import olmoearth

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_a_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def test_a_gpu_gives_the_map_of_the_cpu_to_rounding(place, tmp_path):
    maps = []
    for device in ("cpu", "cuda"):
        flags = place.flags("-o", str(tmp_path / device), "--dtype", "float32")
        done = olmoearth("embed", *[device if flag == "cpu" else flag for flag in flags])
        assert done.code == 0, done.err
        maps.append(olmoearth_cli.open_map(tmp_path / device).compute())
    on_cpu, on_gpu = maps[0].values, maps[1].reindex_like(maps[0]).values
    both = np.isfinite(on_cpu) & np.isfinite(on_gpu)
    assert both.sum() >= np.isfinite(on_cpu).sum(), "larger blocks on a GPU may cover more, never less"
    assert np.abs(on_cpu[both] - on_gpu[both]).max() < 5e-3
