"""Metrics against the golden values of the specification."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from olmoearth_cli.core.probe.metrics import (
    bootstrap,
    classification_metrics,
    confusion_of,
    metrics_of,
    multilabel_metrics,
    regression_metrics,
    segmentation_metrics,
)

FILE = Path(__file__).parents[5] / "shared" / "spec" / "golden_knn.json"
GOLDEN = json.loads(FILE.read_text()) if FILE.is_file() else {}
needs_spec = pytest.mark.skipif(not GOLDEN, reason="../shared/spec is not here")


def number(value):
    return float(value) if not isinstance(value, list) else [number(v) for v in value]


def close(found, wanted, rtol=2e-4) -> None:
    np.testing.assert_allclose(found, number(wanted), rtol=rtol, atol=2e-4, equal_nan=True)


@needs_spec
@pytest.mark.parametrize("case", GOLDEN.get("classification_metrics", []), ids=lambda c: c["name"])
def test_classification_metrics_are_the_golden_ones(case) -> None:
    truth, predicted, scores = (np.array(case[k]) for k in ("labels", "predictions", "scores"))
    if case["multilabel"]:
        found = multilabel_metrics(truth, predicted, scores)
    else:
        found = classification_metrics(truth, predicted, scores, scores.shape[1], by_position=True)
    wanted = dict(case["expected"])
    assert wanted.pop("primary_metric_key") in found
    for name, value in wanted.items():
        close(found[name], value)


@needs_spec
@pytest.mark.parametrize("case", GOLDEN.get("segmentation_metrics", []), ids=lambda c: c["name"])
def test_segmentation_metrics_are_the_golden_ones(case) -> None:
    logits, truth = np.array(case["logits_NCHW"]), np.array(case["labels_NHW"])
    predicted, wanted = logits.argmax(1), dict(case["expected"])
    if "predictions_NHW" in wanted:
        assert predicted.tolist() == wanted.pop("predictions_NHW")
    confusion = confusion_of(truth, predicted, case["num_classes"])
    if "confusion_true_by_predicted" in wanted:
        assert confusion.tolist() == wanted.pop("confusion_true_by_predicted")
    odds = np.exp(logits - logits.max(1, keepdims=True))
    scores = np.moveaxis(odds / odds.sum(1, keepdims=True), 1, -1).reshape(-1, case["num_classes"])
    found = segmentation_metrics(confusion, truth.ravel(), scores)
    for name, value in wanted.items():
        close(found[name], value)


@needs_spec
@pytest.mark.parametrize("case", GOLDEN.get("regression_metrics", []), ids=lambda c: c["name"])
def test_regression_metrics_are_the_golden_ones(case) -> None:
    found = regression_metrics(np.array(number(case["labels"])), np.array(number(case["predictions"])))
    for name, value in case["expected"].items():
        if name != "primary_metric_key":
            close(found[name], value, rtol=1e-3 if name == "r2" else 2e-4)


def test_per_class_f1_is_numbered_by_class_id_and_absent_classes_have_none() -> None:
    found = classification_metrics(np.array([0, 2, 2]), np.array([0, 2, 0]), None, 3)
    assert found["f1_class_0"] == pytest.approx(2 / 3)
    assert np.isnan(found["f1_class_1"])
    assert found["f1_class_2"] == pytest.approx(2 / 3)


def test_labels_that_are_all_nan_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="no finite label"):
        regression_metrics(np.array([np.nan]), np.array([1.0]))


def test_an_unknown_kind_is_a_callers_mistake() -> None:
    with pytest.raises(ValueError, match="'clasification'"):
        metrics_of("clasification", np.zeros(1), np.zeros(1), None, 1)


def test_a_bootstrap_interval_of_a_sure_thing_has_no_width() -> None:
    found = bootstrap(lambda index: 1.0, 10, rounds=20)
    assert (found.low, found.mean, found.high, found.std) == (1.0, 1.0, 1.0, 0.0)
