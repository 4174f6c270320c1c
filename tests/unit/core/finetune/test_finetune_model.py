"""The trained pass against the plain encoder, and its gradients; LoRA; freezing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from olmoearth_cli.core.finetune.batch import FeatureBatch, make_batch
from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
from olmoearth_cli.core.finetune.lora import LoraLinear, add_lora, has_lora, merge_lora
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.model import OlmoEarthModel, random_model
from olmoearth_cli.core.probe.pooling import pool_instance

S2, S1, LANDSAT = "sentinel2_l2a", "sentinel1", "landsat"
CLASSIFY = HeadSpec(kind="classification", classes=3, width=128, patch_px=4)
SEGMENT = HeadSpec(kind="segmentation", classes=3, width=128, patch_px=4)
Windows = Callable[..., tuple[dict[str, Tensor], Tensor]]


def copied(model: OlmoEarthModel) -> OlmoEarthModel:
    return copy.deepcopy(model)


def ragged(model: OlmoEarthModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Masks: sample 1 misses a timestep of all and all of Sentinel-1, sample 2 some patches of Sentinel-2."""
    masks = {
        name: torch.zeros(*values.shape[:4], len(model.spec.band_sets(name)), dtype=torch.long)
        for name, values in inputs.items()
    }
    for mask in masks.values():
        mask[1, :, :, 1] = 3
    masks[S1][1] = 3
    masks[S2][2, :8, :4] = 3
    return masks


@pytest.mark.parametrize("which", ["nano", "old_nano"])
@pytest.mark.parametrize("spec", [CLASSIFY, SEGMENT])
def test_features_equal_those_of_encode_and_pool(
    which: str, spec: HeadSpec, windows: Windows, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(which)
    inputs, stamps = windows(S2, S1, LANDSAT)
    masks = ragged(model, inputs)
    with torch.no_grad():
        tokens = model.encode(inputs, stamps, masks, 4)
        wanted = model.pool(tokens, masks)
        if spec is CLASSIFY:
            wanted = pool_instance(tokens, {name: mask[:, ::4, ::4] == 0 for name, mask in masks.items()}, "mean")
    missing = {name: values.clone() for name, values in inputs.items()}
    missing[S1][1] = torch.nan  # never looked at
    batch = make_batch(model.spec.encoder, missing, stamps, masks, patch_px=4)
    network = FinetuneModel(copied(model), build_head(spec)).eval()
    assert (network.features(batch) - wanted).abs().max() <= 1e-5
    outputs = network(batch)
    assert (outputs - network.head(wanted)).abs().max() <= 1e-5
    assert torch.equal(network(FeatureBatch(features=network.features(batch))), outputs)


def test_gradients_equal_those_of_the_plain_encoder(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, S1, b=2, side=8, t=2)
    network = FinetuneModel(copied(nano), build_head(CLASSIFY)).train()
    batch = make_batch(nano.spec.encoder, inputs, stamps, patch_px=4)
    network(batch).square().sum().backward()
    found = {name: p.grad for name, p in network.named_parameters()}
    plain = FinetuneModel(copied(nano), build_head(CLASSIFY))
    tokens, coords = plain.encoder.embed_patches(inputs, stamps, 4)
    assert coords is not None
    x = torch.cat([values.flatten(1, 4) for values in tokens.values()], dim=1)
    places = torch.cat([coords[..., None, :].expand(*v.shape[:5], 3).flatten(1, 4) for v in tokens.values()], dim=1)
    plain.encoder.eval()
    plain.head(plain.encoder.transform(x, places).mean(dim=1)).square().sum().backward()
    touched = 0
    for name, parameter in plain.named_parameters():
        gradient = found[name]
        if parameter.grad is None:
            assert gradient is None
            continue
        touched += 1
        assert gradient is not None
        assert (gradient - parameter.grad).abs().max() <= 1e-4 * (1 + parameter.grad.abs().max())
    assert touched == 4 * 17 + 2 + 2 + 2 * 5  # blocks, norm, head, two modalities: pixels, projection, channel code


def test_stochastic_depth_is_drawn_in_training_with_a_generator_only(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, b=4, side=8, t=2)
    batch = make_batch(nano.spec.encoder, inputs, stamps, patch_px=4)
    network = FinetuneModel(copied(nano), build_head(CLASSIFY), drop_path=0.5).train()

    def outputs(seed: int) -> Tensor:
        return network(batch, torch.Generator().manual_seed(seed)).detach()

    assert torch.equal(outputs(0), outputs(0)) and not torch.allclose(outputs(0), outputs(1))
    still = network(batch)
    assert torch.allclose(still, network.eval()(batch, torch.Generator().manual_seed(0)))
    assert FinetuneModel(copied(nano), build_head(CLASSIFY)).drop_path == 0.1


def test_half_precision_stays_near_and_the_outputs_are_float32(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, b=2, side=8, t=2)
    batch = make_batch(nano.spec.encoder, inputs, stamps, patch_px=4)
    single, half = (
        FinetuneModel(copied(nano), build_head(SEGMENT), precision=p).eval() for p in ("float32", "bfloat16")
    )
    with torch.no_grad():
        a, b = single(batch), half(batch)
    assert b.dtype == torch.float32
    assert 1e-5 < (a - b).abs().max() < 0.05 * a.abs().max()


def test_a_frozen_encoder_gets_no_gradients_and_thaws_without_its_month_table(
    nano: OlmoEarthModel, windows: Windows
) -> None:
    inputs, stamps = windows(S2, b=2, side=8, t=2)
    batch = make_batch(nano.spec.encoder, inputs, stamps, patch_px=4)
    network = FinetuneModel(copied(nano), build_head(CLASSIFY)).train()
    network.let_encoder_learn(False)
    network(batch).sum().backward()
    assert not network.features(batch).requires_grad
    assert [name for name, p in network.named_parameters() if p.grad is not None] == [
        "head.body.0.weight",
        "head.body.0.bias",
    ]
    network.let_encoder_learn(True)
    still = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert still == ["encoder.composite_encodings.month_embed.weight"]


def test_lora_changes_nothing_at_first_learns_alone_and_merges_exactly(windows: Windows) -> None:
    model = random_model("v1.2-nano", seed=0)
    inputs, stamps = windows(S2, b=2, side=8, t=2)
    batch = make_batch(model.spec.encoder, inputs, stamps, patch_px=4)
    before = FinetuneModel(copied(model), build_head(CLASSIFY)).eval()(batch).detach()
    names = list(model.encoder.state_dict())
    add_lora(model.encoder, 3, alpha=6)
    network = FinetuneModel(model, build_head(CLASSIFY)).eval()
    assert torch.equal(network(batch), before)
    learning = [p for p in network.encoder.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in learning] == [(3, 128), (128, 3)] * 16
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        network(batch)[:, 0].sum().backward()
        optimizer.step()
    learned = network(batch).detach()
    assert (learned - before).abs().max() > 0.1
    layer = model.encoder.layers()[1].attn.k
    assert isinstance(layer, LoraLinear)
    wanted = layer.weight + 2 * layer.lora_b @ layer.lora_a
    merge_lora(model.encoder)
    assert not has_lora(model.encoder) and list(model.encoder.state_dict()) == names
    assert torch.equal(model.encoder.layers()[1].attn.k.weight, wanted)
    assert (network(batch) - learned).abs().max() <= 1e-5
    with torch.no_grad():  # and in the plain encoder
        tokens = model.encode(inputs, stamps, None, 4)
        pooled = pool_instance(tokens, {S2: torch.ones(tokens[S2].shape[:-1], dtype=torch.bool)}, "mean")
        assert (network.head(pooled) - learned).abs().max() <= 1e-5


def test_freezing_and_thawing_leave_the_weights_under_lora_at_rest() -> None:
    model = random_model("v1.2-nano", seed=0)
    add_lora(model.encoder, 2)
    network = FinetuneModel(model, build_head(CLASSIFY))
    for learns in (True, False, True):
        network.let_encoder_learn(learns)
        assert sum(p.requires_grad for p in network.encoder.parameters()) == (32 if learns else 0)
    with pytest.raises(ValueError, match="already"):
        add_lora(model.encoder, 2)
    with pytest.raises(ValueError, match="rank"):
        add_lora(random_model("v1.2-nano", seed=0).encoder, 129)


def test_samples_and_heads_that_do_not_fit_are_refused(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, b=2, side=8, t=2)
    config = nano.spec.encoder
    masks = {S2: torch.zeros(2, 8, 8, 2, 1)}
    masks[S2][1] = 3
    with pytest.raises(ValueError, match=r"samples \[1\] show nothing"):
        make_batch(config, inputs, stamps, masks, patch_px=4)
    with pytest.raises(ValueError, match="worldcover"):
        make_batch(config, {"worldcover": inputs[S2][..., :1, :1]}, stamps, patch_px=4)
    with pytest.raises(ValueError, match="3 targets for 2 samples"):
        make_batch(config, inputs, stamps, patch_px=4, targets=torch.zeros(3))
    with pytest.raises(ValueError, match="2 px patches"):
        FinetuneModel(copied(nano), build_head(CLASSIFY))(make_batch(config, inputs, stamps, patch_px=2))
    with pytest.raises(ValueError, match="64 dimensions"):
        FinetuneModel(copied(nano), build_head(HeadSpec(kind="regression", classes=1, width=64, patch_px=4)))
    centre = build_head(HeadSpec(kind="classification", classes=3, width=128, patch_px=4, centre=True))
    masks[S2][1] = 0
    masks[S2][1, 4:, 4:] = 3
    with pytest.raises(ValueError, match=r"\[1\] of the batch have no data in the middle"):
        FinetuneModel(copied(nano), centre)(make_batch(config, inputs, stamps, masks, patch_px=4))


def test_the_mean_of_a_map_leaves_absent_modalities_out() -> None:
    """Two modalities of one band set each: a patch with both, one with Sentinel-2 alone, one without any."""
    from olmoearth_cli.core.finetune.model import _pooling
    from olmoearth_cli.core.nn.packed import Frame, choose

    config = random_model("v1.2-nano", seed=0).spec.encoder
    visible = {S2: torch.tensor([[[[True, True], [True, False], [False, False]]]])[..., None]}  # B Y X T S
    visible[S1] = torch.tensor([[[[True, False], [False, False], [False, False]]]])[..., None]
    frame = Frame(timestamps=torch.tensor([[(1, 0, 2020), (1, 1, 2020)]]), rows=1, columns=3, patch_px=4)
    patch, share = _pooling(visible, choose(visible, frame, config), frame, per_patch=True)
    assert patch.tolist() == [0, 0, 1, 0] and share.tolist() == [0.25, 0.25, 1.0, 0.5]
    sample, share = _pooling(visible, choose(visible, frame, config), frame, per_patch=False)
    assert sample.tolist() == [0, 0, 0, 0] and share.tolist() == [0.25] * 4
