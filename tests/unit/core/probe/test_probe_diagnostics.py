"""Figures of embeddings against the golden values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from olmoearth_cli.core.probe.diagnostics import effective_rank, map_figures, vector_figures

FILE = Path(__file__).parents[5] / "shared" / "spec" / "golden_knn.json"
CASES = json.loads(FILE.read_text())["embedding_diagnostics"] if FILE.is_file() else []


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_figures_are_the_golden_ones(case) -> None:
    embeddings = np.array(case["embeddings"], dtype=np.float32)
    found = map_figures(embeddings) if case["name"] == "spatial_NHWD" else vector_figures(embeddings)
    assert sorted(found) == sorted(case["expected"])
    for name, value in case["expected"].items():
        assert found[name] == pytest.approx(value, rel=2e-4, abs=2e-4), name


def test_the_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(np.eye(5)[:3]) == pytest.approx(3)
    assert effective_rank(np.ones((4, 2))) == pytest.approx(1)
    assert effective_rank(np.zeros((4, 2))) == 0


def test_one_vector_says_nothing() -> None:
    assert vector_figures(np.ones((1, 3))) == {}


def test_images_of_one_patch_have_no_figures_within() -> None:
    found = map_figures(np.random.default_rng(0).normal(size=(6, 1, 1, 3)))
    assert not any(name.startswith("intra_") for name in found)
    assert found["global_norm_mean"] == pytest.approx(found["inter_norm_mean"])


def test_large_sets_are_sampled_the_same_way_each_time() -> None:
    rows = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)
    found = vector_figures(rows, seed=1)
    assert found == vector_figures(rows, seed=1)
    assert found["cosine_sim_mean"] != vector_figures(rows, seed=2)["cosine_sim_mean"]
    assert found["num_samples"] == 5000
    assert found["norm_mean"] == pytest.approx(float(np.linalg.norm(rows, axis=1).mean()))
    assert found["cosine_sim_mean"] == pytest.approx(0, abs=0.01)
