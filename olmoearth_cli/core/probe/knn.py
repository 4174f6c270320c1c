"""Cosine kNN with a softmax vote (spec/evaluation.md section 4). Exact: every query meets every labelled vector.

A query's neighbours are the k labelled vectors of the largest cosine; each votes with exp(cosine / temperature).
Beyond the report's two cases (one label, several labels) the same weights serve values (their weighted mean) and
the pixels of a map cell (one vote per pixel).

At map scale the k largest of M similarities cost as much as their product. Exact short cut: put the M columns into
groups and take the maximum of each; the k groups of the largest maxima hold the k largest columns, because every
column outside them has k larger or equal ones, the maxima, inside. Groups of sqrt(M / k) columns read least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from olmoearth_cli.core.probe.decide import decide
from olmoearth_cli.core.probe.threads import in_parallel

Array = npt.NDArray[Any]
K = 20
"""Neighbours of the published tables; never swept."""
TEMPERATURE = 0.07
CHUNK = 512
"""Queries per matrix product: [512, M] similarities; scores do not depend on it. Larger chunks leave the cache."""
GROUP_FROM = 4
"""Columns per group from which the groups pay."""
EPS = 1e-8
IGNORE = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Knn:
    """Labelled vectors, ready to vote. Make one with `fit_knn`."""

    kind: str
    """`classification`, `multilabel`, `segmentation` or `regression`."""
    classes: int
    """Number of classes C; 1 for regression."""
    k: int
    temperature: float
    vectors: Tensor
    """float32 [M, D], unit length."""
    targets: Tensor
    """int64 [M]; float32 0/1 [M, C]; int64 [M, P, P] with -1 unlabelled; float32 [M]."""

    @property
    def dimensions(self) -> int:
        """Length D of a vector."""
        return int(self.vectors.shape[1])

    def scores(self, queries: Array, *, leave_one_out: bool = False) -> npt.NDArray[np.float32]:
        """Votes for queries.

        Args:
            queries: float [N, D]; any length, only the direction counts.
            leave_one_out: the queries are the labelled vectors themselves; the nearest of k + 1 is dropped.

        Returns:
            float32 [N, C] shares of the vote (classification: they sum to 1; multi-label: the share of positive
            neighbours per class); [N, C, P, P] for segmentation; [N] values for regression.

        Raises:
            ValueError: another number of dimensions, or values that are not finite.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimensions:
            raise ValueError(f"queries of shape {list(queries.shape)}; the probe has {self.dimensions} dimensions")
        scores = np.empty((len(queries), *self._vote_shape()), dtype=np.float32)

        def vote(start: int) -> None:
            part = slice(start, start + CHUNK)
            scores[part] = self._chunk(queries[part], leave_one_out).cpu().numpy()

        in_parallel(vote, range(0, len(queries), CHUNK))
        return scores

    def predict(self, scores: Array) -> Array:
        """Decide by scores: class ids (the lowest wins ties), 0/1 per class (above one half), or the values."""
        return decide(self.kind, scores)

    def state(self) -> dict[str, Tensor]:
        """Plain tensors for `from_state`."""
        return {
            "vectors": self.vectors.cpu().contiguous(),
            "targets": self.targets.cpu().contiguous(),
            "k": torch.tensor(self.k),
            "temperature": torch.tensor(self.temperature, dtype=torch.float64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, kind: str, classes: int) -> Knn:
        """The probe that `state` described."""
        return cls(
            kind=kind,
            classes=classes,
            k=int(state["k"]),
            temperature=float(state["temperature"]),
            vectors=state["vectors"].float(),
            targets=state["targets"],
        )

    @torch.inference_mode()
    def _chunk(self, queries: Array, leave_one_out: bool) -> Tensor:
        x = _unit(queries).to(self.vectors.device)
        rows = len(x)
        if rows < CHUNK:  # one shape of product for all: a query's last digits must not depend on its neighbours
            x = torch.cat([x, x.new_zeros(CHUNK - rows, self.dimensions)])
        cosines, nearest = top_columns((x @ self.vectors.T)[:rows], self.k + leave_one_out)  # n k
        weights = torch.exp(cosines[:, int(leave_one_out) :] / self.temperature)
        return self._votes(weights, self.targets[nearest[:, int(leave_one_out) :]])

    def _votes(self, weights: Tensor, targets: Tensor) -> Tensor:
        """Weights [n, k] and the neighbours' targets [n, k, ...] to scores."""
        if self.kind in {"multilabel", "regression"}:
            total = weights.sum(dim=1, keepdim=True).clamp(min=EPS)
            share = weights / total  # n k
            return torch.einsum("nk,nk...->n...", share, targets)
        n, flat = len(weights), targets.flatten(2) if targets.ndim > 2 else targets[..., None]  # n k P
        votes = weights.new_zeros(n, self.classes, flat.shape[2])
        labelled = flat != IGNORE
        votes.scatter_add_(1, flat.clamp(min=0), weights[..., None] * labelled)
        votes /= votes.sum(dim=1, keepdim=True).clamp(min=EPS)
        return votes.view(n, *self._vote_shape())

    def _vote_shape(self) -> tuple[int, ...]:
        if self.kind == "regression":
            return ()
        return (self.classes, *self.targets.shape[1:]) if self.kind == "segmentation" else (self.classes,)


def top_columns(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, exactly, by way of group maxima (see the module's strategy).

    Args:
        values: [n, M], none NaN.
        k: how many; at most M.

    Returns:
        Values [n, k], falling, and their columns int64 [n, k]. Among equal values at the edge any may be chosen.
    """
    rows, columns = values.shape
    size = math.isqrt(columns // k)
    if size < GROUP_FROM:
        best = values.topk(k, dim=1)
        return best.values, best.indices
    groups = columns // size
    # Group i holds the columns i, i + groups, i + 2 groups ...; the few columns left over are candidates as they are.
    maxima = values[:, : groups * size].unflatten(1, (size, groups)).amax(dim=1)  # n G
    held = maxima.topk(k, dim=1, sorted=False).indices[:, None]  # n 1 k
    candidates = (held + groups * torch.arange(size, device=values.device)[:, None]).flatten(1)  # n size*k
    rest = torch.arange(groups * size, columns, device=values.device).expand(rows, -1)
    candidates = torch.cat([candidates, rest], dim=1)
    best = values.gather(1, candidates).topk(k, dim=1)
    return best.values, candidates.gather(1, best.indices)


def fit_knn(
    vectors: Array,
    targets: Array,
    *,
    kind: str,
    classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
    device: str = "cpu",
) -> Knn:
    """Remember labelled vectors.

    Args:
        vectors: float [M, D].
        targets: int [M], 0/1 [M, C], int [M, P, P] (-1 unlabelled) or float [M], by `kind`.
        kind: `classification`, `multilabel`, `segmentation` or `regression`.
        classes: number of classes C.
        k: neighbours; at most M.
        temperature: of the vote.
        device: where to compute.

    Raises:
        ValueError: k larger than M (as in the reference), values that are not finite, shapes that do not fit.
    """
    if len(vectors) != len(targets):
        raise ValueError(f"{len(vectors)} vectors but {len(targets)} targets")
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k = {k} neighbours of {len(vectors)} labelled vectors")
    kept = torch.as_tensor(np.asarray(targets))
    return Knn(
        kind=kind,
        classes=classes,
        k=k,
        temperature=temperature,
        vectors=_unit(vectors).to(device),
        targets=(kept.float() if kind in {"multilabel", "regression"} else kept.long()).to(device),
    )


def _unit(vectors: Array) -> Tensor:
    x = torch.as_tensor(np.ascontiguousarray(vectors), dtype=torch.float32)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    if not bool(torch.isfinite(length).all()):
        raise ValueError(f"{int((~torch.isfinite(length)).sum())} vectors have values that are not finite")
    return x / length.clamp(min=EPS)
