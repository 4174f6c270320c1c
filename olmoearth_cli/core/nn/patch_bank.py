"""Patches of a batch, cut and resized once for both views and the target, and their embedding token by token.

The per-pixel layers are the dearest part of a small model's step, so they run on chosen tokens only. The resize
stays on whole images, since its kernel reaches over patch borders (spec/model.md G10).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.checks import check_normalised
from olmoearth_cli.core.nn.packed import Tokens, in_packed_order
from olmoearth_cli.core.nn.patch_embed import PatchEmbeddings, cut_patches

BandsKept = Mapping[tuple[str, int], Tensor]
"""{(modality, band set): [R, C] factors 0 or 1}."""


@dataclass(frozen=True, kw_only=True)
class PatchBank:
    """Patches of the images that some token needs."""

    patches: dict[str, Tensor]
    """{modality: [I, Y, X, P, P, C]}."""
    image: dict[str, Tensor]
    """{modality: [B, T] row of the sample's image in `patches`}, meaningless where none was needed."""

    @property
    def samples(self) -> int:
        """Samples B in the bank; two views of the same data share them."""
        return len(next(iter(self.image.values())))

    def take(self, name: str, tokens: Tokens, where: Tensor) -> Tensor:
        """The patches of tokens.

        Args:
            name: their modality.
            tokens: all tokens of the batch.
            where: [n] positions of those wanted.

        Returns:
            [n, P, P, C].
        """
        patches = self.patches[name]
        y, x = patches.shape[1:3]
        image = self.image[name][tokens.sample[where] % self.samples, tokens.period[where]]
        index = (image * y + tokens.row[where]) * x + tokens.column[where]
        return patches.flatten(0, 2).flatten(1).index_select(0, index).unflatten(1, patches.shape[3:])


@torch.no_grad()
def cut_bank(inputs: Mapping[str, Tensor], needed: Mapping[str, Tensor], patch_px: int, side: int) -> PatchBank:
    """Cut the images that are needed.

    Args:
        inputs: {modality: [B, H, W, T, C]} normalised where needed.
        needed: {modality: [B, T] bool} on the CPU.
        patch_px: patch side in the images.
        side: patch side that the projection sees.

    Raises:
        ValueError: values that are not normalised, or missing, in a needed image.
    """
    patches, image = {}, {}
    for name, values in inputs.items():
        flags = needed[name]
        sample, period = (i.to(values.device) for i in flags.nonzero().unbind(1))
        images = values[sample, :, :, period]  # I H W C
        check_normalised({name: images})
        if len(images):
            patches[name] = cut_patches(images, patch_px, side)
        image[name] = (flags.flatten().cumsum(0) - 1).view_as(flags).to(values.device)
    return PatchBank(patches=patches, image=image)


def embed_tokens(embeddings: PatchEmbeddings, bank: PatchBank, tokens: Tokens, kept: BandsKept | None = None) -> Tensor:
    """Embed chosen tokens.

    Args:
        embeddings: weights.
        bank: their patches.
        tokens: which ones.
        kept: bands that are not dropped; None keeps all.

    Returns:
        [N, D] in packed order.
    """
    parts = []
    for (name, s), where in tokens.parts.items():
        module, channels = embeddings.band_sets(name)[s]
        patches = bank.take(name, tokens, where)  # n P P C
        if channels is not None:
            patches = patches[..., channels]
        if kept is not None and (name, s) in kept:
            # Dropped before the resize in training (section 5), which is the same: it acts on each band alone.
            patches = patches * kept[name, s][tokens.sample[where], None, None]
        parts.append(module(patches))
    return in_packed_order(parts, tokens)


def draw_bands(
    config: EncoderConfig, modalities: Mapping[str, object], views: int, batch: int, generator: torch.Generator
) -> dict[tuple[str, int], Tensor]:
    """Band dropout (spec/pretraining.md section 5): one rate per view and band set, then each band of a sample alone.

    Args:
        config: the highest rate, and whose bands are dropped.
        modalities: what the batch has.
        views: V.
        batch: B.
        generator: on the CPU.

    Returns:
        {(modality, band set): float32 [V * B, C]}, 0 for dropped bands; a sample keeps at least one band of a set.
    """
    kept = {}
    for name in config.band_dropout_modalities:
        for s, bands in enumerate(config.band_sets(name)):
            if name not in modalities or len(bands) == 1 or config.band_dropout_rate == 0:
                continue
            rate = config.band_dropout_rate * torch.rand(views, 1, 1, generator=generator)
            keep = torch.rand(views, batch, len(bands), generator=generator) >= rate
            spared = torch.randint(len(bands), (views, batch), generator=generator)
            keep |= ~keep.any(dim=-1, keepdim=True) & torch.nn.functional.one_hot(spared, len(bands)).bool()
            kept[name, s] = keep.flatten(0, 1).float()
    return kept
