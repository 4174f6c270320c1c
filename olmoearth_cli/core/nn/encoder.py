"""The OlmoEarth encoder, written plainly: what `core.plan` must equal.

Parameters carry the published names, so that a published state dict loads without translation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.nn.attention import Block
from olmoearth_cli.core.nn.patch_embed import PatchEmbeddings
from olmoearth_cli.core.nn.positions import CompositeEncodings, coordinates


class ProjectAndAggregate(nn.Module):
    """The contrastive head; embeddings do not use it, pretraining does."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d = config.embedding_size
        layers: list[nn.Module] = []
        for _ in range(config.num_projection_layers):
            layers += [nn.Linear(d, d), nn.ReLU()]
        self.projection = nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """Patch embedding, positions, transformer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embeddings = PatchEmbeddings(config)
        self.composite_encodings = CompositeEncodings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embedding_size)
        self.project_and_aggregate = ProjectAndAggregate(config)

    def embed_patches(
        self, inputs: dict[str, Tensor], timestamps: Tensor, patch_px: int, input_res: float = 10.0
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Tokens with their additive code, and where they are.

        Args:
            inputs: {modality: [B, H, W, T, C]} normalised, T of the timestamps (1 for static maps).
            timestamps: [B, T, 3] int.
            patch_px: p.
            input_res: pixel size in metres.

        Returns:
            {modality: [B, Y, X, T, S, D]}, and coordinates [B, Y, X, T, 3] or None without rotation.
        """
        tokens = {}
        scale = input_res * patch_px / 10
        y = x = 0
        for name, values in inputs.items():
            b, h, w, t, c = values.shape
            images = values.permute(0, 3, 1, 2, 4).reshape(b * t, h, w, c)
            embedded = self.patch_embeddings(name, images, patch_px)  # BT Y X S D
            y, x = embedded.shape[1:3]
            slots = torch.arange(t, device=values.device).repeat(b)
            code = self.composite_encodings.image_code(name, slots, self._months(name, timestamps, t))
            embedded = embedded + code[:, None, None].to(embedded.dtype)
            place = self.composite_encodings.place_code(y, x, scale)
            if place is not None:
                embedded = embedded + place[:, :, None].to(embedded.dtype)
            tokens[name] = embedded.unflatten(0, (b, t)).permute(0, 2, 3, 1, 4, 5)
        coords = None
        if self.config.position_encoding.rotary:
            coords = coordinates(self.config, timestamps, y, x, scale)
        return tokens, coords

    def _months(self, modality: str, timestamps: Tensor, t: int) -> Tensor:
        """[B*T] months; static maps ignore them."""
        if not MODALITIES[modality].multitemporal:
            return timestamps.new_zeros(timestamps.shape[0] * t)
        return timestamps[..., 1].reshape(-1)

    def layers(self) -> list[Block]:
        """The blocks in order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def layers_in_order(self) -> list[nn.ModuleList]:
        """All parts of the encoder by distance from the input, for learning rates that depend on it.

        Returns:
            L + 1 groups: the embeddings with the first block, each further block, and what follows the last block
            (spec/evaluation.md 8.4). Every parameter is in exactly one.
        """
        first, *others = self.layers()
        start = nn.ModuleList([self.patch_embeddings, self.composite_encodings, first])
        end = nn.ModuleList([self.norm, self.project_and_aggregate])
        return [start, *(nn.ModuleList([block]) for block in others), end]

    def transform(self, x: Tensor, coords: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """Run the blocks and the final LayerNorm.

        Args:
            x: [B, N, D].
            coords: [B, N, 3] or None.
            keys: [B, N] True for tokens that are attended to, at least one per sample; None for all.

        Returns:
            [B, N, D].
        """
        for block in self.blocks:
            x = block(x, coords, keys)
        return self.norm(x)  # type: ignore[no-any-return]


def initialise(encoder: Encoder) -> None:
    """Fresh weights: Xavier-uniform linear layers with zero bias (spec/model.md section 3)."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
