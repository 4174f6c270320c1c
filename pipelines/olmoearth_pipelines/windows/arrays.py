"""Labelled windows to what the encoder reads: normalised values, visible tokens, targets that something is seen of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from olmoearth_cli.core.checks import MISSING, VISIBLE
from olmoearth_cli.core.finetune.batch import FinetuneBatch, make_batch
from olmoearth_cli.core.finetune.task import Limits
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.spec import ModelSpec
from olmoearth_pipelines.model_input import model_values, patches_with_data, tokens_with_data
from olmoearth_pipelines.windows.window import Array, Window

Images = dict[str, npt.NDArray[np.float32]]
Masks = dict[str, npt.NDArray[np.bool_]]


def window_arrays(
    window: Window,
    spec: ModelSpec,
    *,
    patch_px: int,
    normalisation: Mapping[str, Limits] | None = None,
    modalities: Sequence[str] | None = None,
) -> tuple[Images, Masks]:
    """A window by the rules by which a map's windows are made (`model_input`).

    Args:
        window: in the units of the stacks.
        spec: the model: its release fills missing bands, its band sets are the tokens.
        patch_px: patch side p.
        normalisation: {modality: limits} of the data set; those of pretraining for what it does not name.
        modalities: what is read; None for all that the window has and the encoder reads.

    Returns:
        {modality: float32 [H, W, T, C]} normalised, and {modality: bool [Y, X, T, S]} True where the token has data;
        only modalities that the window has.
    """
    masks = _masks(window, spec, patch_px, modalities)
    limits = normalisation or {}
    images = {
        name: model_values(
            name,
            window.images[name],
            window.valid[name],
            window.absent[name],
            release=spec.release,
            limits=limits.get(name),
        )
        for name in masks
    }
    return images, masks


def usable(
    window: Window, spec: ModelSpec, *, patch_px: int, modalities: Sequence[str] | None = None, centre: bool = False
) -> bool:
    """True where a window has a visible token; with `centre`, where its middle patch has one."""
    masks = _masks(window, spec, patch_px, modalities)
    if not masks:
        return False
    seen = _seen(masks)
    return bool(seen[seen.shape[0] // 2, seen.shape[1] // 2] if centre else seen.any())


def collate(
    windows: Sequence[Window],
    spec: ModelSpec,
    *,
    patch_px: int,
    normalisation: Mapping[str, Limits] | None = None,
    modalities: Sequence[str] | None = None,
) -> FinetuneBatch:
    """Windows of one size as a batch.

    Shorter series are padded with missing periods, modalities that a window lacks are missing in it, and labels of
    patches without any visible token are taken away (-1, NaN), for nothing can be learned from them.

    Args:
        windows: at least one; `usable`.
        spec, patch_px, normalisation, modalities: as for `window_arrays`.

    Raises:
        ValueError: windows without any visible token (names them), of different sizes, or that p does not divide.
    """
    sides = {image.shape[:2] for window in windows for image in window.images.values()}
    if len(sides) != 1 or any(side % patch_px for side in next(iter(sides))):
        raise ValueError(f"windows of {sorted(sides)} px: one size is needed, that {patch_px} px patches divide")
    arrays = [
        window_arrays(window, spec, patch_px=patch_px, normalisation=normalisation, modalities=modalities)
        for window in windows
    ]
    dark = [w.id for w, (_, masks) in zip(windows, arrays, strict=True) if not masks or not _seen(masks).any()]
    if dark:
        raise ValueError(f"windows {', '.join(dark[:5])} show nothing: leave out those without imagery")
    periods = max(len(window.timestamps) for window in windows)
    present = [name for name in spec.encoder.input_modalities if any(name in masks for _, masks in arrays)]
    inputs = {name: _stacked([images.get(name) for images, _ in arrays], name, periods) for name in present}
    visible = {name: _stacked([masks.get(name) for _, masks in arrays], name, periods) for name in present}
    stamps = [np.pad(w.timestamps, ((0, periods - len(w.timestamps)), (0, 0)), mode="edge") for w in windows]
    targets = [_learnable(w.target, _seen(masks), patch_px) for w, (_, masks) in zip(windows, arrays, strict=True)]
    return make_batch(
        spec.encoder,
        {name: torch.from_numpy(values) for name, values in inputs.items()},
        torch.from_numpy(np.stack(stamps)),
        {name: _codes(flags, patch_px) for name, flags in visible.items()},
        patch_px=patch_px,
        targets=torch.from_numpy(np.stack(targets)),
    )


def _masks(window: Window, spec: ModelSpec, patch_px: int, modalities: Sequence[str] | None) -> Masks:
    wanted = spec.encoder.input_modalities if modalities is None else modalities
    masks = {}
    for name in (m for m in wanted if m in window.images):
        seen = patches_with_data(window.valid[name].transpose(2, 0, 1), name, patch_px)
        sets = [MODALITIES[name].indices(band_set) for band_set in spec.band_sets(name)]
        masks[name] = tokens_with_data(seen, window.absent[name], sets)
    return masks


def _seen(masks: Masks) -> npt.NDArray[np.bool_]:
    """bool [Y, X], True where any token is visible."""
    return np.any([flags.any(axis=(2, 3)) for flags in masks.values()], axis=0)


def _stacked(parts: Sequence[Array | None], name: str, periods: int) -> Array:
    """[B, ..., T, last] of parts [..., t, last]; zeros (False) for periods beyond a part's, and where there is none."""
    first = next(part for part in parts if part is not None)
    length = periods if MODALITIES[name].multitemporal else 1
    out = np.zeros((len(parts), *first.shape[:2], length, first.shape[3]), first.dtype)
    for row, part in zip(out, parts, strict=True):
        if part is not None:
            row[:, :, : part.shape[2]] = part
    return out


def _codes(visible: Array, patch_px: int) -> torch.Tensor:
    """[B, H, W, T, S] codes of `make_batch` from bool [B, Y, X, T, S]."""
    codes = torch.from_numpy(np.where(visible, VISIBLE, MISSING).astype(np.uint8))
    return codes.repeat_interleave(patch_px, dim=1).repeat_interleave(patch_px, dim=2)


def _learnable(target: Array, seen: npt.NDArray[np.bool_], patch_px: int) -> Array:
    """A target for the loss: int64 or float32; a map's labels where `seen` [Y, X] is False are taken away."""
    values: Array = target.astype(np.float32 if target.dtype.kind == "f" else np.int64)
    if values.ndim == 2:  # a map [H, W]; otherwise a number, or 0/1 per class
        hidden = ~seen.repeat(patch_px, axis=0).repeat(patch_px, axis=1)
        values[hidden] = np.nan if values.dtype.kind == "f" else -1
    return values
