"""kNN against the golden values of the specification, and its own promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from olmoearth_cli.core.probe.knn import fit_knn, top_columns
from olmoearth_cli.core.probe.metrics import bootstrap, classification_metrics, micro_map, multilabel_metrics

GOLDEN = Path(__file__).parents[5] / "shared" / "spec" / "golden_knn.json"
CASES = json.loads(GOLDEN.read_text())["knn"] if GOLDEN.is_file() else []
NAMES = [case["name"] for case in CASES]


def close(found, wanted) -> None:
    np.testing.assert_allclose(
        np.asarray(found, float), np.asarray(wanted, float), rtol=2e-4, atol=2e-4, equal_nan=True
    )


def metrics(case, truth, predicted, scores):
    if case["multilabel"]:
        return multilabel_metrics(truth, predicted, scores)
    return classification_metrics(truth, predicted, scores, case["num_classes"], by_position=True)


def fitted(case):
    kind = "multilabel" if case["multilabel"] else "classification"
    train = case["train"]
    return fit_knn(
        np.array(train["embeddings"]), np.array(train["labels"]), kind=kind, classes=case["num_classes"], k=case["k"]
    )


@pytest.mark.skipif(not CASES, reason="../shared/spec is not here")
@pytest.mark.parametrize("case", [c for c in CASES if "val" in c], ids=lambda c: c["name"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_predictions_and_metrics_are_the_golden_ones(case, split) -> None:
    probe, wanted, truth = fitted(case), case["expected"], np.array(case[split]["labels"])
    scores = probe.scores(np.array(case[split]["embeddings"]))
    close(scores, wanted[f"{split}_scores"])
    predicted = probe.predict(scores)
    assert predicted.tolist() == wanted[f"{split}_predictions"]
    found = metrics(case, truth, predicted, scores)
    for name, value in wanted[f"{split}_metrics"].items():
        close(found[name], value)
    primary = found[wanted["primary_metric_key"]]
    close(primary, wanted.get(f"{split}_primary", wanted[f"{split}_metrics"][wanted["primary_metric_key"]]))


@pytest.mark.skipif(not CASES, reason="../shared/spec is not here")
@pytest.mark.parametrize("case", [c for c in CASES if c.get("bootstrap_n")], ids=lambda c: c["name"])
def test_the_bootstrap_draws_as_the_reference(case) -> None:
    probe, truth = fitted(case), np.array(case["test"]["labels"])
    scores = probe.scores(np.array(case["test"]["embeddings"]))
    predicted = probe.predict(scores)

    def measure(index):
        if case["multilabel"]:
            return micro_map(truth[index], scores[index])
        return float((truth[index] == predicted[index]).mean())

    found = bootstrap(measure, len(truth), rounds=case["bootstrap_n"], seed=case["bootstrap_seed"])
    wanted = case["expected"]["bootstrap"]
    close(found.values, wanted["bootstrap_scores"])
    close([found.mean, found.std, found.low, found.high], [wanted[k] for k in ("mean", "std", "ci_lower", "ci_upper")])


@pytest.mark.skipif(not CASES, reason="../shared/spec is not here")
def test_leave_one_out_drops_the_query_itself() -> None:
    case = CASES[NAMES.index("leave_one_out")]
    probe = fitted(case)
    scores = probe.scores(np.array(case["train"]["embeddings"]), leave_one_out=True)
    close(scores, case["expected"]["train_scores"])
    predicted = probe.predict(scores)
    assert predicted.tolist() == case["expected"]["train_predictions"]
    close((predicted == np.array(case["train"]["labels"])).mean(), case["expected"]["train_accuracy"])


@pytest.mark.skipif(not CASES, reason="../shared/spec is not here")
def test_only_the_direction_of_a_query_counts() -> None:
    case = CASES[NAMES.index("scale_invariance_and_zero_query")]
    scores = fitted(case).scores(np.array(case["queries"]))
    close(scores[:4], case["expected"]["scores_first_four_rows"])
    assert scores[:4].argmax(1).tolist() == case["expected"]["predictions_first_four_rows"]
    assert np.isclose(scores[4].sum(), 1)


@pytest.mark.skipif(not CASES, reason="../shared/spec is not here")
def test_k_may_equal_the_number_of_labelled_vectors_and_not_exceed_it() -> None:
    case = CASES[NAMES.index("k_equals_train_size")]
    scores = fitted(case).scores(np.array(case["queries"]))
    close(scores, case["expected"]["scores"])
    with pytest.raises(ValueError, match="k = 7 neighbours of 6"):
        fitted({**case, "k": 7})


def test_regression_is_the_weighted_mean_of_the_neighbours() -> None:
    probe = fit_knn(np.eye(3), np.array([1.0, 2.0, 30.0]), kind="regression", classes=1, k=2, temperature=0.5)
    query = np.array([[0.6, 0.8, 0.0]])
    a, b = np.exp(0.6 / 0.5), np.exp(0.8 / 0.5)
    np.testing.assert_allclose(probe.scores(query), [(a * 1 + b * 2) / (a + b)], rtol=1e-6)


def test_a_cells_pixels_vote_one_by_one_and_unlabelled_pixels_are_silent() -> None:
    targets = np.array([[[0, 1], [1, -1]], [[0, 0], [-1, -1]]])
    probe = fit_knn(np.eye(2), targets, kind="segmentation", classes=2, k=2, temperature=1.0)
    scores = probe.scores(np.array([[1.0, 0.0]]))  # 1 C P P
    e = np.exp(1.0)
    np.testing.assert_allclose(scores[0, :, 0, 0], [1, 0], atol=1e-6)
    np.testing.assert_allclose(scores[0, :, 0, 1], [1 / (1 + e), e / (1 + e)], rtol=1e-6)
    np.testing.assert_allclose(scores[0, :, 1, 0], [0, 1], atol=1e-6)
    assert scores[0, :, 1, 1].tolist() == [0, 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 5))
def test_a_query_has_the_same_scores_alone_and_in_company(count, seed) -> None:
    rng = np.random.default_rng(seed)
    probe = fit_knn(rng.normal(size=(50, 8)), rng.integers(0, 3, 50), kind="classification", classes=3, k=5)
    queries = rng.normal(size=(count, 8)).astype(np.float32)
    together = probe.scores(queries)
    assert np.array_equal(together[-1:], probe.scores(queries[-1:]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 400), st.integers(1, 6), st.integers(0, 10_000))
def test_the_largest_columns_are_those_of_a_plain_search(k, more, rows, seed) -> None:
    values = torch.as_tensor(np.random.default_rng(seed).permutation(rows * (k + more)).reshape(rows, -1) / 7)
    found, columns = top_columns(values, k)
    wanted = values.topk(k, dim=1)
    assert torch.equal(found, wanted.values)
    assert torch.equal(columns, wanted.indices)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(100, 400), st.integers(0, 10_000))
def test_equal_similarities_are_each_chosen_once(k, count, seed) -> None:
    values = torch.as_tensor(np.random.default_rng(seed).integers(0, 3, (4, count)).astype(np.float32))
    found, columns = top_columns(values, k)
    assert torch.equal(found, values.topk(k, dim=1).values)
    assert torch.equal(found, values.gather(1, columns))
    assert all(len(set(row)) == k for row in columns.tolist())


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 700), st.integers(0, 5))
def test_many_labelled_vectors_do_not_make_a_query_depend_on_its_company(count, seed) -> None:
    rng = np.random.default_rng(seed)
    probe = fit_knn(rng.normal(size=(1003, 8)), rng.integers(0, 3, 1003), kind="classification", classes=3, k=5)
    queries = rng.normal(size=(count, 8)).astype(np.float32)
    assert np.array_equal(probe.scores(queries)[-1:], probe.scores(queries[-1:]))


def test_a_saved_probe_scores_as_before() -> None:
    rng = np.random.default_rng(0)
    probe = fit_knn(rng.normal(size=(30, 4)), rng.integers(0, 3, 30), kind="classification", classes=3, k=5)
    again = type(probe).from_state(probe.state(), kind="classification", classes=3)
    queries = rng.normal(size=(10, 4))
    assert np.array_equal(probe.scores(queries), again.scores(queries))


def test_nan_vectors_are_refused_by_number() -> None:
    with pytest.raises(ValueError, match="2 vectors"):
        fit_knn(np.array([[1, np.nan], [np.nan, 1], [1, 1]]), np.zeros(3), kind="classification", classes=1, k=1)
