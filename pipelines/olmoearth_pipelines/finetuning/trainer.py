"""One training from the first epoch to the last, which can be left after any epoch and gone on with exactly.

No state is kept but weights, moments, rates and the best epoch: all that is drawn (order, variations, stochastic
depth) comes from seed, epoch and update.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from olmoearth_cli.core.finetune.batch import FeatureBatch, FinetuneBatch
from olmoearth_cli.core.finetune.layers import adamw, parameter_groups
from olmoearth_cli.core.finetune.loop import Step, scores_of, train_step
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.schedule import BestEpoch, LearningRates
from olmoearth_cli.core.probe.metrics import lower_is_better
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.finetuning import memory
from olmoearth_pipelines.finetuning.data import Numbers, drawn, in_order, updates, vary
from olmoearth_pipelines.finetuning.evaluate import Array, Judged, gather, value_of
from olmoearth_pipelines.finetuning.features import FeatureStore
from olmoearth_pipelines.finetuning.report import Epoch, Leg
from olmoearth_pipelines.finetuning.resume import learned, restore
from olmoearth_pipelines.finetuning.setup import Setup

Batch = FinetuneBatch | FeatureBatch
DEPTH, VARIATION = 0, 1
"""What is drawn for an update; variations of its parts follow."""


class Trainer:
    """A leg: one base rate."""

    def __init__(self, setup: Setup, lr: float, store: FeatureStore) -> None:
        """Begin.

        Args:
            setup: of the run.
            lr: base rate.
            store: features of the encoder at rest, shared by the legs.
        """
        plan, recipe = setup.plan, setup.plan.recipe
        self.setup, self.lr, self._store = setup, lr, store
        self._train = setup.survey.numbers["train"]
        self.network = setup.fresh().train()
        self.optimizer = adamw(parameter_groups(self.network, lr, recipe.llrd), weight_decay=recipe.weight_decay)
        higher = not lower_is_better(plan.yardstick.metric)
        self.rates = LearningRates(
            recipe.plan,
            epochs=recipe.epochs,
            steps_per_epoch=-(-len(self._train) // plan.batch_size),
            higher_is_better=higher,
        )
        self.best = BestEpoch(higher_is_better=higher, patience=recipe.patience)
        self.best_weights: dict[str, Tensor] | None = None
        self.rows: list[Epoch] = []
        self._measured = False

    @property
    def over(self) -> bool:
        """True after the last epoch. Patience counts from where the encoder begins to learn, if it ever does."""
        recipe, taken = self.setup.plan.recipe, len(self.rows)
        began = 0 if recipe.kind == "head" else self.rates.frozen_epochs
        waited = recipe.patience is not None and taken - began >= recipe.patience
        return taken >= recipe.epochs or (waited and self.best.stops)

    def take_epoch(self) -> Epoch:
        """Learn from every training window once, and judge.

        Raises:
            RunError: the loss is not finite.
            InputError: out of memory; says what would fit.
        """
        try:
            return self._epoch()
        except (MemoryError, RuntimeError) as error:
            if not memory.is_shortage(error):
                raise
        raise self._shortage()  # here, where the error no longer holds the tensors of the failed attempt

    def leg(self) -> Leg:
        """What came of it."""
        epoch, value = self.best.epoch, self.best.value
        return Leg(
            lr=self.lr,
            epochs=tuple(self.rows),
            best_epoch=0 if epoch is None else epoch + 1,
            best_value=float("nan") if value is None else value,
            stopped=len(self.rows) < self.setup.plan.recipe.epochs,
        )

    def state(self) -> dict[str, Any]:
        """Tensors and plain data for `load`."""
        is_best = self.best_weights is not None and self.best.epoch == len(self.rows) - 1
        return {
            "weights": self.best_weights if is_best else learned(self.network),  # one object is written once
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state(),
            "best": self.best.state(),
            "best_weights": self.best_weights,
            "rows": [asdict(row) for row in self.rows],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        restore(self.network, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load(state["rates"])
        self.best.load(state["best"])
        self.best_weights = state["best_weights"]
        self.rows = [Epoch(**row) for row in state["rows"]]

    def _epoch(self) -> Epoch:
        began, number = time.perf_counter(), len(self.rows)
        learns = self.rates.encoder_learns
        self.network.let_encoder_learn(learns)
        loss = self._learn(number)
        rates = {group["part"]: group["lr"] for group in self.optimizer.param_groups}  # of the last block, of the head
        learned_s = time.perf_counter() - began
        value = value_of(self._judged("val"), self.setup.plan.yardstick)
        self.rates.end_epoch(value)
        if self.best.update(number, value):
            self.best_weights = learned(self.network)
        row = Epoch(
            epoch=number + 1,
            loss=loss,
            value=value,
            lr=rates["head"],
            lr_encoder=rates["encoder"] if learns else 0.0,
            seconds=time.perf_counter() - began,
            samples_per_s=len(self._train) / learned_s,
        )
        self.rows.append(row)
        return row

    def _judged(self, split: str) -> Judged:
        numbers = self.setup.survey.numbers[split]
        at_rest = not self.network.encoder_learns() and self.setup.plan.recipe.cache_features
        known = at_rest and self._store.fill(self.network, numbers)
        return judge(self.network, self.setup, split, self._store if known else None)

    def _learn(self, number: int) -> float | None:
        """The epoch's updates; gives the mean loss over what was labelled."""
        total = weight = 0.0
        for update, parts in enumerate(self._updates(number)):
            self.rates.set_rates(self.optimizer, update)
            step = self._take(parts, number, update)
            if step.loss is not None:
                total, weight = total + step.loss * step.weight, weight + step.weight
        return total / weight if weight else None

    def _updates(self, number: int) -> Iterator[list[Batch]]:
        """The parts of one update after the other."""
        plan, recipe = self.setup.plan, self.setup.plan.recipe
        todo = updates(
            self._train, seed=recipe.seed, epoch=number, batch_size=plan.batch_size, accumulate=recipe.accumulate
        )
        at_rest = not self.network.encoder_learns() and recipe.cache_features and recipe.augmentation is None
        if at_rest and self._store.fill(self.network, self._train):
            for parts in todo:
                yield [self._store.batch(part) for part in parts]
            return
        with closing(self.setup.reader.batches(chain.from_iterable(todo))) as batches:
            for update, parts in enumerate(todo):
                yield [self._varied(next(batches), number, update, part) for part in range(len(parts))]

    def _varied(self, batch: FinetuneBatch, number: int, update: int, part: int) -> FinetuneBatch:
        recipe = self.setup.plan.recipe
        if recipe.augmentation is None:
            return batch
        generator = drawn(recipe.seed, number, update, VARIATION + part)
        return vary(batch, recipe.augmentation, self.setup.plan.head, generator)

    def _take(self, parts: list[Batch], number: int, update: int) -> Step:
        """Move the weights once."""
        self._check_memory(parts)
        recipe = self.setup.plan.recipe
        return train_step(
            self.network,
            self.optimizer,
            parts,
            self.setup.objective,
            generator=drawn(recipe.seed, number, update, DEPTH),
            clip_norm=recipe.clip_norm,
        )

    def _shortage(self) -> InputError:
        """Find out how many windows fit; the weights are of no more use."""
        plan = self.setup.plan
        self.optimizer.zero_grad(set_to_none=True)
        size = -(-min(plan.batch_size, len(self._train)) // plan.recipe.accumulate)

        def attempt(count: int) -> Step:
            batch = self.setup.reader.batch(self._train[:count])
            return train_step(self.network, self.optimizer, [batch], self.setup.objective)

        fits = memory.largest(size, attempt)
        return memory.shortage(size, fits, str(self.network.device), batch_size=plan.batch_size)

    def _check_memory(self, parts: list[Batch]) -> None:
        """Once, on a CPU, before the encoder's first update."""
        batch = parts[0]
        if self._measured or isinstance(batch, FeatureBatch) or self.network.device.type != "cpu":
            return
        if self.network.encoder_learns():
            self._measured = True
            memory.check_fits(
                self.network,
                self.setup.reader.batch(self._train[:1]),
                len(batch),
                batch_size=self.setup.plan.batch_size,
                available=memory.available_bytes(),
            )


def judge(network: FinetuneModel, setup: Setup, split: str, store: FeatureStore | None = None) -> Judged:
    """A network's answers for the labels of a split.

    Args:
        network: left in the mode that it was in.
        setup: of the run.
        split: `val` or `test`.
        store: features of its windows, where they are known.
    """
    plan = setup.plan
    parts = in_order(setup.survey.numbers[split], max(1, plan.batch_size // plan.recipe.accumulate))

    def answers() -> Iterator[tuple[Array, Array, Numbers]]:
        batches: Iterator[Batch] = map(store.batch, parts) if store else setup.reader.batches(parts)
        at = 0
        for part, batch in zip(parts, batches, strict=True):
            assert batch.targets is not None
            scores = scores_of(network, batch, setup.objective.target)
            yield scores.numpy(), batch.targets.numpy(), np.arange(at, at + len(part))
            at += len(part)

    return gather(answers(), plan.yardstick)
