"""Compressed embeddings against the golden values, and what their codes promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from olmoearth_cli.core.probe.compress import (
    BITS,
    Components,
    Percentiles,
    power_codes,
    power_values,
    saturated_share,
    subsample,
)
from olmoearth_cli.errors import InputError

FILE = Path(__file__).parents[5] / "shared" / "spec" / "golden_knn.json"
GOLDEN = json.loads(FILE.read_text()) if FILE.is_file() else {}
needs_spec = pytest.mark.skipif(not GOLDEN, reason="../shared/spec is not here")


@needs_spec
def test_signed_square_roots_are_the_golden_codes() -> None:
    case = GOLDEN["int8_power_quantisation"]
    codes = power_codes(np.array(case["values"]))
    assert codes.dtype == np.int8
    assert codes.tolist() == case["expected_int8"]
    np.testing.assert_allclose(power_values(codes), case["expected_dequantised"], rtol=2e-6, atol=1e-9)
    assert float(power_values(np.int8([127]))[0]) == pytest.approx(case["max_code_127_dequantises_to"], rel=1e-6)


def test_no_value_has_the_code_of_no_data_and_saturation_is_counted() -> None:
    codes = power_codes(np.array([-np.inf, -5.0, 0.5, np.inf]))
    assert codes.tolist() == [-127, -127, 90, 127]
    assert saturated_share(codes) == 0.75
    with pytest.raises(ValueError, match="1 values are NaN"):
        power_codes(np.array([np.nan, 1.0]))


@needs_spec
@pytest.mark.parametrize("case", GOLDEN.get("percentile_quantisation", []), ids=lambda c: f"{c['bits']} bits")
def test_percentile_codes_are_the_golden_buckets(case) -> None:
    percentiles = Percentiles(
        quantiles=np.array(case["boundaries_dim_by_buckets_plus_1"], dtype=np.float32),
        midpoints=np.array(case["midpoints_dim_by_buckets"], dtype=np.float32),
    )
    codes = percentiles.codes(np.array(case["values"]))
    assert codes.dtype == np.uint8
    assert codes.tolist() == case["expected_bucket"]
    assert codes.view(np.int8).tolist() == case["expected_stored_int8"]
    np.testing.assert_allclose(percentiles.values(codes), case["expected_dequantised"], rtol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_buckets_are_equally_full_and_stand_for_their_middle(bits) -> None:
    rows = np.stack([np.arange(4096.0), 10 * np.arange(4096.0)], axis=1)
    percentiles = Percentiles.of(rows, bits)
    codes = percentiles.codes(rows)
    counts = np.bincount(codes[:, 0], minlength=2**bits)
    assert counts.max() - counts.min() <= 2
    width = 4096 / 2**bits
    assert np.abs(percentiles.values(codes)[:, 0] - rows[:, 0]).max() <= width / 2 + 1
    np.testing.assert_allclose(percentiles.values(codes)[:, 1], 10 * percentiles.values(codes)[:, 0], rtol=1e-5)


def test_maps_keep_their_shape_in_codes() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    percentiles = Percentiles.of(maps.reshape(-1, 5), 4)
    codes = percentiles.codes(maps)
    assert codes.shape == maps.shape
    assert np.array_equal(codes[1, 2, 3], percentiles.codes(maps[1, 2, 3]))
    assert percentiles.values(codes).shape == maps.shape
    with pytest.raises(ValueError, match="3 bits"):
        Percentiles.of(maps.reshape(-1, 5), 3)
    with pytest.raises(ValueError, match="4 dimensions"):
        percentiles.codes(maps[..., :4])


@needs_spec
def test_principal_components_are_the_golden_ones_up_to_sign() -> None:
    case = GOLDEN["pca"]
    components = Components.of(np.array(case["train"]), case["target_dim"])
    for split in ("train", "val"):
        found = np.abs(components.apply(np.array(case[split])))
        np.testing.assert_allclose(found, case[f"expected_{split}_abs"], rtol=1e-3)
    assert components.variance_kept == pytest.approx(case["expected_variance_kept"], rel=1e-5)


def test_components_of_a_map_are_those_of_its_cells() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    components = Components.of(maps.reshape(-1, 5), 5)
    assert components.variance_kept == pytest.approx(1)
    found = components.apply(maps)
    np.testing.assert_allclose(found[1, 2, 3], components.apply(maps[1, 2, 3]), rtol=1e-6)
    distances = np.linalg.norm(found[0, 0, 0] - found[1, 1, 1]), np.linalg.norm(maps[0, 0, 0] - maps[1, 1, 1])
    assert distances[0] == pytest.approx(distances[1], rel=1e-6)
    with pytest.raises(InputError, match="6 principal components of 24 embeddings of 5"):
        Components.of(maps.reshape(-1, 5), 6)


def test_a_sample_is_drawn_once_and_the_same_each_time() -> None:
    rows = np.arange(100)
    drawn = subsample(rows, 10, 1)
    assert len(set(drawn.tolist())) == 10
    assert drawn.tolist() == sorted(drawn.tolist()) == subsample(rows, 10, 1).tolist()
    assert drawn.tolist() != subsample(rows, 10, 2).tolist()
    assert subsample(rows, 100, 1) is rows
