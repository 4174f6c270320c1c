"""Normalisation with a data set's own statistics, against the golden values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from olmoearth_cli.core.probe.statistics import DEFAULT_METHOD, METHODS, normalize_by_dataset
from olmoearth_cli.errors import InputError

FILE = Path(__file__).parents[5] / "shared" / "spec" / "golden_knn.json"
GOLDEN = json.loads(FILE.read_text())["normalisation_methods"] if FILE.is_file() else {"expected": {}}
MEAN, STD = np.array([10.0, 20.0]), np.array([2.0, 5.0])


@pytest.mark.skipif(not GOLDEN["expected"], reason="../shared/spec is not here")
def test_every_published_method_has_its_golden_values() -> None:
    assert sorted(GOLDEN["expected"]) == sorted(METHODS)


@pytest.mark.parametrize("method", GOLDEN["expected"])
def test_values_are_the_golden_ones(method) -> None:
    mean, std, low, high = (np.array(GOLDEN[key]) for key in ("means", "stds", "mins", "maxs"))
    values = np.array(GOLDEN["values_channels_last"])
    found = normalize_by_dataset(values, method, mean=mean, std=std, minimum=low, maximum=high)
    assert found.dtype == np.float32
    tolerance = 1 / 255 + 1e-7 if method.endswith("_int") else 1e-4
    np.testing.assert_allclose(found, GOLDEN["expected"][method], rtol=1e-6, atol=tolerance)


def test_the_default_maps_two_deviations_to_zero_and_one() -> None:
    values = np.array([[6.0, 10.0], [14.0, 30.0], [18.0, 20.0]])
    found = normalize_by_dataset(values, DEFAULT_METHOD, mean=MEAN, std=STD)
    np.testing.assert_allclose(found, [[0, 0], [1, 1], [1.5, 0.5]])


def test_eight_bits_drop_the_fraction() -> None:
    values = np.array([[8 + 4 * 100.9 / 255, 0.0]])
    found = normalize_by_dataset(values, "norm_yes_clip_int", mean=MEAN, std=STD)
    np.testing.assert_allclose(found, [[100 / 255, 0]], atol=1e-7)


def test_a_copied_band_carries_the_normalised_value_of_its_source() -> None:
    values = np.array([[[7.0, 7.0]]])
    found = normalize_by_dataset(values, "standardize", mean=MEAN, std=STD, copied={1: 0})
    np.testing.assert_allclose(found, [[[-1.5, -1.5]]])
    assert values.tolist() == [[[7, 7]]]


def test_a_missing_minimum_and_a_constant_band_are_explained() -> None:
    with pytest.raises(InputError, match="needs the minimum and maximum"):
        normalize_by_dataset(np.ones((1, 2)), "norm_yes_clip_min_max_int", mean=MEAN, std=STD)
    with pytest.raises(InputError, match=r"bands at \[1\]"):
        normalize_by_dataset(np.ones((1, 2)), "standardize", mean=MEAN, std=np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="'norm_3'"):
        normalize_by_dataset(np.ones((1, 2)), "norm_3", mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="3 bands"):
        normalize_by_dataset(np.ones((1, 3)), "standardize", mean=MEAN, std=STD)
