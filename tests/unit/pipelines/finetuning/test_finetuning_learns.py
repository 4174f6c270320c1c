"""Whole runs: every kind of target is learned, recipes differ where they should, figures are those of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olmoearth_cli.core.finetune.augment import Augmentation
from olmoearth_cli.core.finetune.loop import scores_of
from olmoearth_cli.core.finetune.saved import load_finetuned
from olmoearth_cli.core.model import load_model
from olmoearth_pipelines.finetune import EpochDone, Recipe, Shown
from olmoearth_pipelines.finetuning.features import FeatureStore
from olmoearth_pipelines.finetuning.setup import make_setup
from olmoearth_pipelines.finetuning.trainer import Trainer
from olmoearth_pipelines.windows.arrays import collate

FAST = {"epochs": 15, "lrs": (5e-3,), "batch_size": 4, "drop_path": 0.0, "decay": "constant"}


@pytest.mark.parametrize(
    ("kind", "sparse", "reached"),
    [
        ("classification", False, 0.99),
        ("multilabel", False, 0.99),
        ("regression", False, -10.0),  # of values that spread by 29
        ("segmentation", False, 0.99),
        ("segmentation", True, 0.99),
        ("pixel_regression", True, -5.0),  # spread by 41
    ],
)
def test_each_kind_of_target_is_learned(kind, sparse, reached, source, small, train) -> None:
    recipe = Recipe(name="full", epochs=20, lrs=(5e-3,), batch_size=2, drop_path=0.0, decay="cosine")
    report, _ = train(source(kind, sparse=sparse), small, recipe)
    assert report.kind == kind and report.judged_on == "test"
    assert report.test is not None and report.test.value >= reached
    assert report.legs[0].epochs[-1].loss < 0.2  # of about 1 at the beginning


def test_the_saved_checkpoint_gives_the_reported_figures(source, small, train) -> None:
    data = source("segmentation")
    report, seen = train(data, small, Recipe(name="full", **{**FAST, "epochs": 6}))
    saved = load_finetuned(report.out)
    windows = [data.windows[i] for i in data.split("test")]
    batch = collate(windows, saved.model.spec, patch_px=saved.task.head.patch_px)
    answers = scores_of(saved.network(), batch).argmax(dim=1).numpy()
    truth = np.stack([window.target for window in windows])
    union = [((truth == c) | (answers == c)).sum() for c in range(3)]
    ious = [((truth == c) & (answers == c)).sum() / u for c, u in enumerate(union) if u]
    assert report.test.value == pytest.approx(np.mean(ious), abs=1e-6)
    assert np.sum(report.confusion) == truth.size and np.trace(report.confusion) == (truth == answers).sum()
    pictures = [item for item in seen if isinstance(item, Shown)]
    assert [item.id for item in pictures] == [window.id for window in windows]
    assert all((item.predicted == answer).all() for item, answer in zip(pictures, answers, strict=True))
    assert saved.task.class_names == ("water", "field", "town") and saved.base["sha256"] == small.weights_sha256
    assert load_model(report.out).encoder.config == small.encoder.config


def test_without_a_test_split_the_validation_windows_are_judged(source, small, train) -> None:
    data = source("classification")
    data.splits = ["train" if split == "test" else split for split in data.splits]
    report, _ = train(data, small, Recipe(name="full", **{**FAST, "epochs": 2}))
    assert report.judged_on == "val" and report.test is None and report.windows["test"] == 0
    assert np.sum(report.confusion) == report.windows["val"] == 6


def test_a_sweep_keeps_the_best_rate_and_equals_the_run_at_that_rate(source, small, train, tmp_path) -> None:
    data = source("classification")
    settings = {**FAST, "epochs": 8, "drop_path": 0.1}
    swept, seen = train(data, small, Recipe(name="full", **{**settings, "lrs": (1e-9, 5e-3)}), out=tmp_path / "swept")
    single, _ = train(data, small, Recipe(name="full", **settings), out=tmp_path / "single")
    assert [leg.lr for leg in swept.legs] == [1e-9, 5e-3] and swept.lr == 5e-3
    assert swept.legs[1].best_value > swept.legs[0].best_value
    assert [item.leg for item in seen if isinstance(item, EpochDone)] == [1] * 8 + [2] * 8
    first, second = (load_finetuned(tmp_path / name) for name in ("swept", "single"))
    assert_equal_weights(first, second)


def test_patience_ends_a_training_that_does_not_improve(source, small, train) -> None:
    recipe = Recipe(name="full", **{**FAST, "lrs": (1e-12,), "patience": 2})
    report, _ = train(source("classification"), small, recipe)
    leg = report.legs[0]
    assert leg.stopped and leg.best_epoch == 1 and len(leg.epochs) == 3


def test_patience_does_not_end_a_training_before_the_encoder_has_had_its_chance(source, small, train) -> None:
    recipe = Recipe(frozen_share=0.5, epochs=8, lrs=(1e-12,), batch_size=8, patience=2)
    report, _ = train(source("classification"), small, recipe)
    assert [row.lr_encoder > 0 for row in report.legs[0].epochs] == [False] * 4 + [True] * 2


def test_layer_wise_rates_fall_with_depth_and_are_those_of_the_specification(source, nano, plan_of, tmp_path) -> None:
    plan = plan_of(source("classification"), nano, Recipe(llrd=0.65))
    setup = make_setup(plan, _request(tmp_path), print, print)
    trainer = Trainer(setup, 1e-4, FeatureStore(setup.reader, batch_size=8, note=print))
    rates = [group["lr"] / 1e-4 for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([0.178506, 0.274625, 0.4225, 0.65, 1.0], abs=1e-6)  # golden, L = 4
    assert plan.recipe.rates == (1e-4,) and plan.recipe.words == "layer-wise rates x 0.65"
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    row = trainer.take_epoch()
    moved = {name: (p - before[name]).abs().max() for name, p in trainer.network.named_parameters()}
    first, last = (moved[f"encoder.blocks.{i}.mlp.fc1.weight"] for i in (0, 3))
    assert 0 < first < last  # AdamW steps are about as long as the rate
    assert (row.lr, row.lr_encoder) == pytest.approx((1e-4, 0.65e-4))


def test_a_frozen_start_freezes_a_fifth_of_the_epochs_and_lowers_the_rates(source, small, train) -> None:
    recipe = Recipe(epochs=6, lrs=(1e-3,), batch_size=4, decay="constant")
    report, _ = train(source("classification"), small, recipe)
    rows = report.legs[0].epochs
    assert [row.lr_encoder for row in rows] == pytest.approx([0, 0, 1e-4, 1e-4, 1e-4, 1e-4])  # ceil(0.2 * 6) = 2
    assert [row.lr for row in rows] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-4])
    assert report.recipe == "frozen start, 2 of 6 epochs, then all rates x 0.1"


def test_cached_features_train_the_head_that_computing_them_anew_trains(source, small, train, tmp_path) -> None:
    data = source("segmentation", sparse=True)
    heads = {}
    for cache in (True, False):
        recipe = Recipe(name="head", **{**FAST, "epochs": 4}, cache_features=cache)
        report, _ = train(data, small, recipe, out=tmp_path / str(cache))
        heads[cache] = load_finetuned(report.out)
    weights = [heads[cache].head.state_dict() for cache in (True, False)]
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], atol=1e-5)
    for name, value in heads[True].model.encoder.state_dict().items():
        assert torch.equal(value, small.encoder.state_dict()[name])  # the encoder never moved


def test_a_frozen_encoder_reads_each_window_once_for_all_legs(source, small, plan_of, tmp_path) -> None:
    plan = plan_of(source("classification"), small, Recipe(name="head", **{**FAST, "epochs": 3, "lrs": (1e-3, 1e-2)}))
    setup = make_setup(plan, _request(tmp_path), print, print)
    asked: list[int] = []
    collated = setup.reader.batch
    setup.reader.batch = lambda numbers: (asked.extend(numbers), collated(numbers))[1]
    store = FeatureStore(setup.reader, batch_size=4, note=print)
    for lr in plan.recipe.rates:
        trainer = Trainer(setup, lr, store)
        while not trainer.over:
            trainer.take_epoch()
    assert sorted(asked) == sorted([*plan.source.split("train"), *plan.source.split("val")])


def test_features_that_are_too_large_are_computed_anew_and_train_the_same(source, small, plan_of, tmp_path) -> None:
    setup = make_setup(
        plan_of(source("classification"), small, Recipe(name="head", **FAST)), _request(tmp_path), print, print
    )
    said: list[str] = []
    losses = []
    for kept in (2**30, 100):
        store = FeatureStore(setup.reader, batch_size=4, note=said.append, kept_bytes=kept)
        losses.append(Trainer(setup, 1e-3, store).take_epoch().loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(said) == 1 and "computed anew" not in said[0] and "not kept" in said[0]


def test_lora_learns_few_parameters_and_leaves_the_published_layout(source, small, train) -> None:
    report, _ = train(source("classification"), small, Recipe(lora=2, **{**FAST, "epochs": 3}))
    head = 32 * 3 + 3
    assert report.parameters == 2 * 4 * (2 * 32 + 32 * 2) + head  # blocks, projections, A and B of rank 2
    before, after = small.encoder.state_dict(), load_model(report.out).encoder.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(".attn." in name and name.endswith("weight") for name in changed)


def test_an_update_in_parts_is_the_same_update(source, small, train, tmp_path) -> None:
    data = source("segmentation", sparse=True)
    runs = []
    for parts in (1, 3):
        recipe = Recipe(name="full", **{**FAST, "epochs": 2, "lrs": (1e-3,)}, accumulate=parts)
        report, _ = train(data, small, recipe, out=tmp_path / str(parts))
        runs.append([row.loss for row in report.legs[0].epochs])
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_everything_that_can_be_varied_and_weighted_trains(source, small, train) -> None:
    recipe = Recipe(
        name="full",
        decay="cosine",
        epochs=3,
        batch_size=4,
        augmentation=Augmentation(symmetries=True, time_dropout=0.3),
        class_weights="balanced",
        dice=True,
        decoder="unet",
        clip_norm=1.0,
        precision="bfloat16",
        metric="macro_f1",
    )
    report, _ = train(source("segmentation"), small, recipe)
    losses = [row.loss for row in report.legs[0].epochs]
    assert losses[-1] < losses[0] and report.metric == "macro_f1" and report.decoder == "unet"


def _request(tmp_path):
    from olmoearth_pipelines.finetune import FinetuneRequest

    return FinetuneRequest(out=tmp_path / "run", dataset=tmp_path)


def assert_equal_weights(first, second) -> None:
    for part in ("head", "encoder"):
        one, other = ((found.head if part == "head" else found.model.encoder).state_dict() for found in (first, second))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
