"""The legs of a run, one per base rate: the best on validation is kept, and the run can be left after any epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.probe.metrics import lower_is_better
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_pipelines.finetuning.features import FeatureStore
from olmoearth_pipelines.finetuning.report import EpochDone, Leg
from olmoearth_pipelines.finetuning.resume import read_resume, restore, write_resume
from olmoearth_pipelines.finetuning.run_folder import RESUME
from olmoearth_pipelines.finetuning.setup import Setup
from olmoearth_pipelines.finetuning.trainer import Trainer


class Sweep:
    """All trainings of a run."""

    def __init__(self, setup: Setup, folder: Path, note: Callable[[str], None]) -> None:
        """Begin, or go on where an earlier process was stopped.

        Args:
            setup: of the run.
            folder: of the run.
            note: told when the run goes on.

        Raises:
            OutputError: what was kept to go on is damaged.
        """
        plan = setup.plan
        self.legs: list[Leg] = []
        self.seconds = 0.0
        """Of all epochs, earlier processes included."""
        self._setup, self._folder, self._note = setup, folder, note
        size = max(1, plan.batch_size // plan.recipe.accumulate)
        self._store = FeatureStore(setup.reader, batch_size=size, note=note)
        self._kept: tuple[int, dict[str, Tensor]] | None = None
        """Best leg so far and its weights."""
        self._running: dict[str, Any] | None = None
        state = read_resume(folder)
        if state is not None:
            self._load(state)

    def epochs(self) -> Iterator[EpochDone]:
        """Take the epochs that are left; each is kept before it is reported.

        Raises:
            InputError, RunError: as `Trainer.take_epoch`; or the metric is not defined on the validation windows.
        """
        rates = self._setup.plan.recipe.rates
        for number in range(len(self.legs), len(rates)):
            yield from self._leg(number, rates[number])
        if self._kept is None:
            raise InputError(
                f"{self._setup.plan.yardstick.metric} is not defined on the validation windows after any epoch. "
                "Select by another --metric, or label validation windows of more classes."
            )

    @property
    def kept(self) -> Leg:
        """The best leg."""
        assert self._kept is not None
        return self.legs[self._kept[0]]

    def network(self) -> FinetuneModel:
        """The best epoch of the best leg, in evaluation mode."""
        assert self._kept is not None
        network = self._setup.fresh()
        restore(network, self._kept[1])
        return network.eval()

    def _leg(self, number: int, lr: float) -> Iterator[EpochDone]:
        plan = self._setup.plan
        trainer = Trainer(self._setup, lr, self._store)
        if self._running is not None:
            trainer.load(self._running)
            self._running = None
        while not trainer.over:
            row = trainer.take_epoch()
            self.seconds += row.seconds
            self._write(trainer)
            yield EpochDone(
                leg=number + 1,
                legs=len(plan.recipe.rates),
                lr=lr,
                epochs=plan.recipe.epochs,
                epoch=row,
                metric=plan.yardstick.metric,
                best=trainer.best.epoch == row.epoch - 1,
            )
        self.legs.append(trainer.leg())
        if trainer.best_weights is not None and self._beats(self.legs[-1].best_value):
            self._kept = (number, trainer.best_weights)
        self._write(None)

    def _beats(self, value: float) -> bool:
        """True where a leg is better than all before it; the first of equals is kept."""
        if self._kept is None:
            return not math.isnan(value)
        best = self.kept.best_value
        return value < best if lower_is_better(self._setup.plan.yardstick.metric) else value > best

    def _write(self, trainer: Trainer | None) -> None:
        state = {
            "legs": [asdict(leg) for leg in self.legs],
            "kept": None if self._kept is None else {"leg": self._kept[0], "weights": self._kept[1]},
            "running": None if trainer is None else trainer.state(),
            "seconds": self.seconds,
        }
        write_resume(self._folder, state)

    def _load(self, state: dict[str, Any]) -> None:
        try:
            self.legs = [Leg.from_json(leg) for leg in state["legs"]]
            kept = state["kept"]
            self._kept = None if kept is None else (kept["leg"], kept["weights"])
            self._running, self.seconds = state["running"], state["seconds"]
            done = 0 if self._running is None else len(self._running["rows"])
        except (KeyError, TypeError) as error:
            raise OutputError(
                f"{self._folder / RESUME}: cannot be gone on from ({error!r}). Delete it and run again to start from "
                "the first epoch."
            ) from error
        if len(self.legs) < len(self._setup.plan.recipe.rates):
            self._note(f"going on after epoch {done} of training {len(self.legs) + 1}")
