"""Pooling against the golden values, and its independence of the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from olmoearth_cli.core.probe.pooling import centre_patch, pool_instance, pool_map

FILE = Path(__file__).parents[5] / "shared" / "spec" / "golden_knn.json"
CASE = json.loads(FILE.read_text())["pooling"] if FILE.is_file() else {}
needs_spec = pytest.mark.skipif(not CASE, reason="../shared/spec is not here")
MODALITIES = ("sentinel2_l2a", "sentinel1")


def golden_tokens():
    tokens = {name: torch.tensor(CASE[name]) for name in MODALITIES}
    visible = {name: torch.tensor(CASE[f"{name}_mask"]) == 0 for name in MODALITIES}
    return tokens, visible


@needs_spec
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_instances_and_maps_are_the_golden_ones(pooling) -> None:
    tokens, visible = golden_tokens()
    found = pool_instance(tokens, visible, pooling)
    np.testing.assert_allclose(found, CASE["expected"][f"instance_{pooling}"], rtol=2e-6, atol=1e-6)
    for reference in (True, False):  # every sample has both modalities
        maps = pool_map(tokens, visible, pooling, reference=reference)
        np.testing.assert_allclose(maps, CASE["expected"][f"spatial_{pooling}"], rtol=2e-6, atol=1e-6)


@needs_spec
def test_the_centre_of_the_golden_map_is_its_centre_token() -> None:
    found = centre_patch(pool_map(*golden_tokens(), "mean"))
    np.testing.assert_allclose(found, CASE["expected"]["centre_token_of_spatial_mean"], rtol=2e-6, atol=1e-6)


def two_samples(*, both_have_radar: bool):
    """One patch, one token per modality; the second sample lacks radar unless told otherwise."""
    tokens = {"optical": torch.tensor([[2.0], [-4.0]]), "radar": torch.tensor([[6.0], [-9.0]])}
    seen = {"optical": [[True], [True]], "radar": [[True], [both_have_radar]]}
    shape = (2, 1, 1, 1, 1)
    return (
        {name: part.view(*shape, 1) for name, part in tokens.items()},
        {name: torch.tensor(flags).view(shape) for name, flags in seen.items()},
    )


def test_a_missing_modality_is_left_out_or_a_zero_as_in_the_reference() -> None:
    tokens, visible = two_samples(both_have_radar=False)
    assert pool_map(tokens, visible, "mean").flatten().tolist() == [4, -4]
    assert pool_map(tokens, visible, "mean", reference=True).flatten().tolist() == [4, -2]
    assert pool_map(tokens, visible, "max").flatten().tolist() == [6, -4]
    assert pool_map(tokens, visible, "max", reference=True).flatten().tolist() == [6, -4]


def test_a_modality_that_no_sample_has_is_skipped_even_by_the_reference() -> None:
    tokens, visible = two_samples(both_have_radar=False)
    visible["radar"][:] = False
    assert pool_map(tokens, visible, "mean", reference=True).flatten().tolist() == [2, -4]


def test_a_sample_pools_alone_as_in_a_batch() -> None:
    tokens, visible = two_samples(both_have_radar=False)
    alone = pool_map({k: v[1:] for k, v in tokens.items()}, {k: v[1:] for k, v in visible.items()}, "mean")
    assert torch.equal(alone, pool_map(tokens, visible, "mean")[1:])


def test_a_patch_without_data_is_zero_and_minus_infinity_in_the_reference() -> None:
    tokens, visible = two_samples(both_have_radar=False)
    visible["optical"][1] = False
    assert pool_map(tokens, visible, "max").flatten().tolist() == [6, 0]
    assert pool_map(tokens, visible, "max", reference=True).flatten().tolist() == [6, -torch.inf]
    with pytest.raises(ValueError, match=r"samples \[1\]"):
        pool_instance(tokens, visible, "mean")


def test_nothing_at_all_and_unknown_poolings_are_refused() -> None:
    tokens, visible = two_samples(both_have_radar=True)
    with pytest.raises(ValueError, match="'median'"):
        pool_map(tokens, visible, "median")
    with pytest.raises(ValueError, match="no token"):
        pool_map(tokens, {name: torch.zeros_like(flags) for name, flags in visible.items()}, "mean")
