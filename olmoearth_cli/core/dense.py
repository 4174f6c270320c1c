"""The transformer as `core.plan` runs it: fused weights, ready-made rotary tables, no mask.

Numerically this is `core.nn` with sums in another order; the tests hold the two together. What pays was
measured (benchmarks/encoder.md): one product for queries, keys and values; rotation as one complex product in
place; sums and GELU in place (core.linear).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from olmoearth_cli.core.linear import Linear, Workspace
from olmoearth_cli.core.nn.attention import Block
from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.core.nn.positions import rotary_angles


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a batch's tokens are among the plan's (period, row, column) places."""

    index: Tensor | None
    """[n] shared by all samples, or [B, n]; None where every modality holds every place in order."""
    repeats: int
    """Modalities in the sequence; used where `index` is None."""


def rotary_tables(encoder: Encoder, coords: Tensor) -> list[Tensor]:
    """cos + i sin of every place, head and pair, one table per block.

    Angles and their functions are float32 whatever the precision of the run.

    Args:
        encoder: whose frequencies.
        coords: [P, 3] float32.

    Returns:
        Complex64 [P, D/2] per block; empty without rotation.
    """
    if not encoder.config.position_encoding.rotary:
        return []
    tables = []
    for block in encoder.layers():
        angle = rotary_angles(coords, block.attn.frequencies())  # P A d/2
        angle = angle.expand(-1, encoder.config.num_heads, -1).flatten(1)
        tables.append(torch.complex(angle.cos(), angle.sin()))
    return tables


class DenseBlock:
    """One transformer block over dense batches."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attn = block.attn
        self.heads, self.head_dim = attn.heads, attn.head_dim
        self.dtype = dtype
        self.norm1, self.norm2 = _affine(block.norm1), _affine(block.norm2)
        self.head_norms = None
        if attn.q_norm is not None and attn.k_norm is not None:
            self.head_norms = (_affine(attn.q_norm), _affine(attn.k_norm))
        layers = (attn.q, attn.k, attn.v)
        self.qkv = Linear(
            torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]), dtype
        )
        self.proj = Linear(attn.proj.weight, attn.proj.bias, dtype)
        self.fc1 = Linear(block.mlp.fc1.weight, block.mlp.fc1.bias, dtype)
        self.fc2 = Linear(block.mlp.fc2.weight, block.mlp.fc2.bias, dtype)

    def __call__(self, x: Tensor, table: Tensor | None, places: Places, workspace: Workspace) -> Tensor:
        """Run the block, in place.

        Args:
            x: [B, n, D] float32, contiguous; becomes the result.
            table: complex64 [P, D/2]; None without rotation.
            places: the tokens' rows in the table.
            workspace: shared by the blocks of a batch.

        Returns:
            x.
        """
        b, n, d = x.shape
        rows = x.view(b * n, d)
        qkv = self.qkv(self._normed(rows, self.norm1), workspace).view(b, n, 3 * d)
        if self.head_norms is not None:
            self._norm_heads(qkv)
        if table is not None:
            _turn(qkv, table, places)
        q, k, v = qkv.view(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # B A n d each
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b * n, d)
        self.proj.added_to(rows, attended)
        self.fc2.added_to(rows, self.fc1.gelu(self._normed(rows, self.norm2), workspace))
        return x

    def _normed(self, x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), *affine).to(self.dtype)

    def _norm_heads(self, qkv: Tensor) -> None:
        """Normalise queries and keys in place, head by head."""
        parts = qkv.view(*qkv.shape[:2], 3, self.heads, self.head_dim)
        for i, affine in enumerate(self.head_norms or ()):
            part = parts[:, :, i]
            part.copy_(F.layer_norm(part.float(), (self.head_dim,), *affine))


def _affine(norm: torch.nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return norm.weight.detach().float(), norm.bias.detach().float()


def _turn(qkv: Tensor, table: Tensor, places: Places) -> None:
    """Rotate the queries and keys in [B, n, 3D], in place."""
    both = qkv[..., : qkv.shape[-1] // 3 * 2]
    if qkv.dtype == torch.float32:
        _turn_pairs(both, table, places)
        return
    turned = both.float()
    _turn_pairs(turned, table, places)
    both.copy_(turned)


def _turn_pairs(both: Tensor, table: Tensor, places: Places) -> None:
    """Rotate float32 queries and keys [B, n, 2D] in place: one complex product."""
    half = both.shape[-1] // 4
    pairs = torch.view_as_complex(both.unflatten(-1, (2, half, 2)))  # B n 2 D/2
    if places.index is None:
        pairs.unflatten(1, (places.repeats, len(table))).mul_(table[:, None])
        return
    rows = torch.view_as_real(table).index_select(0, places.index.reshape(-1))
    pairs.mul_(torch.view_as_complex(rows).view(*places.index.shape, 1, half))
