"""A trained linear probe: scores of vectors and of feature maps (spec/evaluation.md 5.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from olmoearth_cli.core.probe.decide import decide
from olmoearth_cli.core.probe.heads import Head

Array = npt.NDArray[Any]
CHUNK = 1024
"""Vectors per matrix product, always: a vector's last digits must not depend on its company."""
VALUES_AT_ONCE = 2**24
"""Scores of pixels that are in memory together."""
NORM_EPS = 1e-5
"""Of the batch norm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    """A trained linear head. Make one with `fit_linear`."""

    head: Head
    """What the outputs mean."""
    weight: Tensor
    """float32 [O, D]."""
    bias: Tensor
    """float32 [O]."""
    norm: Tensor | None
    """float32 [4, D] mean, variance, weight and bias of the batch norm; None for spatial heads."""
    target: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training values (regression)."""

    @property
    def kind(self) -> str:
        """Kind of target."""
        return self.head.kind

    @property
    def classes(self) -> int:
        """Number of classes C; 1 for regression."""
        return self.head.classes

    @property
    def dimensions(self) -> int:
        """Length D of a vector."""
        return int(self.weight.shape[1])

    def scores(self, queries: Array) -> npt.NDArray[np.float32]:
        """Scores of single vectors, such as the cells of a map.

        Args:
            queries: float [N, D].

        Returns:
            float32 [N, C] softmax (multi-label: sigmoid); [N, C, s, s] for segmentation; [N] values in the units of
            the training targets for regression, [N, s, s] per pixel.

        Raises:
            ValueError: another number of dimensions, or values that are not finite.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimensions:
            raise ValueError(f"queries of shape {list(queries.shape)}; the probe has {self.dimensions} dimensions")
        if self.head.spatial:
            return self.scores_images(queries[:, None, None], self.head.side)
        parts = [self._finish(self.outputs(_tensor(some, self.weight.device))) for some in chunks(queries, CHUNK)]
        return _joined(parts, () if self.kind == "regression" else (self.classes,))

    def scores_images(self, features: Array, label_side: int) -> npt.NDArray[np.float32]:
        """Scores of the pixels of feature maps (spatial heads only).

        Args:
            features: float [N, Y, X, D].
            label_side: side of the square label maps in pixels.

        Returns:
            float32 [N, C, H, W] softmax; [N, H, W] values for per-pixel regression; H = W = `label_side`.

        Raises:
            ValueError: not a spatial head, another number of dimensions, or values that are not finite.
        """
        if not self.head.spatial or features.ndim != 4 or features.shape[3] != self.dimensions:
            raise ValueError(
                f"features of shape {list(features.shape)} for a {self.kind} probe of {self.dimensions} dimensions"
            )
        size, rows = (label_side, label_side), max(1, VALUES_AT_ONCE // (self.classes * label_side**2))
        tensors = (_tensor(some, self.weight.device) for some in chunks(features, rows))
        parts = [self._finish(self.pixels(some, size)) for some in tensors]
        return _joined(parts, size if self.kind == "pixel_regression" else (self.classes, *size))

    def predict(self, scores: Array) -> Array:
        """Decide by scores: class ids (the lowest wins ties), 0/1 per class (above one half), or the values."""
        return decide(self.kind, scores)

    def state(self) -> dict[str, Tensor]:
        """Plain tensors for `from_state`."""
        state = {
            "weight": self.weight.cpu().contiguous(),
            "bias": self.bias.cpu().contiguous(),
            "side": torch.tensor(self.head.side),
            "target": torch.tensor(self.target, dtype=torch.float64),
        }
        return state if self.norm is None else {**state, "norm": self.norm.cpu().contiguous()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, kind: str, classes: int) -> LinearProbe:
        """The probe that `state` described.

        Raises:
            ValueError: tensors whose shapes do not fit the kind and the number of classes.
        """
        head = Head(kind=kind, classes=classes, side=int(state["side"]))
        weight, bias, norm = state["weight"].float(), state["bias"].float(), state.get("norm")
        fits = weight.ndim == 2 and len(weight) == head.outputs and tuple(bias.shape) == (head.outputs,)
        norm_shape = (4, weight.shape[-1]) if head.normalises else None
        if not fits or (None if norm is None else tuple(norm.shape)) != norm_shape:
            raise ValueError(f"weights {list(weight.shape)} do not fit a {kind} probe of {classes} classes")
        mean, std = (float(value) for value in state["target"])
        return cls(head=head, weight=weight, bias=bias, norm=norm if norm is None else norm.float(), target=(mean, std))

    @torch.inference_mode()
    def outputs(self, x: Tensor) -> Tensor:
        """Vectors [n, D] to the linear layer's outputs [n, O]."""
        return torch.cat([self._product(some) for some in x.split(CHUNK)]) if len(x) else x.new_empty(0, len(self.bias))

    @torch.inference_mode()
    def pixels(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Feature maps [B, Y, X, D] to logits or values of pixels [B, C, H, W]."""
        return self.head.pixels(self.outputs(x.flatten(0, 2)).view(*x.shape[:3], -1), size)

    def _product(self, x: Tensor) -> Tensor:
        rows = len(x)
        if rows < CHUNK:
            x = torch.cat([x, x.new_zeros(CHUNK - rows, self.dimensions)])
        if self.norm is not None:
            mean, variance, weight, bias = self.norm
            x = F.batch_norm(x, mean, variance, weight, bias, eps=NORM_EPS)
        return F.linear(x, self.weight, self.bias)[:rows]

    @torch.inference_mode()
    def _finish(self, outputs: Tensor) -> Tensor:
        """Outputs [B, C, ...] to scores."""
        if self.kind == "multilabel":
            return outputs.sigmoid()
        if self.kind in {"regression", "pixel_regression"}:
            return outputs.squeeze(1) * self.target[1] + self.target[0]
        return outputs.softmax(dim=1)


def chunks(rows: Array, size: int) -> Iterator[Array]:
    """Consecutive parts of at most `size` rows."""
    return (rows[at : at + size] for at in range(0, len(rows), size))


def _tensor(rows: Array, device: torch.device) -> Tensor:
    x = torch.as_tensor(np.ascontiguousarray(rows), dtype=torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise ValueError("queries with values that are not finite")
    return x.to(device)


def _joined(parts: list[Tensor], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if not parts:
        return np.empty((0, *shape), dtype=np.float32)
    return torch.cat(parts).cpu().numpy()
