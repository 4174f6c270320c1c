"""Which samples are used, and in which order (spec/pretraining.md section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.samples.layout import SampleFolder, samples_on_disk

Indices = npt.NDArray[np.int64]


def usable_samples(folder: SampleFolder, modalities: Sequence[str], *, allowed: Indices | None = None) -> Indices:
    """Samples with at least one of the satellite products, sorted.

    Args:
        folder: the dataset.
        modalities: requested ones.
        allowed: keep only these.

    Raises:
        InputError: no satellite product is requested, no sample has one, or files and table differ.
    """
    satellites = [name for name in modalities if MODALITIES[name].multitemporal]
    if not satellites:
        raise InputError(f"modalities {', '.join(modalities)}: at least one satellite product is needed to learn from.")
    columns = [folder.has[name] for name in satellites if name in folder.has]
    usable = np.flatnonzero(np.any(columns, axis=0)) if columns else np.arange(0)
    if allowed is not None:
        usable = np.intersect1d(usable, allowed)
    if not len(usable):
        raise InputError(
            f"{folder.path}: none of the {'allowed' if allowed is not None else len(folder)} samples has "
            f"{' or '.join(satellites)}. Choose other modalities or samples."
        )
    found = samples_on_disk(folder.path)
    if len(found) and found[-1] >= len(folder):
        raise InputError(
            f"{folder.path}: sample_{found[-1]}.h5 is there, but sample_metadata.csv lists {len(folder)} samples. "
            "Unpack the archives again; the table is of another dataset, or cut short."
        )
    missing = np.setdiff1d(usable, found, assume_unique=True)
    if len(missing):
        raise InputError(
            f"{folder.path}: {len(missing)} of {len(usable)} sample files are missing, first sample_{missing[0]}.h5. "
            "Unpack all archives, or give a list of the samples that are there."
        )
    return usable.astype(np.int64)


def random_share(samples: Indices, fraction: float, *, pieces: int, seed: int) -> Indices:
    """A random part of the samples, sorted: whole tiles, so that the rest may serve as validation data.

    Neighbouring samples of a tile share their place and dates; a split between them would leak (G15).

    Args:
        samples: indices.
        fraction: share of the tiles, above 0 to 1.
        pieces: samples per tile.
        seed: of the draw.

    Raises:
        InputError: a share that keeps nothing, or more than all.
    """
    tiles = np.unique(samples // pieces)
    kept = round(fraction * len(tiles)) if 0 < fraction <= 1 else 0
    if not kept:
        raise InputError(
            f"fraction {fraction} of {len(tiles)} tiles keeps none or more than all. Give a share above 0 and up to 1."
        )
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(tiles)[:kept]
    return samples[np.isin(samples // pieces, drawn)]


def read_indices(path: Path, count: int) -> Indices:
    """A list of sample indices from a `.npy` file, sorted.

    Raises:
        InputError: not a one-dimensional array of whole numbers from 0 to `count` - 1.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: not readable as a NumPy array ({error}). Save the indices with numpy.save."
        ) from error
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
        raise InputError(f"{path}: a one-dimensional array of whole numbers is needed. Save one with numpy.save.")
    if found.min() < 0 or found.max() >= count:
        raise InputError(f"{path}: indices {found.min()} to {found.max()}, but the samples are 0 to {count - 1}.")
    return np.unique(found.astype(np.int64))


def epoch_order(samples: Indices, *, epoch: int, seed: int, global_batch: int) -> Indices:
    """The batches of an epoch; what does not fill a batch is dropped.

    Args:
        samples: indices.
        epoch: counts from 1.
        seed: of the data order.
        global_batch: samples of a step, over all ranks.

    Returns:
        [steps, global_batch].
    """
    shuffled = samples.copy()
    np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(shuffled)
    steps = len(samples) // global_batch
    return shuffled[: steps * global_batch].reshape(steps, global_batch)


def share_of_rank(batch: Indices, rank: int, world_size: int) -> Indices:
    """What one rank reads of a global batch."""
    return batch[rank::world_size]
