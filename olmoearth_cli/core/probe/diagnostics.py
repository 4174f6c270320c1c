"""Are embeddings spread out or collapsed? Figures of spec/evaluation.md 9.4.

High mean cosine with a small spread means crowding; an effective rank near 1 means collapse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import svdvals

from olmoearth_cli.core.probe.compress import subsample

Array = npt.NDArray[Any]
RANK_ROWS = 4096
"""Rows of the singular values, and patches of the whole map."""
PAIR_ROWS = 2048
"""Rows whose pairs are compared."""
IMAGES = 256
"""Images looked at one by one."""


def vector_figures(embeddings: Array, *, seed: int = 42) -> dict[str, float]:
    """Figures of embeddings [N, D] by the reference's names.

    Above 4,096 rows (2,048 for pairs) a sample drawn with `seed` stands for all, but not for the norms.

    Returns:
        Empty below 2 rows; without uniformity and cosines below 4.
    """
    count, dimensions = embeddings.shape
    if count < 2:
        return {}
    norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    figures = {
        "effective_rank": effective_rank(subsample(embeddings, RANK_ROWS, seed)),
        "embedding_dim": float(dimensions),
        "num_samples": float(count),
        **_summary("norm", norms),
    }
    if count < 4:
        return figures
    cosines = _pair_cosines(subsample(embeddings, PAIR_ROWS, seed))
    # For unit vectors ||a - b||^2 = 2 - 2 a.b
    uniformity = float(np.log(np.exp(-2 * (2 - 2 * cosines)).mean()))
    return {**figures, "uniformity": uniformity, **_summary("cosine_sim", cosines)}


def map_figures(maps: Array, *, seed: int = 42) -> dict[str, float]:
    """Figures of feature maps [N, Y, X, D]: over all patches, over images' means, and within images.

    Returns:
        `global_*` and `inter_*` as `vector_figures`; `intra_*` means over at most 256 images drawn with `seed`, absent
        below 2 patches an image, without cosines below 4.
    """
    images, rows, columns, dimensions = maps.shape
    patches = maps.reshape(images, rows * columns, dimensions)  # N P D
    everywhere = subsample(patches.reshape(-1, dimensions), RANK_ROWS, seed)
    return {
        **{f"global_{key}": value for key, value in vector_figures(everywhere, seed=seed).items()},
        **{f"inter_{key}": value for key, value in vector_figures(patches.mean(axis=1), seed=seed).items()},
        **{f"intra_{key}": value for key, value in _within(subsample(patches, IMAGES, seed), seed).items()},
    }


def effective_rank(rows: Array) -> float:
    """exp of the entropy of the singular values of [N, D], not centred; 0 if all are zero."""
    values = svdvals(rows.astype(np.float64))
    shares = values[values > 0] / values.sum() if values.any() else np.empty(0)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def _within(patches: Array, seed: int) -> dict[str, float]:
    """Means over images of the figures within each: [N, P, D]."""
    images, count, _ = patches.shape
    if count < 2 or not images:
        return {}
    norms = np.linalg.norm(patches.astype(np.float64), axis=2)
    figures = {
        "norm_std": float(norms.std(axis=1, ddof=1).mean()),
        "num_patches": float(count),
        "num_images_sampled": float(images),
    }
    if count < 4:
        return figures
    cosines = [_pair_cosines(subsample(image, PAIR_ROWS, seed)) for image in patches]
    return {
        **figures,
        "cosine_sim_mean": float(np.mean([pairs.mean() for pairs in cosines])),
        "cosine_sim_std": float(np.mean([pairs.std(ddof=1) for pairs in cosines])),
    }


def _pair_cosines(rows: Array) -> npt.NDArray[np.float64]:
    """Cosines of the pairs i < j of [N, D]; zero vectors are at right angles to all."""
    x = rows.astype(np.float64)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
    return np.asarray((unit @ unit.T)[np.triu_indices(len(unit), 1)])


def _summary(name: str, values: npt.NDArray[np.float64]) -> dict[str, float]:
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_std": float(values.std(ddof=1)),
        f"{name}_min": float(values.min()),
        f"{name}_max": float(values.max()),
    }
