"""Symmetries that labels follow, and dropout that leaves something to see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from olmoearth_cli.core.finetune.augment import Augmentation, augment, turn
from olmoearth_cli.core.finetune.batch import FinetuneBatch

S2, S1 = "sentinel2_l2a", "sentinel1"


def marked(b: int = 8, rows: int = 8, columns: int = 8, t: int = 3) -> FinetuneBatch:
    """Pixels that know their place; targets and visibility derived from it."""
    place = torch.arange(rows * columns).view(1, rows, columns).repeat(b, 1, 1)
    values = place[..., None, None].expand(b, rows, columns, t, 12).float()
    seen = (place[:, ::4, ::4] > 0)[..., None, None].expand(b, rows // 4, columns // 4, t, 1)
    return FinetuneBatch(
        inputs={S2: values, S1: values[..., :2]},
        visible={S2: seen.clone(), S1: torch.ones_like(seen)},
        timestamps=torch.zeros(b, t, 3, dtype=torch.long),
        patch_px=4,
        targets=place,
    )


def test_the_eight_symmetries_differ_and_labels_and_gaps_follow_the_pixels() -> None:
    batch = marked()
    turned = turn(batch, torch.arange(8))
    assert turned.targets is not None
    for name, values in turned.inputs.items():
        assert torch.equal(values[..., 0, 0].long(), turned.targets), name
    corners = turned.targets.view(8, 8, 8)[:, 0, 0].tolist(), turned.targets[:, 0, 7].tolist()
    assert len(set(zip(*corners, strict=True))) == 8
    assert corners[0] == [0, 7, 63, 56, 7, 0, 56, 63]  # none, quarter turns counter-clockwise; the same mirrored
    hidden = [tuple(p.tolist()) for p in (~turned.visible[S2][..., 0, 0]).nonzero()[:, 1:]]
    assert hidden == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 1), (0, 0), (1, 0), (1, 1)]
    assert torch.equal(batch.targets, marked().targets)


def test_a_rectangle_keeps_its_shape() -> None:
    batch = augment(marked(64, 8, 12), Augmentation(), torch.Generator().manual_seed(0))
    assert batch.targets is not None and batch.targets.shape == (64, 8, 12)
    assert len({tuple(target.flatten()[[0, -1]].tolist()) for target in batch.targets}) == 4
    assert torch.equal(batch.inputs[S2][..., 0, 0].long(), batch.targets)


def test_targets_of_windows_stay() -> None:
    batch = marked()

    labels = torch.arange(8)
    assert torch.equal(turn(replace(batch, targets=labels), torch.arange(8)).targets, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.3, 0.95])
def test_time_dropout_hides_timesteps_of_all_modalities_but_never_all(rate: float) -> None:
    batch = marked(2000)
    batch.visible[S1][:, :, :, 0] = False
    batch.visible[S2][:, :, :, 0] = False  # the first timestep is missing anyway: it must not be the one spared
    found = augment(batch, Augmentation(symmetries=False, time_dropout=rate), torch.Generator().manual_seed(0))
    kept = found.visible[S1][:, 0, 0, :, 0]
    assert torch.equal(found.visible[S2][:, 0, 1, :, 0], kept) and not kept[:, 0].any()
    assert kept.any(dim=1).all()
    both_dropped = rate**2
    expected = 1 - rate + both_dropped / 2
    assert kept[:, 1:].float().mean().item() == pytest.approx(expected, abs=0.03)


def test_modality_dropout_spares_one_with_data() -> None:
    batch = marked(2000)
    batch.visible[S1][:1000] = False
    found = augment(batch, Augmentation(symmetries=False, modality_dropout=0.6), torch.Generator().manual_seed(1))
    s2, s1 = (found.visible[name].flatten(1).any(dim=1) for name in (S2, S1))
    assert s2[:1000].all() and not s1[:1000].any()
    assert (s1 | s2).all()
    assert s1[1000:].float().mean().item() == pytest.approx(0.4 + 0.36 / 2, abs=0.05)


def test_the_same_seed_gives_the_same_batch() -> None:
    everything = Augmentation(time_dropout=0.5, modality_dropout=0.5)

    def once(seed: int) -> list[Tensor]:
        batch = augment(marked(16), everything, torch.Generator().manual_seed(seed))
        return [batch.targets, *batch.inputs.values(), *batch.visible.values()]  # type: ignore[list-item]

    assert all(torch.equal(a, b) for a, b in zip(once(3), once(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(once(3), once(4), strict=True))


def test_rates_of_one_are_refused() -> None:
    with pytest.raises(ValueError, match="dropout"):
        Augmentation(time_dropout=1.0)
