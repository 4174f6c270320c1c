"""Tokens to one vector per map cell (spec/model.md section 9)."""

from __future__ import annotations

import torch
from torch import Tensor


def pool_cells(tokens: dict[str, Tensor], visible: dict[str, Tensor], *, absent_as_zero: bool = False) -> Tensor:
    """Mean over the visible (period, band set) tokens of each modality, then over the modalities with data.

    Args:
        tokens: {modality: [B, Y, X, T, S, D]}.
        visible: {modality: [B, Y, X, T, S]} bool, True where the token has data.
        absent_as_zero: True counts a modality without data at a cell as a zero vector, as the reference does.

    Returns:
        [B, Y, X, D]; zeros where no modality has data.
    """
    total: Tensor | None = None
    present: Tensor | None = None
    for name, values in tokens.items():
        seen = visible[name].unsqueeze(-1)  # B Y X T S 1
        count = seen.sum(dim=(-3, -2))  # B Y X 1
        mean = torch.where(seen, values, 0).sum(dim=(-3, -2)) / count.clamp(min=1)  # B Y X D
        here = torch.ones_like(count) if absent_as_zero else (count > 0).to(count.dtype)
        total = mean if total is None else total + mean
        present = here if present is None else present + here
    if total is None or present is None:
        raise ValueError("no modality to pool")
    return total / present.clamp(min=1)
