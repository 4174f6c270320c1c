"""Temperature scaling: worked numbers, and scores that become honest."""

from __future__ import annotations

import math

import numpy as np
import pytest

from olmoearth_cli.core.probe.calibration import apply_temperature, calibrate, calibration_error


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def drawn(rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    """One class per row, with the chances of that row."""
    return (shares.cumsum(axis=1) < rng.uniform(size=(len(shares), 1))).sum(axis=1).clip(max=shares.shape[1] - 1)


def test_a_temperature_of_two_takes_square_roots() -> None:
    found = apply_temperature(np.array([[0.64, 0.36]], dtype=np.float32), 2.0, "classification")
    np.testing.assert_allclose(found, [[0.8 / 1.4, 0.6 / 1.4]], rtol=1e-6)
    assert found.dtype == np.float32


def test_independent_shares_are_scaled_against_their_complement() -> None:
    found = apply_temperature(np.array([[0.8, 0.5, 0.1]]), 0.5, "multilabel")
    np.testing.assert_allclose(found, [[0.64 / 0.68, 0.5, 0.01 / 0.82]], rtol=1e-6)


def test_pixels_are_scaled_over_the_class_axis() -> None:
    scores = np.array([0.64, 0.36]).reshape(1, 2, 1, 1).repeat(3, axis=2)  # 1 C 3 1
    found = apply_temperature(scores, 2.0, "segmentation")
    np.testing.assert_allclose(found[0, :, :, 0], [[0.8 / 1.4] * 3, [0.6 / 1.4] * 3], rtol=1e-6)


def test_a_temperature_of_one_and_values_change_nothing() -> None:
    scores = np.array([[0.0, 1.0]], dtype=np.float32)
    assert (apply_temperature(scores, 1.0, "classification") == scores).all()
    values = np.array([-3.0, 7.5], dtype=np.float32)
    assert (apply_temperature(values, 3.0, "regression") == values).all()


@pytest.mark.parametrize("temperature", [0.1, 50.0])
def test_no_temperature_breaks_scores_of_zero_or_changes_a_decision(temperature: float) -> None:
    scores = np.array([[1, 0, 0], [0, 0, 0], [0.3, 0.3, 0.4]], dtype=np.float32)
    found = apply_temperature(scores, temperature, "classification")
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert (found.argmax(axis=1) == scores.argmax(axis=1)).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        apply_temperature(np.ones((1, 1)), temperature, "classification")


def test_the_calibration_error_is_the_worked_one() -> None:
    # Two answers of confidence 0.9, one right: |0.9 - 0.5| by 2/3; one of 0.6, right: |0.6 - 1| by 1/3.
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    assert calibration_error(shares, np.array([0, 1, 1])) == pytest.approx(0.4)


def test_the_temperature_that_spoilt_the_scores_is_found_and_their_error_falls() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6000, 4)) * 1.5
    truth = drawn(rng, softmax(logits))
    found = calibrate(softmax(logits * 3), truth, np.arange(6000) % 5, "classification")
    assert found.temperature == pytest.approx(3, rel=0.08)
    assert found.error_before > 0.15
    assert found.error_after < 0.03


def test_several_labels_and_pixels_are_calibrated_too() -> None:
    rng = np.random.default_rng(1)
    chance = rng.uniform(size=(3000, 3))
    labels = (rng.uniform(size=chance.shape) < chance).astype(np.uint8)
    sharp = chance**2 / (chance**2 + (1 - chance) ** 2)
    found = calibrate(sharp, labels, np.arange(3000) % 2, "multilabel")
    assert found.temperature == pytest.approx(2, rel=0.1)
    assert found.error_after < found.error_before / 2

    logits = rng.normal(size=(800 * 4, 3))
    truth = drawn(rng, softmax(logits)).reshape(800, 2, 2)
    scores = np.moveaxis(softmax(logits * 2).reshape(800, 2, 2, 3), -1, 1)  # N C P P
    truth[:200] = -1
    found = calibrate(scores, truth, np.arange(800) % 2, "segmentation")
    assert found.temperature == pytest.approx(2, rel=0.15)


def test_the_error_afterwards_is_not_measured_on_what_was_fitted() -> None:
    # Right 9 times in 10 at 0.55 in part 0, 7 times in 10 in part 1: each part's temperature suits the other badly.
    scores = np.tile([[0.55, 0.45]], (200, 1))
    part = np.arange(200) % 2
    truth = (np.arange(200) // 2 % 10 >= np.where(part == 0, 9, 7)).astype(int)
    found = calibrate(scores, truth, part, "classification")
    assert found.error_before == pytest.approx(0.25)  # |0.55 - 0.8|
    both = apply_temperature(scores, found.temperature, "classification")
    assert both[0, 0] == pytest.approx(0.8, abs=0.01)
    assert calibration_error(both, truth) < 0.01  # which is what it would be if measured on what was fitted
    assert found.error_after == pytest.approx(0.2, abs=0.02)  # 0.7 where 0.9 are right, 0.9 where 0.7 are


def test_a_temperature_that_raises_the_error_on_other_labels_is_not_used() -> None:
    # Part 0 is always wrong at 0.9, part 1 always right at 0.9: each part's temperature is the worst for the other.
    scores = np.tile([[0.9, 0.1]], (200, 1))
    part = np.arange(200) % 2
    found = calibrate(scores, 1 - part, part, "classification")
    assert (found.temperature, found.error_after) == (1.0, found.error_before)
    assert found.error_before == pytest.approx(0.4)  # |0.9 - 0.5|


def test_honest_votes_of_few_neighbours_do_not_lose_their_confidence() -> None:
    # 20 votes drawn from the true chances: right classes without a vote would ask for a temperature far above 1.
    rng = np.random.default_rng(4)
    chance = rng.dirichlet(np.full(8, 0.3), size=3000)
    votes = rng.multinomial(20, chance) / 20
    truth = drawn(rng, chance)
    assert (votes[np.arange(3000), truth] == 0).sum() > 50
    found = calibrate(votes, truth, np.arange(3000) % 5, "classification")
    assert found.temperature == 1
    assert found.error_after == found.error_before < 0.05


def test_separable_or_few_samples_leave_the_scores_nearly_alone() -> None:
    sure = np.tile([[1.0, 0.0]], (50, 1))
    assert calibrate(sure, np.zeros(50, dtype=int), np.zeros(50), "classification").temperature == pytest.approx(
        1, abs=0.05
    )
    one = calibrate(np.array([[0.6, 0.4]]), np.array([0]), np.zeros(1), "classification").temperature
    assert 0.5 < one < 1


def test_values_and_unlabelled_pixels_have_nothing_to_calibrate() -> None:
    assert calibrate(np.ones(3), np.ones(3), np.zeros(3), "regression").temperature == 1
    empty = calibrate(np.full((2, 2, 1, 1), 0.5), np.full((2, 1, 1), -1), np.arange(2), "segmentation")
    assert empty.temperature == 1
    assert math.isnan(empty.error_before)
