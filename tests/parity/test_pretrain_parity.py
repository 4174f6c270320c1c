"""Our pretraining step against the reference's encoder, decoder and target: loss and every gradient.

The oracle package has the networks; the losses are summed here term by term from the formulas of
spec/pretraining.md section 4, in a way unlike ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from olmoearth_cli.core.masking import Masking, draw_codes
from olmoearth_cli.core.modality import ENCODER_INPUTS, MODALITIES
from olmoearth_cli.core.objective import Objective
from olmoearth_cli.core.pretrain_step import PretrainBatch, PretrainModel, accumulate
from olmoearth_cli.core.spec import find_spec
from tests.parity import oracle

S2, S1, LANDSAT = ENCODER_INPUTS
V1 = Objective(twin_modalities=(), contrast_weight=0.1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    oracle.require_hash_seed()
    torch.set_num_threads(1)


def pair(name: str) -> tuple[PretrainModel, Any]:
    """Our model and the oracle, both training, with the same weights and no stochastic depth."""
    theirs = oracle.build(name).train()
    for module in theirs.modules():
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    ours = PretrainModel(find_spec(name).encoder)
    wanted = ours.state_dict()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if key in wanted})
    return ours.train(), theirs


def batch_of(name: str, masking: Masking, *, side: int, periods: int, patch_px: int) -> PretrainBatch:
    """Four samples with missing sensors, periods and maps; uniform maps have near-identical targets."""
    generator = torch.Generator().manual_seed(1)
    rng = np.random.default_rng(2)
    spec = find_spec(name)
    sets = {m: len(spec.band_sets(m)) for m in MODALITIES}
    inputs = {}
    for m, modality in MODALITIES.items():
        t = periods if modality.multitemporal else 1
        inputs[m] = torch.randn(4, side * patch_px, side * patch_px, t, len(modality.bands), generator=generator)
    inputs["worldcover"][1] = 0.3
    inputs["worldcover"][2, : patch_px * 2] = 0.7
    views: tuple[list[Any], list[Any]] = ([], [])
    for i in range(4):
        present = {m: np.ones(v.shape[3], dtype=bool) for m, v in inputs.items()}
        present[LANDSAT][:] = i % 2 == 0
        present[S1][i:] = False
        present["cdl"][:] = i > 1
        for m, seen in present.items():
            inputs[m][i, :, :, ~torch.from_numpy(seen)] = -99999.0
        for view in views:
            view.append(draw_codes(present, sets, side, masking, rng))
    codes = [{m: torch.stack([torch.from_numpy(c[m]) for c in view]) for m in inputs} for view in views]
    stamps = torch.tensor([[(1 + (5 * i + k) % 28, (i + k) % 12, 2017 + k) for i in range(periods)] for k in range(4)])
    return PretrainBatch(inputs=(inputs,), codes=(codes[0], codes[1]), timestamps=stamps, patch_px=patch_px)


def their_sample(batch: PretrainBatch, codes: dict[str, Tensor]) -> Any:
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskedOlmoEarthSample

    p = batch.patch_px
    fields: dict[str, Tensor] = {"timestamps": batch.timestamps}
    for m, values in batch.inputs[0].items():
        fields[m] = values
        fields[f"{m}_mask"] = codes[m].long().repeat_interleave(p, 1).repeat_interleave(p, 2)
    return MaskedOlmoEarthSample(**fields)


def plain_token_loss(z: Tensor, y: Tensor, limit: float | None) -> Tensor | None:
    """Sections 4.1 and 4.2 for the predicted tokens [n, D] of one sample; None where it is skipped."""
    z, y = F.normalize(z, dim=-1), F.normalize(y, dim=-1)
    terms = []
    for i in range(len(z)):
        negative = torch.ones(len(z), dtype=torch.bool) if limit is None else y @ y[i] <= limit
        negative[i] = False
        if len(z) > 1 and not negative.any():
            return None
        own = (z[i] @ y[i]) / 0.1
        terms.append(torch.cat([own[None], y[negative] @ z[i] / 0.1]).logsumexp(0) - own)
    return 0.2 * torch.stack(terms).mean()


def their_loss(model: Any, batch: PretrainBatch, objective: Objective) -> Tensor:
    """The reference's step on one batch."""
    token_losses, pooled = [], []
    for codes in batch.codes:
        _, decoded, vector, _, _ = model(their_sample(batch, dict(codes)), batch.patch_px)
        everything = their_sample(batch, {m: torch.where(v == 3, 3, 0) for m, v in codes.items()})
        with torch.no_grad():
            exits = dict.fromkeys(MODALITIES, 0)
            targets = model.target_encoder(everything, patch_size=batch.patch_px, token_exit_cfg=exits)
        pooled.append(F.normalize(vector, dim=-1))
        for m, mask in codes.items():
            z, y = getattr(decoded, m), getattr(targets["tokens_and_masks"], m)
            limit = 0.999 if m in objective.twin_modalities else None
            asked = [(z[b][mask[b] == 2], y[b][mask[b] == 2]) for b in range(len(batch)) if (mask[b] == 2).any()]
            losses = [loss for loss in (plain_token_loss(*each, limit) for each in asked) if loss is not None]
            if losses:
                token_losses.append(torch.stack(losses).mean() / 2)
    logits = pooled[0] @ pooled[1].T / 0.1
    contrast = (logits.logsumexp(1) - logits.diagonal()).mean()
    return torch.stack(token_losses).sum() + objective.contrast_weight * contrast


CASES = {
    "v1.2-nano": [(Masking(), Objective(), 3, 4, 4), (Masking(time_mask_prob=1), Objective(), 2, 5, 8)],
    "v1.1-nano": [(Masking(), Objective(), 3, 3, 3)],
    "v1-nano": [(Masking(strategy="v1"), V1, 2, 3, 4)],
    "v1.2-tiny": [(Masking(strategy="v1"), Objective(), 2, 3, 4)],
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_the_reference(name: str) -> None:
    ours, theirs = pair(name)
    for masking, objective, side, periods, patch_px in CASES[name]:
        batch = batch_of(name, masking, side=side, periods=periods, patch_px=patch_px)
        ours.zero_grad()
        theirs.zero_grad()
        expected = their_loss(theirs, batch, objective)
        expected.backward()
        loss = ours.loss(batch, objective)
        loss.total.backward()
        assert loss.total.item() == pytest.approx(expected.item(), abs=1e-5)
        parameters = dict(ours.named_parameters())
        compared = 0
        for key, parameter in theirs.named_parameters():
            if key.startswith("target_encoder."):
                continue
            mine = parameters[key].grad
            mine = torch.zeros_like(parameter) if mine is None else mine
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            difference = float((mine - wanted).abs().max())
            assert difference <= 2e-6, (key, difference, float(wanted.abs().max()))
            compared += bool(wanted.abs().max() > 1e-4)
        assert compared > 50, "gradients that are zero would compare nothing"


def test_microbatches_give_the_mean_of_their_gradients() -> None:
    ours, theirs = pair("v1.2-nano")
    batch = batch_of("v1.2-nano", Masking(), side=2, periods=3, patch_px=4)
    terms = accumulate(ours, batch, Objective(), None, microbatch=2)
    expected = [their_loss(theirs, batch.part(i, i + 2), Objective()) for i in (0, 2)]
    (torch.stack(expected).mean()).backward()
    assert terms["loss"] == pytest.approx(float(torch.stack(expected).mean().detach()), abs=1e-5)
    wanted = dict(theirs.named_parameters())["decoder.mask_token"].grad
    assert wanted is not None and ours.decoder.mask_token.grad is not None
    assert (ours.decoder.mask_token.grad - wanted).abs().max() <= 1e-5
    assert terms["loss"] == pytest.approx(terms["tokens"] + terms["contrast"], abs=1e-6)
    assert terms["tokens"] == pytest.approx(sum(terms[f"tokens/{m}"] for m in MODALITIES), abs=1e-6)


def test_chance_is_what_the_specification_expects_at_initialisation() -> None:
    ours, _ = pair("v1.2-nano")
    batch = batch_of("v1.2-nano", Masking(), side=3, periods=4, patch_px=4)
    loss = ours.loss(batch, Objective())
    assert loss.chance == pytest.approx(plain_chance(batch), abs=1e-5)
    assert loss.chance > 2


def plain_chance(batch: PretrainBatch) -> float:
    """2 tau ln n over samples that predict something, mean over the views, summed over the modalities."""
    total = 0.0
    for codes in batch.codes:
        for mask in codes.values():
            counts = [int((one == 2).sum()) for one in mask if (one == 2).any()]
            if counts:
                total += 0.2 * float(np.mean(np.log(counts))) / 2
    return total
