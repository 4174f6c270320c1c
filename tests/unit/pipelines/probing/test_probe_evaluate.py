"""Held-out scores: honest about space, sure where they may be, and with intervals that equal the slow ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from labelled_fields import land, lonlat_of, positions, samples_of

from olmoearth_cli.core.probe.decide import decide
from olmoearth_cli.core.probe.metrics import CHOICES, bootstrap, metrics_of
from olmoearth_cli.core.probe.recipe import LinearRecipe
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.probing.evaluate import KnnMethod, LinearMethod, MajorityMethod, evaluate, fit_final
from olmoearth_pipelines.probing.resampling import HeldOut, interval
from olmoearth_pipelines.probing.splits import make_folds

QUICK = LinearMethod(recipe=LinearRecipe(epochs=6, lrs=(1e-2, 1e-1), eval_interval=3))


def separable(n: int = 90, classes: int = 3, seed: int = 0, **given):
    """Vectors near one of three orthogonal directions, by class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    vectors = np.eye(classes, 8)[labels] + rng.normal(scale=0.02, size=(n, 8))
    return samples_of(labels, vectors=vectors.astype(np.float32), **given)


def of_kind(kind: str, n: int = 120, seed: int = 0):
    """Samples of any kind whose labels the vectors half tell, in places."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 6)).astype(np.float32)
    told = vectors[:, :3] + rng.normal(scale=0.7, size=(n, 3))
    targets = {
        "classification": told.argmax(axis=1),
        "multilabel": (told > 0.2).astype(np.uint8),
        "segmentation": (told[:, :, None, None] + rng.normal(scale=0.5, size=(n, 3, 2, 2))).argmax(axis=1),
        "regression": told[:, 0] * 3 + 100,
    }[kind]
    if kind == "segmentation":
        targets[rng.uniform(size=targets.shape) < 0.2] = -1
    return samples_of(targets, kind=kind, vectors=vectors, lonlat=lonlat_of(positions(rng, n)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_vectors_that_know_only_where_they_are_score_well_at_random_and_poorly_in_space(seed) -> None:
    samples = land(seed, 1200)
    by_block = make_folds(samples)
    random = evaluate(samples, make_folds(samples, how="random"), KnnMethod(k=5), bootstrap=300)
    spatial = evaluate(samples, by_block, KnnMethod(k=5), bootstrap=300)
    assert random.value > 0.9
    assert spatial.value < 0.8
    assert spatial.high < random.low
    # Neighbours err together: drawing single samples takes them for more evidence than they are.
    single = evaluate(samples, replace(by_block, unit=np.arange(1200)), KnnMethod(k=5), bootstrap=300)
    assert spatial.high - spatial.low > 1.3 * (single.high - single.low)


def test_intervals_of_meaningless_vectors_hold_chance_nearly_as_often_as_they_say() -> None:
    held = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        xy = positions(rng, 300)
        samples = samples_of(
            rng.permutation(300) % 2, vectors=rng.normal(size=(300, 8)).astype(np.float32), lonlat=lonlat_of(xy)
        )
        found = evaluate(samples, make_folds(samples, block_km=3), KnnMethod(), bootstrap=200)
        held.append(found.low <= 0.5 <= found.high)
    assert np.mean(held) > 0.85


def test_noise_is_not_told_from_chance() -> None:
    samples = samples_of(np.arange(400) % 2)
    found = evaluate(samples, make_folds(samples), KnnMethod())
    assert found.low < 0.5 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.15)


@pytest.mark.parametrize("method", [KnnMethod(), QUICK])
def test_separable_classes_are_all_right(method) -> None:
    samples = separable()
    found = evaluate(samples, make_folds(samples), method, bootstrap=50)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.confusion.tolist() == [[30, 0, 0], [0, 30, 0], [0, 0, 30]]
    assert [(c.name, c.support, c.precision, c.recall, c.f1) for c in found.per_class] == [
        (name, 30, 1, 1, 1) for name in "abc"
    ]
    assert found.tested.all()
    assert (found.predicted == samples.targets).all()


@pytest.mark.parametrize("method", [KnnMethod(k=5), QUICK])
def test_a_score_never_depends_on_the_label_of_the_sample_itself(method) -> None:
    samples = of_kind("classification", 60)
    folds = make_folds(samples, how="random", folds=3)
    before = evaluate(samples, folds, method, bootstrap=0)
    targets = samples.targets.copy()
    at = folds.fold == 1
    targets[at] = (targets[at] + 1) % 3
    after = evaluate(replace(samples, targets=targets), folds, method, bootstrap=0)
    # Fold 1 is the validation of fold 0 and in the training part of fold 2, so only its own scores must stay.
    assert (before.scores[at] == after.scores[at]).all()
    assert (before.scores[~at] != after.scores[~at]).any()


@pytest.mark.parametrize("method", [KnnMethod(), QUICK, MajorityMethod()])
@pytest.mark.parametrize("kind", ["classification", "multilabel", "segmentation", "regression"])
def test_every_method_judges_every_kind(kind, method) -> None:
    samples = of_kind(kind)
    found = evaluate(samples, make_folds(samples, block_km=4), method, bootstrap=100)
    assert found.low <= found.value <= found.high
    assert np.isfinite(found.scores).all()
    recomputed = metrics_of(kind, samples.targets, decide(kind, found.scores), found.scores, samples.classes)
    assert found.metrics == pytest.approx(recomputed, nan_ok=True)
    assert found.value == recomputed[found.metric]
    assert (found.confusion is not None) == (kind in {"classification", "segmentation"})
    assert len(found.per_class) == (0 if kind == "regression" else 3)
    blind = evaluate(samples, make_folds(samples, block_km=4), MajorityMethod(), bootstrap=0)
    if not isinstance(method, MajorityMethod):
        assert found.value > blind.value


@pytest.mark.parametrize(
    ("kind", "metric"),
    [(kind, m) for kind, names in CHOICES.items() for m in names] + [("classification", "f1_class_2")],
)
def test_the_fast_bootstrap_is_the_slow_one(kind, metric) -> None:
    rng = np.random.default_rng(3)
    samples = of_kind(kind, 60)
    shape = (
        samples.targets.shape if kind == "regression" else (60, 3, *samples.targets.shape[1 + (kind == "multilabel") :])
    )
    scores = np.round(rng.uniform(size=shape), 1).astype(np.float32)  # rounded: there are ties
    predicted, truth = decide(kind, scores), samples.targets
    unit = np.sort(rng.integers(0, 15, 60))
    unit = np.unique(unit, return_inverse=True)[1]
    if metric == "f1_class_2":  # absent from some draws: NaN there
        truth, predicted = np.minimum(truth, 1), np.minimum(predicted, 1)
        truth[unit <= 1], predicted[(unit == 0) | (unit == 3)] = 2, 2
    members = [np.flatnonzero(unit == u) for u in range(unit.max() + 1)]

    def slow(drawn: np.ndarray) -> float:
        rows = np.concatenate([members[u] for u in drawn])
        return metrics_of(kind, truth[rows], predicted[rows], scores[rows], samples.classes)[metric]

    tested = HeldOut(kind=kind, truth=truth, predicted=predicted, scores=scores, unit=unit)
    wanted = bootstrap(slow, len(members), rounds=20, seed=5).values
    found = interval(metric, tested, rounds=20, seed=5).values
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert np.nanstd(found) > 0


def test_the_majority_answers_with_the_shares_of_all_labels() -> None:
    samples = samples_of(np.array([0, 0, 1, 0, 0, 1]), split=np.array(list("xxxyyy"), dtype=object))
    found = evaluate(samples, make_folds(samples, how="field"), MajorityMethod())
    np.testing.assert_allclose(found.scores, [[2 / 3, 1 / 3]] * 6, rtol=1e-6)
    assert found.value == pytest.approx(4 / 6)
    crop, other = found.per_class
    assert (crop.precision, crop.recall, crop.f1) == pytest.approx((4 / 6, 1, 0.8))
    assert (other.precision, other.recall, other.f1, other.support) == (None, 0, 0, 2)
    values = replace(samples, kind="regression", class_names=(), targets=np.array([1.0, 2, 3, 5, 7, 9]))
    found = evaluate(values, make_folds(values, how="field"), MajorityMethod())
    assert found.scores.tolist() == [4.5] * 6
    # Errors 3.5, 2.5, 1.5, 0.5, 2.5, 4.5: mean 2.5, squares 12.25 + 6.25 + 2.25 + 0.25 + 6.25 + 20.25 = 47.5.
    assert found.metrics["mae"] == pytest.approx(2.5)
    assert found.metrics["rmse"] == pytest.approx(math.sqrt(47.5 / 6))


def test_the_majority_is_no_worse_than_the_commonest_class_where_folds_hold_one_class_each() -> None:
    samples = samples_of(np.array([0, 0, 0, 1, 1, 2]), split=np.array(list("aaabbc"), dtype=object))
    found = evaluate(samples, make_folds(samples, how="field"), MajorityMethod())
    assert found.value == pytest.approx(3 / 6)  # from the other folds alone it would be 0


def test_the_majority_of_a_fixed_split_is_that_of_the_training_labels() -> None:
    roles = np.array(["train"] * 3 + ["test"] * 4, dtype=object)
    samples = samples_of(np.array([0, 0, 1, 1, 1, 1, 0]), split=roles)
    found = evaluate(samples, make_folds(samples, how="field"), MajorityMethod())
    assert found.value == pytest.approx(1 / 4)


def test_more_neighbours_than_samples_are_cut_with_a_note() -> None:
    samples = separable(12)
    found = evaluate(samples, make_folds(samples, folds=3), KnnMethod(k=20), bootstrap=0)
    assert found.k == 8
    assert found.notes == ("8 neighbours instead of 20: there are no more training samples.",)


@pytest.mark.parametrize("method", [KnnMethod(k=3), QUICK])
def test_a_fixed_split_learns_from_train_and_is_judged_on_test_only(method) -> None:
    roles = np.array(["train", "train", "train", "val", "val", "val", "test", "test", "test"] * 10, dtype=object)
    samples = separable(split=roles)
    wrong = samples.targets.copy()
    wrong[roles == "val"] = 0  # as labels to learn from they would mislead the neighbours
    folds = make_folds(samples, how="field")
    found = evaluate(samples, folds, method)
    assert (found.value, int(found.tested.sum())) == (1, 30)
    assert np.isnan(found.scores[roles != "test"]).all()
    assert (found.predicted[roles != "test"] == -1).all()
    assert found.confusion.sum() == 30
    if isinstance(method, KnnMethod):
        again = evaluate(replace(samples, targets=wrong), folds, method)
        assert (again.scores[roles == "test"] == found.scores[roles == "test"]).all()
    else:
        assert len(found.lrs) == 1


def test_two_folds_leave_a_part_of_the_training_samples_to_choose_the_rate() -> None:
    samples = separable(group=np.repeat(np.arange(30), 3))
    found = evaluate(samples, make_folds(samples, folds=2), QUICK, bootstrap=0)
    assert found.value == 1
    assert "a part of the training samples does" in found.notes[0]
    assert len(found.lrs) == len(found.epochs) == 2
    assert found.lr in found.lrs


def test_the_chosen_metric_is_reported_and_another_kind_s_is_refused() -> None:
    samples = of_kind("classification")
    folds = make_folds(samples, how="random")
    found = evaluate(samples, folds, KnnMethod(), metric="f1_class_1", bootstrap=50)
    assert found.value == found.metrics["f1_class_1"]
    with pytest.raises(InputError, match=r"--metric miou: classification has accuracy.*f1_class_0 to f1_class_2"):
        evaluate(samples, folds, KnnMethod(), metric="miou")
    with pytest.raises(InputError, match="regression has neg_rmse"):
        evaluate(of_kind("regression"), folds, KnnMethod(), metric="f1_class_0")


def test_few_units_have_a_rough_interval_and_one_has_none() -> None:
    samples = separable(split=np.array((["train"] * 45 + ["test"] * 45), dtype=object))
    few = replace(samples, group=np.arange(90) // 9)
    found = evaluate(few, make_folds(few, how="field"), KnnMethod())
    assert "rests on 5 independent" in found.notes[-1]
    one = replace(samples, group=np.arange(90) // 45)
    found = evaluate(one, make_folds(one, how="field"), KnnMethod())
    assert math.isnan(found.low)
    assert "No interval" in found.notes[-1]


def test_the_interval_is_repeatable_and_follows_the_seed() -> None:
    samples = of_kind("classification")
    folds = make_folds(samples, how="random")
    first, again, other = (evaluate(samples, folds, KnnMethod(), seed=seed) for seed in (1, 1, 2))
    assert (first.low, first.high) == (again.low, again.high)
    assert first.value == other.value


def test_held_out_scores_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600, 4)).astype(np.float32)
    labels = (rng.uniform(size=600) < 1 / (1 + np.exp(-2 * vectors[:, 0]))).astype(np.int64)
    samples = samples_of(labels, vectors=vectors)
    found = evaluate(samples, make_folds(samples), KnnMethod(k=3), bootstrap=0)
    assert found.calibration.temperature > 1.5  # three neighbours are sure too often
    assert found.calibration.error_after < 0.7 * found.calibration.error_before


def test_the_final_probe_is_fitted_on_all_samples_with_what_was_chosen() -> None:
    samples = separable()
    folds = make_folds(samples)
    knn = fit_final(samples, KnnMethod(k=7, temperature=0.1), evaluate(samples, folds, KnnMethod(k=7), bootstrap=0))
    assert (knn.k, knn.temperature, len(knn.vectors)) == (7, 0.1, 90)
    judged = evaluate(samples, folds, QUICK, bootstrap=0)
    linear = fit_final(samples, QUICK, judged)
    assert (linear.predict(linear.scores(samples.vectors)) == samples.targets).all()
    with pytest.raises(ValueError, match="chose no learning rate"):
        fit_final(samples, QUICK, evaluate(samples, folds, KnnMethod(), bootstrap=0))


def test_folds_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="folds of 90 samples, but there are 60"):
        evaluate(separable(60), make_folds(separable(90)), KnnMethod())
