"""Figures worked out by hand: what is judged, intervals, baselines, raw bands, pictures."""

from __future__ import annotations

import numpy as np
import pytest

from olmoearth_cli.core.normalize import band_range
from olmoearth_cli.core.probe.metrics import lower_is_better
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.finetune import Recipe
from olmoearth_pipelines.finetuning.evaluate import Yardstick, choose_metric, confusion, gather, score_of, value_of
from olmoearth_pipelines.finetuning.pictures import picture_of
from olmoearth_pipelines.finetuning.raw import Columns, raw_cells
from olmoearth_pipelines.windows.arrays import collate

S2 = "sentinel2_l2a"


def yardstick(kind: str, *, sparse: bool = False, metric: str = "overall_acc", classes: int = 2) -> Yardstick:
    return Yardstick(kind=kind, classes=classes, patch_px=2, sparse=sparse, metric=metric)


def two_maps():
    """Two label maps of 2 x 4 pixels (two cells each) and probabilities of class 1."""
    targets = np.array([[[1, 1, -1, -1], [1, 1, -1, 0]], [[0, 1, -1, -1], [0, -1, -1, -1]]])
    ones = np.array([[[0.9, 0.9, 0.1, 0.1], [0.4, 0.4, 0.9, 0.8]], [[0.6, 0.9, 0.1, 0.1], [0.1, 0.9, 0.1, 0.1]]])
    return np.stack([1 - ones, ones], axis=1).astype(np.float32), targets, np.array([0, 1])


def test_sparse_labels_are_judged_once_per_cell() -> None:
    # Cell 1: truth 1, mean probability 0.65. Cell 2: truth 0, 0.8 at its only label. Cell 3: two 0 against one 1,
    # mean of the three labelled pixels (0.6 + 0.9 + 0.1) / 3 = 0.53. So only the first is right.
    rule = yardstick("segmentation", sparse=True)
    judged = gather([two_maps()], rule)
    assert judged.truth.tolist() == [1, 0, 0] and judged.predicted.tolist() == [1, 1, 1]
    assert judged.window.tolist() == [0, 0, 1]
    assert value_of(judged, rule) == pytest.approx(1 / 3)
    assert confusion(judged, rule) == ((0, 2), (0, 1))


def test_complete_labels_are_judged_pixel_by_pixel() -> None:
    # Truth 1: right twice, wrong twice in the first map, right once in the second. Truth 0: 0.8 and 0.6 are wrong,
    # 0.1 is right.
    rule = yardstick("segmentation")
    judged = gather([two_maps()], rule)
    assert confusion(judged, rule) == ((1, 2), (2, 3))
    assert value_of(judged, rule) == pytest.approx(4 / 8)
    assert value_of(judged, yardstick("segmentation", metric="miou")) == pytest.approx((1 / 5 + 3 / 7) / 2)


def test_values_of_a_cell_are_averaged_where_they_are_labelled() -> None:
    targets = np.array([[[1.0, 3.0, np.nan, 5.0], [np.nan, np.nan, np.nan, np.nan]]])
    answers = np.array([[[2.0, 4.0, 100.0, 7.0], [100.0, 100.0, 100.0, 100.0]]], np.float32)
    rule = yardstick("pixel_regression", sparse=True, metric="mae", classes=1)
    judged = gather([(answers, targets, np.array([0]))], rule)
    assert judged.truth.tolist() == [2, 5] and judged.predicted.tolist() == [3, 7]
    assert value_of(judged, rule) == pytest.approx(1.5) and lower_is_better("mae")
    whole = gather([(answers, targets, np.array([0]))], yardstick("pixel_regression", metric="mae", classes=1))
    assert value_of(whole, yardstick("pixel_regression", metric="mae", classes=1)) == pytest.approx(4 / 3)


def test_intervals_draw_blocks_of_land_where_there_are_enough() -> None:
    # Three of five blocks are right, all twenty windows of each.
    rule = yardstick("classification", metric="accuracy")
    block = np.repeat(np.arange(5), 20)
    scores = np.where((block < 3)[:, None], [[0.1, 0.9]], [[0.9, 0.1]]).astype(np.float32)
    judged = gather([(scores, np.ones(100, np.int64), np.arange(100))], rule)
    blocks = score_of("x", judged, rule, block, rounds=500, seed=1)
    windows = score_of("x", judged, rule, np.full(100, -1), rounds=500, seed=1)
    few = score_of("x", judged, rule, np.minimum(block, 3), rounds=500, seed=1)
    assert blocks.value == windows.value == 0.6
    assert (blocks.low, blocks.high) == pytest.approx((0.2, 1.0))  # binomial of 5 draws
    assert windows.low > 0.49 and windows.high < 0.71  # binomial of 100
    assert (few.low, few.high) == (windows.low, windows.high)
    assert score_of("x", judged, rule, block, rounds=0, seed=1).low is None


def test_the_usual_metric_depends_on_the_kind_and_unknown_ones_are_refused() -> None:
    usual = [("classification", False), ("segmentation", True), ("segmentation", False), ("pixel_regression", True)]
    found = [choose_metric(kind, 3, sparse=sparse, asked=None) for kind, sparse in usual]
    assert found == ["accuracy", "overall_acc", "miou", "neg_rmse"]
    assert choose_metric("segmentation", 3, sparse=True, asked="f1_class_2") == "f1_class_2"
    with pytest.raises(InputError, match=r"--metric r2: segmentation has miou, .*f1_class_0 to f1_class_2"):
        choose_metric("segmentation", 3, sparse=True, asked="r2")


@pytest.mark.parametrize(("kind", "sparse"), [("segmentation", True), ("segmentation", False), ("regression", False)])
def test_baselines_stand_beside_the_model_on_the_same_labels(kind, sparse, source, small, train) -> None:
    recipe = Recipe(name="head", epochs=1, lrs=(1e-3,))
    report, _ = train(source(kind, sparse=sparse), small, recipe, baselines=True)
    found = {score.name: score.value for score in report.baselines}
    blind = "mean value" if kind == "regression" else "majority class"
    names = [blind, "raw bands, kNN", "raw bands, linear probe", "kNN", "linear probe"]
    assert list(found) == names and all(score.low is not None for score in report.baselines)
    if kind == "regression":
        data = source(kind)
        truth = np.array([float(data.windows[i].target) for i in data.split("test")])
        mean = np.mean([float(data.windows[i].target) for i in data.split("train")])
        assert found[blind] == pytest.approx(-np.sqrt(np.mean((truth - mean) ** 2)), rel=1e-5)
        assert found["raw bands, linear probe"] > 0.5 * found[blind]
        return
    # Classes are equally frequent: the first is answered everywhere, which is right for a third (IoU 1/3 of one class).
    assert found[blind] == pytest.approx(1 / 3 if sparse else 1 / 9)
    assert found["raw bands, kNN"] == pytest.approx(1.0) and found["raw bands, linear probe"] == pytest.approx(1.0)
    assert report.test is not None and len(report.confusion) == 3


def test_multilabel_baselines_decide_each_class(source, small, train) -> None:
    recipe = Recipe(name="head", epochs=1, lrs=(1e-3,))
    report, _ = train(source("multilabel"), small, recipe, baselines=True)
    # Every class is in two of three windows, so the blind answer is "all three": 4 of 6 right, none missed.
    assert report.baselines[0].value == pytest.approx(2 * 4 / (2 * 4 + 2))
    assert report.baselines[1].value == pytest.approx(1.0)


def test_raw_bands_are_normalised_means_of_pixels_with_data_filled_in_time(source, small) -> None:
    window = source("classification", count=1).windows[0]
    image = np.zeros((16, 16, 2, 12), np.float32)
    image[:2, :4, 0], image[2:4, :4, 0] = 1000, 3000  # half of the first cell each
    image[..., 1, :] = 5000
    valid = np.ones((16, 16, 2), bool)
    valid[0, :4, 0] = False  # a quarter of the first cell lacks data: mean (1000 + 3000 + 3000) / 3
    valid[4:8, :4, 0] = False  # the second cell has none in the first period
    absent = np.zeros((2, 12), bool)
    absent[:, 3] = True
    window.images[S2], window.valid[S2], window.absent[S2] = image, valid, absent
    batch = collate([window], small.spec, patch_px=4)
    raw = raw_cells([window], batch, {S2: 3}, None)[0].reshape(4, 4, 12, 3)  # Y X C T
    scale = band_range(S2)
    wanted = [
        (7000 / 3 - scale.lo[0]) / (scale.hi[0] - scale.lo[0]),
        (5000 - scale.lo[0]) / (scale.hi[0] - scale.lo[0]),
    ]
    assert raw[0, 0, 0].tolist() == pytest.approx([wanted[0], wanted[1], wanted[1]], rel=1e-5)  # held to the end
    assert raw[1, 0, 0].tolist() == pytest.approx([wanted[1]] * 3, rel=1e-5)
    assert np.isnan(raw[:, :, 3]).all()
    columns = Columns.of(raw.reshape(16, -1))
    vectors = columns.vectors(raw.reshape(16, -1))
    assert vectors.shape == (16, 11 * 3) and np.abs(vectors.mean(axis=0)).max() < 1e-5
    own = raw_cells([window], batch, {S2: 2}, {S2: ((0.0,) * 12, (1000.0,) * 12)})[0].reshape(4, 4, 12, 2)
    assert own[0, 0, 0].tolist() == pytest.approx([7 / 3, 5.0], rel=1e-5)


def test_a_picture_is_true_colour_of_the_clearest_period(source) -> None:
    window = source("classification", count=1).windows[0]
    image = np.zeros((16, 16, 2, 12), np.float32)
    image[..., 0, :] = 9000  # a cloud over all of the first period
    image[8:, :, 1, 2] = 3000  # B04 in the south of the second: red
    window.images[S2] = image
    picture = picture_of(window)
    assert picture.dtype == np.uint8 and picture.shape == (16, 16, 3)
    assert picture[0, 0].tolist() == [0, 0, 0] and picture[15, 0].tolist() == [255, 0, 0]
