"""One pretraining step: what is computed, what is random, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from olmoearth_cli.core.architecture import EncoderConfig, PositionEncoding
from olmoearth_cli.core.masking import Masking, draw_codes
from olmoearth_cli.core.modality import ENCODER_INPUTS, MODALITIES
from olmoearth_cli.core.nn.patch_bank import draw_bands
from olmoearth_cli.core.objective import Objective
from olmoearth_cli.core.optimizer import adamw, take_step
from olmoearth_cli.core.pretrain_step import PretrainBatch, PretrainModel, accumulate, fresh_model

S2, S1, LANDSAT = ENCODER_INPUTS
SMALL = EncoderConfig(
    embedding_size=32,
    depth=2,
    num_heads=2,
    mlp_ratio=2.0,
    linear_patch_embed=True,
    pixel_hidden=(6,),
    band_groups=((S2, (MODALITIES[S2].bands,)), (LANDSAT, (MODALITIES[LANDSAT].bands,))),
    band_dropout_rate=0.2,
    band_dropout_modalities=(S2, LANDSAT),
    position_encoding=PositionEncoding.ROPE_3D_MIXED,
    rope_temporal_coordinate_scale=1 / 30,
)
OLD = replace(
    SMALL, band_groups=(), linear_patch_embed=False, pixel_hidden=(), position_encoding=PositionEncoding.ABSOLUTE
)
OBJECTIVE = Objective(contrast_weight=0.0)


def batch_of(
    config: EncoderConfig, samples: int = 3, *, side: int = 2, periods: int = 3, patch_px: int = 4, seed: int = 0
) -> PretrainBatch:
    """Samples that lack a sensor, periods and maps, each in its own way; missing images are not numbers."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    sets = {m: len(config.band_sets(m)) for m in MODALITIES}
    inputs = {}
    for m, modality in MODALITIES.items():
        t = periods if modality.multitemporal else 1
        inputs[m] = torch.rand(samples, side * patch_px, side * patch_px, t, len(modality.bands), generator=generator)
    views: tuple[list[Any], list[Any]] = ([], [])
    for i in range(samples):
        present = {m: np.ones(v.shape[3], dtype=bool) for m, v in inputs.items()}
        present[S1][i % 3 :] = False
        present[LANDSAT][:] = i % 2 == 1
        present["cdl"][:] = i % 2 == 0
        for m, seen in present.items():
            inputs[m][i, :, :, ~torch.from_numpy(seen)] = torch.nan
        for view in views:
            view.append(draw_codes(present, sets, side, Masking(), rng))
    codes = [{m: torch.stack([torch.from_numpy(c[m]) for c in view]) for m in inputs} for view in views]
    stamps = torch.tensor([[(1, (t + i) % 12, 2020 + i) for t in range(periods)] for i in range(samples)])
    return PretrainBatch(inputs=(inputs,), codes=(codes[0], codes[1]), timestamps=stamps, patch_px=patch_px)


@pytest.fixture(scope="module")
def model() -> PretrainModel:
    return lively(SMALL)


def lively(config: EncoderConfig) -> PretrainModel:
    """A model whose codes, norms and mask token are not at their starting values."""
    model = fresh_model(config, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.mark.parametrize("config", [SMALL, OLD], ids=["v1.2", "v1"])
def test_a_sample_gives_the_same_losses_alone_as_among_others(config: EncoderConfig) -> None:
    model, batch = lively(config), batch_of(config, 4)
    together = model.loss(batch, OBJECTIVE).per_modality
    alone = []
    for view in batch.codes:
        single = replace(batch, codes=(view, view))
        alone.append([model.loss(single.part(i, i + 1), OBJECTIVE).per_modality for i in range(4)])
    for m in MODALITIES:
        # Means are over the samples of a view that have the modality to predict.
        means = []
        for view, losses in zip(batch.codes, alone, strict=True):
            counted = [losses[i][m].item() for i in range(4) if (view[m][i] == 2).any()]
            means.append(np.mean(counted) if counted else 0.0)
        assert together[m].item() == pytest.approx(np.mean(means), abs=2e-5), m
    assert len({round(loss["worldcover"].item(), 4) for losses in alone for loss in losses}) == 8


def test_the_total_is_the_sum_of_its_terms_and_weighs_the_contrast(model: PretrainModel) -> None:
    batch = batch_of(SMALL)
    light, heavy = (model.loss(batch, Objective(contrast_weight=w)) for w in (0.1, 0.2))
    assert heavy.contrast.item() == pytest.approx(2 * light.contrast.item()) and light.contrast.item() > 0
    assert light.total.item() == pytest.approx((light.tokens + light.contrast).item())
    assert light.tokens.item() == pytest.approx(torch.stack(list(light.per_modality.values())).sum().item())
    assert set(light.per_modality) == set(MODALITIES)


def test_missing_images_are_never_read(model: PretrainModel) -> None:
    batch = batch_of(SMALL)
    assert any(values.isnan().any() for values in batch.inputs[0].values())
    filled = replace(batch, inputs=({m: v.nan_to_num(7.0) for m, v in batch.inputs[0].items()},))
    model.zero_grad()
    loss = model.loss(batch, Objective()).total
    loss.backward()
    assert torch.equal(loss, model.loss(filled, Objective()).total)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_randomness_comes_from_the_generator_and_only_in_training(model: PretrainModel) -> None:
    batch = batch_of(SMALL)

    def total(seed: int | None) -> float:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return model.loss(batch, Objective(), generator).total.detach().item()

    plain = total(None)
    assert total(1) == plain, "evaluation drops nothing"
    model.train()
    try:
        state = torch.random.get_rng_state()
        assert total(None) == plain
        assert total(1) == total(1)
        assert len({plain, total(1), total(2)}) == 3
        assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    finally:
        model.eval()


def test_a_sample_without_its_branches_keeps_its_stream() -> None:
    config = replace(SMALL, drop_path=0.999999, band_dropout_rate=0.0)
    model, batch = lively(config).train(), batch_of(config)
    without = replace(config, depth=1)
    bare = PretrainModel(without).train()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k in bare.state_dict()})
    with torch.no_grad():
        for layer in (bare.encoder.layers()[0].attn.proj, bare.encoder.layers()[0].mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    found = model.loss(batch, Objective(), torch.Generator().manual_seed(0)).total
    assert found.item() == pytest.approx(bare.loss(batch, Objective()).total.item(), abs=1e-6)


def test_stochastic_depth_keeps_the_expected_scale(model: PretrainModel) -> None:
    trained = PretrainModel(replace(SMALL, drop_path=0.25)).train()
    batch = batch_of(SMALL, 64, side=1, periods=1)
    counts = torch.zeros(128)
    _, depth = trained._draws(batch, counts, torch.Generator().manual_seed(0))
    assert depth is not None and depth.shape == (2, 2, 128)
    assert depth.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert depth.mean().item() == pytest.approx(1, abs=0.1)


def test_band_dropout_has_the_published_rate_and_never_takes_all_bands() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_bands(SMALL, MODALITIES, 2, 16, generator) for _ in range(600)]
    assert set(drawn[0]) == {(S2, 0), (LANDSAT, 0)}, "only these are dropped, never Sentinel-1 or maps"
    kept = torch.stack([each[S2, 0] for each in drawn])  # 600 32 12
    assert (1 - kept.mean()).item() == pytest.approx(0.1, abs=0.01)
    assert kept.sum(dim=-1).min() >= 1
    rates = 1 - kept.unflatten(1, (2, 16)).mean(dim=(2, 3))  # passes and views have rates of their own
    assert rates.min() < 0.03 and rates.max() > 0.17
    all_lost = replace(SMALL, band_dropout_rate=1.0)
    harsh = torch.cat([draw_bands(all_lost, MODALITIES, 2, 64, generator)[S2, 0] for _ in range(20)])
    assert (harsh.sum(dim=-1) >= 1).all() and len(set(harsh[harsh.sum(-1) == 1].argmax(-1).tolist())) == 12
    assert set(draw_bands(OLD, MODALITIES, 1, 2, generator)) == {(S2, 0), (S2, 1), (S2, 2), (LANDSAT, 1)}


def test_a_dropped_band_is_as_if_it_were_zero_in_the_image(model: PretrainModel, monkeypatch: Any) -> None:
    batch = batch_of(SMALL)
    zeroed = {m: v.clone() for m, v in batch.inputs[0].items()}
    zeroed[S2][..., 3] = 0
    kept = torch.ones(6, 12)
    kept[:, 3] = 0
    whole = model._targets  # targets never lose bands: take those of the unchanged images
    expected_bank: list[Any] = []

    def remember(bank: Any, *rest: Any) -> Any:
        expected_bank.append(bank)
        return whole(expected_bank[0], *rest)

    monkeypatch.setattr(model, "_targets", remember)
    monkeypatch.setattr(model, "_draws", lambda *_: ({(S2, 0): kept}, None))
    dropped = model.loss(batch, Objective()).total
    monkeypatch.setattr(model, "_draws", lambda *_: (None, None))
    assert torch.allclose(model.loss(replace(batch, inputs=(zeroed,)), Objective()).total, dropped, atol=1e-6)
    assert not torch.allclose(model.loss(batch, Objective()).total, dropped, atol=1e-4)


def test_views_may_have_images_of_their_own(model: PretrainModel) -> None:
    batch = batch_of(SMALL)
    images = batch.inputs[0]
    flipped = {m: v.flip(1) for m, v in images.items()}
    shared = model.loss(batch, Objective()).total
    assert torch.allclose(model.loss(replace(batch, inputs=(images, images)), Objective()).total, shared, atol=1e-6)
    other = model.loss(replace(batch, inputs=(images, flipped)), Objective())
    first = replace(batch, codes=(batch.codes[0], batch.codes[0]))
    second = replace(batch, inputs=(flipped,), codes=(batch.codes[1], batch.codes[1]))
    expected = (model.loss(first, Objective()).tokens + model.loss(second, Objective()).tokens) / 2
    assert torch.allclose(other.tokens, expected, atol=1e-5)


def test_bfloat16_is_close_and_its_losses_are_float32(model: PretrainModel) -> None:
    batch = batch_of(SMALL)
    exact, rough = model.loss(batch, Objective()), model.loss(batch, Objective(), precision="bfloat16")
    assert rough.total.dtype == torch.float32
    assert 0 < abs((rough.total - exact.total).item()) < 0.02 * exact.total.item()


def test_a_batch_with_nothing_to_predict_has_the_contrast_alone(model: PretrainModel) -> None:
    batch = batch_of(SMALL)
    hidden = [{m: torch.where(v == 2, 1, v) for m, v in view.items()} for view in batch.codes]
    loss = model.loss(replace(batch, codes=(hidden[0], hidden[1])), Objective())
    loss.total.backward()
    assert loss.tokens.item() == 0 and loss.total.item() == pytest.approx(loss.contrast.item()) and loss.contrast > 0


def test_the_target_is_the_first_projection_and_never_moves() -> None:
    model, batch = fresh_model(SMALL, 3).train(), batch_of(SMALL)
    start = {key: value.clone() for key, value in model.encoder.patch_embeddings.state_dict().items()}
    optimizer = adamw(model, weight_decay=0.02)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(40):
        losses.append(accumulate(model, batch, Objective(), generator, microbatch=3)["loss"])
        take_step(optimizer, lr=3e-3)
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5]), losses
    target = model.target_encoder.patch_embeddings.state_dict()
    assert all(torch.equal(target[key], value) for key, value in start.items())
    name = f"per_modality_embeddings.{S2}.{S2}__0.proj.weight"
    assert not torch.equal(model.encoder.patch_embeddings.state_dict()[name], start[name])


def test_fresh_weights_have_the_published_ranges_and_their_seed() -> None:
    model, again, other = (fresh_model(SMALL, seed) for seed in (5, 5, 6))
    state = model.state_dict()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items())
    assert not torch.equal(state["decoder.norm.weight"] * 0 + 1, state["decoder.mask_token"])
    assert not torch.equal(
        state["encoder.blocks.0.attn.q.weight"], other.state_dict()["encoder.blocks.0.attn.q.weight"]
    )

    def largest(key: str) -> float:
        return state[key].abs().max().item()

    square, mlp = (6 / 64) ** 0.5, (6 / 96) ** 0.5
    for key in ("encoder.blocks.0.attn.q", "decoder.to_output_embed", "encoder.project_and_aggregate.projection.0"):
        assert 0.9 * square < largest(f"{key}.weight") <= square and largest(f"{key}.bias") == 0
    assert 0.9 * mlp < largest("decoder.blocks.3.mlp.fc1.weight") <= mlp
    projection = f"patch_embeddings.per_modality_embeddings.{S2}.{S2}__0"
    for part in ("encoder", "target_encoder"):
        assert 0.9 / (6 * 64) ** 0.5 < largest(f"{part}.{projection}.proj.weight") <= 1 / (6 * 64) ** 0.5
        assert 0 < largest(f"{part}.{projection}.proj.bias") <= 1 / (6 * 64) ** 0.5
    assert largest("decoder.mask_token") == 0
    assert largest(f"encoder.composite_encodings.per_modality_channel_embeddings.{S2}") == 0


def changed(view: Any, name: str, values: Tensor) -> dict[str, Tensor]:
    return {**view, name: values}


def test_what_a_model_would_misread_is_refused(model: PretrainModel) -> None:
    batch = batch_of(SMALL)
    images, (view_a, view_b) = batch.inputs[0], batch.codes
    hidden = {m: torch.where(v == 0, 1, v) for m, v in view_b.items()}
    hidden[S2][:2] = view_b[S2][:2] * 0
    shown = changed(view_a, "cdl", view_a["cdl"] * 0 + 2)
    cases = {
        "sample 2 of the batch shows no token": replace(batch, codes=(view_a, hidden)),
        "normalised ones lie near": replace(batch, codes=(shown, view_b)),
        "codes of srtm: shape": replace(batch, codes=(changed(view_a, "srtm", view_a["srtm"][:, :1]), view_b)),
        "codes and inputs must all have": replace(batch, inputs=({S2: images[S2]},)),
        "patch_size 3 does not divide": replace(batch, patch_px=3),
        "0 samples": batch.part(0, 0),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            model.loss(wrong, Objective())
    with pytest.raises(ValueError, match="'half' is not one of float32, bfloat16"):
        model.loss(batch, Objective(), precision="half")
    with pytest.raises(ValueError, match="3 samples is not a multiple of the microbatch of 2"):
        accumulate(model, batch, Objective(), None, microbatch=2)


def test_fewer_modalities_can_be_trained_on() -> None:
    config = replace(SMALL, modalities=(S2, "worldcover"))
    batch = batch_of(SMALL)
    part = replace(
        batch,
        inputs=({m: batch.inputs[0][m] for m in config.modalities},),
        codes=tuple({m: torch.where(v[m] == 1, 0, v[m]) for m in config.modalities} for v in batch.codes),
    )
    part.codes[0][S2][:, 0, 0, 0], part.codes[1][S2][:, 0, 0, 0] = 0, 0
    loss = PretrainModel(config).eval().loss(part, Objective())
    assert set(loss.per_modality) == {S2, "worldcover"} and loss.per_modality["worldcover"] > 0
