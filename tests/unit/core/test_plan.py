"""The plan of the map road against the plain model, and what makes it safe to share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from olmoearth_cli.core import linear
from olmoearth_cli.core.architecture import EncoderConfig, PositionEncoding
from olmoearth_cli.core.batching import micro_batches
from olmoearth_cli.core.model import OlmoEarthModel, random_model
from olmoearth_cli.core.plan import EmbedPlan

S2, S1, LANDSAT = "sentinel2_l2a", "sentinel1", "landsat"
Windows = Callable[..., tuple[dict[str, torch.Tensor], torch.Tensor]]


def plainly(
    model: OlmoEarthModel,
    inputs: dict[str, torch.Tensor],
    seen: dict[str, torch.Tensor],
    stamps: torch.Tensor,
    p: int,
) -> torch.Tensor:
    """What the plan must give: each window on its own, from its first period with data."""
    vectors = []
    for i in range(len(stamps)):
        any_seen = torch.stack([s[i].any(dim=-1).flatten(0, 1).any(dim=0) for s in seen.values()]).any(dim=0)
        first = int(any_seen.to(torch.uint8).argmax())
        own = {m: v[i : i + 1, :, :, first:] for m, v in inputs.items()}
        masks = {
            m: (~s[i : i + 1, :, :, first:]).long().repeat_interleave(p, 1).repeat_interleave(p, 2) * 3
            for m, s in seen.items()
        }
        vectors.append(model.pool(model.encode(own, stamps[i : i + 1, first:], masks, p), masks))
    return torch.cat(vectors)


def all_seen(model: OlmoEarthModel, inputs: dict[str, torch.Tensor], p: int) -> dict[str, torch.Tensor]:
    return {
        m: torch.ones(
            v.shape[0], v.shape[1] // p, v.shape[2] // p, v.shape[3], len(model.spec.band_sets(m)), dtype=bool
        )
        for m, v in inputs.items()
    }


def plan_for(
    model: OlmoEarthModel, inputs: dict[str, torch.Tensor], stamps: torch.Tensor, p: int, **more: Any
) -> EmbedPlan:
    side = next(iter(inputs.values())).shape[1]
    return EmbedPlan(model, stamps[0].numpy(), tuple(inputs), side, p, **more)


@pytest.mark.parametrize("modalities", [(S2,), (S1, S2), (S2, S1, LANDSAT)], ids=len)
@pytest.mark.parametrize("p", [8, 4])
@pytest.mark.parametrize("name", ["nano", "old_nano"])
def test_whole_windows_equal_the_plain_model(
    request: pytest.FixtureRequest, windows: Windows, name: str, p: int, modalities: tuple[str, ...]
) -> None:
    model = request.getfixturevalue(name)
    inputs, stamps = windows(*modalities)
    seen = all_seen(model, inputs, p)
    found = plan_for(model, inputs, stamps, p, max_tokens=200).embed(inputs, seen)
    assert (found - plainly(model, inputs, seen, stamps, p)).abs().max() <= 1e-5


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 10_000))
@pytest.mark.parametrize("name", ["nano", "old_nano"])
def test_windows_with_holes_equal_the_plain_model(
    request: pytest.FixtureRequest, name: str, data: st.DataObject, seed: int
) -> None:
    model = request.getfixturevalue(name)
    generator = torch.Generator().manual_seed(seed)
    modalities = data.draw(st.sampled_from([(S2,), (S2, S1), (S1, LANDSAT)]))
    bands = {S2: 12, S1: 2, LANDSAT: 11}
    inputs = {m: torch.randn(3, 8, 8, 4, bands[m], generator=generator) for m in modalities}
    stamps = torch.tensor([[(1, 3, 2021), (1, 4, 2021), (1, 5, 2021), (31, 5, 2021)]]).repeat(3, 1, 1)
    seen = all_seen(model, inputs, 4)
    for m in modalities:
        tokens, periods = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
        seen[m] &= torch.rand(seen[m].shape, generator=generator) >= tokens * data.draw(st.booleans())
        seen[m] &= torch.rand(3, 1, 1, 4, 1, generator=generator) >= periods
    expected = plainly(model, inputs, seen, stamps, 4)
    found = plan_for(model, inputs, stamps, 4, max_tokens=data.draw(st.sampled_from([1, 20, 3072]))).embed(inputs, seen)
    assert (found - expected).abs().max() <= 1e-5
    nothing = ~torch.stack([s.any(dim=(3, 4)) for s in (v.flatten(3, 4).unsqueeze(-1) for v in seen.values())]).any(0)
    assert (found[nothing] == 0).all()


def test_the_slot_code_counts_from_the_first_period_with_data(old_nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, b=2)
    seen = all_seen(old_nano, inputs, 8)
    seen[S2][1, :, :, 0] = False
    found = plan_for(old_nano, inputs, stamps, 8).embed(inputs, seen)[1]
    trimmed = old_nano.pool(old_nano.encode({S2: inputs[S2][1:, :, :, 1:]}, stamps[1:, 1:], None, 8))[0]
    assert (found - trimmed).abs().max() <= 1e-5


def test_a_modality_that_is_not_given_counts_as_unseen(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2, S1)
    plan = plan_for(nano, inputs, stamps, 8)
    alone = {S2: inputs[S2]}
    expected = plainly(nano, alone, all_seen(nano, alone, 8), stamps, 8)
    assert (plan.embed(alone, all_seen(nano, alone, 8)) - expected).abs().max() <= 1e-5


def test_values_of_unseen_periods_are_never_read(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2)
    seen = all_seen(nano, inputs, 4)
    seen[S2][:, :, :, 2] = False
    plan = plan_for(nano, inputs, stamps, 4)
    before = plan.embed(inputs, seen)
    inputs[S2][:, :, :, 2] = float("nan")
    assert torch.equal(before, plan.embed(inputs, seen))


def test_the_same_batch_gives_the_same_bits_from_arrays_and_from_many_threads(
    nano: OlmoEarthModel, windows: Windows
) -> None:
    batches = []
    for seed in range(6):
        inputs, stamps = windows(S2, S1, seed=seed)
        seen = all_seen(nano, inputs, 8)
        seen[S1] &= torch.rand(seen[S1].shape, generator=torch.Generator().manual_seed(seed)) > 0.3
        batches.append((inputs, seen))
    plan = plan_for(nano, batches[0][0], stamps, 8, max_tokens=40)
    one_by_one = [plan.embed(*batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda batch: plan.embed(*batch), batches * 2))
    assert all(torch.equal(a, b) for a, b in zip(one_by_one * 2, at_once, strict=True))
    arrays = [{m: v.numpy() for m, v in part.items()} for part in batches[0]]
    assert torch.equal(plan.embed(*arrays), one_by_one[0])


@pytest.mark.parametrize("encoding", PositionEncoding)
def test_every_position_encoding_equals_the_plain_model(encoding: PositionEncoding, windows: Windows) -> None:
    config = EncoderConfig(
        embedding_size=64, depth=2, num_heads=2, mlp_ratio=2.0, position_encoding=encoding, qk_norm=True
    )
    model = random_model(config, seed=1)
    inputs, stamps = windows(S2, S1, b=2)
    seen = all_seen(model, inputs, 4)
    seen[S2][0, 1:, :, 1] = False
    found = plan_for(model, inputs, stamps, 4).embed(inputs, seen)
    assert (found - plainly(model, inputs, seen, stamps, 4)).abs().max() <= 1e-5


@pytest.mark.parametrize("packed", [True, False])
def test_bfloat16_stays_within_its_rounding(
    nano: OlmoEarthModel, windows: Windows, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    if not packed:
        monkeypatch.setattr(linear, "_packed", lambda weight, bias: None)
    inputs, stamps = windows(S2, S1)
    seen = all_seen(nano, inputs, 8)
    seen[S1][0, :, :, 1] = False
    found = plan_for(nano, inputs, stamps, 8, precision="bfloat16").embed(inputs, seen)
    expected = plainly(nano, inputs, seen, stamps, 8)
    assert found.dtype == torch.float32
    error = ((found - expected).square().mean() / expected.square().mean()).sqrt()
    assert 1e-4 < error < 0.01  # spec/performance.md: 0.5 %; nothing at all would mean float32


def test_packed_products_fall_back_where_the_private_operators_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, bias = torch.randn(8, 16).bfloat16(), torch.zeros(8).bfloat16()
    assert linear._packed(weight.float(), bias.float()) is None

    def gone(*args: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(linear, "_product", gone)
    assert linear._packed(weight, bias) is None
    monkeypatch.setattr(linear, "_product", lambda x, packed, bias, after: torch.full((1, 8), 1e3))
    assert linear._packed(weight, bias) is None, "wrong numbers must not be trusted"


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=12),
    limit=st.integers(1, 20),
)
def test_micro_batches_are_dense_and_complete(rows: list[list[bool]], limit: int) -> None:
    batches = micro_batches(torch.tensor(rows), limit)
    assert sorted(r for b in batches for r in b.rows) == [r for r, row in enumerate(rows) if any(row)]
    for batch in batches:
        assert {sum(rows[r]) for r in batch.rows} == {batch.count}
        assert len(batch.rows) == 1 or len(batch.rows) * batch.count <= limit
        assert batch.alike == (len({tuple(rows[r]) for r in batch.rows}) == 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_px": 18}, "does not divide"),
        ({"patch_size": 9}, "1 to 8"),
        ({"modalities": ("srtm",)}, "the model reads"),
        ({"modalities": ()}, "the model reads"),
        ({"precision": "float16"}, "precision"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"timestamps": np.array([[1, 12, 2023]])}, "count from 0 to 11"),
        ({"timestamps": np.array([1, 1, 2023])}, r"\[T, 3\]"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(nano: OlmoEarthModel, change: dict[str, Any], message: str) -> None:
    base = {"timestamps": np.array([[1, 1, 2023]]), "modalities": (S2,), "window_px": 16, "patch_size": 4}
    with pytest.raises(ValueError, match=message):
        EmbedPlan(nano, **(base | change))


def test_batches_of_another_shape_are_refused(nano: OlmoEarthModel, windows: Windows) -> None:
    inputs, stamps = windows(S2)
    plan, seen = plan_for(nano, inputs, stamps, 4), all_seen(nano, inputs, 4)
    with pytest.raises(ValueError, match="inputs of sentinel2_l2a"):
        plan.embed({S2: inputs[S2][:, :8]}, seen)
    with pytest.raises(ValueError, match="seen of sentinel2_l2a"):
        plan.embed(inputs, {S2: seen[S2][..., 0]})
    with pytest.raises(ValueError, match="must be bool"):
        plan.embed(inputs, {S2: seen[S2].float()})
    with pytest.raises(ValueError, match="the plan is for"):
        plan.embed({S1: inputs[S2]}, {S1: seen[S2]})
