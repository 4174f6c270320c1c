"""How a linear probe is trained: the published recipe as data, and its learning-rate curve (spec/evaluation.md 5.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

LRS = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1, 5e-1)
"""Learning rates of the published sweep."""
MAX_STEPS = 24
"""Steps of an epoch above which `LinearRecipe.for_samples` raises the batch size."""


@dataclass(frozen=True, kw_only=True)
class LinearRecipe:
    """Hyper-parameters of a linear probe; the defaults are those of the published protocol with selection on."""

    epochs: int = 50
    """Passes over the training samples."""
    lrs: tuple[float, ...] = LRS
    """Peak learning rates to sweep."""
    batch_size: int = 32
    """Samples (images, for feature maps) per step."""
    weight_decay: float = 0.01
    """Decoupled, on all parameters."""
    warmup: float = 0.1
    """Share of the epochs with a linear rise from 0; rounded down to whole epochs."""
    floor: float = 1e-5
    """Learning rate at the end."""
    eval_interval: int = 5
    """Epochs between validations. The optimiser starts anew with each interval, as in the reference."""
    select_best: bool = True
    """True keeps the state of the best validation, False that of the last epoch."""
    metric: str | None = None
    """What selects; None is the primary metric of the kind of target."""
    dice: bool = False
    """True adds the dice term to the cross-entropy (segmentation)."""
    precision: str = "float32"
    """`float32`, or `bfloat16` for the forward pass; parameters and optimiser stay float32."""
    seed: int = 42
    """Of the initial weights and the order of the samples."""

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch_size, self.eval_interval)
        if min(counts) < 1:
            raise ValueError(f"epochs, batch_size and eval_interval must be at least 1, not {counts}")
        if not self.lrs or not all(math.isfinite(lr) and lr > 0 for lr in self.lrs):
            raise ValueError(f"learning rates must be above 0, not {list(self.lrs)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"the share of warm-up epochs must be in [0, 1), not {self.warmup}")
        if self.precision not in {"float32", "bfloat16"}:
            raise ValueError(f"precision {self.precision!r} is neither float32 nor bfloat16")

    def for_samples(self, count: int) -> LinearRecipe:
        """The recipe with a batch size that keeps an epoch within 24 steps.

        A choice of this product, not of the reference: labels of a map may be many, and a step costs about the same
        at 32 samples as at 500. Published tables are reproduced without it.
        """
        return replace(self, batch_size=max(self.batch_size, math.ceil(count / MAX_STEPS)))

    def rates_at(self, time: float) -> npt.NDArray[np.floating[Any]]:
        """Learning rates float64 [R] at a fractional epoch: a linear rise, then half a cosine down to the floor."""
        peaks, rise = np.array(self.lrs), math.floor(self.warmup * self.epochs)
        if time < rise:
            return peaks * time / rise
        progress = (time - rise) / (self.epochs - rise)
        return self.floor + (peaks - self.floor) * (1 + math.cos(math.pi * progress)) / 2
