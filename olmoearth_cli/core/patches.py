"""Images to tokens as `core.plan` needs them: chosen images only, codes ready, few copies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.core.nn.patch_embed import BandSetEmbedding, resize


class PatchPlan:
    """Embeds one modality's images for one window size and one set of dates."""

    def __init__(
        self, encoder: Encoder, modality: str, stamps: Tensor, side: int, patch_px: int, dtype: torch.dtype
    ) -> None:
        """Prepare.

        Args:
            encoder: whose weights.
            modality: name of the modality.
            stamps: [T, 3] int.
            side: patches per window side.
            patch_px: p.
            dtype: of the projection; pixels and codes are float32.
        """
        self.side, self.patch_px, self.base_px = side, patch_px, encoder.patch_embeddings.side
        self.dtype = dtype
        self._sets = [_Prepared(m, channels, dtype) for m, channels in encoder.patch_embeddings.band_sets(modality)]
        codes = encoder.composite_encodings
        slots = torch.arange(len(stamps), device=stamps.device)
        codes_at_slot = codes.image_code(modality, slots, stamps[:, 1])  # T S D
        quarter = slice(codes.width, 2 * codes.width)
        # The slot is counted from each sample's first period with data, so its code is added by image.
        slot_codes = torch.zeros_like(codes_at_slot)
        slot_codes[..., quarter] = codes_at_slot[..., quarter]
        self._codes = codes_at_slot - slot_codes
        self._slots = slot_codes if bool(slot_codes.any()) else None
        place = codes.place_code(side, side, float(patch_px))
        self._place = None if place is None else place.flatten(0, 1)[:, None].float()  # cells 1 D

    def __call__(self, pixels: Tensor, sample: Tensor, period: Tensor, slots: Tensor) -> Tensor:
        """Embed the chosen images.

        Args:
            pixels: [b, H, W, T, C] float32.
            sample: [I] which sample.
            period: [I] which period.
            slots: [I] periods since the sample's first with data.

        Returns:
            float32 [I, cells, S, D].
        """
        patches = self._cut(pixels, sample, period)  # I cells P P C
        tokens = [one(patches) for one in self._sets]
        embedded = tokens[0].unsqueeze(2) if len(tokens) == 1 else torch.stack(tokens, dim=2)  # I cells S D
        code = self._codes[period]  # I S D
        if self._slots is not None:
            code = code + self._slots[slots]
        embedded += code[:, None]
        if self._place is not None:
            embedded += self._place
        return embedded

    def _cut(self, pixels: Tensor, sample: Tensor, period: Tensor) -> Tensor:
        """Patches [I, cells, P, P, C] of the chosen images, in one copy where no resizing is needed."""
        b, h, w, t, c = pixels.shape
        series = pixels.permute(0, 3, 1, 2, 4)  # b T H W C
        images = series.reshape(b * t, h, w, c) if len(sample) == b * t else series[sample, period]
        if self.patch_px != self.base_px:
            images = resize(images, self.patch_px, self.base_px)
        y, p = self.side, self.base_px
        return images.unflatten(1, (y, p)).unflatten(3, (y, p)).permute(0, 1, 3, 2, 4, 5).reshape(-1, y * y, p, p, c)


class _Prepared:
    """One band set's weights."""

    def __init__(self, module: BandSetEmbedding, channels: list[int] | None, dtype: torch.dtype) -> None:
        self.channels = channels
        layers = [layer for layer in (module.pixel_proj or ()) if isinstance(layer, torch.nn.Linear)]
        self.pixel = [(layer.weight.detach().float(), layer.bias.detach().float()) for layer in layers]
        self.weight = module.matrix().detach().to(dtype).contiguous()
        self.bias = None if module.proj.bias is None else module.proj.bias.detach().to(dtype)

    def __call__(self, patches: Tensor) -> Tensor:
        """[I, cells, P, P, C] to float32 [I, cells, D]."""
        x = patches if self.channels is None else patches[..., self.channels]
        for weight, bias in self.pixel:
            x = F.linear(x, weight, bias).relu_()
        return F.linear(x.flatten(2).to(self.weight.dtype), self.weight, self.bias).float()
