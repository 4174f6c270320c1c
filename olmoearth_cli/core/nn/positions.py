"""Where and when a token is: additive codes and rotary angles (spec/model.md section 4).

Angles are formed in float32 and in the order of the specification, whatever precision the network runs in:
absolute days / 30 reach 300 rad, so half precision would lose the position altogether (G6).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.modality import MODALITIES

_DAYS_BEFORE_MONTH = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
"""Non-leap offsets, used for every year."""


def sinusoid(x: Tensor, width: int) -> Tensor:
    """The 1D code S(x, q) of section 4.1; its exponent k / 2q (not 2k / q) is the published models' own.

    Args:
        x: [...] float32.
        width: q, even.

    Returns:
        [..., q]: q / 2 sines, then q / 2 cosines.
    """
    k = torch.arange(width // 2, dtype=torch.float32, device=x.device)
    frequency = 10000.0 ** (-k / (2 * width))
    angle = x.float().unsqueeze(-1) * frequency  # ... q/2
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def month_table(width: int) -> Tensor:
    """[12, width]: sin(2 pi m / 12) repeated, then cos repeated."""
    angle = 2 * torch.pi * torch.arange(12, dtype=torch.float32) / 12
    half = width // 2
    return torch.cat([angle.sin()[:, None].expand(12, half), angle.cos()[:, None].expand(12, half)], dim=-1)


def days_since_2000(timestamps: Tensor) -> Tensor:
    """Days of (day 1-31, month 0-11, year), float32 in the specification's order.

    Args:
        timestamps: [..., 3] int.

    Returns:
        [...] float32.
    """
    cumulative = torch.tensor(_DAYS_BEFORE_MONTH, dtype=torch.float32, device=timestamps.device)
    day, month, year = timestamps.unbind(-1)
    return (year - 2000).float() * 365.25 + cumulative[month.long()] + (day - 1).float()


class CompositeEncodings(nn.Module):
    """The additive code of a token: channel, slot, month and place, a quarter of D each."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self._encoding = config.position_encoding
        self.width = config.embedding_size // 4
        self.month_embed = nn.Embedding(12, self.width)
        with torch.no_grad():
            self.month_embed.weight.copy_(month_table(self.width))
        self.month_embed.weight.requires_grad_(False)
        self.per_modality_channel_embeddings = nn.ParameterDict(
            {m: nn.Parameter(torch.zeros(len(config.band_sets(m)), self.width)) for m in config.modalities}
        )

    def image_code(self, modality: str, slots: Tensor, months: Tensor) -> Tensor:
        """The part of the code that all patches of an image share: channel, slot and month.

        Args:
            modality: name of the modality.
            slots: [I] int, position of each image in its series.
            months: [I] int, 0-11.

        Returns:
            float32 [I, S, D], zero in the last quarter.
        """
        n = self.width
        channel = self.per_modality_channel_embeddings[modality].float()  # S n
        images = slots.shape[0]  # `len` would fix the number in an exported graph
        code = channel.new_zeros(images, channel.shape[0], 4 * n)  # I S D
        code[..., :n] = channel
        if MODALITIES[modality].multitemporal:
            if not self._encoding.temporal:
                code[..., n : 2 * n] = sinusoid(slots.float(), n)[:, None]
            code[..., 2 * n : 3 * n] = self.month_embed.weight.float()[months.long()][:, None]
        return code

    def place_code(self, rows: int, columns: int, scale: float) -> Tensor | None:
        """The code of a patch's place, column first (G4).

        Args:
            rows: Y.
            columns: X.
            scale: patch side in units of 10 m.

        Returns:
            float32 [Y, X, D], zero but in the last quarter; None where positions are rotary.
        """
        if self._encoding.value != "absolute":
            return None
        n, device = self.width, self.month_embed.weight.device
        y = sinusoid(torch.arange(rows, device=device).float() * scale, n // 2)  # Y n/2
        x = sinusoid(torch.arange(columns, device=device).float() * scale, n // 2)  # X n/2
        code = torch.zeros(rows, columns, 4 * n, device=device)
        code[..., 3 * n : 3 * n + n // 2] = x[None]
        code[..., 3 * n + n // 2 :] = y[:, None]
        return code


def coordinates(config: EncoderConfig, timestamps: Tensor, rows: int, columns: int, scale: float) -> Tensor:
    """(time, row, column) of every patch of a series.

    Args:
        config: scales of the coordinates.
        timestamps: [..., T, 3] int.
        rows: Y.
        columns: X.
        scale: patch side in units of 10 m.

    Returns:
        float32 [..., Y, X, T, 3].
    """
    g = scale * config.rope_coordinate_scale
    days = days_since_2000(timestamps) * config.rope_temporal_coordinate_scale  # ... T
    shape = (*timestamps.shape[:-2], rows, columns, timestamps.shape[-2])
    y = torch.arange(rows, device=timestamps.device).float() * g
    x = torch.arange(columns, device=timestamps.device).float() * g
    time = days[..., None, None, :].expand(shape)
    return torch.stack([time, y[:, None, None].expand(shape), x[:, None].expand(shape)], dim=-1)


def axial_frequencies(config: EncoderConfig) -> Tensor:
    """Fixed frequencies: each axis turns its own share of a head's pairs (section 4.3).

    Returns:
        [axes, 1, d/2], zero where a pair belongs to another axis.
    """
    d = config.head_dim
    if config.position_encoding.temporal:
        time = round(d * config.temporal_rope_dim_frac / 2) * 2
        widths = [time, (d - time) // 2, (d - time) // 2]
        bases = [config.rope_temporal_base or config.rope_base, config.rope_base, config.rope_base]
    else:
        widths, bases = [d // 2, d // 2], [config.rope_base, config.rope_base]
    out = torch.zeros(len(widths), 1, d // 2)
    start = 0
    for axis, (width, base) in enumerate(zip(widths, bases, strict=True)):
        k = torch.arange(0, width, 2, dtype=torch.float32)
        out[axis, 0, start : start + width // 2] = 1.0 / base ** (k / width)
        start += width // 2
    return out


def mixed_frequencies(config: EncoderConfig, generator: torch.Generator | None = None) -> Tensor:
    """Fresh learned frequencies: per head two orthogonal random directions, geometric magnitudes (4.2).

    Returns:
        [axes, heads, d/2].
    """
    d, heads, axes = config.head_dim, config.num_heads, config.position_encoding.axes
    magnitude = config.rope_mixed_base ** (-4.0 * torch.arange(d // 4, dtype=torch.float32) / d)
    first = nn.functional.normalize(torch.randn(heads, axes, generator=generator), dim=-1)
    second = torch.randn(heads, axes, generator=generator)
    second = second - (second * first).sum(-1, keepdim=True) * first
    second = nn.functional.normalize(second, dim=-1)
    halves = [direction.T[:, :, None] * magnitude for direction in (first, second)]  # axes heads d/4
    return torch.cat(halves, dim=-1)


def rotary_angles(coords: Tensor, frequencies: Tensor) -> Tensor:
    """Angles of all pairs, summed in the order time, row, column.

    Args:
        coords: [..., 3] float32 (time, row, column).
        frequencies: [axes, heads or 1, d/2].

    Returns:
        float32 [..., heads or 1, d/2].
    """
    axes = frequencies.shape[0]
    parts = coords[..., 3 - axes :].float()[..., None, None]  # ... axes 1 1
    frequencies = frequencies.float()
    angle = parts[..., 0, :, :] * frequencies[0]
    for axis in range(1, axes):
        angle = angle + parts[..., axis, :, :] * frequencies[axis]
    return angle


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs (2s, 2s+1) of each head (G5).

    Args:
        x: [..., heads, d].
        cos: [..., heads or 1, d/2].
        sin: [..., heads or 1, d/2].

    Returns:
        [..., heads, d].
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
