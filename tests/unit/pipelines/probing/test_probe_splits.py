"""Folds: whole, balanced, and honest about neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_fields import land, lonlat_of, positions, samples_of, smooth

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.probing.autocorrelation import empirical_variogram, label_range_m
from olmoearth_pipelines.probing.plane import blocks_of, kilometres, to_plane
from olmoearth_pipelines.probing.splits import make_folds
from olmoearth_pipelines.probing.strata import deal


def text_of(folds) -> str:
    return "\n".join((*folds.notes, *folds.warnings))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(12, 80),
    how=st.sampled_from(["spatial", "random", "field"]),
    kind=st.sampled_from(["classification", "multilabel", "segmentation", "regression"]),
    folds=st.integers(2, 7),
)
def test_folds_partition_the_samples_and_no_unit_or_feature_is_divided(seed, n, how, kind, folds) -> None:
    rng = np.random.default_rng(seed)
    targets = {
        "classification": np.arange(n) % 3,
        "multilabel": (rng.uniform(size=(n, 3)) < 0.4).astype(np.uint8) | (np.arange(n)[:, None] % 3 == np.arange(3)),
        "segmentation": np.where(rng.uniform(size=(n, 2, 2)) < 0.3, -1, (np.arange(n) % 3)[:, None, None]),
        "regression": rng.normal(size=n),
    }[kind]
    if kind == "segmentation":
        targets[:3, 0, 0] = [0, 1, 2]
    group = rng.integers(0, n // 3, n)
    values = np.array([f"v{g % 4 if n % 2 else g}" for g in group], dtype=object)
    samples = samples_of(
        targets.astype(np.uint8) if kind == "multilabel" else targets,
        kind=kind,
        lonlat=lonlat_of(positions(rng, n)),
        group=group,
        split=values,
    )
    found = make_folds(samples, how=how, folds=folds)
    assert set(found.fold) == set(range(found.count))
    for fold in range(found.count):
        learnt, tested = found.sides(fold)
        assert (learnt ^ tested).all()
        assert not set(group[learnt]) & set(group[tested])
        assert not set(found.unit[learnt]) & set(found.unit[tested])
        chooses = found.validation(fold)
        assert chooses is None or (chooses & learnt).sum() == chooses.sum() > 0


def test_the_cells_of_a_polygon_that_spans_many_blocks_stay_in_one() -> None:
    rng = np.random.default_rng(0)
    xy = positions(rng, 300, 10_000)
    group = np.arange(300)
    group[:60] = 0  # one polygon over the whole area
    found = make_folds(samples_of(np.arange(300) % 2, lonlat=lonlat_of(xy), group=group), block_km=1)
    assert len(np.unique(found.fold[:60])) == 1
    assert len(np.unique(found.unit[:60])) == 1
    assert len(np.unique(found.unit)) > 50


def test_samples_are_put_on_a_plane_in_metres_also_across_the_antimeridian() -> None:
    east = to_plane(np.array([[179.99, 0.0], [-179.99, 0.0]]))
    assert np.linalg.norm(east[1] - east[0]) == pytest.approx(0.02 * 111_319.5, rel=1e-4)
    north = to_plane(np.array([[10.0, 60.0], [10.0, 60.01]]))
    assert north[1, 1] - north[0, 1] == pytest.approx(1114.1, rel=1e-3)  # a meridian degree at 60 N: 111.41 km


def test_blocks_are_squares_of_the_side_asked_for() -> None:
    xy = np.array([[0, 0], [999, 999], [1001, 0], [0, 1001], [1999, 1999]], dtype=float)
    assert blocks_of(xy, 1000).tolist() == [0, 0, 2, 1, 3]


@pytest.mark.parametrize(
    ("metres", "text"), [(347, "0.35"), (12_345, "12"), (1_234_000, "1200"), (0.5, "0.0005"), (0, "0")]
)
def test_distances_are_said_in_two_digits(metres, text) -> None:
    assert kilometres(metres) == text


def test_the_variogram_of_two_halves_is_the_worked_one() -> None:
    # Labels 0 up to x = 500 and 1 beyond, every metre: two points h apart differ for h of the 1000 - h pairs.
    x = np.arange(1000, dtype=float)
    one_hot = (x[:, None] >= 500) == np.array([False, True])
    found = empirical_variogram(one_hot.astype(float), np.stack([x, np.zeros(1000)], axis=1))
    np.testing.assert_allclose(found.semivariance, found.lag_m / (1000 - found.lag_m), rtol=0.05)


@pytest.mark.parametrize("length_m", [600, 1500])
def test_the_range_follows_the_length_over_which_labels_are_smooth(length_m) -> None:
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        xy = positions(rng, 1500)
        label = smooth(rng, xy, length_m) > 0
        found.append(label_range_m(np.stack([label, ~label], axis=1).astype(float), xy))
    # The signs of a Gaussian field agree in 1/2 + asin(c)/pi; with c = exp(-h²/2l²) 95 % of the way is at h = 2.3 l,
    # and the spherical model reaches its sill at about 2.7 l.
    assert 2.0 * length_m < np.mean(found) < 3.3 * length_m


def test_labels_without_structure_have_no_range() -> None:
    rng = np.random.default_rng(0)
    ranges = [label_range_m(rng.normal(size=(300, 1)), positions(rng, 300)) for _ in range(20)]
    assert sum(r is not None for r in ranges) <= 1


def test_blocks_are_as_large_as_labels_are_alike_and_the_note_says_so() -> None:
    found = make_folds(land(0))
    assert found.block_km == pytest.approx(found.range_km)
    assert 2.5 < found.block_km < 5.5
    assert f"(labels are alike up to about {kilometres(found.range_km * 1000)} km)" in found.notes[0]
    assert not found.warnings


def test_blocks_shrink_until_there_are_ten_of_them_and_the_doubt_is_said() -> None:
    rng = np.random.default_rng(0)
    xy = positions(rng, 400, 5000)
    found = make_folds(samples_of((xy[:, 0] > 2500).astype(np.int64), lonlat=lonlat_of(xy)))
    assert len(np.unique(found.unit)) >= 10
    assert found.block_km < 0.75 * found.range_km
    assert "smaller than the" in text_of(found)


def test_given_blocks_are_kept() -> None:
    found = make_folds(land(0), block_km=1.5)
    assert found.block_km == 1.5
    assert "as asked by --block-km" in found.notes[0]
    assert "smaller than the" in text_of(found)


def test_fewer_blocks_than_folds_make_fewer_folds() -> None:
    xy = np.array([[0, 0], [10, 10], [5000, 0], [5010, 0], [0, 5000], [10, 5000.0]])
    found = make_folds(samples_of(np.array([0, 1, 0, 1, 0, 1]), lonlat=lonlat_of(xy)), block_km=3)
    assert found.count == 3
    assert "3 blocks of 3 km, so 3 folds instead of 5" in text_of(found)


def test_one_block_is_an_error_that_names_the_ways_out() -> None:
    xy = positions(np.random.default_rng(0), 20, 100)
    with pytest.raises(InputError, match=r"one block of 50 km.*smaller --block-km.*--split random"):
        make_folds(samples_of(np.arange(20) % 2, lonlat=lonlat_of(xy)), block_km=50)
    one_place = samples_of(np.arange(20) % 2, lonlat=np.tile([[10.0, 50.0]], (20, 1)))
    with pytest.raises(InputError, match="one block"):
        make_folds(one_place)


def test_samples_without_a_place_are_split_at_random_with_a_note() -> None:
    found = make_folds(samples_of(np.arange(40) % 2))
    assert (found.how, found.block_km) == ("random", None)
    assert "have no place" in found.notes[0]


def test_random_folds_have_every_class_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 5])
    found = make_folds(samples_of(labels), how="random")
    counts = np.array([np.bincount(labels[found.fold == f], minlength=3) for f in range(5)])
    assert counts.tolist() == [[20, 8, 1]] * 5
    other = make_folds(samples_of(labels), how="random", seed=1)
    assert (other.fold != found.fold).any()


def test_values_are_spread_by_their_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=200)
    found = make_folds(samples_of(values, kind="regression"), how="random")
    means = [np.sort(values[found.fold == f])[[4, 20, 35]] for f in range(5)]
    assert np.ptp(means, axis=0).max() < 0.9


def test_rare_classes_are_dealt_first_so_that_every_fold_gets_its_share() -> None:
    # 50 units of 10 samples; the rare class lies in 5 of them, in different numbers.
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(50), 10)
    label = (rng.uniform(size=500) < 0.5).astype(int)
    for u in (3, 11, 27, 28, 49):
        label[np.flatnonzero(unit == u)[:3]] = 2
    fold = deal((label[:, None] == np.arange(3)).astype(float), unit, 5, 0)
    assert [int(((label == 2) & (fold == f)).sum()) for f in range(5)] == [3] * 5
    assert np.bincount(fold).tolist() == [100] * 5


def test_a_random_split_of_smooth_labels_is_warned_about_and_a_spatial_one_is_not() -> None:
    samples = land(1)
    found = make_folds(samples, how="random")
    assert "100% of the tested samples lie nearer to a training sample than the" in text_of(found)
    assert "Use --split spatial" in text_of(found)
    assert "Use --split spatial" not in text_of(make_folds(samples))


def test_copies_cells_and_features_on_both_sides_are_counted() -> None:
    samples = samples_of(np.arange(20) % 2, group=np.repeat(np.arange(10), 2))
    vectors = samples.vectors.copy()
    vectors[1] = vectors[0]
    cells = np.stack([np.full(20, 32632), np.arange(20) * 10, np.zeros(20)], axis=1).astype(np.int64)
    cells[2:4] = cells[2]
    split = np.array(["x", "y"] * 10, dtype=object)  # divides every feature
    found = make_folds(replace(samples, vectors=vectors, cells=cells, split=split), how="field")
    assert "2 of 20 tested samples have exactly the vector of a training sample" in text_of(found)
    assert "2 of 20 tested samples lie in the same map cell as a training sample" in text_of(found)
    assert "20 of 20 tested samples belong to the label feature of a training sample" in text_of(found)
    whole = make_folds(replace(samples, vectors=vectors, cells=cells), how="random")
    assert not whole.warnings


def test_touching_cells_of_one_zone_are_warned_about() -> None:
    rows = np.arange(40)
    cells = np.stack([np.full(40, 32632), rows, np.zeros(40)], axis=1).astype(np.int64)
    text = text_of(make_folds(samples_of(rows % 2, cells=cells), how="random"))
    share = float(text.split("% of the tested samples touch")[0].split("\n")[-1])
    assert share > 80
    apart = cells * [1, 2, 1]
    assert "touch" not in text_of(make_folds(samples_of(rows % 2, cells=apart), how="random"))
    zones = cells + np.stack([rows, 0 * rows, 0 * rows], axis=1)
    assert "touch" not in text_of(make_folds(samples_of(rows % 2, cells=zones), how="random"))


def test_a_field_of_roles_is_a_fixed_split() -> None:
    roles = np.array(["Train", "TRAIN", "valid", "test", "train", "Test"], dtype=object)
    found = make_folds(samples_of(np.array([0, 1, 0, 1, 0, 0]), split=roles), how="field")
    assert (found.fixed, found.count) == (True, 1)
    assert found.fold.tolist() == [-1, -1, -1, 0, -1, 0]
    assert found.role.tolist() == ["train", "train", "val", "test", "train", "test"]
    learnt, tested = found.sides(0)
    assert learnt.tolist() == [True, True, False, False, True, False]
    assert tested.tolist() == [False, False, False, True, False, True]
    assert found.validation(0).tolist() == [False, False, True, False, False, False]


def test_validation_samples_are_the_test_where_none_are_named_so() -> None:
    roles = np.array(["train", "train", "val", "val"], dtype=object)
    found = make_folds(samples_of(np.array([0, 1, 0, 1]), split=roles), how="field")
    assert found.fold.tolist() == [-1, -1, 0, 0]
    assert found.validation(0) is None
    assert "the validation samples are the test" in text_of(found)


def test_a_field_without_training_samples_is_an_error() -> None:
    with pytest.raises(InputError, match="0 training, 2 validation and 2 test"):
        roles = np.array(["val", "val", "test", "test"], dtype=object)
        make_folds(samples_of(np.array([0, 1, 0, 1]), split=roles), how="field")


def test_the_values_of_another_field_are_folds_and_many_are_dealt() -> None:
    labels = np.arange(36) % 2
    few = make_folds(samples_of(labels, split=np.array([f"r{i // 12}" for i in range(36)], dtype=object)), how="field")
    assert few.fold.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert "r0, r1, r2" in few.notes[0]
    names = np.array([f"farm {i // 3}" for i in range(36)], dtype=object)
    many = make_folds(samples_of(labels, split=names), how="field", folds=4)
    assert many.count == 4
    assert all(len(set(many.fold[names == name])) == 1 for name in names)
    assert len(np.unique(many.unit)) == 12


def test_missing_and_single_values_of_a_field_are_errors() -> None:
    split = np.array(["a", None, "nan", "b", float("nan"), ""], dtype=object)
    with pytest.raises(InputError, match="4 of 6 samples have no value"):
        make_folds(samples_of(np.arange(6) % 2, split=split), how="field")
    with pytest.raises(InputError, match="one value 'a'"):
        make_folds(samples_of(np.arange(6) % 2, split=np.array(["a"] * 6, dtype=object)), how="field")


def test_units_of_a_given_split_are_blocks_where_neighbours_are_alike() -> None:
    samples = land(2)
    split = np.where(np.arange(600) % 2 == 0, "train", "test").astype(object)
    found = make_folds(replace(samples, split=split), how="field")
    tested = found.unit[found.fold == 0]
    assert 10 <= len(np.unique(tested)) < 60
    assert not set(tested) & set(found.unit[found.fold < 0])


def test_classes_that_cannot_be_judged_are_named() -> None:
    labels = np.repeat([0, 1, 2], [95, 4, 1])
    found = make_folds(replace(samples_of(labels), class_names=("crop", "shrub", "water", "ice")), how="random")
    text = text_of(found)
    assert "No sample of ice" in text
    assert "Fewer samples than folds of shrub, water" in text
    assert "In some fold water is tested but not learnt" in text
    assert "95% of the labels are crop" in text


def test_a_class_in_one_block_is_named() -> None:
    rng = np.random.default_rng(0)
    xy = positions(rng, 200, 10_000)
    xy[:20] = positions(rng, 20, 50) + 1100
    labels = np.where(np.arange(200) < 20, 2, np.arange(200) % 2)
    text = text_of(make_folds(samples_of(labels, lonlat=lonlat_of(xy)), block_km=2))
    assert "All samples of c lie in a single block" in text
    assert "In some fold c is tested but not learnt" in text


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        (np.zeros(8, dtype=np.int64), "classification", r"8 samples hold one class only \(a\)"),
        (np.array([0]), "classification", "1 labelled samples: at least 2"),
        (np.full((6, 2, 2), -1), "segmentation", "hold no label"),
        (np.ones((6, 3), dtype=np.uint8), "multilabel", "same labels"),
        (np.full(6, 2.5), "regression", "have the value 2.5"),
        (np.array([1.0, np.nan, np.inf, 2.0]), "regression", "2 of 4 targets have values that are not finite"),
    ],
)
def test_labels_that_nothing_can_be_learnt_from_are_errors(targets, kind, message) -> None:
    samples = samples_of(targets, kind=kind, class_names=() if kind == "regression" else ("a", "b", "c"))
    with pytest.raises(InputError, match=message):
        make_folds(samples, how="random")


def test_values_that_are_not_finite_are_counted_in_the_error() -> None:
    samples = samples_of(np.arange(10) % 2)
    vectors = samples.vectors.copy()
    vectors[[2, 5], [0, 3]] = np.nan
    with pytest.raises(InputError, match="2 of 10 vectors have values that are not finite"):
        make_folds(samples.with_vectors(vectors))
    lonlat = np.full((10, 2), 10.0)
    lonlat[3] = np.nan
    with pytest.raises(InputError, match="1 of 10 positions"):
        make_folds(replace(samples, lonlat=lonlat))


def test_flags_without_meaning_are_errors() -> None:
    samples = samples_of(np.arange(10) % 2)
    with pytest.raises(InputError, match="--folds 1"):
        make_folds(samples, folds=1)
    with pytest.raises(InputError, match="--block-km nan"):
        make_folds(samples, block_km=float("nan"))
    with pytest.raises(ValueError, match="spatial, random or field"):
        make_folds(samples, how="stratified")
    with pytest.raises(ValueError, match=r"samples\.split"):
        make_folds(samples, how="field")


def test_fewer_features_than_folds_are_dealt_into_fewer() -> None:
    found = make_folds(samples_of(np.arange(6) % 2, group=np.repeat(np.arange(3), 2)), how="random")
    assert found.count == 3
    assert "3 label features, so 3 folds instead of 5" in text_of(found)
