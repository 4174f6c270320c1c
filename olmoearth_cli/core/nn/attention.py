"""Pre-norm transformer blocks with rotary attention (spec/model.md section 5.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.nn.positions import axial_frequencies, mixed_frequencies, rotary_angles, rotate


class Attention(nn.Module):
    """Multi-head self-attention; queries and keys turn with the tokens' coordinates."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d = config.embedding_size
        self.heads, self.head_dim = config.num_heads, config.head_dim
        encoding = config.position_encoding
        self.rotary = encoding.rotary
        if encoding.mixed:
            self.rope_mixed_freqs = nn.Parameter(mixed_frequencies(config))
        elif encoding.rotary:
            self.register_buffer("axial_freqs", axial_frequencies(config), persistent=False)
        self._mixed = encoding.mixed
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.q_norm = nn.LayerNorm(self.head_dim) if config.qk_norm else None
        self.k_norm = nn.LayerNorm(self.head_dim) if config.qk_norm else None
        self.proj = nn.Linear(d, d)

    def frequencies(self) -> Tensor:
        """[axes, heads or 1, d/2]; only where `rotary`."""
        frequencies = self.rope_mixed_freqs if self._mixed else self.axial_freqs
        assert isinstance(frequencies, Tensor)
        return frequencies

    def forward(self, x: Tensor, coords: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """Attend from every token to every token.

        Args:
            x: [B, N, D].
            coords: [B, N, 3] float32 (time, row, column); None without rotation.
            keys: [B, N] True for tokens that are attended to, at least one per sample; None for all.

        Returns:
            [B, N, D].
        """
        shape = (*x.shape[:2], self.heads, self.head_dim)
        q, k, v = (layer(x).view(shape) for layer in (self.q, self.k, self.v))  # B N A d
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if coords is not None:
            angle = rotary_angles(coords, self.frequencies())  # B N A d/2
            cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # B A N d
        mask = None if keys is None else keys[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden = int(config.embedding_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embedding_size, hidden)
        self.fc2 = nn.Linear(hidden, config.embedding_size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to the residual stream."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embedding_size)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embedding_size)
        self.mlp = Mlp(config)
        self.drop_path = config.drop_path

    def forward(self, x: Tensor, coords: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """[B, N, D], coordinates [B, N, 3] and what is attended to [B, N] to [B, N, D]."""
        x = x + self._drop(self.attn(self.norm1(x), coords, keys))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        """Stochastic depth per sample, in training only."""
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) < keep
        return x * kept.to(x.dtype) / keep
