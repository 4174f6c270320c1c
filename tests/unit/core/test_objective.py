"""The losses against reference values and against plain sums (spec/pretraining.md section 4)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from olmoearth_cli.core.masking import MAPS
from olmoearth_cli.core.objective import Objective, instance_contrast, mean_counted, patch_discrimination


@pytest.fixture(scope="module")
def golden(spec_folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((spec_folder / "golden_losses.json").read_text())
    return content


def close(value: float, expected: float) -> bool:
    return abs(value - expected) <= 1e-5 + 1e-4 * abs(expected)


def token_loss(golden: dict[str, Any], case: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and predictions (with gradients to come) per modality."""
    params = case["params"]
    losses, leaves = {}, {}
    for tokens in case["tokens"]:
        name = tokens["modality"]
        z = torch.tensor(golden["inputs"][tokens["prediction"]], requires_grad=True)
        y = torch.tensor(golden["inputs"][tokens["target"]])
        masked = name in params.get("mask_negatives_for_modalities", ())
        limit = params["same_target_threshold"] if masked else None
        predicted = torch.tensor(tokens["mask"]) == 2
        loss, counted = patch_discrimination(z, y, predicted, temperature=params["tau"], twin_limit=limit)
        losses[name], leaves[name] = mean_counted(loss, counted), z
    return losses, leaves


def test_token_losses_and_their_gradients_have_the_reference_values(golden: dict[str, Any]) -> None:
    assert len(golden["token_losses"]) >= 10
    for case in golden["token_losses"]:
        losses, leaves = token_loss(golden, case)
        expected = case["expected"]
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert close(total.item(), expected["loss"]), case["id"]
        for name, loss in losses.items():
            assert close(loss.item(), expected["loss_per_modality"][name]), (case["id"], name)
            gradient = leaves[name].grad
            assert gradient is not None
            assert close(gradient.norm().item(), expected["grad_l2_per_modality"][name]), (case["id"], name)


def test_the_instance_contrast_has_the_reference_values(golden: dict[str, Any]) -> None:
    for case in golden["contrastive"]:
        a, b = (torch.tensor(golden["inputs"][case[view]], requires_grad=True) for view in ("a", "b"))
        loss = case["params"]["weight"] * instance_contrast(a, b, temperature=case["params"]["tau"])
        loss.backward()
        assert a.grad is not None and b.grad is not None
        found = (loss.item(), a.grad.norm().item(), b.grad.norm().item())
        expected = case["expected"]
        wanted = (expected["loss"], expected["grad_l2_a"], expected["grad_l2_b"])
        assert all(map(close, found, wanted)), case["id"]


def test_the_total_is_the_mean_of_the_views_plus_the_weighted_contrast(golden: dict[str, Any]) -> None:
    combined = golden["combined"]
    cases = {case["id"]: case for case in golden["token_losses"]}
    views = [
        torch.stack(list(token_loss(golden, cases[combined[view]])[0].values())).sum()
        for view in ("view_a_case", "view_b_case")
    ]
    pair = [torch.tensor(golden["inputs"][view]) for view in ("view_a", "view_b")]
    objective = Objective()
    contrast = objective.contrast_weight * instance_contrast(*pair, temperature=objective.contrast_temperature)
    assert close((torch.stack(views).mean() + contrast).item(), combined["expected"]["loss"])


def plain_loss(z: Tensor, y: Tensor, tau: float, limit: float | None) -> float | None:
    """Section 4.1 and 4.2 for one sample, term by term; None where the sample is skipped."""
    z, y = z / z.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
    n = len(z)
    terms = []
    for i in range(n):
        others = [j for j in range(n) if j != i and (limit is None or float(y[i] @ y[j]) <= limit)]
        if n > 1 and not others:
            return None
        scores = [float(z[i] @ y[j]) / tau for j in [i, *others]]
        terms.append(-scores[0] + math.log(sum(math.exp(s) for s in scores)))
    return 2 * tau * sum(terms) / n


@pytest.mark.parametrize("limit", [None, 0.5])
def test_uneven_samples_equal_the_loss_summed_term_by_term(limit: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    z, y = (torch.randn(5, 9, 4, generator=generator) for _ in range(2))
    y[3] = y[3, :1]  # a sample of equal targets
    predicted = torch.rand(5, 9, generator=generator) < 0.6
    predicted[1] = False
    predicted[2] = torch.arange(9) == 4
    loss, counted = patch_discrimination(z, y, predicted, temperature=0.1, twin_limit=limit)
    for b in range(5):
        keep = predicted[b]
        expected = plain_loss(z[b, keep], y[b, keep], 0.1, limit) if keep.any() else None
        assert bool(counted[b]) == (expected is not None)
        assert float(loss[b]) == pytest.approx(expected or 0.0, abs=1e-5)
    assert counted[2] and loss[2] == 0, "a lone token is counted and contributes nothing"
    assert bool(counted[3]) == (limit is None)


def test_no_target_at_all_gives_zero_and_zero_gradients() -> None:
    z = torch.randn(2, 3, 4, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    loss = mean_counted(*patch_discrimination(z, z.detach(), nothing, temperature=0.1, twin_limit=0.999))
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and z.grad.abs().max() == 0


def test_the_loss_is_float32_under_bfloat16_autocast() -> None:
    z, y = torch.randn(2, 50, 16), torch.randn(2, 50, 16)
    everything = torch.ones(2, 50, dtype=torch.bool)
    plain = patch_discrimination(z, y, everything, temperature=0.1, twin_limit=0.999)[0]
    contrast = instance_contrast(z[:, 0], y[:, 0], temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert (z[0] @ y[0].T).dtype == torch.bfloat16
        assert torch.equal(patch_discrimination(z, y, everything, temperature=0.1, twin_limit=0.999)[0], plain)
        assert torch.equal(instance_contrast(z[:, 0], y[:, 0], temperature=0.1), contrast)
    assert plain.dtype == torch.float32


def test_negatives_are_left_out_for_maps_only() -> None:
    objective = Objective()
    assert {name for name in ("sentinel2_l2a", *MAPS) if objective.twin_limit(name) == 0.999} == set(MAPS)
    assert Objective(twin_modalities=()).twin_limit("worldcover") is None
