"""One update of fine-tuning, and scores of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from olmoearth_cli.core.finetune.batch import FeatureBatch, FinetuneBatch
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.objective import Objective
from olmoearth_cli.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an update was."""

    loss: float | None
    """Mean over all that was labelled; None where nothing was, and the step was left out."""
    weight: float
    """Labelled samples or pixels, by class weight: what the mean is over."""


def train_step(
    model: FinetuneModel | nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[FinetuneBatch | FeatureBatch],
    objective: Objective,
    *,
    generator: torch.Generator | None = None,
    clip_norm: float | None = None,
) -> Step:
    """Move the weights once.

    Args:
        model: in training mode; a `FinetuneModel`, or one wrapped for several devices.
        optimizer: with its rates set.
        batches: with targets. Several are accumulated: the step is that of one batch of them all (the dice term and
            batch norms see a batch at a time).
        objective: what is minimised.
        generator: on the CPU; draws stochastic depth.
        clip_norm: largest global L2 norm of the gradients; None does not clip, as the recipes.

    Raises:
        ValueError: targets that the head does not have, or none.
        RunError: the loss is not finite; the weights are as before.
    """
    weights = []
    for batch in batches:
        if batch.targets is None:
            raise ValueError("a batch without targets cannot be trained on")
        weights.append(objective.weight(batch.targets))
    total = sum(weights)
    if total == 0:
        return Step(loss=None, weight=0.0)
    optimizer.zero_grad(set_to_none=True)
    loss = 0.0
    for batch, weight in zip(batches, weights, strict=True):
        if weight > 0 and batch.targets is not None:
            outputs = model(batch, generator)
            part = objective.loss(outputs, batch.targets.to(outputs.device)) * (weight / total)
            part.backward()
            loss += float(part.detach())
    if not math.isfinite(loss):
        optimizer.zero_grad(set_to_none=True)
        rate = max(group["lr"] for group in optimizer.param_groups)
        raise RunError(f"the loss became {loss} at a learning rate of {rate:g}. Train again with a smaller --lr.")
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return Step(loss=loss, weight=total)


@torch.no_grad()
def scores_of(
    model: FinetuneModel, batch: FinetuneBatch | FeatureBatch, target: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Probabilities or values for a batch, whatever mode the model is in.

    Args:
        model: left in the mode that it was in.
        batch: samples or features.
        target: mean and standard deviation of the training values (regression).

    Returns:
        float32 on the CPU, see `HeadSpec.scores`.
    """
    mode = model.training
    model.eval()
    try:
        return model.head.spec.scores(model(batch), target).cpu()
    finally:
        model.train(mode)
