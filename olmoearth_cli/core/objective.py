"""What pretraining minimises: patch discrimination and instance contrast (spec/pretraining.md section 4).

Everything here is computed in float32 with autocast off: half-precision products shift the loss and change which
targets count as near-identical (section 4.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from olmoearth_cli.core.masking import MAPS


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The published objective of v1.1 and v1.2; `twin_modalities=()` and weight 0.1 make that of v1."""

    temperature: float = 0.1
    """tau of the token loss."""
    twin_threshold: float = 0.999
    """Cosine of two targets above which one is no negative of the other."""
    twin_modalities: tuple[str, ...] = MAPS
    """Modalities in which such near-identical negatives are left out."""
    contrast_weight: float = 0.05
    """Weight of the instance contrast; 0 switches it off."""
    contrast_temperature: float = 0.1
    """tau of the instance contrast."""

    def twin_limit(self, modality: str) -> float | None:
        """The threshold where it applies to a modality; None where all negatives stay."""
        return self.twin_threshold if modality in self.twin_modalities else None


def patch_discrimination(
    predictions: Tensor, targets: Tensor, predicted: Tensor, *, temperature: float, twin_limit: float | None
) -> tuple[Tensor, Tensor]:
    """Tell a token's own target from those of the other predicted tokens of its sample and modality.

    Args:
        predictions: [B, N, D], any length of vectors.
        targets: [B, N, D].
        predicted: [B, N] bool, True for the tokens to predict; others count neither as query nor as negative.
        temperature: tau.
        twin_limit: negatives whose target has a larger cosine with the query's target are left out, and a sample
            in which some token has no negative left is not counted; None keeps all.

    Returns:
        float32 loss per sample [B], zero where not counted, and which samples are counted [B] bool.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        z = F.normalize(predictions.float(), dim=-1, eps=1e-12)
        y = F.normalize(targets.float(), dim=-1, eps=1e-12)
        count = predicted.sum(dim=1)  # B
        counted = count > 0
        excluded = ~predicted[:, None, :]  # B 1 N
        if twin_limit is not None:
            alike = (y @ y.transpose(1, 2) > twin_limit) & predicted[:, None, :]  # B N N
            alone = (alike | excluded).all(dim=-1) & predicted  # B N
            counted = counted & ~(alone.any(dim=1) & (count > 1))
            alike.diagonal(dim1=1, dim2=2).fill_(False)
            excluded = excluded | alike
        similarity = z @ y.transpose(1, 2) / temperature  # B N N
        own = similarity.diagonal(dim1=1, dim2=2)  # B N
        # A row without any column left would make not-a-number gradients: such rows are never counted, so zeros do.
        empty = excluded.all(dim=-1, keepdim=True)
        partition = similarity.masked_fill(excluded & ~empty, -torch.inf).logsumexp(dim=-1)  # B N
        token = torch.where(predicted & counted[:, None], partition - own, 0)
        return 2 * temperature * token.sum(dim=1) / count.clamp(min=1), counted


def mean_counted(losses: Tensor, counted: Tensor) -> Tensor:
    """Mean of [B] losses over the counted samples; zero, with zero gradient, where there are none."""
    return losses.sum() / counted.sum().clamp(min=1)


def instance_contrast(view_a: Tensor, view_b: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE in one direction: each sample's view a finds its own view b in the microbatch.

    Args:
        view_a: [B, D].
        view_b: [B, D].
        temperature: tau.

    Returns:
        float32 scalar, not weighted.
    """
    with torch.autocast(view_a.device.type, enabled=False):
        u = F.normalize(view_a.float(), dim=-1, eps=1e-12)
        v = F.normalize(view_b.float(), dim=-1, eps=1e-12)
        own = torch.arange(len(u), device=u.device)
        return F.cross_entropy(u @ v.T / temperature, own)
