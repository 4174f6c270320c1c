"""The linear heads and where their outputs go in an image (spec/evaluation.md 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

KINDS = ("classification", "multilabel", "segmentation", "regression", "pixel_regression")


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a linear layer's outputs mean."""

    kind: str
    """One of `KINDS`."""
    classes: int
    """Number of classes C; 1 for regression."""
    side: int = 1
    """Label pixels per patch side s; 1 where a sample has one target."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")

    @property
    def spatial(self) -> bool:
        """True where every pixel has a target."""
        return self.kind in {"segmentation", "pixel_regression"}

    @property
    def normalises(self) -> bool:
        """True where a batch norm precedes the linear layer."""
        return not self.spatial

    @property
    def outputs(self) -> int:
        """Outputs O of the linear layer."""
        if self.kind in {"regression", "pixel_regression"}:
            return 1
        return self.classes * self.side**2

    def pixels(self, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """Outputs of patches [B, Y, X, O] to label pixels [B, C, H, W] (C = 1 for regression).

        The published regression head upsamples the embeddings and then maps each pixel; the map is linear and the
        weights of the upsampling sum to 1, so mapping first gives the same values for D times less work.
        """
        if self.kind == "segmentation":
            return resize(patches_to_pixels(outputs, self.side), size)
        maps = outputs.movedim(-1, 1)  # B 1 Y X
        return resize(resize(maps, (maps.shape[2] * self.side, maps.shape[3] * self.side)), size)


def pixels_per_patch(label_size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Side s of a patch in label pixels: floor(sqrt(label area / number of patches)).

    Args:
        label_size: rows and columns of a label map.
        grid: rows and columns of patches.

    Raises:
        ValueError: fewer label pixels than patches.
    """
    side = math.isqrt(math.prod(label_size) // math.prod(grid))
    if side < 1:
        raise ValueError(f"label maps of {label_size} pixels are smaller than the {grid} grid of patches")
    return side


def patches_to_pixels(outputs: Tensor, side: int) -> Tensor:
    """Depth to space: channel (c * s + i) * s + j is class c at row i and column j of the patch.

    Args:
        outputs: [B, Y, X, C * s * s].
        side: s.

    Returns:
        [B, C, Y * s, X * s].
    """
    batch, rows, columns, channels = outputs.shape
    classes = channels // side**2
    split = outputs.reshape(batch, rows, columns, classes, side, side)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(batch, classes, rows * side, columns * side)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners to [B, C, *size]; nothing to do where the size is right."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
