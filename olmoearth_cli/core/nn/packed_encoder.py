"""The encoder on packed tokens with gradients: the pass that pretraining and fine-tuning share."""

from __future__ import annotations

import torch
from torch import Tensor

from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.core.nn.packed import Frame, Tokens, additive_code, run_block
from olmoearth_cli.core.nn.patch_bank import BandsKept, PatchBank, embed_tokens


def encode_tokens(
    encoder: Encoder,
    bank: PatchBank,
    tokens: Tokens,
    frame: Frame,
    *,
    kept: BandsKept | None = None,
    depth: Tensor | None = None,
) -> Tensor:
    """The tokens' final embeddings.

    Args:
        encoder: its weights.
        bank: patches of all tokens.
        tokens: which ones.
        frame: their dates and grid.
        kept: bands that are not dropped; None keeps all.
        depth: [blocks, 2, R] factors of the branches of a sample (stochastic depth); None for ones.

    Returns:
        [N, D] in packed order.
    """
    x = embed_tokens(encoder.patch_embeddings, bank, tokens, kept)
    x = x + additive_code(encoder.composite_encodings, tokens, frame)
    for i, block in enumerate(encoder.layers()):
        factors = None if depth is None else depth[i][:, tokens.sample, None]
        x = run_block(block, x, tokens, kept=factors)
    return encoder.norm(x)  # type: ignore[no-any-return]


def draw_depth(blocks: int, rate: float, samples: int, generator: torch.Generator) -> Tensor:
    """Stochastic depth: each branch of each sample is left out with a probability, and scaled up otherwise.

    Args:
        blocks: of the encoder.
        rate: the probability.
        samples: R.
        generator: on the CPU.

    Returns:
        float32 [blocks, 2, R].
    """
    keep = 1 - rate
    return (torch.rand(blocks, 2, samples, generator=generator) < keep) / keep
