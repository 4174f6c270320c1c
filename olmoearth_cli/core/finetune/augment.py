"""Variations of a batch that leave its labels true: symmetries of the grid, and data that could have been missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from olmoearth_cli.core.finetune.batch import FinetuneBatch
from olmoearth_cli.core.modality import MODALITIES

SYMMETRIES = 8
"""Of a square: four quarter turns, each as it is and mirrored."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is varied in training; the published recipes vary nothing."""

    symmetries: bool = True
    """True gives each sample one of the eight symmetries of a square (four of a rectangle)."""
    time_dropout: float = 0.0
    """Probability that a timestep is hidden, in all modalities; a sample keeps at least one."""
    modality_dropout: float = 0.0
    """Probability that a modality is hidden; a sample keeps at least one."""

    def __post_init__(self) -> None:
        if not (0 <= self.time_dropout < 1 and 0 <= self.modality_dropout < 1):
            raise ValueError(f"rates of dropout must be in [0, 1): {self}")


def augment(batch: FinetuneBatch, augmentation: Augmentation, generator: torch.Generator) -> FinetuneBatch:
    """Vary a batch; the one given stays as it is.

    Args:
        batch: from `make_batch`.
        augmentation: what is varied.
        generator: on the CPU; the same state gives the same batch.
    """
    visible = dict(batch.visible)
    if augmentation.modality_dropout > 0:
        visible = _hide_modalities(visible, augmentation.modality_dropout, generator)
    if augmentation.time_dropout > 0:
        visible = _hide_timesteps(visible, augmentation.time_dropout, generator)
    batch = replace(batch, visible=visible)
    if not augmentation.symmetries:
        return batch
    drawn = torch.randint(SYMMETRIES, (len(batch),), generator=generator)
    rows, columns = batch.grid
    if rows != columns:
        drawn = drawn // 2 * 2  # half turns keep a rectangle's shape
    return turn(batch, drawn)


def turn(batch: FinetuneBatch, symmetry: Tensor) -> FinetuneBatch:
    """Turn each sample: inputs, what is visible, and label maps.

    Args:
        batch: square, unless all symmetries are even.
        symmetry: int [B], 0 to 7: quarter turns counter-clockwise (s // 4 mirrors columns first), 0, 2 for none and
            a half turn, 1, 3 for one and three quarters, 4 to 7 likewise after mirroring.
    """

    def turned(values: Tensor) -> Tensor:
        return _by_sample(values, symmetry.to(values.device), _turn_grid)

    targets = batch.targets
    spatial = targets is not None and targets.ndim == 3
    return replace(
        batch,
        inputs={name: turned(values) for name, values in batch.inputs.items()},
        visible={name: turned(flags) for name, flags in batch.visible.items()},
        targets=turned(targets) if targets is not None and spatial else targets,
    )


def _turn_grid(values: Tensor, symmetry: int) -> Tensor:
    """Turn [n, rows, columns, ...]."""
    mirrored = values.flip(2) if symmetry >= SYMMETRIES // 2 else values
    return mirrored.rot90(symmetry % 4, dims=(1, 2))


def _by_sample(values: Tensor, symmetry: Tensor, change: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Samples of equal symmetry are changed together."""
    out = torch.empty_like(values)
    for number in symmetry.unique().tolist():
        rows = (symmetry == number).nonzero()[:, 0]
        out[rows] = change(values[rows], number)
    return out


def _hide_modalities(visible: Mapping[str, Tensor], rate: float, generator: torch.Generator) -> dict[str, Tensor]:
    present = torch.stack([flags.flatten(1).any(dim=1) for flags in visible.values()], dim=1)  # B M
    keep = _kept(present, rate, generator)
    return {name: flags & keep[:, i, None, None, None, None] for i, (name, flags) in enumerate(visible.items())}


def _hide_timesteps(visible: Mapping[str, Tensor], rate: float, generator: torch.Generator) -> dict[str, Tensor]:
    series = {name: flags for name, flags in visible.items() if MODALITIES[name].multitemporal}
    if not series:
        return dict(visible)
    present = torch.stack([flags.any(dim=-1).any(dim=1).any(dim=1) for flags in series.values()]).any(dim=0)  # B T
    keep = _kept(present, rate, generator)[:, None, None, :, None]
    return {name: flags & keep if name in series else flags for name, flags in visible.items()}


def _kept(present: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """bool [B, K]: each is dropped with a probability, but one that is present stays."""
    drawn = torch.rand(present.shape, generator=generator)
    spared = torch.where(present, torch.rand(present.shape, generator=generator), -1).argmax(dim=1)
    keep = drawn >= rate
    lost = ~(keep & present).any(dim=1)
    keep[lost, spared[lost]] = True
    return keep
