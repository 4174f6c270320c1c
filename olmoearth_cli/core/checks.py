"""What a model refuses to read, and why: shapes and codes that the reference would misread in silence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.modality import MODALITIES

VISIBLE, TARGET_ONLY, DECODE, MISSING = 0, 1, 2, 3
"""Mask codes (spec/model.md section 1.3): only VISIBLE tokens are encoded."""
LARGEST_NORMAL = 1e4
"""No normalised value comes near; -99999 and raw counts do."""


def check_patch_size(patch_px: int, config: EncoderConfig) -> None:
    """Refuse a patch size that the model was not trained for."""
    if isinstance(patch_px, bool) or not isinstance(patch_px, int) or not 1 <= patch_px <= config.base_patch_px:
        raise ValueError(f"patch_size {patch_px!r}: the models take whole numbers 1 to {config.base_patch_px}.")


def check_timestamps(timestamps: Tensor) -> None:
    """Refuse anything but whole (day, month 0-11, year).

    Args:
        timestamps: [..., 3].
    """
    if timestamps.is_floating_point() or timestamps.dtype == torch.bool:
        raise ValueError(f"timestamps must be whole numbers (day, month 0-11, year), not {timestamps.dtype}.")
    if timestamps.shape[-1] != 3:
        raise ValueError(
            f"timestamps must end in 3 = (day, month 0-11, year), but have shape {list(timestamps.shape)}."
        )
    months = timestamps[..., 1]
    if months.numel() and (int(months.min()) < 0 or int(months.max()) > 11):
        raise ValueError(
            f"timestamps: months run {int(months.min())}..{int(months.max())}, but count from 0 to 11 here "
            "(January is 0). The order is (day, month, year)."
        )
    if timestamps.numel() and int(timestamps[..., 0].max()) > 31:
        raise ValueError(
            f"timestamps: a day is {int(timestamps[..., 0].max())}. The order is (day 1-31, month 0-11, year)."
        )


def check_inputs(config: EncoderConfig, inputs: Mapping[str, Tensor], timestamps: Tensor, patch_px: int) -> None:
    """Refuse inputs whose shapes disagree with the model, the timestamps, the patch size or each other.

    Args:
        config: the encoder.
        inputs: {modality: [B, H, W, T, C]}.
        timestamps: [B, T, 3].
        patch_px: p.
    """
    check_patch_size(patch_px, config)
    check_timestamps(timestamps)
    if timestamps.ndim != 3:
        raise ValueError(f"timestamps must be [B, T, 3], not {list(timestamps.shape)}.")
    b, t = timestamps.shape[:2]
    first: tuple[str, tuple[int, int]] | None = None
    for name, values in inputs.items():
        modality = MODALITIES[name]
        periods = t if modality.multitemporal else 1
        if values.ndim != 5:
            raise ValueError(f"{name}: [B, H, W, T, C] is expected, not {list(values.shape)} (a static map has T = 1).")
        if (values.shape[0], values.shape[3]) != (b, periods):
            raise ValueError(
                f"{name}: shape {list(values.shape)} has batch {values.shape[0]} and {values.shape[3]} "
                f"periods, but the timestamps are for {b} and {periods}."
            )
        if values.shape[-1] != len(modality.bands):
            raise ValueError(f"{name}: {values.shape[-1]} bands, but it has {len(modality.bands)}: {modality.bands}.")
        side = (values.shape[1], values.shape[2])
        if 0 in side or side[0] % patch_px or side[1] % patch_px:
            raise ValueError(f"{name}: patch_size {patch_px} does not divide a window of {side[0]} x {side[1]} px.")
        if first is not None and side != first[1]:
            raise ValueError(f"{name} has {side} px, but {first[0]} has {first[1]}: one grid for all.")
        first = first or (name, side)


def check_normalised(inputs: Mapping[str, Tensor]) -> None:
    """Refuse NaN, -99999 and raw counts where nothing is masked."""
    for name, values in inputs.items():
        largest = float(values.abs().amax()) if values.numel() else 0.0
        if not largest < LARGEST_NORMAL:
            raise ValueError(
                f"{name}: values up to {largest:g}; normalised ones lie near 0..1. Use core.normalize, and "
                "mask what is missing (code 3) instead of leaving NaN or -99999."
            )


def visible_tokens(
    config: EncoderConfig, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None, patch_px: int
) -> dict[str, Tensor]:
    """Which tokens are encoded: those whose patch's top-left pixel has code 0 (G12).

    Args:
        config: the encoder.
        inputs: {modality: [B, H, W, T, C]}, checked.
        masks: {modality: [B, H, W, T, S]} codes; a modality without an entry is all visible.
        patch_px: p.

    Returns:
        {modality: [B, Y, X, T, S]} bool.
    """
    masks = masks or {}
    stray = [name for name in masks if name not in inputs and name not in MODALITIES]
    if stray:
        raise ValueError(f"masks for unknown modalities: {', '.join(stray)}.")
    visible = {}
    for name, values in inputs.items():
        b, h, w, t, _ = values.shape
        shape = (b, h, w, t, len(config.band_sets(name)))
        if name not in masks:
            token_shape = (b, h // patch_px, w // patch_px, *shape[3:])
            visible[name] = torch.ones(token_shape, dtype=torch.bool, device=values.device)
            continue
        mask = masks[name].to(values.device)
        if tuple(mask.shape) != shape:
            raise ValueError(
                f"mask of {name}: shape {list(mask.shape)} in place of {list(shape)} = [B, H, W, T, S] "
                f"(S: this model groups {name} into {shape[-1]} band sets)."
            )
        token_mask = mask[:, ::patch_px, ::patch_px]
        if not torch.isin(token_mask, torch.arange(4, device=mask.device).to(mask.dtype)).all():
            raise ValueError(f"mask of {name}: codes are 0 visible, 1 target only, 2 decode, 3 missing; it has others.")
        visible[name] = token_mask == VISIBLE
    return visible
