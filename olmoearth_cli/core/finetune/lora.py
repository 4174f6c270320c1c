"""Low-rank adaptation of attention: each projection learns W + scale * B A, with W at rest (arXiv 2106.09685).

Written here rather than taken from `peft`: that renames parameters (the published layout would need translation),
wraps the model and brings a training stack, for what are two small products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from olmoearth_cli.core.nn.encoder import Encoder

PROJECTIONS = ("q", "k", "v", "proj")
"""Linear layers of an attention that are adapted."""


class LoraLinear(nn.Linear):
    """A linear layer at rest, and a correction of low rank that learns; its parameters keep their names."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        bound = 1 / math.sqrt(linear.in_features)
        first = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(first.to(linear.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        low = F.linear(F.linear(input, self.lora_a), self.lora_b)
        return F.linear(input, self.weight, self.bias) + self.scale * low

    def merged(self) -> nn.Linear:
        """The plain layer that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        with torch.no_grad():
            linear.weight = nn.Parameter(self.weight + self.scale * (self.lora_b @ self.lora_a))
        linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear


def add_lora(encoder: Encoder, rank: int, *, alpha: float | None = None, seed: int = 42) -> None:
    """Put corrections beside all attention projections; nothing changes until they have learned.

    Args:
        encoder: changed in place; all else in it stops learning.
        rank: of the corrections, 1 to D.
        alpha: corrections are scaled by alpha / rank; None for 2 * rank.
        seed: of the initial A (uniform as in a linear layer; B starts at zero).

    Raises:
        ValueError: a rank out of range, or an encoder that is adapted already.
    """
    width = encoder.config.embedding_size
    if not 1 <= rank <= width:
        raise ValueError(f"the rank of LoRA must be 1 to the model's width {width}, not {rank}")
    if has_lora(encoder):
        raise ValueError("this encoder has LoRA layers already: merge them first")
    generator = torch.Generator().manual_seed(seed)
    encoder.requires_grad_(False)
    for block in encoder.layers():
        for name in PROJECTIONS:
            plain = getattr(block.attn, name)
            scale = (2 * rank if alpha is None else alpha) / rank
            setattr(block.attn, name, LoraLinear(plain, rank, scale, generator))


def has_lora(encoder: Encoder) -> bool:
    """True between `add_lora` and `merge_lora`."""
    return any(isinstance(module, LoraLinear) for module in encoder.modules())


def merge_lora(encoder: Encoder) -> None:
    """Turn the corrections into plain weights, in place: the encoder has the published layout again."""
    for block in encoder.layers():
        for name in PROJECTIONS:
            layer = getattr(block.attn, name)
            if isinstance(layer, LoraLinear):
                setattr(block.attn, name, layer.merged())
