"""The target of pretraining: the encoder's first patch projection, frozen (spec/pretraining.md section 5).

No codes, no blocks, no norm: what the reference computes with all exit depths 0 and an average that never moves.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.core.nn.packed import Tokens
from olmoearth_cli.core.nn.patch_bank import PatchBank, embed_tokens


class TargetProjection(nn.Module):
    """A fixed random function of the pixels; part of every checkpoint, for another one is another task."""

    def __init__(self, encoder: Encoder) -> None:
        """Copy the patch embedding of a freshly initialised encoder."""
        super().__init__()
        self.patch_embeddings = deepcopy(encoder.patch_embeddings).requires_grad_(False)

    @torch.no_grad()
    def forward(self, bank: PatchBank, tokens: Tokens) -> Tensor:
        """Targets of tokens, [N, D]; never with dropped bands."""
        return embed_tokens(self.patch_embeddings, bank, tokens)
