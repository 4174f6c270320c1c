"""Packed tokens against the plain networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from olmoearth_cli.core.architecture import EncoderConfig, PositionEncoding
from olmoearth_cli.core.modality import ENCODER_INPUTS, MODALITIES
from olmoearth_cli.core.model import random_model
from olmoearth_cli.core.nn.packed import Frame, Padding, _by_sample, _padded, _Rotation, choose
from olmoearth_cli.core.nn.patch_bank import cut_bank
from olmoearth_cli.core.nn.positions import rotary_angles, rotate
from olmoearth_cli.core.pretrain_step import PretrainModel

S2, S1, LANDSAT = ENCODER_INPUTS
CONFIG = EncoderConfig(
    embedding_size=32, depth=2, num_heads=2, mlp_ratio=2.0, linear_patch_embed=True, pixel_hidden=(6,), qk_norm=True
)


@pytest.mark.parametrize("encoding", list(PositionEncoding))
def test_packed_tokens_are_those_of_the_plain_encoder(encoding: PositionEncoding) -> None:
    config = replace(CONFIG, position_encoding=encoding, rope_temporal_coordinate_scale=1 / 30)
    plain = random_model(config, seed=1)
    model = PretrainModel(config).eval()
    model.encoder.load_state_dict(plain.encoder.state_dict())
    generator = torch.Generator().manual_seed(0)
    inputs = {m: torch.rand(3, 8, 8, 2, len(MODALITIES[m].bands), generator=generator) for m in (S2, S1, LANDSAT)}
    flags = {
        m: torch.rand(3, 2, 2, 2, len(config.band_sets(m)), generator=generator) < 0.4 * (1 + i % 2)
        for i, m in enumerate(inputs)
    }
    stamps = torch.tensor([[(1, k, 2020 + k), (9, k + 2, 2021)] for k in range(3)])
    masks = {m: (~flag).long().repeat_interleave(4, 1).repeat_interleave(4, 2) for m, flag in flags.items()}
    with torch.no_grad():
        expected = plain.encode(inputs, stamps, masks, 4)
        frame = Frame(timestamps=stamps, rows=2, columns=2, patch_px=4)
        tokens = choose(flags, frame, config)
        assert not tokens.padding.full
        bank = cut_bank(inputs, {m: torch.ones(3, 2, dtype=torch.bool) for m in inputs}, 4, 8)
        found = model._encode(bank, tokens, frame, None, None)
    everything = torch.cat([values.flatten(1, -2) for values in expected.values()], dim=1)
    assert (found - everything[tokens.sample, tokens.place]).abs().max() <= 1e-5


@pytest.mark.parametrize("axes", [2, 3])
def test_rotation_and_its_gradients_equal_the_plain_formula(axes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, coords = torch.randn(11, 2, 8, generator=generator), torch.rand(11, 3, generator=generator) * 9
    frequencies, weight = torch.randn(axes, 2, 4, generator=generator), torch.randn(11, 2, 8, generator=generator)

    def plain(x: Tensor, frequencies: Tensor) -> Tensor:
        angle = rotary_angles(coords, frequencies)
        return rotate(x, angle.cos(), angle.sin())

    def ours(x: Tensor, frequencies: Tensor) -> Tensor:
        return _Rotation.apply(x, coords, frequencies)  # type: ignore[no-any-return, no-untyped-call]

    results = []
    for rotation in (plain, ours):
        leaves = (x.clone().requires_grad_(), frequencies.clone().requires_grad_())
        turned = rotation(*leaves)
        (turned * weight).sum().backward()
        results.append((turned.detach(), leaves[0].grad, leaves[1].grad))
    for wanted, found in zip(*results, strict=True):
        assert wanted is not None and found is not None
        assert torch.allclose(found, wanted, atol=1e-5)


def test_padding_goes_there_and_back() -> None:
    padding = Padding.of(torch.tensor([2, 0, 3]))
    dense = padding.dense(torch.arange(1, 6)[:, None])
    assert dense[..., 0].tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5]]
    assert padding.packed(dense)[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert padding.real.sum(dim=1).tolist() == [2, 0, 3] and not padding.full
    equal = Padding.of(torch.tensor([2, 2]))
    assert equal.full and equal.packed(equal.dense(torch.arange(4))).tolist() == [0, 1, 2, 3]


def test_chosen_tokens_know_their_sample_and_place() -> None:
    flags = {S2: torch.zeros(2, 2, 3, 4, 3, dtype=torch.bool), "cdl": torch.zeros(2, 2, 3, 1, 1, dtype=torch.bool)}
    flags[S2][1, 1, 2, 3, 0] = flags[S2][1, 0, 1, 2, 2] = flags["cdl"][0, 1, 0, 0, 0] = True
    stamps = torch.tensor([[(1, 0, 2000 + k)] * 4 for k in range(2)])
    config = replace(CONFIG, position_encoding=PositionEncoding.ROPE_3D)
    tokens = choose(flags, Frame(timestamps=stamps, rows=2, columns=3, patch_px=5), config)
    found = torch.stack([tokens.sample, tokens.row, tokens.column, tokens.period], dim=1)
    assert found.tolist() == [[0, 1, 0, 0], [1, 0, 1, 2], [1, 1, 2, 3]]
    assert {key: where.tolist() for key, where in tokens.parts.items()} == {(S2, 0): [2], (S2, 2): [1], ("cdl", 0): [0]}
    assert tokens.coords is not None and tokens.coords.tolist() == [[0, 5, 0], [365.25, 0, 5], [365.25, 5, 10]]
    assert tokens.of_modality(S2).tolist() == [1, 2] and tokens.of_modality(S1).tolist() == []
    assert tokens.counts.tolist() == [1, 2]


def test_attention_in_one_padded_call_equals_a_call_per_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = Padding.of(torch.tensor([3, 0, 5])), Padding.of(torch.tensor([2, 4, 1]))
    q = torch.randn(8, 2, 4, generator=generator)
    k, v = (torch.randn(7, 2, 4, generator=generator) for _ in range(2))
    results = []
    for attention in (_padded, _by_sample):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        attended = attention(*leaves, rows, columns)
        (attended * torch.arange(8)[:, None, None]).sum().backward()
        results.append([attended.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))
    alone = torch.softmax(q[7, 1] @ k[6:, 1].T / 2, dim=-1) @ v[6:, 1]
    assert torch.allclose(results[0][0][7, 1], alone, atol=1e-6)
