"""What turns embeddings into outputs: the decoders of the published recipes (spec/evaluation.md 8.1 and 8.3).

Each takes one vector per sample or one per patch, and gives O outputs per sample or per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from olmoearth_cli.core.probe.heads import patches_to_pixels
from olmoearth_cli.core.probe.pooling import centre_patch

POOLED_WIDTH = 128
"""Channels of the pooling decoder's convolution, and of the finest level of the tapered UNet."""


def layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them; one linear layer for two widths."""
    stack: list[nn.Module] = []
    for a, b in pairwise(widths):
        stack += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*stack[:-1])


class Centre(nn.Module):
    """The middle patch alone, [B, Y, X, D] to [B, O]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, patches: Tensor) -> Tensor:
        """[B, Y, X, D] to [B, O]."""
        return self.body(centre_patch(patches))  # type: ignore[no-any-return]


class MaxPooled(nn.Module):
    """The pooling decoder: a 3x3 convolution, the maximum over the grid, then linear layers."""

    def __init__(self, width: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, POOLED_WIDTH, 3, padding=1)
        self.body = layers((POOLED_WIDTH, *hidden, outputs))

    def forward(self, patches: Tensor) -> Tensor:
        """[B, Y, X, D] to [B, O]."""
        return self.body(F.relu(self.conv(patches.movedim(-1, 1))).amax(dim=(2, 3)))  # type: ignore[no-any-return]


class Copied(nn.Module):
    """One answer per window, given to each of its pixels: for windows of a few pixels with one label."""

    def __init__(self, body: nn.Module, side: int) -> None:
        super().__init__()
        self.body, self.side = body, side

    def forward(self, patches: Tensor) -> Tensor:
        """[B, Y, X, D] to [B, O, Y p, X p]."""
        rows, columns = patches.shape[1] * self.side, patches.shape[2] * self.side
        return self.body(patches)[:, :, None, None].expand(-1, -1, rows, columns)  # type: ignore[no-any-return]


class DepthToSpace(nn.Module):
    """Every patch answers for its own p x p pixels."""

    def __init__(self, body: nn.Module, side: int) -> None:
        super().__init__()
        self.body, self.side = body, side

    def forward(self, patches: Tensor) -> Tensor:
        """[B, Y, X, D] to [B, O, Y p, X p]."""
        return patches_to_pixels(self.body(patches), self.side)


class Upsampled(nn.Module):
    """One answer per patch, upsampled bilinearly.

    The published decoder upsamples the D channels first; the layer is linear and the weights of the upsampling sum
    to 1, so the values are the same for p * p times less work.
    """

    def __init__(self, width: int, outputs: int, side: int, *, align_corners: bool) -> None:
        super().__init__()
        self.body, self.side, self.align_corners = nn.Linear(width, outputs), side, align_corners

    def forward(self, patches: Tensor) -> Tensor:
        """[B, Y, X, D] to [B, O, Y p, X p]."""
        coarse = self.body(patches).movedim(-1, 1)  # B O Y X
        size = (coarse.shape[2] * self.side, coarse.shape[3] * self.side)
        return F.interpolate(coarse, size=size, mode="bilinear", align_corners=self.align_corners)


class UNet(nn.Module):
    """A convolution on the patches, then twice the resolution at every level, down to pixels."""

    def __init__(
        self, width: int, level_widths: Sequence[int], outputs: int, *, convolutions: int = 1, batch_norm: bool = False
    ) -> None:
        """Build.

        Args:
            width: D.
            level_widths: channels after each doubling of the resolution; log2(p) of them.
            outputs: O.
            convolutions: of each level.
            batch_norm: True normalises after every hidden convolution, which has no bias then.
        """
        super().__init__()
        stack = [_convolution(width, width, batch_norm)]
        for a, b in pairwise((width, *level_widths)):
            stack.append(nn.Upsample(scale_factor=2, mode="nearest"))
            stack += [_convolution(a if i == 0 else b, b, batch_norm) for i in range(convolutions)]
        last = level_widths[-1] if level_widths else width
        self.body = nn.Sequential(*stack, nn.Conv2d(last, outputs, 3, padding=1))

    def forward(self, patches: Tensor) -> Tensor:
        """[B, Y, X, D] to [B, O, Y p, X p]."""
        maps: Tensor = self.body(patches.movedim(-1, 1).contiguous(memory_format=torch.channels_last))
        return maps


def _convolution(a: int, b: int, batch_norm: bool) -> nn.Module:
    conv = nn.Conv2d(a, b, 3, padding=1, bias=not batch_norm)
    return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU()) if batch_norm else nn.Sequential(conv, nn.ReLU())
