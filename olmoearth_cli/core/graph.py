"""The encoder as one function of tensors, in operations that exporters know: real arithmetic, no branches on values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.core.nn.pooling import pool_cells
from olmoearth_cli.core.nn.sequence import flatten_tokens, split_tokens


class EncoderGraph(nn.Module):
    """Normalised images to one vector per map cell, for a fixed window, patch size and set of modalities.

    Equal to `OlmoEarthModel.encode` and `pool` up to rounding; the tests hold them together. The resizing of images is
    a product with two small matrices, for exporters know no bicubic kernel with antialias.
    """

    def __init__(self, encoder: Encoder, *, window_px: int, patch_px: int) -> None:
        """Prepare.

        Args:
            encoder: whose weights.
            window_px: side of the images; a multiple of the patch size.
            patch_px: p.
        """
        super().__init__()
        self.encoder = encoder
        self.patch_px, self.base_px = patch_px, encoder.config.base_patch_px
        self.register_buffer("resizing", _resizing(window_px, window_px // patch_px * self.base_px), persistent=False)

    def forward(self, timestamps: Tensor, images: dict[str, Tensor], seen: dict[str, Tensor] | None = None) -> Tensor:
        """Encode and pool.

        Args:
            timestamps: int64 [B, T, 3] (day 1-31, month 0-11, year).
            images: {modality: float32 [B, H, W, T, C]} normalised; finite also where nothing is seen.
            seen: {modality: bool [B, Y, X, T]} False where a patch has no data; None: all have.

        Returns:
            float32 [B, Y, X, D], zeros where no modality has data.
        """
        resized = {name: self._resized(values) for name, values in images.items()}
        # At the base patch size nothing is resized again; the pixel size is such that coordinates stay the same.
        input_res = 10.0 * self.patch_px / self.base_px
        tokens, coords = self.encoder.embed_patches(resized, timestamps, self.base_px, input_res)
        visible = {name: _visible(values, None if seen is None else seen[name]) for name, values in tokens.items()}
        sequence, shown, places = flatten_tokens(tokens, visible, coords)
        keys = None
        if seen is not None:
            nothing = ~shown.any(dim=1, keepdim=True)  # softmax over no key is no number; the result is not used
            keys = shown | nothing
        return pool_cells(split_tokens(self.encoder.transform(sequence, places, keys), tokens), visible)

    def _resized(self, images: Tensor) -> Tensor:
        """[B, H, W, T, C] at the base patch size."""
        if self.patch_px == self.base_px:
            return images
        matrix = self.resizing
        assert isinstance(matrix, Tensor)
        return torch.einsum("ih,jw,bhwtc->bijtc", matrix, matrix, images)


def _visible(tokens: Tensor, seen: Tensor | None) -> Tensor:
    """bool [B, Y, X, T, S]."""
    if seen is None:
        return torch.ones_like(tokens[..., 0], dtype=torch.bool)
    return seen.unsqueeze(-1).expand(tokens.shape[:-1])


def _resizing(side: int, wanted: int) -> Tensor:
    """[wanted, side]: resizing along one axis as a matrix; bicubic with antialias is linear and works axis by axis."""
    columns = torch.eye(side)[None, None]  # 1 1 side side: every column is an image of one bright row
    resized = F.interpolate(columns, size=(wanted, side), mode="bicubic", antialias=True)
    return resized[0, 0]
