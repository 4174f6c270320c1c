"""Losses against the specification's values and plain formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from olmoearth_cli.core.finetune.objective import Objective, balanced_weights

GENERATOR = torch.Generator().manual_seed(0)


def test_cross_entropy_with_dice_equals_the_reference(spec_folder: Path) -> None:
    for case in json.loads((spec_folder / "golden_knn.json").read_text())["dice_plus_cross_entropy"]:
        logits, labels = torch.tensor(case["logits_NCHW"]), torch.tensor(case["labels_NHW"])
        classes, wanted = case["num_classes"], case["expected"]
        total = Objective(kind="segmentation", classes=classes, dice=True).loss(logits, labels)
        plain = Objective(kind="segmentation", classes=classes).loss(logits, labels)
        assert float(total) == pytest.approx(wanted["total"], rel=1e-5)
        assert float(plain) == pytest.approx(wanted["cross_entropy"], rel=1e-5)


def test_the_masked_squared_error_equals_the_reference(spec_folder: Path) -> None:
    objective = Objective(kind="regression", classes=1)
    seen = 0
    for case in json.loads((spec_folder / "golden_knn.json").read_text())["masked_mse"]:
        targets = torch.tensor([[float(v) for v in row] for row in case["targets"]])
        if objective.weight(targets) == 0:
            assert case["expected"] == 0  # such a batch is left out
            continue
        seen += 1
        assert float(objective.loss(torch.tensor(case["predictions"]), targets)) == pytest.approx(case["expected"])
    assert seen == 1


def test_class_weights_count_as_in_pytorch_and_ignored_pixels_do_not() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=GENERATOR)
    labels = torch.randint(-1, 3, (2, 4, 4), generator=GENERATOR)
    objective = Objective(kind="segmentation", classes=3, class_weights=(1.0, 2.0, 5.0))
    weights = torch.tensor([1.0, 2.0, 5.0])
    log_p = logits.log_softmax(1).movedim(1, -1)
    kept = [(-log_p[b, i, j, c] * weights[c], weights[c]) for (b, i, j), c in _labelled(labels)]
    wanted = sum(loss for loss, _ in kept) / sum(w for _, w in kept)
    assert float(objective.loss(logits, labels)) == pytest.approx(float(wanted), rel=1e-5)
    assert objective.weight(labels) == pytest.approx(float(sum(w for _, w in kept)))


def _labelled(labels: Tensor) -> list[tuple[tuple[int, int, int], int]]:
    return [(tuple(p.tolist()), int(labels[tuple(p)])) for p in (labels >= 0).nonzero()]


def test_multilabel_is_the_soft_margin_loss_and_unknown_entries_are_left_out() -> None:
    outputs = torch.randn(5, 4, generator=GENERATOR)
    targets = torch.randint(0, 2, (5, 4), generator=GENERATOR)
    objective = Objective(kind="multilabel", classes=4)
    assert float(objective.loss(outputs, targets)) == pytest.approx(
        float(nn.MultiLabelSoftMarginLoss()(outputs, targets))
    )
    weighted = Objective(kind="multilabel", classes=4, class_weights=(1.0, 0.5, 2.0, 0.0))
    wanted = nn.MultiLabelSoftMarginLoss(weight=torch.tensor([1.0, 0.5, 2.0, 0.0]))(outputs, targets)
    assert float(weighted.loss(outputs, targets)) == pytest.approx(float(wanted))
    targets[0] = -1
    assert float(objective.loss(outputs, targets)) == pytest.approx(
        float(nn.MultiLabelSoftMarginLoss()(outputs[1:], targets[1:]))
    )
    assert objective.weight(targets) == 16


@pytest.mark.parametrize(
    ("error", "plain"), [("absolute", F.l1_loss), ("huber", F.huber_loss), ("squared", F.mse_loss)]
)
def test_regression_errors_are_in_standard_deviations_of_finite_targets(error: str, plain) -> None:  # type: ignore[no-untyped-def]
    outputs = torch.tensor([0.5, -1.0, 3.0, 7.0], requires_grad=True)
    targets = torch.tensor([10.0, 20.0, 30.0, math.nan], dtype=torch.float64)
    objective = Objective(kind="regression", classes=1, error=error, target=(20.0, 5.0))
    loss = objective.loss(outputs, targets)
    assert loss.item() == pytest.approx(float(plain(outputs.detach()[:3], torch.tensor([-2.0, 0.0, 2.0]))))
    loss.backward()
    assert torch.isfinite(outputs.grad).all() and outputs.grad[3] == 0


def test_balanced_weights_are_inverse_shares() -> None:
    assert balanced_weights(torch.tensor([6, 2, 0, 8])) == pytest.approx((16 / 24, 2.0, 1.0, 0.5))


def test_class_ids_that_the_head_does_not_have_are_refused() -> None:
    objective = Objective(kind="classification", classes=3)
    assert objective.weight(torch.tensor([0, 2, -1])) == 2
    for stray in ([3], [-2]):
        with pytest.raises(ValueError, match=r"-1\.\.2 are known"):
            objective.weight(torch.tensor(stray))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "classification", "classes": 2, "dice": True},
        {"kind": "classification", "classes": 2, "class_weights": (1.0,)},
        {"kind": "regression", "classes": 1, "class_weights": (1.0,)},
        {"kind": "classification", "classes": 1, "class_weights": (math.inf,)},
        {"kind": "regression", "classes": 1, "target": (0.0, 0.0)},
        {"kind": "regression", "classes": 1, "error": "cubed"},
    ],
)
def test_objectives_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Objective(**wrong)
