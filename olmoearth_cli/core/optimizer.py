"""How pretraining moves the weights: AdamW, warm-up and cosine, clipping (spec/pretraining.md section 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLIP_NORM = 1.0
"""Global L2 norm of all gradients together."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then half a cosine down to a share of the peak."""

    peak_lr: float
    """Highest learning rate."""
    steps: int
    """K, the steps of the whole run."""
    warmup: int = 8000
    """Steps before the peak."""
    final_share: float = 0.1
    """Learning rate of step K over the peak."""

    def __post_init__(self) -> None:
        """Refuse a schedule without a cosine part."""
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup {self.warmup} must be shorter than the run's {self.steps} steps")

    def lr(self, step: int) -> float:
        """The learning rate of step 1 to K; later steps stay at the final one."""
        if step < self.warmup:
            return self.peak_lr * step / self.warmup
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        share = self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * done)) / 2
        return self.peak_lr * share


def adamw(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """One group of all trainable parameters, all of them decayed (G11): biases, norms, codes, frequencies too.

    Gradients start as zeros and must be kept as such (`zero_gradients`): a parameter that no token of a batch
    reaches still decays, as in the reference.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True
    )
    zero_gradients(parameters)
    return optimizer


def zero_gradients(parameters: Iterable[Tensor]) -> None:
    """Set gradients to zeros, made where there were none."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()


def take_step(optimizer: torch.optim.AdamW, lr: float) -> tuple[float, bool]:
    """Clip, move the weights and clear the gradients.

    A step whose gradients are not all finite is skipped whole (spec section 4.5).

    Args:
        optimizer: from `adamw`, with the gradients of all microbatches.
        lr: this step's learning rate.

    Returns:
        The gradient norm before clipping, and True where the weights moved.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=True))
    moved = math.isfinite(norm)
    if moved:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    zero_gradients(parameters)
    return norm, moved
