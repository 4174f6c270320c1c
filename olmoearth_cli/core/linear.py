"""Linear layers with prepared weights, as the plan's blocks run them.

float32 writes into buffers that the blocks of a batch share, with GELU and the residual sum in place: a third
of the reference's page faults. bfloat16 on a CPU uses oneDNN's packed products, which took 10-30 % less time
than F.linear on a CPU with AMX; in float32 they gained nothing there beyond what the buffers already give.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)


class Workspace:
    """Buffers that the blocks of one batch reuse; each call of a plan has its own, so threads share none."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int], Tensor] = {}

    def take(self, like: Tensor, width: int) -> Tensor:
        """An uninitialised [rows of `like`, width] buffer, the same one at every call with that shape."""
        key = (like.shape[0], width)
        if key not in self._buffers:
            self._buffers[key] = like.new_empty(key)
        return self._buffers[key]


class Linear:
    """y = x W^T + b over rows, with the two fusions that a transformer block asks for."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        """Prepare a weight [O, I] and bias [O] for products in `dtype`."""
        self.weight = weight.detach().to(dtype).contiguous()
        self.bias = bias.detach().to(dtype).contiguous()
        self.packed = _packed(self.weight, self.bias)

    def __call__(self, x: Tensor, workspace: Workspace) -> Tensor:
        """[rows, I] to [rows, O]; in float32 valid until the workspace gives that shape again."""
        if self.packed is not None:
            return _product(x, self.packed, self.bias, "none")
        if x.dtype != torch.float32:
            return F.linear(x, self.weight, self.bias)
        return torch.addmm(self.bias, x, self.weight.t(), out=workspace.take(x, len(self.bias)))

    def gelu(self, x: Tensor, workspace: Workspace) -> Tensor:
        """The exact GELU of the product."""
        if self.packed is not None:
            return _product(x, self.packed, self.bias, "gelu")
        return torch.ops.aten.gelu_(self(x, workspace))  # type: ignore[no-any-return]

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add the product to float32 `residual` [rows, O], in place."""
        if x.dtype == torch.float32:
            return residual.add_(self.bias).addmm_(x, self.weight.t())
        if self.packed is not None:
            return residual.add_(_product(x, self.packed, self.bias, "none"))
        return residual.add_(F.linear(x, self.weight, self.bias))


def _product(x: Tensor, packed: Tensor, bias: Tensor, after: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, after, [], "none")
    return result


def _packed(weight: Tensor, bias: Tensor) -> Tensor | None:
    """oneDNN's own layout of a bfloat16 CPU weight; None where there is none or it does not work.

    The operators are PyTorch's private ones (its compiler uses them), so they are tried once per weight and
    compared with the plain product before they are trusted.
    """
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        x = torch.linspace(-1, 1, weight.shape[1], dtype=torch.bfloat16)[None]
        trial, plain = _product(x, packed, bias, "gelu"), F.gelu(F.linear(x, weight, bias))
    except (AttributeError, RuntimeError, TypeError) as error:
        logger.debug("no packed bfloat16 products: %s", error)
        return None
    scale = plain.float().abs().max().clamp(min=1)
    return packed if bool(((trial - plain).float().abs() <= 0.03 * scale).all()) else None
