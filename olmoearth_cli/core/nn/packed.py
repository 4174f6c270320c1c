"""Chosen tokens of a batch in one row, with no filler between samples: how pretraining runs the networks.

A third of the satellite tokens is visible and another part predicted; only these are embedded, encoded and
decoded. Linear layers run on the packed row; attention stays within a sample, so that its tokens depend on that
sample alone.

R counts views times samples, N the chosen tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.nn.attention import Attention, Block
from olmoearth_cli.core.nn.positions import CompositeEncodings, coordinates, rotary_angles


@dataclass(frozen=True, kw_only=True)
class Padding:
    """The way from packed tokens to a dense batch and back."""

    real: Tensor
    """[R, L] bool, True where a sample has a token."""
    where: Tensor
    """[N] position of each packed token in the flattened batch."""
    counts: list[int]
    """[R] tokens of each sample."""
    full: bool
    """True where all samples have as many tokens."""

    @classmethod
    def of(cls, counts: Tensor) -> Padding:
        """For samples of [R] tokens each; on the CPU, where looking at the counts waits for nothing."""
        longest = int(counts.max()) if len(counts) else 0
        real = torch.arange(longest) < counts[:, None]  # R L
        where = real.flatten().nonzero()[:, 0]
        return cls(real=real, where=where, counts=counts.tolist(), full=bool(real.all()))

    def to(self, device: torch.device) -> Padding:
        """The same on another device."""
        return replace(self, real=self.real.to(device), where=self.where.to(device))

    def dense(self, x: Tensor) -> Tensor:
        """[N, ...] to [R, L, ...], zeros where a sample has no more tokens."""
        if not self.full:
            x = x.new_zeros(self.real.numel(), *x.shape[1:]).index_copy(0, self.where, x)
        return x.unflatten(0, self.real.shape)

    def packed(self, x: Tensor) -> Tensor:
        """[R, L, ...] to [N, ...]."""
        flat = x.flatten(0, 1)
        return flat if self.full else flat.index_select(0, self.where)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What all tokens of a batch share."""

    timestamps: Tensor
    """[R, T, 3] int (day 1-31, month 0-11, year)."""
    rows: int
    """Patch rows Y."""
    columns: int
    """Patch columns X."""
    patch_px: int
    """Patch side in pixels of 10 m."""

    def to(self, device: torch.device) -> Frame:
        """The same on another device."""
        return replace(self, timestamps=self.timestamps.to(device))


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Chosen tokens in packed order: by sample, then modality, row, column, period and band set."""

    sample: Tensor
    """[N] which of the R samples."""
    place: Tensor
    """[N] position in the sample's whole sequence."""
    row: Tensor
    """[N] patch row."""
    column: Tensor
    """[N] patch column."""
    period: Tensor
    """[N] timestep."""
    parts: dict[tuple[str, int], Tensor]
    """{(modality, band set): positions in the packed row, ascending}."""
    counts: Tensor
    """[R] tokens of each sample."""
    padding: Padding
    """The way to a dense batch."""
    coords: Tensor | None
    """[N, 3] float32 (time, row, column); None without rotation."""

    def of_modality(self, name: str) -> Tensor:
        """Positions of a modality's tokens in the packed row, ascending."""
        parts = [where for (modality, _), where in self.parts.items() if modality == name]
        return torch.cat(parts).sort().values if parts else self.place.new_empty(0)

    def to(self, device: torch.device) -> Tokens:
        """The same on another device."""
        return Tokens(
            sample=self.sample.to(device),
            place=self.place.to(device),
            row=self.row.to(device),
            column=self.column.to(device),
            period=self.period.to(device),
            parts={key: where.to(device) for key, where in self.parts.items()},
            counts=self.counts.to(device),
            padding=self.padding.to(device),
            coords=None if self.coords is None else self.coords.to(device),
        )


def choose(flags: Mapping[str, Tensor], frame: Frame, config: EncoderConfig) -> Tokens:
    """Pack the tokens that are flagged.

    Args:
        flags: {modality: [R, Y, X, T, S] bool} on the CPU.
        frame: dates and grid, on the CPU.
        config: how coordinates are scaled.

    Returns:
        The tokens, on the CPU.
    """
    everything = torch.cat([flag.flatten(1) for flag in flags.values()], dim=1)
    sample, place = everything.nonzero().unbind(1)
    row, column, period = (torch.zeros_like(sample) for _ in range(3))
    parts = {}
    start = 0
    for name, flag in flags.items():
        stop = start + flag[0].numel()
        mine = ((place >= start) & (place < stop)).nonzero()[:, 0]
        y, x, t, s = torch.unravel_index(place[mine] - start, flag.shape[1:])
        row[mine], column[mine], period[mine] = y, x, t
        parts.update({(name, g): mine[s == g] for g in range(flag.shape[4])})
        start = stop
    coords = None
    if config.position_encoding.rotary:
        grid = coordinates(config, frame.timestamps, frame.rows, frame.columns, float(frame.patch_px))
        coords = grid[sample, row, column, period]
    counts = everything.sum(dim=1)
    return Tokens(
        sample=sample,
        place=place,
        row=row,
        column=column,
        period=period,
        parts={key: where for key, where in parts.items() if len(where)},
        counts=counts,
        padding=Padding.of(counts),
        coords=coords,
    )


def in_packed_order(parts: list[Tensor], tokens: Tokens) -> Tensor:
    """Join values of `tokens.parts`, each [n, D], to [N, D]."""
    if len(parts) == 1:
        return parts[0]
    where = torch.cat(list(tokens.parts.values()))
    order = torch.empty_like(where)
    order[where] = torch.arange(len(where), device=where.device)
    return torch.cat(parts).index_select(0, order)


def additive_code(encodings: CompositeEncodings, tokens: Tokens, frame: Frame) -> Tensor:
    """Each token's additive code (spec/model.md section 4.1).

    Returns:
        float32 [N, D].
    """
    place = encodings.place_code(frame.rows, frame.columns, float(frame.patch_px))
    parts = []
    for (name, s), where in tokens.parts.items():
        period = tokens.period[where]
        months = torch.zeros_like(period)
        if MODALITIES[name].multitemporal:
            months = frame.timestamps[tokens.sample[where], period, 1]
        code = encodings.image_code(name, period, months)[:, s]
        if place is not None:
            code = code + place[tokens.row[where], tokens.column[where]]
        parts.append(code)
    return in_packed_order(parts, tokens)


def run_block(
    block: Block,
    x: Tensor,
    tokens: Tokens,
    *,
    context: tuple[Tensor, Tokens] | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """One transformer block on packed tokens.

    Args:
        block: its weights.
        x: [N, D].
        tokens: which they are.
        context: what is attended to, [M, D] and its tokens, as it is; None for the tokens themselves.
        kept: [2, N, 1] factors of the attention and the MLP branch (stochastic depth); None for ones.

    Returns:
        [N, D].
    """
    normed = block.norm1(x)
    source, source_tokens = (normed, tokens) if context is None else context
    change = _attend(block.attn, normed, tokens, source, source_tokens)
    x = x + (change if kept is None else change * kept[0])
    change = block.mlp(block.norm2(x))
    return x + (change if kept is None else change * kept[1])


def _attend(attn: Attention, x: Tensor, tokens: Tokens, source: Tensor, source_tokens: Tokens) -> Tensor:
    """Attention from packed tokens [N, D] to those of the same sample in `source` [M, D]."""
    q, k, v = (
        layer(t).unflatten(-1, (attn.heads, -1)) for layer, t in ((attn.q, x), (attn.k, source), (attn.v, source))
    )
    if attn.q_norm is not None and attn.k_norm is not None:
        q, k = attn.q_norm(q), attn.k_norm(k)
    q, k = _turn(attn, q, tokens), _turn(attn, k, source_tokens)
    rows, columns = tokens.padding, source_tokens.padding
    ragged = not (rows.full and columns.full)
    attended = (_by_sample if ragged and x.device.type == "cpu" else _padded)(q, k, v, rows, columns)
    return attn.proj(attended.flatten(1))  # type: ignore[no-any-return]


def _padded(q: Tensor, k: Tensor, v: Tensor, rows: Padding, columns: Padding) -> Tensor:
    """Attention from packed [N, A, d] to packed [M, A, d] in one call; a mask keeps the filler out."""
    q, k, v = (padding.dense(t).transpose(1, 2) for padding, t in ((rows, q), (columns, k), (columns, v)))  # R A L d
    mask = None if columns.full else columns.real[:, None, None]  # R 1 1 L
    return rows.packed(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2))


def _by_sample(q: Tensor, k: Tensor, v: Tensor, rows: Padding, columns: Padding) -> Tensor:
    """The same, a call per sample: on a CPU calls are cheap, and filler costs by its square (v1: 40 % of a step)."""
    parts = zip(q.split(rows.counts), k.split(columns.counts), v.split(columns.counts), strict=True)
    per_sample = ((t.transpose(0, 1)[None] for t in part) for part in parts)  # 1 A n d: the fast kernels want four axes
    return torch.cat([F.scaled_dot_product_attention(a, b, c)[0].transpose(0, 1) for a, b, c in per_sample])


def _turn(attn: Attention, x: Tensor, tokens: Tokens) -> Tensor:
    """Rotate [N, A, d] by the tokens' coordinates."""
    if tokens.coords is None:
        return x
    turned: Tensor = _Rotation.apply(x, tokens.coords, attn.frequencies())  # type: ignore[no-untyped-call]
    return turned


class _Rotation(torch.autograd.Function):
    """Neighbouring pairs as complex numbers times exp(i angle), in float32: half the time of the plain formula.

    The gradient needs only the result: a pair turned by an angle moves at right angles to itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, coords: Tensor, frequencies: Tensor) -> Tensor:
        """Turn x [N, A, d] by coords [N, 3] times frequencies [axes, A or 1, d/2]."""
        angle = rotary_angles(coords, frequencies)  # N A d/2
        turn = torch.complex(angle.cos(), angle.sin())
        turned = _pairs(x) * turn
        ctx.save_for_backward(turn, turned, coords)
        ctx.axes = frequencies.shape[0]
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None]:
        """The gradients of x and, where they are learned, of the frequencies."""
        turn, turned, coords = ctx.saved_tensors
        gradient = _pairs(gradients[0])
        of_x = torch.view_as_real(gradient * turn.conj()).flatten(-2).to(gradients[0].dtype)
        if not ctx.needs_input_grad[2]:
            return of_x, None, None
        of_angle = (gradient * turned.conj()).imag  # N A d/2
        axes = coords[:, 3 - ctx.axes :]
        return of_x, None, (axes.T @ of_angle.flatten(1)).unflatten(1, of_angle.shape[1:])


def _pairs(x: Tensor) -> Tensor:
    """[N, A, d] as complex [N, A, d/2]."""
    return torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
