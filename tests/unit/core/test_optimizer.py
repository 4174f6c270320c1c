"""Schedule, clipping and decay (spec/pretraining.md section 6)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from olmoearth_cli.core.optimizer import Schedule, adamw, take_step
from olmoearth_cli.core.recipe import released_recipe
from olmoearth_cli.errors import ModelError


def test_the_learning_rate_has_the_published_check_values() -> None:
    schedule = Schedule(peak_lr=1e-4, steps=667_200)
    expected = {
        1: 1.25e-8,
        4_000: 5e-5,
        8_000: 1e-4,
        100_000: 9.5743e-5,
        337_600: 5.5e-5,
        600_000: 1.2288e-5,
        667_200: 1e-5,
    }
    for step, lr in expected.items():
        assert schedule.lr(step) == pytest.approx(lr, rel=5e-5), step
    assert schedule.lr(700_000) == schedule.lr(667_200)


def test_a_run_shorter_than_its_warmup_is_refused() -> None:
    with pytest.raises(ValueError, match="8000 must be shorter than the run's 100"):
        Schedule(peak_lr=1e-4, steps=100)


def test_a_parameter_that_no_token_reaches_still_decays() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "spare": nn.Linear(2, 1)})
    before = model["spare"].weight.detach().clone()
    optimizer = adamw(model, weight_decay=0.5)
    model["used"](torch.ones(1, 2)).sum().backward()
    take_step(optimizer, lr=0.1)
    assert torch.allclose(model["spare"].weight, before * (1 - 0.1 * 0.5))
    assert len(optimizer.param_groups) == 1, "norms and biases decay like all others"


def test_the_first_step_moves_by_the_learning_rate_after_clipping() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    optimizer = adamw(model, weight_decay=0.0)
    (model(torch.tensor([[30.0, 40.0]]))).sum().backward()
    norm, moved = take_step(optimizer, lr=0.01)
    assert (norm, moved) == (pytest.approx(50.0), True)
    # AdamW's first step is lr * g / |g|; the first moment shows the clipped gradient 0.6, 0.8.
    assert torch.allclose(model.weight, torch.tensor([[0.99, 1.99]]), atol=1e-6)
    assert torch.allclose(optimizer.state[model.weight]["exp_avg"], torch.tensor([[0.06, 0.08]]), atol=1e-6)
    assert model.weight.grad is not None and float(model.weight.grad.abs().max()) == 0


def test_a_step_with_gradients_that_are_not_finite_is_skipped_whole() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = adamw(model, weight_decay=0.5)
    model(torch.tensor([[math.inf, 1.0]])).sum().backward()
    norm, moved = take_step(optimizer, lr=0.1)
    assert not moved and not math.isfinite(norm)
    assert torch.equal(model.weight, before)
    model(torch.ones(1, 2)).sum().backward()
    assert take_step(optimizer, lr=0.1)[1], "the next step is free of it"


def test_recipes_are_the_published_ones() -> None:
    tiny, base, old = released_recipe("v1.2", "tiny"), released_recipe("v1.1", "base"), released_recipe("v1", "nano")
    assert (tiny.peak_lr, tiny.weight_decay, tiny.microbatch) == (2e-4, 0.002, 64)
    assert (base.peak_lr, base.weight_decay, base.objective.contrast_weight) == (1e-4, 0.02, 0.05)
    assert (old.peak_lr, old.microbatch, old.objective.contrast_weight, old.augment) == (1e-4, 32, 0.1, "per_view")
    assert old.masking.strategy == "v1" and old.objective.twin_limit("cdl") is None
    with pytest.raises(ModelError, match=r"v1\.3 base"):
        released_recipe("v1.3", "base")
