"""Curves of a run for TensorBoard; optional."""

from __future__ import annotations

from pathlib import Path

from olmoearth_pipelines.finetuning.report import EpochDone
from olmoearth_pipelines.training.trackers import Trackers, check_installed


class Board:
    """Writes to `<folder>/tensorboard` from the first epoch on: before it the folder is not the run's yet."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet.

        Raises:
            InputError: TensorBoard is not installed.
        """
        check_installed(tensorboard=True, wandb=False)
        self._folder = folder
        self._trackers: Trackers | None = None

    def log(self, event: EpochDone) -> None:
        """Add an epoch's figures, those of each base rate under a name of their own."""
        if self._trackers is None:
            self._trackers = Trackers(self._folder, {}, tensorboard=True, wandb=None)
        row = event.epoch
        figures = {
            "loss": row.loss,
            event.metric: row.value,
            "lr_head": row.lr,
            "lr_encoder": row.lr_encoder,
            "windows_per_s": row.samples_per_s,
        }
        self._trackers.log(row.epoch, {f"rate {event.lr:g}/{name}": value for name, value in figures.items()})

    def close(self) -> None:
        """Write what is left."""
        if self._trackers is not None:
            self._trackers.close()
