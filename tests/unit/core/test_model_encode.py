"""Encoding and pooling: every sample for itself, and no input misread in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.nn.positions import days_since_2000, month_table, sinusoid

S2, S1, LANDSAT = "sentinel2_l2a", "sentinel1", "landsat"
Windows = Callable[..., tuple[dict[str, torch.Tensor], torch.Tensor]]


def pixels(token_mask: torch.Tensor, p: int) -> torch.Tensor:
    """[B, Y, X, T, S] to [B, H, W, T, S]."""
    return token_mask.repeat_interleave(p, 1).repeat_interleave(p, 2)


def test_shapes_follow_the_contract(old_nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, LANDSAT, b=2, t=3)
    tokens = old_nano.encode(inputs, stamps, None, 4)
    assert {m: tuple(v.shape) for m, v in tokens.items()} == {
        S2: (2, 4, 4, 3, 3, 128),
        LANDSAT: (2, 4, 4, 3, 2, 128),
    }
    assert tuple(old_nano.pool(tokens).shape) == (2, 4, 4, 128)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_a_sample_does_not_depend_on_its_batch(nano: OlmoEarthModel, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        S2: torch.randn(3, 8, 8, 3, 12, generator=generator),
        S1: torch.randn(3, 8, 8, 3, 2, generator=generator),
    }
    stamps = torch.randint(1, 12, (3, 3, 3), generator=generator)
    masks = {m: pixels((torch.rand(3, 2, 2, 3, 1, generator=generator) < share).long() * 3, 4) for m in inputs}
    together = nano.encode(inputs, stamps, masks, 4)
    pooled = nano.pool(together, masks)
    for i in range(3):
        one = slice(i, i + 1)
        own_masks = {m: v[one] for m, v in masks.items()}
        alone = nano.encode({m: v[one] for m, v in inputs.items()}, stamps[one], own_masks, 4)
        for m in inputs:
            assert (together[m][one] - alone[m]).abs().max() <= 1e-5
            hidden = masks[m][one][:, ::4, ::4] != 0
            assert (together[m][one][hidden] == 0).all()
        assert (pooled[one] - nano.pool(alone, own_masks)).abs().max() <= 1e-5


def test_masked_values_are_never_looked_at(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, S1, b=2, t=3)
    masks = {m: torch.zeros(2, 16, 16, 3, 1, dtype=torch.long) for m in inputs}
    masks[S1][:, :, :, 1] = 3
    before = nano.encode(inputs, stamps, masks, 8)
    inputs[S1][:, :, :, 1] = -99999.0
    after = nano.encode(inputs, stamps, masks, 8)
    assert all(torch.equal(before[m], after[m]) for m in inputs)


def test_leaving_a_modality_out_equals_masking_it(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, S1)
    masks = {S1: torch.full((3, 16, 16, 4, 1), 3)}
    with_hidden = nano.encode(inputs, stamps, masks, 8)
    without = nano.encode({S2: inputs[S2]}, stamps, None, 8)
    assert (with_hidden[S2] - without[S2]).abs().max() <= 1e-5
    assert (nano.pool(with_hidden, masks) - nano.pool(without)).abs().max() <= 1e-5


def test_the_order_of_the_inputs_does_not_matter(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, S1, LANDSAT, b=1)
    there = nano.encode(inputs, stamps, None, 8)
    back = nano.encode(dict(reversed(inputs.items())), stamps, None, 8)
    assert list(there) == list(back) == [S2, S1, LANDSAT]
    assert all(torch.equal(there[m], back[m]) for m in there)


def test_four_years_later_gives_the_same_tokens(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2)
    later = stamps + torch.tensor([0, 0, 4])
    difference = nano.encode(inputs, stamps, None, 8)[S2] - nano.encode(inputs, later, None, 8)[S2]
    assert difference.abs().max() <= 1e-4  # G6: only float32 rounding of the absolute time


def test_the_month_is_zero_based_and_matters(old_nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2)
    shifted = old_nano.encode(inputs, (stamps + torch.tensor([0, 1, 0])) % 12, None, 8)[S2]
    assert (shifted - old_nano.encode(inputs, stamps, None, 8)[S2]).abs().max() > 1e-2


def test_pooling_by_hand(nano: OlmoEarthModel) -> None:
    # One cell, two periods, D = 1: S2 sees 2 and 4, S1 sees only its second value, 9.
    tokens = {
        S2: torch.tensor([2.0, 4.0]).view(1, 1, 1, 2, 1, 1),
        S1: torch.tensor([7.0, 9.0]).view(1, 1, 1, 2, 1, 1),
    }
    masks = {S1: torch.tensor([3, 0]).view(1, 1, 1, 2, 1).repeat_interleave(4, 1).repeat_interleave(4, 2)}
    assert nano.pool(tokens, masks).item() == pytest.approx((3 + 9) / 2)
    masks[S1][:] = 3
    assert nano.pool(tokens, masks).item() == pytest.approx(3)
    assert replace(nano, reference_quirks=True).pool(tokens, masks).item() == pytest.approx(1.5)
    assert nano.pool(tokens, {m: torch.full((1, 4, 4, 2, 1), 3) for m in tokens}).item() == 0


def test_maps_are_left_out_and_named_once(
    nano: OlmoEarthModel, windows: Windows, caplog: pytest.LogCaptureFixture
) -> None:
    inputs, stamps = windows(S2, b=1)
    inputs["srtm"] = torch.zeros(1, 16, 16, 1, 1)
    for _ in range(2):
        assert list(nano.encode(inputs, stamps, None, 8)) == [S2]
    assert [r.message for r in caplog.records] == ["v1.2-nano was not trained to read srtm: left out"]
    with pytest.raises(ValueError, match="nothing to encode"):
        nano.encode({"srtm": inputs["srtm"]}, stamps, None, 8)


def test_a_sample_without_any_token_gives_zeros_and_is_refused_with_quirks(
    nano: OlmoEarthModel, windows: Windows
) -> None:
    inputs, stamps = windows(S2, b=2)
    masks = {S2: torch.zeros(2, 16, 16, 4, 1, dtype=torch.long)}
    masks[S2][1] = 3
    assert (nano.encode(inputs, stamps, masks, 8)[S2][1] == 0).all()
    with pytest.raises(ValueError, match="no visible token"):
        replace(nano, reference_quirks=True).encode(inputs, stamps, masks, 8)


def misuse(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "inputs": {S2: torch.zeros(1, 16, 16, 2, 12)},
        "timestamps": torch.tensor([[[1, 0, 2023], [1, 1, 2023]]]),
        "masks": None,
        "patch_size": 4,
    }
    return base | changes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (misuse(patch_size=5), "does not divide a window of 16 x 16"),
        (misuse(patch_size=16), "1 to 8"),
        (misuse(patch_size=0), "1 to 8"),
        (misuse(inputs={}), "nothing to encode"),
        (misuse(inputs={"lidar": torch.zeros(1)}), "no modality lidar"),
        (misuse(inputs={S2: torch.zeros(1, 16, 16, 12)}), r"\[B, H, W, T, C\]"),
        (misuse(inputs={S2: torch.zeros(1, 16, 16, 2, 11)}), "11 bands"),
        (misuse(inputs={S2: torch.zeros(1, 16, 16, 3, 12)}), "3 periods"),
        (misuse(inputs={S2: torch.zeros(1, 16, 16, 2, 12), S1: torch.zeros(1, 8, 8, 2, 2)}), "one grid"),
        (misuse(inputs={S2: torch.full((1, 16, 16, 2, 12), -99999.0)}), "mask what is missing"),
        (misuse(inputs={S2: torch.full((1, 16, 16, 2, 12), float("nan"))}), "mask what is missing"),
        (misuse(inputs={S2: torch.full((1, 16, 16, 2, 12), float("inf"))}), "mask what is missing"),
        (misuse(timestamps=torch.tensor([[[1, 12, 2023], [1, 1, 2023]]])), "count from 0 to 11"),
        (misuse(timestamps=torch.tensor([[[2023, 1, 1], [2023, 2, 1]]])), "order is"),
        (misuse(timestamps=torch.zeros(1, 2, 3)), "whole numbers"),
        (misuse(timestamps=torch.zeros(2, 3, dtype=torch.long)), r"\[B, T, 3\]"),
        (misuse(masks={S2: torch.zeros(1, 16, 16, 2)}), r"in place of \[1, 16, 16, 2, 1\]"),
        (misuse(masks={S2: torch.zeros(1, 16, 16, 2, 3)}), "1 band sets"),
        (misuse(masks={S2: torch.full((1, 16, 16, 2, 1), 7)}), "codes are 0 visible"),
        (misuse(masks={"lidar": torch.zeros(1)}), "unknown modalities: lidar"),
    ],
)
def test_what_the_model_would_misread_is_refused(nano: OlmoEarthModel, call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nano.encode(**call)


def test_pooling_refuses_a_mask_of_another_shape(nano: OlmoEarthModel) -> None:
    with pytest.raises(ValueError, match="does not fit tokens"):
        nano.pool({S2: torch.zeros(1, 2, 2, 3, 1, 8)}, {S2: torch.zeros(1, 16, 16, 2, 1)})


def test_codes_by_hand() -> None:
    # Section 4.1, q = 4: frequencies 1 and 10000^(-1/8) = 0.3162278.
    code = sinusoid(torch.tensor([2.0]), 4)[0].tolist()
    assert code == pytest.approx([0.9092974, 0.5911271, -0.4161468, 0.8065784], abs=1e-6)
    assert month_table(2)[3].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert days_since_2000(torch.tensor([[1, 2, 2000], [2, 0, 2004], [1, 0, 1999]])).tolist() == [
        59,
        1462,
        -365.25,
    ]
