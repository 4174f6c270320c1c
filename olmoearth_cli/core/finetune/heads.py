"""Heads as data, and built from it (spec/evaluation.md 8.1 and 8.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from olmoearth_cli.core.finetune.decoders import (
    POOLED_WIDTH,
    Centre,
    Copied,
    DepthToSpace,
    MaxPooled,
    UNet,
    Upsampled,
    layers,
)
from olmoearth_cli.core.probe.heads import KINDS, resize

WINDOW_KINDS = ("classification", "multilabel", "regression")
"""Kinds with one target per window; the others have one per pixel."""
WINDOW_DECODERS = ("linear", "mlp", "pooling")
PIXEL_DECODERS = ("linear", "mlp", "reshape", "conv", "unet", "unet_tapered", "pooling")
DEFAULT_HIDDEN = (512,)
"""Hidden width of the pooling decoder, and of the MLP."""


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a head answers, and how it is built."""

    kind: str
    """`classification`, `multilabel`, `segmentation`, `regression` (of a window) or `pixel_regression`."""
    classes: int
    """C; 1 for regression."""
    width: int
    """Width D of an embedding."""
    patch_px: int
    """Patch side p in pixels."""
    decoder: str = "linear"
    """Of windows: `linear` and `mlp` on the mean of all tokens, `pooling`. Of pixels: `linear` (segmentation: each
    patch answers for its pixels; regression: one value per patch, bilinear), `mlp`, `reshape`, `conv` (one layer and
    bilinear), `unet`, `unet_tapered`, and `pooling` for windows with one answer."""
    hidden: tuple[int, ...] = DEFAULT_HIDDEN
    """Widths of the hidden linear layers of `mlp` and `pooling`."""
    centre: bool = False
    """True answers from the middle patch alone (`linear` and `mlp` of window kinds)."""
    convolutions: int = 1
    """Per level of a UNet."""
    batch_norm: bool = False
    """True normalises within a UNet."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")
        decoders = WINDOW_DECODERS if self.per_window else PIXEL_DECODERS
        if self.decoder not in decoders:
            raise ValueError(f"decoder {self.decoder!r}: {self.kind} has {', '.join(decoders)}")
        if min(self.classes, self.width, self.patch_px, self.convolutions, *self.hidden, 1) < 1:
            raise ValueError(f"classes, widths, patch side and convolutions must be at least 1: {self}")
        if self.regresses and self.classes != 1:
            raise ValueError(f"a regression has one output, not {self.classes}")
        if self.decoder.startswith("unet") and self.patch_px & (self.patch_px - 1):
            raise ValueError(f"a UNet doubles the resolution: patch side {self.patch_px} must be 1, 2, 4 or 8")
        if self.centre and not (self.per_window and self.decoder in {"linear", "mlp"}):
            raise ValueError(f"the centre option is for linear and mlp on windows, not {self.decoder} of {self.kind}")

    @property
    def per_window(self) -> bool:
        """True where a window has one target, False where each pixel has."""
        return self.kind in WINDOW_KINDS

    @property
    def regresses(self) -> bool:
        """True where targets are values."""
        return self.kind in {"regression", "pixel_regression"}

    @property
    def reads_map(self) -> bool:
        """True where the head needs one vector per patch, False where it needs one per window."""
        return self.centre or not self.per_window or self.decoder == "pooling"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for `from_json`."""
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HeadSpec:
        """The specification that `to_json` described.

        Raises:
            ValueError: keys that are missing or unknown, or values that make no head.
        """
        names = {field.name for field in fields(cls)}
        if set(content) != names:
            raise ValueError(f"the head has the keys {sorted(content)} in place of {sorted(names)}")
        numbers = [content["classes"], content["width"], content["patch_px"], content["convolutions"]]
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in [*numbers, *content["hidden"]]):
            raise ValueError(f"the head has sizes that are not whole numbers: {dict(content)}")
        return cls(**{**content, "hidden": tuple(content["hidden"])})

    def scores(self, outputs: Tensor, target: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Outputs of a head as probabilities or values.

        Args:
            outputs: as the head gave them.
            target: mean and standard deviation of the training values (regression).

        Returns:
            float32 of the same shape: softmax over the classes, sigmoid (multi-label), values in the targets' units.
        """
        outputs = outputs.float()
        if self.regresses:
            return outputs * target[1] + target[0]
        return outputs.sigmoid() if self.kind == "multilabel" else outputs.softmax(dim=1)


class Head(nn.Module):
    """A head with its weights."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.body = _window_body(spec) if spec.per_window else _pixel_body(spec)

    def forward(self, features: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Answer.

        Args:
            features: [B, D] or, where `spec.reads_map`, [B, Y, X, D].
            size: rows and columns of the label map, where they are not those of the window (pixel kinds).

        Returns:
            [B, C], or [B] for regression; per pixel [B, C, H, W], or [B, H, W] for regression.
        """
        outputs: Tensor = self.body(features)
        if not self.spec.per_window and size is not None:
            outputs = resize(outputs, size)
        return outputs.squeeze(1) if self.spec.regresses else outputs


def build_head(spec: HeadSpec, seed: int = 42) -> Head:
    """A head with PyTorch's default weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Head(spec)


def _window_body(spec: HeadSpec) -> nn.Module:
    if spec.decoder == "pooling":
        return MaxPooled(spec.width, spec.hidden, spec.classes)
    body = layers((spec.width, *(spec.hidden if spec.decoder == "mlp" else ()), spec.classes))
    return Centre(body) if spec.centre else body


def _pixel_body(spec: HeadSpec) -> nn.Module:
    side = spec.patch_px
    if spec.decoder == "pooling":
        return Copied(MaxPooled(spec.width, spec.hidden, spec.classes), side)
    if spec.decoder == "conv" or (spec.decoder == "linear" and spec.regresses):
        # Corners aligned in the research head (8.1), not so in the partners' decoder (8.3).
        return Upsampled(spec.width, spec.classes, side, align_corners=spec.decoder == "linear")
    if spec.decoder.startswith("unet"):
        factors = [2**i for i in reversed(range(int(math.log2(side))))]  # side / 2, ..., 1
        widths = [spec.width if spec.decoder == "unet" else POOLED_WIDTH * factor for factor in factors]
        return UNet(spec.width, widths, spec.classes, convolutions=spec.convolutions, batch_norm=spec.batch_norm)
    hidden = spec.hidden if spec.decoder == "mlp" else ()
    return DepthToSpace(layers((spec.width, *hidden, spec.classes * side**2)), side)
