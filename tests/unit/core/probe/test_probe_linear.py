"""The linear probe against the golden trainings, against plain PyTorch, and its own promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from olmoearth_cli.core.probe.heads import Head, patches_to_pixels
from olmoearth_cli.core.probe.linear import LinearProbe, LinearRecipe, fit_linear, train_from
from olmoearth_cli.core.probe.metrics import metrics_of
from olmoearth_cli.core.probe.replicas import Replicas, StackedAdamW, initial_weights
from olmoearth_cli.errors import InputError

FILE = Path(__file__).parents[5] / "shared" / "spec" / "golden_knn.json"
GOLDEN = json.loads(FILE.read_text()) if FILE.is_file() else {}
needs_spec = pytest.mark.skipif(not GOLDEN, reason="../shared/spec is not here")
QUICK = LinearRecipe(epochs=10, lrs=(1e-3, 1e-2, 1e-1), batch_size=16)


def numbers(values) -> np.ndarray:
    """A golden list, in which NaN is a word."""
    return np.array(values, dtype=object).astype(np.float64)


def golden_head(case) -> Head:
    kind = {"regression": "pixel_regression"}.get(case["task"], case["task"])
    return Head(kind=kind, classes=case["num_classes"], side=case["output_pixels_per_patch_side"] or 1)


def golden_outputs(probe: LinearProbe, values) -> np.ndarray:
    """What the golden file lists: logits, of pixels before any resizing."""
    x = torch.tensor(values)
    if probe.kind == "segmentation":
        return patches_to_pixels(probe.outputs(x.flatten(0, 2)).view(*x.shape[:3], -1), probe.head.side).numpy()
    if probe.kind == "pixel_regression":
        return probe.scores_images(x.numpy(), 4)
    return probe.outputs(x).numpy()


@needs_spec
@pytest.mark.parametrize("case", GOLDEN.get("probe_training", []), ids=lambda c: c["name"])
def test_whole_trainings_end_at_the_golden_weights(case) -> None:
    x, y = np.array(case["train_embeddings"], dtype=np.float32), numbers(case["train_labels"])
    head = golden_head(case)
    recipe = LinearRecipe(
        epochs=case["epochs"],
        lrs=(case["lr"],),
        batch_size=len(x),
        eval_interval=case["eval_interval"],
        dice=case["dice"],
    )
    initial = torch.tensor(case["initial_weight"]), torch.tensor(case["initial_bias"])
    labels = y if head.kind == "pixel_regression" else y.astype(np.int64)
    probe = train_from(initial, (x, labels), None, head=head, recipe=recipe).probe
    wanted = case["expected"]
    np.testing.assert_allclose(probe.weight, wanted["weight"], atol=2e-6)
    np.testing.assert_allclose(probe.bias, wanted["bias"], atol=2e-6)
    np.testing.assert_allclose(golden_outputs(probe, case["val_embeddings"]), wanted["val_outputs"], atol=5e-6)
    if probe.norm is not None:
        names = ("running_mean", "running_var", "weight", "bias")
        np.testing.assert_allclose(probe.norm, [wanted[f"batchnorm_{name}"] for name in names], atol=2e-6)


@needs_spec
@pytest.mark.parametrize("case", GOLDEN.get("probe_lr_schedule", []), ids=lambda c: str(c["max_lr"]))
def test_the_learning_rate_follows_the_golden_curve(case) -> None:
    recipe = LinearRecipe(epochs=case["total_epochs"], lrs=(case["max_lr"],), floor=case["min_lr"])
    for epoch, batch, wanted in case["rows_epoch_batch_lr"]:
        (found,) = recipe.rates_at(epoch + batch / case["batches_per_epoch"])
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def plain_module(head: Head, replicas: Replicas, dimensions: int) -> nn.Module:
    """The same head as an ordinary module with the same initial weights."""
    linear = nn.Linear(dimensions, head.outputs)
    weight, bias, *_ = replicas.tensors(0)
    linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
    return nn.Sequential(nn.BatchNorm1d(dimensions), linear) if head.normalises else linear


def plain_loss(head: Head, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if head.kind == "multilabel":
        return F.multilabel_soft_margin_loss(out, y.float())
    if head.kind == "regression":
        known = torch.isfinite(y)
        return F.mse_loss(out[known, 0], y[known])
    if head.kind == "segmentation":
        pixels = F.interpolate(patches_to_pixels(out, head.side), y.shape[1:], mode="bilinear", align_corners=True)
        return F.cross_entropy(pixels, y, ignore_index=-1)
    return F.cross_entropy(out, y)


def batches(head: Head, rng: np.random.Generator):
    """Eight random batches of features and targets."""
    for size in (32, 16, 7, 32, 2, 32, 32, 11):
        grid = (2, 3) if head.spatial else ()
        x = torch.tensor(rng.normal(size=(size, *grid, 6)), dtype=torch.float32)
        y = {
            "multilabel": rng.integers(0, 2, (size, head.classes)),
            "regression": np.where(rng.random(size) < 0.2, np.nan, rng.normal(size=size)).astype(np.float32),
            "segmentation": rng.integers(-1, head.classes, (size, 5, 7)),
        }.get(head.kind, rng.integers(0, head.classes, size))
        yield x, torch.as_tensor(y)


@pytest.mark.parametrize(
    "head",
    [
        Head(kind="classification", classes=4),
        Head(kind="multilabel", classes=4),
        Head(kind="regression", classes=1),
        Head(kind="segmentation", classes=3, side=2),
    ],
    ids=lambda head: head.kind,
)
def test_each_replica_moves_as_it_would_alone_under_torchs_own_adamw(head) -> None:
    recipe = LinearRecipe(lrs=(1e-3, 1e-2, 1e-1), weight_decay=0.05)
    replicas = Replicas(initial_weights(head, 6, 3), head=head, recipe=recipe, device="cpu")
    modules = [plain_module(head, replicas, 6) for _ in recipe.lrs]
    optimisers = [torch.optim.AdamW(module.parameters(), weight_decay=0.05) for module in modules]
    for step, (x, y) in enumerate(batches(head, np.random.default_rng(1))):
        time = 2 + step / 4
        replicas.step(x, y, time)
        for module, optimiser, lr in zip(modules, optimisers, recipe.rates_at(time), strict=True):
            optimiser.zero_grad()
            plain_loss(head, module(x), y).backward()
            optimiser.param_groups[0]["lr"] = lr
            optimiser.step()
    for r, module in enumerate(modules):
        found = dict(zip(("weight", "bias", "norm_weight", "norm_bias"), replicas.tensors(r), strict=False))
        linear = module[1] if head.normalises else module
        torch.testing.assert_close(found["weight"], linear.weight.data, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(found["bias"], linear.bias.data, atol=2e-6, rtol=2e-6)
        if head.normalises:
            torch.testing.assert_close(found["norm_weight"], module[0].weight.data, atol=2e-6, rtol=2e-6)
            torch.testing.assert_close(found["norm_bias"], module[0].bias.data, atol=2e-6, rtol=2e-6)
            torch.testing.assert_close(replicas.mean, module[0].running_mean)
            torch.testing.assert_close(replicas.variance, module[0].running_var)


def test_adamw_with_a_rate_per_row_is_torchs_adamw_row_by_row() -> None:
    generator, rates = torch.Generator().manual_seed(0), np.array([1e-4, 1e-2, 0.5])
    stacked = torch.randn(3, 7, generator=generator)
    rows = [row.clone().requires_grad_() for row in stacked]
    ours = StackedAdamW(stacked, 0.01)
    theirs = [torch.optim.AdamW([row], weight_decay=0.01) for row in rows]
    for step in range(30):
        gradient, now = torch.randn(3, 7, generator=generator), rates * (step / 10)
        ours.step(gradient, now)
        for row, optimiser, slope, rate in zip(rows, theirs, gradient, now, strict=True):
            row.grad, optimiser.param_groups[0]["lr"] = slope, rate
            optimiser.step()
    torch.testing.assert_close(stacked, torch.stack([row.detach() for row in rows]), atol=1e-6, rtol=1e-6)


def blobs(count: int = 120, classes: int = 3, seed: int = 0):
    """Vectors around class centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 8))
    y = rng.integers(0, classes, count)
    return (centres[y] + 0.7 * rng.normal(size=(count, 8))).astype(np.float32), y


def test_the_sweep_keeps_what_the_best_rate_alone_would_give() -> None:
    train, val = blobs(), blobs(seed=1)
    swept = fit_linear(*train, kind="classification", classes=3, recipe=QUICK, val=val)
    alone = [
        fit_linear(
            *train, kind="classification", classes=3, recipe=LinearRecipe(epochs=10, lrs=(lr,), batch_size=16), val=val
        )
        for lr in QUICK.lrs
    ]
    best = max(alone, key=lambda fit: fit.val_value)
    assert (swept.lr, swept.epoch, swept.val_value, swept.val_last) == (
        best.lr,
        best.epoch,
        best.val_value,
        best.val_last,
    )
    torch.testing.assert_close(swept.probe.weight, best.probe.weight, atol=1e-6, rtol=1e-5)


def test_the_same_seed_gives_the_same_probe_and_another_seed_another() -> None:
    train, val = blobs(), blobs(seed=1)
    first, again, other = (
        fit_linear(*train, kind="classification", classes=3, recipe=LinearRecipe(epochs=5, seed=seed), val=val)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.probe.weight, again.probe.weight)
    assert not torch.equal(first.probe.weight, other.probe.weight)


def test_the_value_of_the_kept_state_is_the_metric_of_its_predictions() -> None:
    train, val = blobs(), blobs(seed=1)
    for metric in ("accuracy", "macro_f1", "auroc"):
        recipe = LinearRecipe(epochs=10, metric=metric)
        fit = fit_linear(*train, kind="classification", classes=3, recipe=recipe, val=val)
        scores = fit.probe.scores(val[0])
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
        wanted = metrics_of("classification", val[1], fit.probe.predict(scores), scores, 3)[metric]
        assert fit.val_value == pytest.approx(wanted)
        assert fit.val_value > 0.8


def test_errors_are_minimised_and_scores_maximised() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    y = 300 + 40 * (x @ np.array([1, -2, 0, 0.5, 1])) + rng.normal(size=200)
    for metric in ("rmse", "neg_rmse", "r2", "mae"):
        recipe = LinearRecipe(epochs=50, metric=metric)
        fit = fit_linear(x[:150], y[:150], kind="regression", classes=1, recipe=recipe, val=(x[150:], y[150:]))
        found = fit.probe.scores(x[150:])
        assert np.sqrt(np.mean((found - y[150:]) ** 2)) < 8  # of a spread of 100, in the units of the labels
        assert fit.val_value == pytest.approx(metrics_of("regression", y[150:], found, None, 1)[metric], rel=1e-5)


def test_without_selection_the_last_state_is_kept_and_with_it_the_best() -> None:
    train, val = blobs(40), blobs(300, seed=1)
    shuffled = train[0], np.random.default_rng(0).permutation(train[1])  # training makes it worse
    last = fit_linear(*shuffled, kind="classification", classes=3, recipe=LinearRecipe(select_best=False), val=val)
    best = fit_linear(*shuffled, kind="classification", classes=3, recipe=LinearRecipe(), val=val)
    assert (last.epoch, last.val_value) == (50, last.val_last)
    assert best.val_value > last.val_value
    assert best.epoch < 50
    assert best.val_value > best.val_last


def test_several_rates_without_validation_are_a_callers_mistake() -> None:
    with pytest.raises(ValueError, match="8 learning rates and no validation"):
        fit_linear(*blobs(), kind="classification", classes=3, recipe=LinearRecipe())
    fit = fit_linear(*blobs(), kind="classification", classes=3, recipe=LinearRecipe(lrs=(0.01,)))
    assert (fit.epoch, fit.val_value, fit.val_last) == (50, None, None)


@pytest.mark.parametrize("count", [33, 97])
def test_a_last_batch_of_one_sample_joins_the_one_before(count) -> None:
    x, y = blobs(count)
    recipe = LinearRecipe(epochs=3, lrs=(0.01,), batch_size=32)
    probe = fit_linear(x, y, kind="classification", classes=3, recipe=recipe).probe
    assert torch.isfinite(probe.weight).all()
    with pytest.raises(InputError, match="at least 2 training samples: there are 1"):
        fit_linear(x[:1], y[:1], kind="classification", classes=3, recipe=recipe)


def cell_squares(count: int = 60, pixels: int = 4, seed: int = 0):
    """Cells whose pixels are of class 1 in the rows that the vector names, some unlabelled."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    y = np.broadcast_to((x[:, :pixels] > 0)[:, :, None], (count, pixels, pixels)).astype(np.int64)
    return x, np.where(rng.random(y.shape) < 0.1, -1, y)


def test_the_pixels_of_a_cell_are_learnt_in_their_places() -> None:
    train, val = cell_squares(300), cell_squares(seed=1)
    fit = fit_linear(*train, kind="segmentation", classes=2, recipe=LinearRecipe(epochs=30), val=val)
    scores = fit.probe.scores(val[0])
    assert scores.shape == (60, 2, 4, 4)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
    known = val[1] != -1
    assert (fit.probe.predict(scores)[known] == val[1][known]).mean() > 0.97
    assert fit.val_value == pytest.approx(metrics_of("segmentation", val[1], scores.argmax(1), None, 2)["miou"])


def test_feature_maps_of_one_patch_train_as_cells_do() -> None:
    x, y = cell_squares()
    recipe = LinearRecipe(epochs=3, lrs=(0.05,))
    cells = fit_linear(x, y, kind="segmentation", classes=2, recipe=recipe).probe
    images = fit_linear(x[:, None, None], y, kind="segmentation", classes=2, recipe=recipe).probe
    assert torch.equal(cells.weight, images.weight)
    assert np.array_equal(cells.scores(x), images.scores_images(x[:, None, None], 4))


def test_a_batch_without_a_labelled_pixel_is_passed_over() -> None:
    x, y = cell_squares(2)
    y[1] = -1
    recipe = LinearRecipe(epochs=2, lrs=(0.05,), batch_size=1, warmup=0)
    probe = fit_linear(x, y, kind="segmentation", classes=2, recipe=recipe).probe
    weight, _ = initial_weights(probe.head, 6, recipe.seed)
    assert torch.isfinite(probe.weight).all()  # the mean over no pixel would be NaN
    assert not torch.equal(probe.weight, weight)
    with pytest.raises(InputError, match="none of the 2 training samples is labelled"):
        fit_linear(x, np.full_like(y, -1), kind="segmentation", classes=2, recipe=recipe)


def test_a_validation_without_labels_cannot_select() -> None:
    x, y = cell_squares()
    with pytest.raises(InputError, match="miou is not defined on the validation samples"):
        fit_linear(x, y, kind="segmentation", classes=2, recipe=QUICK, val=(x, np.full_like(y, -1)))


def test_splitting_the_replicas_of_a_large_step_changes_nothing(monkeypatch) -> None:
    train, val = cell_squares(), cell_squares(seed=1)
    whole = fit_linear(*train, kind="segmentation", classes=2, recipe=QUICK, val=val)
    monkeypatch.setattr("olmoearth_cli.core.probe.replicas.OUTPUTS_AT_ONCE", 1)
    parts = fit_linear(*train, kind="segmentation", classes=2, recipe=QUICK, val=val)
    torch.testing.assert_close(whole.probe.weight, parts.probe.weight, atol=1e-6, rtol=1e-5)


def test_the_value_of_every_pixel_is_learnt_in_its_own_units() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3, 3, 4)).astype(np.float32)
    smooth = F.interpolate(torch.tensor(x[..., :1]).movedim(-1, 1), (6, 6), mode="bilinear", align_corners=True)
    y = 50 + 10 * smooth[:, 0].numpy().astype(np.float64)
    y[0, 0, 0] = np.nan
    recipe = LinearRecipe(epochs=60, lrs=(0.05, 0.1))
    fit = fit_linear(x[:30], y[:30], kind="pixel_regression", classes=1, recipe=recipe, val=(x[30:], y[30:]))
    assert np.abs(fit.probe.scores_images(x[30:], 6) - y[30:]).max() < 1
    assert fit.val_value > -0.5
    assert fit.probe.scores(x[:2, 0, 0]).shape == (2, 2, 2)


def test_each_label_of_several_is_decided_at_one_half() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    y = (x[:, :3] > 0.2).astype(np.uint8)
    fit = fit_linear(x[:200], y[:200], kind="multilabel", classes=3, recipe=LinearRecipe(), val=(x[200:], y[200:]))
    scores = fit.probe.scores(x[200:])
    assert np.array_equal(fit.probe.predict(scores), (scores > 0.5).astype(np.uint8))
    assert fit.val_value > 0.95


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression", "segmentation", "pixel_regression"])
def test_a_saved_probe_scores_as_before_and_a_vector_alone_as_in_company(kind) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 6)).astype(np.float32)
    y = {
        "classification": rng.integers(0, 3, 1500),
        "multilabel": rng.integers(0, 2, (1500, 3)),
        "regression": rng.normal(size=1500),
        "segmentation": rng.integers(-1, 3, (1500, 4, 4)),
        "pixel_regression": rng.normal(size=(1500, 4, 4)),
    }[kind]
    classes = 1 if "regression" in kind else 3
    recipe = LinearRecipe(epochs=2, lrs=(0.1,), batch_size=500)
    probe = fit_linear(x, y, kind=kind, classes=classes, recipe=recipe).probe
    again = LinearProbe.from_state(probe.state(), kind=kind, classes=classes)
    together = probe.scores(x)
    assert together.dtype == np.float32
    assert np.array_equal(together, again.scores(x))
    assert np.array_equal(together[1200:1201], probe.scores(x[1200:1201]))
    assert probe.scores(x[:0]).shape == (0, *together.shape[1:])
    with pytest.raises(ValueError, match="do not fit"):
        LinearProbe.from_state({**probe.state(), "weight": torch.zeros(7, 6)}, kind=kind, classes=classes)


def test_feature_maps_may_lie_on_disk_in_half_precision(tmp_path) -> None:
    x, y = cell_squares()
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float16, shape=(60, 1, 1, 6))
    stored[:, 0, 0] = x
    stored.flush()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    recipe = LinearRecipe(epochs=2, lrs=(0.05,))
    found = fit_linear(mapped, y, kind="segmentation", classes=2, recipe=recipe).probe
    wanted = fit_linear(mapped.astype(np.float32), y, kind="segmentation", classes=2, recipe=recipe).probe
    assert torch.equal(found.weight, wanted.weight)


def test_half_precision_training_ends_near_the_full_one() -> None:
    train, val = blobs(), blobs(seed=1)
    full, half = (
        fit_linear(
            *train, kind="classification", classes=3, recipe=LinearRecipe(epochs=5, lrs=(0.01,), precision=p), val=val
        )
        for p in ("float32", "bfloat16")
    )
    assert half.probe.weight.dtype == torch.float32
    assert not torch.equal(full.probe.weight, half.probe.weight)
    np.testing.assert_allclose(full.probe.scores(val[0]), half.probe.scores(val[0]), atol=0.02)


def test_many_samples_raise_the_batch_size_and_few_leave_it() -> None:
    recipe = LinearRecipe()
    assert recipe.for_samples(768).batch_size == 32
    assert recipe.for_samples(769).batch_size == 33
    assert math.ceil(1_000_000 / recipe.for_samples(1_000_000).batch_size) == 24


def test_what_does_not_fit_is_refused_with_its_numbers() -> None:
    x, y = blobs()
    recipe = LinearRecipe(lrs=(0.1,))
    with pytest.raises(ValueError, match="class ids from 0 to 2; 2 classes"):
        fit_linear(x, y, kind="classification", classes=2, recipe=recipe)
    with pytest.raises(ValueError, match="not finite"):
        fit_linear(np.where(x == x[3, 3], np.nan, x), y, kind="classification", classes=3, recipe=recipe)
    with pytest.raises(ValueError, match=r"features \[120, 8\] and targets \[119\]"):
        fit_linear(x, y[1:], kind="classification", classes=3, recipe=recipe)
    with pytest.raises(ValueError, match="5 dimensions in validation, 8 in training"):
        fit_linear(x, y, kind="classification", classes=3, recipe=recipe, val=(x[:, :5], y))
    with pytest.raises(ValueError, match="'miou' is not a metric of classification"):
        fit_linear(x, y, kind="classification", classes=3, recipe=LinearRecipe(metric="miou"), val=(x, y))
    with pytest.raises(ValueError, match="4 by 3 pixels; they must be square"):
        fit_linear(x, np.zeros((120, 4, 3), dtype=int), kind="segmentation", classes=2, recipe=recipe)
    with pytest.raises(ValueError, match="dice"):
        fit_linear(x, y, kind="classification", classes=3, recipe=LinearRecipe(dice=True), val=(x, y))
    with pytest.raises(InputError, match="1 finite training values"):
        fit_linear(x[:2], np.array([np.nan, 1.0]), kind="regression", classes=1, recipe=recipe)


def test_unlabelled_samples_are_left_out_of_a_classification() -> None:
    x, y = blobs()
    marked = np.where(np.arange(len(y)) < 60, y, -1)
    recipe = LinearRecipe(epochs=3)
    found = fit_linear(x, marked, kind="classification", classes=3, recipe=recipe, val=(x, marked))
    wanted = fit_linear(x[:60], y[:60], kind="classification", classes=3, recipe=recipe, val=(x[:60], y[:60]))
    assert torch.equal(found.probe.weight, wanted.probe.weight)
    assert found.val_value == wanted.val_value
