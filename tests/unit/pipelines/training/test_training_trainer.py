"""Steps: means, resumption, what is refused, and compiled equal to plain."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny_request, trainer_of
from torch.utils.flop_counter import FlopCounterMode

from olmoearth_cli.core.pretrain_step import accumulate
from olmoearth_pipelines.training.flops import peak_flops, sequence_tokens, step_flops
from olmoearth_pipelines.training.trainer import StepError, Trainer, compile_parts, step_generator


def take(trainer: Trainer, steps: int) -> list[Any]:
    """The next steps of a trainer."""
    parts = trainer.setup.loader.plan.parts
    microbatches = trainer.setup.loader.microbatches(trainer.step, trainer.step + steps)
    return [trainer.take(islice(microbatches, parts)) for _ in range(steps)]


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(
    "switch",
    [
        {"recipe": "v1"},
        {"recipe": "v1.1"},
        {"masking": "v1"},
        {"time_masking": 1.0},
        {"band_dropout": 0.0},
        {"projection": "linear"},
        {"loss": "v1"},
        {"position_encoding": "ape"},
        {"position_encoding": "2d-rope"},
        {"position_encoding": "2d-rope-mixed"},
        {"position_encoding": "3d-rope"},
        {"band_groups": "v1"},
        {"contrast_weight": 0.0},
        {"augment": "shared"},
        {"augment": "per_view"},
        {"budget_groups": "model"},
        {"grid_per": "batch"},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_every_switch_trains_and_makes_another_run(tiny_data: Path, tmp_path: Path, switch: dict[str, Any]) -> None:
    several = {"batch_size": 12, "microbatch": 3}  # four crop sizes in a step
    plain = trainer_of(tiny_request(tiny_data, tmp_path, **several))
    other = trainer_of(tiny_request(tiny_data, tmp_path, **several, **switch))
    before = weights(other)
    step = take(other, 1)[0]
    assert np.isfinite(step.losses["loss"]) and step.norm > 0 and not torch.equal(before, weights(other))
    assert other.setup.settings != plain.setup.settings
    if "budget_groups" not in switch:  # all 4 periods fit either way
        assert step.losses != take(plain, 1)[0].losses


def test_a_step_moves_by_the_mean_gradient_of_its_microbatches(tiny_data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_request(tiny_data, tmp_path, microbatch=1, seed=3))
    twin = trainer_of(tiny_request(tiny_data, tmp_path, microbatch=1, seed=3))
    generator, objective = step_generator(3, 1, 0), twin.setup.recipe.objective
    parts = list(twin.setup.loader.microbatches(0, 1))
    losses = [accumulate(twin.model, part, objective, generator, microbatch=1)["loss"] for part in parts]
    gradients = torch.cat([p.grad.flatten() for p in twin.model.parameters() if p.grad is not None])
    step = take(trainer, 1)[0]
    assert len(parts) == 4
    assert step.losses["loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    assert step.norm == pytest.approx(float(gradients.double().norm()) / 4, rel=1e-5)


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(tiny_data: Path, tmp_path: Path) -> None:
    request = tiny_request(tiny_data, tmp_path / "run")
    whole = trainer_of(request)
    losses = [step.losses for step in take(whole, 5)]  # 3 steps make an epoch
    first = trainer_of(request)
    take(first, 2)
    first.save({"seconds": 1.5})
    second = trainer_of(request)
    assert second.resume(pytest.fail)["seconds"] == 1.5 and second.step == 2
    assert [step.losses for step in take(second, 3)] == losses[2:]
    assert torch.equal(weights(second), weights(whole))
    moments = [t.optimizer.state_dict()["state"] for t in (second, whole)]
    assert all(torch.equal(moments[0][i][k], moments[1][i][k]) for i in moments[1] for k in moments[1][i])


def test_a_loss_that_is_no_number_names_step_samples_and_checkpoint(tiny_data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_request(tiny_data, tmp_path / "run"))
    take(trainer, 1)
    path = trainer.save({})
    with torch.no_grad():
        trainer.model.encoder.norm.weight.fill_(torch.nan)
    samples = trainer.samples_of(2)
    assert len(set(samples) | set(trainer.samples_of(1))) == 8  # two batches of one epoch share nothing
    with pytest.raises(StepError) as failed:
        take(trainer, 1)
    assert failed.value.step == 2 and failed.value.samples == samples and failed.value.exit_code == 1
    message = str(failed.value)
    assert all(text in message for text in ("step 2", "not finite", str(samples[0]), str(path)))


def test_no_step_is_taken_with_gradients_that_are_no_numbers(tiny_data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_request(tiny_data, tmp_path))
    parameter = next(p for p in trainer.model.parameters() if p.grad is not None)
    assert parameter.grad is not None
    parameter.grad.fill_(torch.inf)
    before = weights(trainer)
    with pytest.raises(StepError, match="gradient is not finite"):
        take(trainer, 1)
    assert torch.equal(before, weights(trainer))


def test_draws_differ_by_seed_step_and_process() -> None:
    places = [(s, k, r) for s in (0, 1) for k in (1, 2) for r in (0, 1)]
    assert len({float(torch.rand(1, generator=step_generator(*place))) for place in places}) == 8


def test_counted_arithmetic_is_what_pytorch_counts(tiny_data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_request(tiny_data, tmp_path))
    trainer.model.eval()
    batch = max(trainer.setup.loader.microbatches(0, 6), key=sequence_tokens)
    with FlopCounterMode(display=False) as counter:
        trainer.model.loss(batch, trainer.setup.recipe.objective).total.backward()
    # Not counted here: the losses' own products; counted but not done: targets that two views share.
    assert step_flops(batch, trainer.setup.config) == pytest.approx(counter.get_total_flops(), rel=0.06)
    assert sequence_tokens(batch) == sum(v.numel() for v in batch.codes[0].values())


def test_a_devices_peak_goes_by_its_longest_fitting_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA L40S", "bfloat16") == 181e12 and peak_flops("NVIDIA L4", "bfloat16") == 121e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 19.5e12
    assert peak_flops("Tesla T4", "bfloat16") is None and peak_flops("unheard of", "float32") is None


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_parts_keep_loss_gradients_and_rotation(tiny_data: Path, tmp_path: Path, precision: str) -> None:
    trainer = trainer_of(tiny_request(tiny_data, tmp_path))
    model, objective = trainer.model.eval(), trainer.setup.recipe.objective
    batches = sorted(trainer.setup.loader.microbatches(0, 6), key=sequence_tokens)[-2:]

    def results() -> list[tuple[float, torch.Tensor]]:
        found = []
        for batch in batches:
            model.zero_grad()
            loss = model.loss(batch, objective, precision=precision).total
            loss.backward()
            found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        return found

    def rotation_matters() -> float:
        plain = model.loss(batches[-1], objective, precision=precision).total.item()
        kept = [block.attn.rope_mixed_freqs.data.clone() for block in model.encoder.blocks]
        for block in model.encoder.blocks:
            block.attn.rope_mixed_freqs.data.zero_()
        without = model.loss(batches[-1], objective, precision=precision).total.item()
        for block, frequencies in zip(model.encoder.blocks, kept, strict=True):
            block.attn.rope_mixed_freqs.data.copy_(frequencies)
        return without - plain

    eager, effect = results(), rotation_matters()
    compile_parts(model)
    tolerance, share = (1e-6, 1e-4) if precision == "float32" else (1e-2, 0.1)
    for (loss, gradient), (loss_c, gradient_c) in zip(eager, results(), strict=True):
        assert loss_c == pytest.approx(loss, abs=tolerance)
        assert float((gradient - gradient_c).abs().max()) <= share * float(gradient.abs().max())
    assert abs(effect) > 1e-4
    assert rotation_matters() == pytest.approx(effect, abs=abs(effect) / 2)
