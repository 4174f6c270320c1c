"""Pixels to tokens (spec/model.md section 3).

Patches are cut before the per-pixel layers, not after: those act on each pixel alone, and the few raw bands
are cheaper to move than the many features.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.modality import MODALITIES


class BandSetEmbedding(nn.Module):
    """One band set's patches to tokens."""

    def __init__(self, config: EncoderConfig, bands: int) -> None:
        super().__init__()
        self.side = config.base_patch_px
        widths = (bands, *config.pixel_hidden)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.pixel_proj = nn.Sequential(*layers) if layers else None
        self.proj: nn.Linear | nn.Conv2d
        if config.linear_patch_embed:
            self.proj = nn.Linear(widths[-1] * self.side**2, config.embedding_size)
        else:
            self.proj = nn.Conv2d(widths[-1], config.embedding_size, self.side, self.side)

    def matrix(self) -> Tensor:
        """The projection as a matrix [D, P*P*K] over pixels row by row, channel fastest."""
        weight = self.proj.weight
        return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches that are already cut and resized.

        Args:
            patches: [..., P, P, C].

        Returns:
            [..., D].
        """
        x = self.pixel_proj(patches) if isinstance(self.pixel_proj, nn.Sequential) else patches
        return F.linear(x.flatten(-3), self.matrix(), self.proj.bias)


class PatchEmbeddings(nn.Module):
    """All band sets of all modalities."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.side = config.base_patch_px
        self.per_modality_embeddings = nn.ModuleDict()
        self._channels: dict[str, list[list[int]]] = {}
        for name in config.modalities:
            sets = config.band_sets(name)
            self._channels[name] = [MODALITIES[name].indices(s) for s in sets]
            self.per_modality_embeddings[name] = nn.ModuleDict(
                {f"{name}__{g}": BandSetEmbedding(config, len(s)) for g, s in enumerate(sets)}
            )

    def band_sets(self, modality: str) -> list[tuple[BandSetEmbedding, list[int] | None]]:
        """The embeddings of a modality and the channels each reads; None for all in order."""
        modules = self.per_modality_embeddings[modality]
        assert isinstance(modules, nn.ModuleDict)
        everything = list(range(len(MODALITIES[modality].bands)))
        return [
            (module, None if channels == everything else channels)
            for module, channels in zip(modules.values(), self._channels[modality], strict=True)
            if isinstance(module, BandSetEmbedding)
        ]

    def forward(self, modality: str, images: Tensor, patch_px: int) -> Tensor:
        """Embed images.

        Args:
            modality: name of the modality.
            images: [I, H, W, C] normalised.
            patch_px: patch side p; divides H and W.

        Returns:
            [I, Y, X, S, D].
        """
        patches = cut_patches(images, patch_px, self.side)  # I Y X P P C
        tokens = [
            module(patches if channels is None else patches[..., channels])
            for module, channels in self.band_sets(modality)
        ]
        return torch.stack(tokens, dim=-2)


def cut_patches(images: Tensor, patch_px: int, side: int) -> Tensor:
    """Cut images into patches, resized so that each is `side` pixels wide.

    The whole image is resized, so the kernel reaches over patch borders, as in training (G10).

    Args:
        images: [I, H, W, C].
        patch_px: patch side in the image.
        side: patch side that the projection sees.

    Returns:
        [I, Y, X, side, side, C].
    """
    if patch_px != side:
        images = resize(images, patch_px, side)
    i, h, w, c = images.shape
    return images.view(i, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5).contiguous()


def resize(images: Tensor, patch_px: int, side: int) -> Tensor:
    """Bicubic with antialias, half-pixel centres; float32 whatever the input, for CPUs know no half here.

    Args:
        images: [I, H, W, C].
        patch_px: p.
        side: P.

    Returns:
        [I, H/p*P, W/p*P, C].
    """
    size = (images.shape[1] // patch_px * side, images.shape[2] // patch_px * side)
    working = images if images.dtype == torch.float64 else images.float()
    resized = F.interpolate(working.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().to(images.dtype)
