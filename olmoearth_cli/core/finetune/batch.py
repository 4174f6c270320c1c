"""What one fine-tuning pass reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.checks import check_inputs, visible_tokens


@dataclass(frozen=True, kw_only=True)
class FinetuneBatch:
    """Samples of one grid, with their targets. Make one with `make_batch`."""

    inputs: Mapping[str, Tensor]
    """{modality: [B, H, W, T, C]} normalised; T = 1 for maps. Anything where no token is visible."""
    visible: Mapping[str, Tensor]
    """{modality: bool [B, Y, X, T, S]} on the CPU, True where the token has data."""
    timestamps: Tensor
    """[B, T, 3] int (day 1-31, month 0-11, year), on the CPU."""
    patch_px: int
    """Patch side p; divides H and W."""
    targets: Tensor | None = None
    """int64 [B] (classification), 0/1 [B, C] (multi-label), int64 [B, H, W] (segmentation), float [B] or [B, H, W];
    -1 (classes) and NaN (values) are ignored. None to predict."""

    def __len__(self) -> int:
        """Samples B."""
        return len(self.timestamps)

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows Y and columns X."""
        shape = next(iter(self.visible.values())).shape
        return shape[1], shape[2]


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """Pooled embeddings of samples, kept while the encoder is frozen, with their targets."""

    features: Tensor
    """[B, D] or [B, Y, X, D] from `FinetuneModel.features`."""
    targets: Tensor | None = None
    """As in `FinetuneBatch`."""


def make_batch(
    config: EncoderConfig,
    inputs: Mapping[str, Tensor],
    timestamps: Tensor,
    masks: Mapping[str, Tensor] | None = None,
    *,
    patch_px: int,
    targets: Tensor | None = None,
) -> FinetuneBatch:
    """Check samples and bring them into the form of a pass.

    Args:
        config: the encoder.
        inputs: {modality: [B, H, W, T, C]} normalised; modalities that the encoder reads.
        timestamps: [B, T, 3] int (day 1-31, month 0-11, year).
        masks: {modality: [B, H, W, T, S]} codes as for `OlmoEarthModel.encode`: 0 visible, 3 missing; a patch is
            what its top-left pixel is. None, or no entry: all visible.
        patch_px: patch side p.
        targets: as in `FinetuneBatch`.

    Raises:
        ValueError: shapes, codes or modalities that do not fit, or samples without any visible token.
    """
    ordered = {name: torch.as_tensor(inputs[name]) for name in config.input_modalities if name in inputs}
    stray = sorted(set(inputs) - set(ordered))
    if stray or not ordered:
        raise ValueError(f"modalities {', '.join(stray) or '(none)'}: it reads {', '.join(config.input_modalities)}.")
    timestamps = torch.as_tensor(timestamps).cpu()
    check_inputs(config, ordered, timestamps, patch_px)
    masks = {name: torch.as_tensor(mask).cpu() for name, mask in (masks or {}).items()}
    visible = {name: flag.cpu() for name, flag in visible_tokens(config, ordered, masks, patch_px).items()}
    seen = torch.stack([flag.flatten(1).any(dim=1) for flag in visible.values()]).any(dim=0)
    if not bool(seen.all()):
        raise ValueError(f"samples {(~seen).nonzero()[:, 0].tolist()} show nothing: leave out those without imagery.")
    if targets is not None and len(targets) != len(timestamps):
        raise ValueError(f"{len(targets)} targets for {len(timestamps)} samples.")
    return FinetuneBatch(inputs=ordered, visible=visible, timestamps=timestamps, patch_px=patch_px, targets=targets)
