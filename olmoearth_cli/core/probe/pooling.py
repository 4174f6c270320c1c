"""Tokens to what a probe sees (spec/evaluation.md section 3).

Two averages that differ: an instance's is over tokens, so that a modality with more tokens weighs more; a map's is
over modalities.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from olmoearth_cli.core.nn.pooling import pool_cells

POOLINGS = ("mean", "max")
Tokens = Mapping[str, Tensor]


def pool_instance(tokens: Tokens, visible: Tokens, pooling: str) -> Tensor:
    """One vector per sample, over all its visible tokens.

    Args:
        tokens: {modality: [B, Y, X, T, S, D]}.
        visible: {modality: [B, Y, X, T, S]} bool, True where the token was encoded.
        pooling: `mean` or `max`.

    Returns:
        [B, D].

    Raises:
        ValueError: a sample without any visible token, or another pooling.
    """
    _check(pooling)
    values = torch.cat([part.flatten(1, -2) for part in tokens.values()], dim=1)  # B N D
    seen = torch.cat([visible[name].flatten(1) for name in tokens], dim=1).unsqueeze(-1)  # B N 1
    empty = (~seen.any(dim=1)).flatten().nonzero().flatten()
    if len(empty):
        raise ValueError(f"samples {empty.tolist()} of the batch have no token with data")
    if pooling == "max":
        return values.masked_fill(~seen, -torch.inf).amax(dim=1)
    return torch.where(seen, values, 0).sum(dim=1) / seen.sum(dim=1)


def pool_map(tokens: Tokens, visible: Tokens, pooling: str, *, reference: bool = False) -> Tensor:
    """One vector per patch: over periods and band sets of each modality, then over the modalities.

    Args:
        tokens: {modality: [B, Y, X, T, S, D]}.
        visible: {modality: [B, Y, X, T, S]} bool, True where the token was encoded.
        pooling: `mean` or `max`.
        reference: True as published: a modality that some sample of the batch has counts as a zero vector where it is
            missing (mean), and a patch without any is minus infinity (max). False leaves missing modalities out, so
            that a sample does not depend on its batch; a patch without any is zero.

    Returns:
        [B, Y, X, D].

    Raises:
        ValueError: no visible token in the whole batch, or another pooling.
    """
    _check(pooling)
    present = {name: part for name, part in tokens.items() if bool(visible[name].any())}
    if not present:
        raise ValueError("no token with data in the whole batch")
    if pooling == "mean":
        return pool_cells(present, dict(visible), absent_as_zero=reference)
    hidden = {name: ~visible[name].unsqueeze(-1) for name in present}
    maxima = [part.masked_fill(hidden[name], -torch.inf).amax(dim=(-3, -2)) for name, part in present.items()]
    highest = torch.stack(maxima).amax(dim=0)  # B Y X D
    return highest if reference else highest.masked_fill(highest == -torch.inf, 0.0)


def centre_patch(pooled: Tensor) -> Tensor:
    """The middle of a map, [B, Y, X, D] to [B, D]: row Y // 2, column X // 2."""
    return pooled[:, pooled.shape[1] // 2, pooled.shape[2] // 2]


def _check(pooling: str) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
