"""Arithmetic of a training step, counted from its masks, and what a device could do at best."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.checks import DECODE, VISIBLE
from olmoearth_cli.core.nn.decoder import DEPTH
from olmoearth_cli.core.pretrain_step import PretrainBatch

PEAKS = {
    "B200": {"bfloat16": 2250e12, "float32": 80e12},
    "H200": {"bfloat16": 989e12, "float32": 67e12},
    "H100": {"bfloat16": 989e12, "float32": 67e12},
    "A100": {"bfloat16": 312e12, "float32": 19.5e12},
    "L40": {"bfloat16": 181e12, "float32": 90.5e12},
    "L4": {"bfloat16": 121e12, "float32": 30.3e12},
    "A10": {"bfloat16": 125e12, "float32": 31.2e12},
    "V100": {"float32": 15.7e12},
    "T4": {"float32": 8.1e12},
}
"""FLOP/s from the vendor's data sheets, dense and without TF32; a name that holds another stands before it."""
TRAIN = 3
"""Forward and backward over forward alone."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """What a GPU could do at best; None where that is not known."""
    return next((peaks.get(precision) for name, peaks in PEAKS.items() if name in device_name), None)


def step_flops(batch: PretrainBatch, config: EncoderConfig) -> float:
    """Floating-point operations of a forward and backward pass over both views, two per multiply-accumulate.

    What the model computes, not what the reference would: visible and predicted tokens only.
    """
    d = config.embedding_size
    total = 0.0
    for codes in batch.codes:
        shown, asked = _counts(codes, VISIBLE), _counts(codes, DECODE)  # B
        square, mlp = d * d, 2 * config.mlp_ratio * d * d
        encoder = shown * (4 * square + mlp) + 2 * shown**2 * d
        decoder = asked * (2 * square + mlp) + shown * 2 * square + 2 * asked * shown * d
        total += TRAIN * float((config.depth * encoder + DEPTH * decoder).sum())
        total += TRAIN * float(((shown + asked) * square).sum())  # the decoder's layers in and out
        for name, code in codes.items():
            for s, bands in enumerate(config.band_sets(name)):
                group = code[..., s]
                widths = (len(bands), *config.pixel_hidden)
                token = config.base_patch_px**2 * (sum(a * b for a, b in pairwise(widths)) + widths[-1] * d)
                total += token * (TRAIN * int((group == VISIBLE).sum()) + int((group == DECODE).sum()))
    return 2 * total


def sequence_tokens(batch: PretrainBatch) -> int:
    """Tokens of the crops, missing ones included and views counted once (the table of spec/pretraining.md 2.3)."""
    return sum(code.numel() for code in batch.codes[0].values())


def _counts(codes: Mapping[str, Tensor], value: int) -> Tensor:
    """float64 [B] tokens of each sample with a code."""
    flags = [(code == value).flatten(1).sum(dim=1) for code in codes.values()]
    return torch.stack(flags).sum(dim=0).double()
