"""Batches for training, read ahead by worker processes; any step can be the first (spec/pretraining.md 2.1, 6.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from olmoearth_cli.core.pretrain_step import PretrainBatch
from olmoearth_cli.errors import InputError, OlmoEarthError, RunError
from olmoearth_pipelines.samples.assemble import BatchPlan, Key, assemble
from olmoearth_pipelines.samples.layout import SampleFolder, pieces_per_tile
from olmoearth_pipelines.samples.order import Indices, epoch_order, share_of_rank
from olmoearth_pipelines.samples.sample_file import open_sample

PREFETCH = 4
"""Microbatches that each worker reads ahead."""


class SampleLoader:
    """The microbatches of one rank, step after step."""

    def __init__(self, folder: SampleFolder, samples: Indices, plan: BatchPlan, *, workers: int = 0) -> None:
        """Prepare; nothing is read but one sample.

        Args:
            folder: the dataset.
            samples: indices that are used (`order.usable_samples`, `order.random_share`).
            plan: how batches are made.
            workers: processes that read ahead; 0 reads in this one. The batches do not depend on it.

        Raises:
            InputError: fewer samples than one batch, or samples of a size that the format does not have.
        """
        if len(samples) < plan.global_batch:
            raise InputError(
                f"{folder.path}: {len(samples)} samples can be used, fewer than one batch of {plan.global_batch}. "
                "Choose a smaller batch."
            )
        self.side_px = sample_side(folder, int(samples[0]), tuple(plan.band_sets))
        self.plan = plan
        self.steps_per_epoch = len(samples) // plan.global_batch
        self._workers = workers
        self._microbatches = _Microbatches(folder.path, samples, plan, self.side_px)
        self._identity = {
            **folder.identity(),
            "used_samples": len(samples),
            "used_sha256": hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest(),
            "seed": plan.seed,
            "global_batch": plan.global_batch,
        }

    def position(self, step: int) -> tuple[int, int]:
        """Epoch (from 1) and batch within it (from 0) of a step; steps count from 0."""
        return 1 + step // self.steps_per_epoch, step % self.steps_per_epoch

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint records after `step` steps: plain JSON."""
        epoch, batch = self.position(step)
        return {"step": step, "epoch": epoch, "batch": batch, **self._identity}

    def resumed(self, state: Mapping[str, Any]) -> int:
        """The step that training goes on with.

        Another number of processes reads the same samples, but draws other patch sizes.

        Raises:
            InputError: the checkpoint's data were others, so that its step means other samples.
        """
        changed = [key for key, value in self._identity.items() if state.get(key) != value]
        if changed:
            listed = ", ".join(f"{key} was {state.get(key)}, is {self._identity[key]}" for key in changed)
            raise InputError(
                f"the checkpoint was trained on other data ({listed}). Give it the same dataset and settings."
            )
        return int(state["step"])

    def microbatches(self, first: int, stop: int) -> Iterator[PretrainBatch]:
        """Microbatches of steps `first` to `stop` - 1 in order, `plan.parts` for each step.

        Raises:
            InputError: a sample that cannot be read or has no satellite data.
            RunError: a worker process died.
        """
        # A generator of its own, for the loader draws a number from the global one otherwise.
        loader: DataLoader[Any] = DataLoader(
            self._microbatches,
            batch_size=None,
            sampler=_Keys(self, first, stop),
            num_workers=self._workers,
            prefetch_factor=PREFETCH if self._workers else None,
            multiprocessing_context="spawn" if self._workers else None,
            generator=torch.Generator(),
        )
        for batch in _watched(iter(loader), self._workers):
            if isinstance(batch, OlmoEarthError):
                raise batch
            yield batch


def sample_side(folder: SampleFolder, index: int, modalities: tuple[str, ...]) -> int:
    """Side of a dataset's samples in pixels, as one of them has it.

    Raises:
        InputError: it cannot be read, holds none of the modalities, or has a side that the format does not have.
    """
    with open_sample(folder.sample(index), modalities) as sample:
        pieces_per_tile(sample.side_px)
        return sample.side_px


class _Keys(Sampler[Key]):
    """The microbatches of some steps, in order."""

    def __init__(self, loader: SampleLoader, first: int, stop: int) -> None:
        self._loader, self._steps = loader, range(first, stop)

    def __iter__(self) -> Iterator[Key]:
        for step in self._steps:
            for part in range(self._loader.plan.parts):
                yield Key(*self._loader.position(step), part)


class _Microbatches(Dataset[PretrainBatch | OlmoEarthError]):
    """Microbatches by key, made where they are asked for."""

    def __init__(self, folder: Path, samples: Indices, plan: BatchPlan, side_px: int) -> None:
        self._folder, self._samples, self._plan, self._side_px = folder, samples, plan, side_px
        self._order: tuple[int, Indices] | None = None

    def __getitem__(self, key: Key) -> PretrainBatch | OlmoEarthError:
        """A microbatch; what the user can fix comes as a value, for the loader wraps errors in a traceback."""
        plan = self._plan
        if self._order is None or self._order[0] != key.epoch:
            order = epoch_order(self._samples, epoch=key.epoch, seed=plan.seed, global_batch=plan.global_batch)
            self._order = (key.epoch, order)
        mine = share_of_rank(self._order[1][key.batch], plan.rank, plan.world_size)
        indices = mine[key.part * plan.microbatch : (key.part + 1) * plan.microbatch]
        try:
            return assemble(self._folder, indices, plan, key, self._side_px)
        except OlmoEarthError as error:
            return error


def _watched(batches: Iterator[Any], workers: int) -> Iterator[Any]:
    """The loader's items; a dead worker is said in our words."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # PyTorch says it itself, unless a batch was just being handed over.
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            raise RunError(
                f"one of {workers} data workers died ({error}). Most often memory or /dev/shm is full: use fewer "
                "workers or a smaller microbatch."
            ) from error
        yield batch
