"""All modalities' tokens as one sequence, and back (spec/model.md section 5.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def flatten_tokens(
    tokens: dict[str, Tensor], visible: dict[str, Tensor], coords: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All modalities as one sequence: tokens [B, N, D], visible [B, N], coordinates [B, N, 3] or None."""
    sequence = torch.cat([values.flatten(1, 4) for values in tokens.values()], dim=1)
    seen = torch.cat([visible[name].flatten(1) for name in tokens], dim=1)
    if coords is None:
        return sequence, seen, None
    places = []
    for values in tokens.values():
        t, s = values.shape[3:5]
        places.append(coords[..., :t, None, :].expand(*values.shape[:4], s, 3).flatten(1, 4))
    return sequence, seen, torch.cat(places, dim=1)


def split_tokens(sequence: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """[B, N, D] back to {modality: [B, Y, X, T, S, D]}."""
    parts = sequence.split([values[0, ..., 0].numel() for values in like.values()], dim=1)
    return {name: part.view(values.shape) for (name, values), part in zip(like.items(), parts, strict=True)}
