"""Layout of patches in images and the losses, against the golden values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from olmoearth_cli.core.probe.heads import Head, patches_to_pixels, pixels_per_patch, resize
from olmoearth_cli.core.probe.losses import cross_entropy, dice, masked_mse, slopes, standardisation

FILE = Path(__file__).parents[5] / "shared" / "spec" / "golden_knn.json"
GOLDEN = json.loads(FILE.read_text()) if FILE.is_file() else {}
needs_spec = pytest.mark.skipif(not GOLDEN, reason="../shared/spec is not here")


def numbers(values) -> np.ndarray:
    return np.array(values, dtype=object).astype(np.float64)


@needs_spec
@pytest.mark.parametrize("case", GOLDEN.get("patch_logits_to_pixels", []))
def test_patch_logits_lie_in_the_image_as_in_the_golden_file(case) -> None:
    outputs, wanted = torch.tensor(case["patch_logits_BHWK"]), np.array(case["expected_BCHW"])
    head = Head(kind="segmentation", classes=case["num_classes"], side=case["patch"])
    found = head.pixels(outputs, tuple(case.get("label_size", wanted.shape[2:])))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@needs_spec
def test_patch_values_are_interpolated_as_in_the_golden_file() -> None:
    case = GOLDEN["patch_regression_to_pixels"]
    values, (rows, columns) = torch.tensor(case["patch_values_BHW1"]), case["label_size"]
    head = Head(kind="pixel_regression", classes=1, side=pixels_per_patch((rows, columns), values.shape[1:3]))
    np.testing.assert_allclose(head.pixels(values, (rows, columns))[:, 0], case["expected_BHW"], rtol=1e-6)


def test_mapping_before_upsampling_gives_the_published_heads_values() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 5, 3, 4), (1, 4), (1,)))
    upsampled = F.interpolate(x.movedim(-1, 1), scale_factor=3, mode="bilinear", align_corners=True)
    published = F.conv2d(upsampled, weight[..., None, None], bias)
    ours = Head(kind="pixel_regression", classes=1, side=3).pixels(F.linear(x, weight, bias), (15, 9))
    torch.testing.assert_close(ours, published, atol=1e-6, rtol=1e-5)


def test_each_channel_has_its_class_row_and_column() -> None:
    outputs = torch.arange(2 * 9.0).view(1, 1, 1, 18)
    pixels = patches_to_pixels(outputs, 3)
    for c, i, j in ((0, 0, 0), (0, 2, 1), (1, 0, 2), (1, 2, 2)):
        assert pixels[0, c, i, j] == (c * 3 + i) * 3 + j


def test_the_side_of_a_patch_is_rounded_down() -> None:
    assert pixels_per_patch((64, 64), (16, 16)) == 4
    assert pixels_per_patch((3, 3), (2, 2)) == 1
    assert pixels_per_patch((4, 4), (1, 1)) == 4
    with pytest.raises(ValueError, match="smaller than"):
        pixels_per_patch((3, 3), (4, 4))


def test_corners_stay_corners_when_resizing() -> None:
    maps = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])
    assert resize(maps, (3, 3))[0, 0].tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]


@needs_spec
@pytest.mark.parametrize("case", GOLDEN.get("dice_plus_cross_entropy", []), ids=lambda c: c["name"])
def test_dice_and_cross_entropy_are_the_golden_ones(case) -> None:
    logits, labels, wanted = torch.tensor(case["logits_NCHW"]), torch.tensor(case["labels_NHW"]), case["expected"]
    assert float(cross_entropy(logits[None], labels)) == pytest.approx(wanted["cross_entropy"], rel=2e-6)
    assert float(dice(logits[None], labels)) == pytest.approx(wanted["weighted_dice"], rel=2e-6)
    twice = logits.expand(2, *logits.shape)  # a sum over replicas
    total = cross_entropy(twice, labels) + dice(twice, labels)
    assert float(total) == pytest.approx(2 * wanted["total"], rel=2e-6)


@needs_spec
@pytest.mark.parametrize("case", GOLDEN.get("masked_mse", []))
def test_the_squared_error_of_finite_targets_is_the_golden_one(case) -> None:
    predictions, targets = torch.tensor(case["predictions"]), torch.tensor(numbers(case["targets"]))
    assert float(masked_mse(predictions[None], targets.float())) == pytest.approx(case["expected"], rel=2e-6)


@needs_spec
def test_targets_are_standardised_as_in_the_golden_file() -> None:
    case = GOLDEN["regression_target_standardisation"]
    found = standardisation(numbers(case["labels"]))
    assert found == pytest.approx((case["expected_mean"], case["expected_std_unbiased"]), rel=1e-6)
    assert standardisation(np.array([3.0, 3.0, np.nan])) == (3.0, 1e-6)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_slopes_are_the_gradients_of_torchs_own_losses(kind) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 9, 1 if kind == "regression" else 4, generator=generator, requires_grad=True)
    if kind == "classification":
        targets = torch.randint(0, 4, (9,), generator=generator)
        loss = sum(F.cross_entropy(part, targets) for part in outputs)
    elif kind == "multilabel":
        targets = torch.randint(0, 2, (9, 4), generator=generator)
        loss = sum(F.multilabel_soft_margin_loss(part, targets.float()) for part in outputs)
    else:
        targets = torch.randn(9, generator=generator)
        targets[4] = torch.nan
        known = torch.isfinite(targets)
        loss = sum(F.mse_loss(part[known, 0], targets[known]) for part in outputs)
    loss.backward()
    torch.testing.assert_close(slopes(kind, outputs.detach(), targets), outputs.grad, atol=1e-7, rtol=1e-5)
