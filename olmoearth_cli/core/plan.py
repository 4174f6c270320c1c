"""Windows to vectors, many times over one set of dates: what the map road runs.

Everything that does not depend on pixels is made once: rotary tables, additive codes, fused weights. A batch
is divided into dense micro-batches (core.batching), only images in which something is seen are embedded, and
tokens stand in the sequence as (modality, period, row, column, band set), so that whole images need no
gathering. `embed` changes nothing in the plan: threads may share one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from olmoearth_cli.core.batching import MicroBatch, micro_batches
from olmoearth_cli.core.checks import check_patch_size, check_timestamps
from olmoearth_cli.core.dense import DenseBlock, Places, rotary_tables
from olmoearth_cli.core.linear import Workspace
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.nn.positions import coordinates
from olmoearth_cli.core.patches import PatchPlan

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images of one modality in a micro-batch, by sample and then period."""

    sample: Tensor
    """[I] position in the micro-batch."""
    period: Tensor
    """[I] period."""
    seen: Tensor
    """[I, cells, S] bool: tokens with data."""
    whole: bool
    """True where every token of every image has data."""


class EmbedPlan:
    """Encodes and pools windows of one size and one set of dates."""

    def __init__(
        self,
        model: OlmoEarthModel,
        timestamps: np.ndarray,
        modalities: Sequence[str],
        window_px: int,
        patch_size: int,
        precision: str = "float32",
        max_tokens: int = 3072,
    ) -> None:
        """Prepare.

        Args:
            model: whose weights; later changes to them are not seen.
            timestamps: [T, 3] int (day 1-31, month 0-11, year).
            modalities: products in the windows.
            window_px: window side in pixels.
            patch_size: patch side in pixels, 1 to 8; divides the window.
            precision: `float32`, or `bfloat16` (products and attention; sums, norms, positions stay float32).
            max_tokens: tokens of a micro-batch; 1000-3000 suit a CPU's cache, a GPU takes many more.

        Raises:
            ValueError: arguments that do not fit the model or each other.
        """
        config, encoder = model.spec.encoder, model.encoder
        check_patch_size(patch_size, config)
        stamps = torch.as_tensor(np.asarray(timestamps)).to(model.device)
        check_timestamps(stamps)
        _check(modalities, config.input_modalities, stamps, window_px, patch_size, precision, max_tokens)
        self.model, self.precision, self.max_tokens = model, precision, max_tokens
        self.window_px, self.patch_px = window_px, patch_size
        self.modalities = tuple(m for m in config.input_modalities if m in modalities)
        self.periods, self.side = len(stamps), window_px // patch_size
        self.cells = self.side**2
        self.sets = {m: len(config.band_sets(m)) for m in self.modalities}
        dtype = PRECISIONS[precision]
        with torch.inference_mode():
            coords = coordinates(config, stamps, self.side, self.side, float(patch_size))  # Y X T 3
            places = coords.permute(2, 0, 1, 3).reshape(-1, 3)  # by period, row, column
            self._tables = rotary_tables(encoder, places)
            self._blocks = [DenseBlock(block, dtype) for block in encoder.layers()]
            self._norm = (encoder.norm.weight.float().clone(), encoder.norm.bias.float().clone())
            self._patches = {m: PatchPlan(encoder, m, stamps, self.side, patch_size, dtype) for m in self.modalities}

    @torch.inference_mode()
    def embed(self, inputs: Mapping[str, np.ndarray | Tensor], seen: Mapping[str, np.ndarray | Tensor]) -> Tensor:
        """Encode and pool a batch of windows.

        The slot code of v1 and v1.1 counts from each window's first period with data. Values under an unseen
        token must still be finite: a resized image reaches over patch borders.

        Args:
            inputs: {modality: [B, H, W, T, C]} float32, normalised.
            seen: {modality: [B, Y, X, T, S]} bool, True where a token has data.

        Returns:
            float32 [B, Y, X, D], exact zeros in cells where nothing is seen.

        Raises:
            ValueError: shapes that are not the plan's.
        """
        flags, images = self._checked(inputs, seen)
        batch = len(next(iter(flags.values())))
        everything = torch.cat([flags[m].flatten(1) for m in self.modalities], dim=1)  # B N
        first = everything.new_zeros(batch, self.periods)
        for flag in flags.values():
            first |= flag.flatten(2).any(dim=2)
        first_period = first.to(torch.uint8).argmax(dim=1)  # B
        d = self.model.spec.embedding_size
        out = torch.zeros(batch, self.cells, d, device=self.model.device)
        for micro in micro_batches(everything, self.max_tokens):
            rows = torch.tensor(micro.rows, device=out.device)
            # Most batches are one run of windows in order: a slice then, which copies nothing.
            pick = slice(micro.rows[0], micro.rows[-1] + 1) if _is_run(micro.rows) else rows
            part = {m: flags[m][pick] for m in self.modalities}
            pixels = {m: images[m][pick] for m in images}
            out[rows] = self._encode(micro, pixels, part, first_period[rows])
        return out.view(batch, self.side, self.side, d)

    def _encode(self, micro: MicroBatch, pixels: dict[str, Tensor], seen: dict[str, Tensor], first: Tensor) -> Tensor:
        """One micro-batch.

        Args:
            micro: how many samples of how many tokens.
            pixels: {modality: [b, H, W, T, C]}.
            seen: {modality: [b, T, cells, S]}.
            first: [b] first period with data.

        Returns:
            [b, cells, D].
        """
        b = len(micro.rows)
        chosen = {m: _images(seen[m]) for m in self.modalities if bool(seen[m].any())}
        parts = []
        for m, images in chosen.items():
            slots = images.period - first[images.sample]
            parts.append(self._patches[m](pixels[m], images.sample, images.period, slots).flatten(0, 2))
        x = parts[0] if len(parts) == 1 else torch.cat(parts)  # all embedded tokens, D
        order = self._order(chosen, b)
        if order is not None:
            x = x.index_select(0, order)
        x = x.view(b, micro.count, -1)
        places, workspace = self._places(micro, chosen, order, b), Workspace()
        for i, block in enumerate(self._blocks):
            x = block(x, self._tables[i] if self._tables else None, places, workspace)
        x = torch.nn.functional.layer_norm(x, (x.shape[-1],), *self._norm)
        return self._pool(x, chosen, order, seen)

    def _order(self, chosen: dict[str, _Images], b: int) -> Tensor | None:
        """Rows of the embedded tokens that make the sequence, sample by sample; None for all in order."""
        if (len(chosen) == 1 or b == 1) and all(images.whole for images in chosen.values()):
            return None
        sample = torch.cat([i.sample[:, None, None].expand(i.seen.shape).flatten() for i in chosen.values()])
        kept = torch.cat([i.seen.flatten() for i in chosen.values()]).nonzero()[:, 0]
        return kept[sample[kept].argsort(stable=True)]

    def _places(self, micro: MicroBatch, chosen: dict[str, _Images], order: Tensor | None, b: int) -> Places:
        """The tokens' rows in the rotary tables."""
        sets = [self.sets[m] for m in chosen]
        if not self._tables:
            return Places(index=None, repeats=1)
        if micro.count == len(chosen) * self.periods * self.cells and set(sets) == {1}:
            return Places(index=None, repeats=len(chosen))
        cell = torch.arange(self.cells, device=self.model.device)[None, :, None]
        index = torch.cat(
            [(i.period[:, None, None] * self.cells + cell).expand(i.seen.shape).flatten() for i in chosen.values()]
        )
        index = (index if order is None else index[order]).view(b, micro.count)
        return Places(index=index[0] if micro.alike else index, repeats=1)

    def _pool(self, x: Tensor, chosen: dict[str, _Images], order: Tensor | None, seen: dict[str, Tensor]) -> Tensor:
        """Mean over a modality's seen tokens of a cell, then over modalities seen; [b, cells, D]."""
        b, _, d = x.shape
        flat = x.reshape(-1, d)
        if order is not None:  # back to where the embedded tokens stood, zeros for those without data
            rows = sum(images.seen.numel() for images in chosen.values())
            flat = flat.new_zeros(rows, d).index_copy_(0, order, flat)
        result, present, start = x.new_zeros(b, self.cells, d), x.new_zeros(b, self.cells, 1), 0
        for m, images in chosen.items():
            size = images.seen.numel()
            tokens = flat[start : start + size].view(-1, self.cells, images.seen.shape[2], d)
            start += size
            total = self._sum_images(tokens, images.sample, b)  # b cells D
            count = seen[m].sum(dim=(1, 3))[..., None]  # b cells 1
            result += total / count.clamp(min=1)
            present += count > 0
        return result / present.clamp(min=1)

    def _sum_images(self, tokens: Tensor, sample: Tensor, b: int) -> Tensor:
        """[I, cells, S, D] of b samples to sums [b, cells, D]."""
        per_image = tokens.sum(dim=2) if tokens.shape[2] > 1 else tokens[:, :, 0]
        counts = sample.bincount(minlength=b).tolist()
        if min(counts) == max(counts):
            return per_image.unflatten(0, (b, -1)).sum(dim=1)
        return torch.stack([part.sum(dim=0) for part in per_image.split(counts)])

    def _checked(
        self, inputs: Mapping[str, np.ndarray | Tensor], seen: Mapping[str, np.ndarray | Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Flags {modality: [B, T, cells, S]} and pixels {modality: [B, H, W, T, C]} on the model's device."""
        if set(inputs) != set(seen) or not inputs or not set(inputs) <= set(self.modalities):
            raise ValueError(
                f"inputs have {sorted(inputs)}, seen has {sorted(seen)}; the plan is for {list(self.modalities)}."
            )
        batch = len(next(iter(inputs.values())))
        flags, pixels = {}, {}
        for m in self.modalities:
            token_shape = (batch, self.side, self.side, self.periods, self.sets[m])
            if m not in inputs:
                flags[m] = torch.zeros(batch, self.periods, self.cells, self.sets[m], dtype=torch.bool)
                flags[m] = flags[m].to(self.model.device)
                continue
            values = torch.as_tensor(inputs[m])
            flag = torch.as_tensor(seen[m])
            shape = (batch, self.window_px, self.window_px, self.periods, len(MODALITIES[m].bands))
            for what, found, wanted in (("inputs", values.shape, shape), ("seen", flag.shape, token_shape)):
                if tuple(found) != wanted:
                    raise ValueError(f"{what} of {m}: shape {list(found)}, but the plan is for {list(wanted)}.")
            if flag.dtype != torch.bool:
                raise ValueError(f"seen of {m} must be bool, not {flag.dtype} (True where a token has data).")
            pixels[m] = values.to(self.model.device, torch.float32)
            flag = flag.to(self.model.device).permute(0, 3, 1, 2, 4)  # B T Y X S
            flags[m] = flag.reshape(batch, self.periods, self.cells, self.sets[m])
        return flags, pixels


def _images(seen: Tensor) -> _Images:
    """The images of [b, T, cells, S] in which something is seen."""
    sample, period = seen.flatten(2).any(dim=2).nonzero().unbind(1)
    kept = seen[sample, period]
    return _Images(sample=sample, period=period, seen=kept, whole=bool(kept.all()))


def _is_run(rows: list[int]) -> bool:
    return rows == list(range(rows[0], rows[0] + len(rows)))


def _check(
    modalities: Sequence[str],
    readable: Sequence[str],
    stamps: Tensor,
    window_px: int,
    patch_px: int,
    precision: str,
    max_tokens: int,
) -> None:
    strange = [m for m in modalities if m not in readable or not MODALITIES[m].multitemporal]
    if strange or not modalities:
        raise ValueError(f"modalities {list(modalities)}: the model reads {', '.join(readable)}.")
    if stamps.ndim != 2 or not len(stamps):
        raise ValueError(f"timestamps must be [T, 3], not {list(stamps.shape)}.")
    if window_px < 1 or window_px % patch_px:
        raise ValueError(f"patch_size {patch_px} does not divide a window of {window_px} px.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}.")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}.")
