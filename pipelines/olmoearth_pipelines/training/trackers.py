"""Figures for TensorBoard and Weights & Biases: optional, and never needed to train."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from olmoearth_cli.errors import InputError


class Trackers:
    """The ones that were asked for; both may be none."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, tensorboard: bool, wandb: str | None) -> None:
        """Open them.

        Args:
            folder: of the run.
            settings: recorded.
            tensorboard: write to `<folder>/tensorboard`.
            wandb: project, or None.
        """
        self._board = _tensorboard(folder) if tensorboard else None
        self._wandb = _wandb(folder, settings, wandb) if wandb else None

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Add a step's numbers."""
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Write what is left."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_installed(*, tensorboard: bool, wandb: bool) -> None:
    """Refuse what is asked for and not there.

    Raises:
        InputError: names the package.
    """
    for asked, name in ((tensorboard, "tensorboard"), (wandb, "wandb")):
        if asked and find_spec(name) is None:
            raise InputError(f"--{name} needs the package {name}, which is not installed: pip install {name}.")


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


def _wandb(folder: Path, settings: Mapping[str, Any], project: str) -> Any:
    import wandb

    return wandb.init(project=project, name=folder.name, dir=str(folder), config=dict(settings), resume="allow")
