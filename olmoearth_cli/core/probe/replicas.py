"""Linear probes that differ only in their learning rate, trained side by side (spec/evaluation.md 5.2).

All R rates of a sweep see the same batches and start from the same weights, so their parameters are stacked [R, ...]
and every step is one batched product. The batch norm's statistics depend on the inputs alone and are shared.
Each replica moves exactly as it would alone: no sum crosses replicas.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from olmoearth_cli.core.probe import losses
from olmoearth_cli.core.probe.heads import Head
from olmoearth_cli.core.probe.linear_probe import NORM_EPS
from olmoearth_cli.core.probe.recipe import LinearRecipe

MOMENTUM = 0.1
"""Of the batch norm's running statistics."""
BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
OUTPUTS_AT_ONCE = 2**25
"""Outputs [replicas, pixels, classes] of a step that are in memory together (128 MB, several times over)."""


def initial_weights(head: Head, dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weight [O, D] and bias [O] as PyTorch starts a linear layer: uniform within 1 / sqrt(D)."""
    generator, bound = torch.Generator().manual_seed(seed), 1 / math.sqrt(dimensions)
    weight = torch.empty(head.outputs, dimensions).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(head.outputs).uniform_(-bound, bound, generator=generator)


class StackedAdamW:
    """AdamW on the rows of a matrix, each with its own learning rate; torch.optim.AdamW knows only one per tensor."""

    def __init__(self, parameters: Tensor, weight_decay: float) -> None:
        """Optimise float32 `parameters` [R, P] in place."""
        self.parameters, self.weight_decay = parameters, weight_decay
        self.mean, self.square = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self.steps = 0

    def step(self, gradient: Tensor, rates: npt.NDArray[np.floating[Any]]) -> None:
        """Move by `gradient` [R, P] at the learning rates float64 [R]."""
        self.steps += 1
        first, second = (1 - beta**self.steps for beta in BETAS)
        factors = np.stack([1 - rates * self.weight_decay, rates / first]).astype(np.float32)
        shrink, stride = torch.as_tensor(factors[..., None], device=self.parameters.device)  # R 1 each
        self.mean.lerp_(gradient, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        spread = self.square.sqrt().div_(math.sqrt(second)).add_(ADAM_EPS)
        self.parameters.mul_(shrink).sub_(self.mean.div(spread).mul_(stride))


class Replicas:
    """The stacked probes and their optimiser."""

    def __init__(self, initial: tuple[Tensor, Tensor], *, head: Head, recipe: LinearRecipe, device: str) -> None:
        """Start every replica from `initial`, weight [O, D] and bias [O]."""
        weight, bias = initial
        dimensions = weight.shape[1]
        parts = [weight.flatten(), bias]
        self.shapes = [tuple(weight.shape), tuple(bias.shape)]
        if head.normalises:
            parts += [torch.ones(dimensions), torch.zeros(dimensions)]
            self.shapes += [(dimensions,), (dimensions,)]
        self.head, self.recipe = head, recipe
        self.parameters = torch.cat(parts).float().to(device).repeat(len(recipe.lrs), 1)  # R P
        self.mean = torch.zeros(dimensions, device=device)
        self.variance = torch.ones(dimensions, device=device)
        self.restart()

    def restart(self) -> None:
        """Forget the optimiser's moments, as the reference does after each validation (a quirk kept for parity)."""
        self.optimiser = StackedAdamW(self.parameters, self.recipe.weight_decay)

    def step(self, x: Tensor, targets: Tensor, time: float) -> None:
        """One update.

        Args:
            x: [B, D], or [B, Y, X, D] for a spatial head.
            targets: of the batch; at least one is labelled.
            time: fractional epoch, for the learning rates.
        """
        rows = x.flatten(0, -2)  # n D
        if self.head.normalises:
            rows = F.batch_norm(rows, self.mean, self.variance, training=True, momentum=MOMENTUM, eps=NORM_EPS)
        pixels = targets.numel() if self.head.spatial else len(rows)
        at_once = max(1, OUTPUTS_AT_ONCE // (pixels * self.head.classes))
        # No product crosses replicas, so groups of them give the same gradients and bound the memory.
        parts = [self._gradient(some, rows, x, targets) for some in self.parameters.split(at_once)]
        self.optimiser.step(parts[0] if len(parts) == 1 else torch.cat(parts), self.recipe.rates_at(time))

    def tensors(self, replica: int) -> list[Tensor]:
        """Copies of one replica's weight and bias, and of its batch norm's weight and bias where it has one."""
        return [part.clone() for part in self._unpack(self.parameters[replica])]

    def _gradient(self, parameters: Tensor, rows: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        """Gradient [R, P] of the loss at `parameters` [R, P].

        With the batch norm's scale g and shift h, outputs are W (g x + h) + b = (W g) x + (W h + b), so its two
        parameters need no products over samples. The way back through this is written out: for a step of 32 samples
        autograd's bookkeeping costs more than the sums.
        """
        weight, bias, *norm = self._unpack(parameters)
        scale, shift = (part[:, None] for part in norm) if norm else (None, None)  # R 1 D
        inputs = rows.expand(len(weight), -1, -1)  # R n D
        effective = weight if scale is None else weight * scale
        constant = bias[:, None] if shift is None else torch.baddbmm(bias[:, None], shift, weight.transpose(1, 2))
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            outputs = torch.baddbmm(constant, inputs, effective.transpose(1, 2))  # R n O
        back = self._slopes(outputs.float(), x, targets)  # R n O; losses stay float32 under autocast
        by_effective, by_constant = back.transpose(1, 2) @ inputs, back.sum(dim=1)  # R O D, R O
        if scale is None or shift is None:
            return torch.cat([by_effective.flatten(1), by_constant], dim=1)
        by_weight = torch.addcmul(by_effective * scale, by_constant[..., None], shift)
        by_scale, by_shift = (by_effective * weight).sum(dim=1), (by_constant[:, None] @ weight).squeeze(1)
        return torch.cat([by_weight.flatten(1), by_constant, by_scale, by_shift], dim=1)

    def _slopes(self, outputs: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        """How the sum of the replicas' losses changes with the outputs, [R, n, O] both."""
        if not self.head.spatial:
            return losses.slopes(self.head.kind, outputs, targets)
        outputs.requires_grad_()
        maps = outputs.view(-1, *x.shape[1:3], self.head.outputs)  # R*B Y X O
        pixels = self.head.pixels(maps, (targets.shape[1], targets.shape[2])).unflatten(0, (len(outputs), -1))
        if self.head.kind == "pixel_regression":
            loss = losses.masked_mse(pixels.squeeze(2), targets)
        else:
            loss = losses.cross_entropy(pixels, targets)
            if self.recipe.dice:
                loss = loss + losses.dice(pixels, targets)
        return torch.autograd.grad(loss, outputs)[0]

    def _unpack(self, flat: Tensor) -> list[Tensor]:
        """Views of the parameters in [..., P]."""
        parts = flat.split([math.prod(shape) for shape in self.shapes], dim=-1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)]
