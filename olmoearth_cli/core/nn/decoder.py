"""The decoder of pretraining ("predictor"): mask tokens that read the encoded ones (spec/model.md section 6).

Parameters carry the published names. Only tokens to predict and visible ones are computed: what the reference
returns at other places has no meaning.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.nn.attention import Block
from olmoearth_cli.core.nn.packed import Frame, Tokens, additive_code, run_block
from olmoearth_cli.core.nn.positions import CompositeEncodings

DEPTH = 4
"""Blocks of every published decoder."""


class Decoder(nn.Module):
    """Cross-attention blocks as wide as the encoder's, without stochastic depth."""

    def __init__(self, config: EncoderConfig, depth: int = DEPTH) -> None:
        """Build for an encoder: width, heads, band sets and positions are its own.

        Raises:
            ValueError: an encoder with an attention pooler, whose decoder reads location tokens.
        """
        if config.pooler is not None:
            raise ValueError("the decoder of an encoder with an attention pooler (v1.3) is not supported.")
        super().__init__()
        d = config.embedding_size
        stack = replace(config, depth=depth, drop_path=0.0)
        self.mask_token = nn.Parameter(torch.zeros(d))
        self.blocks = nn.ModuleList(Block(stack) for _ in range(depth))
        self.composite_encodings = CompositeEncodings(stack)
        self.encoder_to_decoder_embed = nn.Linear(d, d)
        self.to_output_embed = nn.Linear(d, d)
        self.input_norm = nn.LayerNorm(d)
        self.norm = nn.LayerNorm(d)

    def forward(self, encoded: Tensor, visible: Tokens, asked: Tokens, frame: Frame) -> Tensor:
        """Predict tokens from the encoded ones of the same sample.

        Args:
            encoded: [M, D] the encoder's output.
            visible: which tokens these are; at least one per sample.
            asked: the N tokens to predict.
            frame: dates and grid.

        Returns:
            [N, D].
        """
        if not len(asked.sample):
            return encoded[:0]
        context = self.encoder_to_decoder_embed(self.input_norm(encoded))
        context = context + additive_code(self.composite_encodings, visible, frame)  # M D
        x = self.mask_token + additive_code(self.composite_encodings, asked, frame)  # N D
        for block in self.blocks:
            assert isinstance(block, Block)
            x = run_block(block, x, asked, context=(context, visible))
        return self.to_output_embed(self.norm(x))  # type: ignore[no-any-return]
