"""Windows described by their pixels alone: what a model has to beat. The rules are those of `probing.raw_bands`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.finetune.batch import FinetuneBatch
from olmoearth_cli.core.finetune.task import Limits
from olmoearth_cli.core.normalize import band_range
from olmoearth_pipelines.probing.raw_bands import fill_in_time
from olmoearth_pipelines.windows.window import Window

Floats = npt.NDArray[np.float32]


def raw_cells(
    windows: Sequence[Window],
    batch: FinetuneBatch,
    periods: Mapping[str, int],
    limits: Mapping[str, Limits] | None,
) -> Floats:
    """Normalised band means of map cells.

    Args:
        windows: n of them.
        batch: the same, as the encoder sees them: a period in which it does not see a cell is missing there.
        periods: {modality: T of the longest series}, what is read.
        limits: the data set's own; None for those of pretraining.

    Returns:
        [n, Y, X, F] with F = sum of C x T over the modalities, NaN where nothing is known; filled in time: linear
        between the nearest periods with data, the first and last held to the ends.
    """
    return np.stack([_cells_of(window, batch, at, periods, limits) for at, window in enumerate(windows)])


def _cells_of(
    window: Window, batch: FinetuneBatch, at: int, periods: Mapping[str, int], limits: Mapping[str, Limits] | None
) -> Floats:
    rows, columns = batch.grid
    parts = []
    for name, count in periods.items():
        low, high = _limits(name, limits)
        series = np.full((rows, columns, len(low), count), np.nan, np.float32)  # Y X C T
        if name in window.images:
            image, valid = window.images[name], window.valid[name]
            t = image.shape[2]
            seen = batch.visible[name][at].any(dim=-1).numpy()[:, :, :t]  # Y X T
            means = (_cell_means(image, valid, (rows, columns)) - low) / (high - low)  # Y X T C
            means[~seen] = np.nan
            means[:, :, window.absent[name]] = np.nan
            series[..., :t] = means.swapaxes(2, 3)
        parts.append(fill_in_time(series).reshape(rows, columns, -1))
    return np.concatenate(parts, axis=-1)


def _cell_means(image: Any, valid: Any, grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """[Y, X, T, C] means over the pixels with data; 0 where there are none."""
    h, w, t, c = image.shape
    y, x = grid
    known = np.where(valid[..., None], image, 0).astype(np.float64).reshape(y, h // y, x, w // x, t, c)
    count = valid.reshape(y, h // y, x, w // x, t).sum(axis=(1, 3))
    means: npt.NDArray[np.float64] = known.sum(axis=(1, 3)) / np.maximum(count, 1)[..., None]
    return means


def _limits(name: str, limits: Mapping[str, Limits] | None) -> tuple[Any, Any]:
    if limits is not None and name in limits:
        return np.array(limits[name][0]), np.array(limits[name][1])
    found = band_range(name)
    return found.lo, found.hi


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """What of the raw values serves as a vector: what training cells have, centred on their means."""

    kept: npt.NDArray[np.bool_]
    """[F], True for columns that any training cell has."""
    mean: Floats
    """[K] of the kept ones."""

    @classmethod
    def of(cls, raw: Floats) -> Columns:
        """The columns of training rows [N, F]; NaN where nothing is known."""
        kept = np.asarray(np.isfinite(raw).any(axis=0))
        mean = np.asarray(np.nanmean(raw[:, kept], axis=0, dtype=np.float64))
        return cls(kept=kept, mean=mean.astype(np.float32))

    def vectors(self, raw: Floats) -> Floats:
        """[N, K]; a value that is not known is the mean."""
        return np.nan_to_num(raw[:, self.kept] - self.mean, nan=0.0)
