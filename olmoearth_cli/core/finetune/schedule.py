"""When the encoder learns, how fast, and when to stop (spec/evaluation.md 8.1 and 8.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from olmoearth_cli.core.optimizer import Schedule

DECAYS = ("plateau", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class FrozenStart:
    """Epochs in which only the head learns, and what becomes of the rates after them."""

    share: float = 0.2
    """Share of the epochs; rounded up to whole epochs."""
    factor: float = 0.1
    """On the rates after unfreezing."""
    scope: str = "all"
    """`all`: head and encoder are set to the factor times their base rate, whatever the plateau did before, as the
    research code does. `encoder`: the encoder alone gets the factor times the head's current rate; with factor 1 the
    partners' recipe."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not self.factor > 0 or self.scope not in {"all", "encoder"}:
            raise ValueError(f"share in [0, 1], factor above 0 and scope all or encoder are needed: {self}")

    def epochs(self, total: int) -> int:
        """Frozen epochs of a run."""
        return math.ceil(round(self.share * total, 9))  # 0.07 * 100 is 7, not 7.000000000000001


@dataclass(frozen=True, kw_only=True)
class PlateauRule:
    """When the rates fall."""

    factor: float = 0.2
    """On the rates."""
    patience: int = 2
    """Epochs without improvement that are tolerated."""
    cooldown: int = 10
    """Epochs after a fall in which none is counted."""
    threshold: float = 1e-4
    """Relative improvement that counts."""


@dataclass(frozen=True, kw_only=True)
class RatePlan:
    """The course of the learning rates over a run."""

    decay: str = "plateau"
    """`plateau`, `cosine` (after a warm-up) or `constant`."""
    frozen: FrozenStart | None = None
    """None: everything learns from the start."""
    plateau: PlateauRule = field(default_factory=PlateauRule)
    """For `plateau`."""
    warmup: float = 0.1
    """Share of the steps with a linear rise; for `cosine`."""
    final_share: float = 0.01
    """Rate of the last step over the peak; for `cosine`."""

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"decay {self.decay!r} is none of {', '.join(DECAYS)}")
        if not 0 <= self.warmup < 1 or not 0 <= self.final_share <= 1:
            raise ValueError(f"warmup in [0, 1) and final_share in [0, 1] are needed: {self}")


class LearningRates:
    """Sets the rates of an optimiser through a run: base rate x factor of the unfreezing x decay.

    The plateau is our own: PyTorch's agrees where values are positive, but takes a slightly worse negative value
    (R2, -RMSE) for an improvement, and does not reduce rates by less than 1e-8, which LLRD has in its first blocks.
    """

    def __init__(self, plan: RatePlan, *, epochs: int, steps_per_epoch: int, higher_is_better: bool) -> None:
        """Plan a run.

        Args:
            plan: the course.
            epochs: of the run.
            steps_per_epoch: updates of an epoch.
            higher_is_better: direction of the values that `end_epoch` gets.
        """
        self.plan, self.steps_per_epoch, self.higher_is_better = plan, steps_per_epoch, higher_is_better
        self.frozen_epochs = plan.frozen.epochs(epochs) if plan.frozen is not None else 0
        steps = epochs * steps_per_epoch
        self._cosine = Schedule(peak_lr=1.0, steps=steps, warmup=int(plan.warmup * steps), final_share=plan.final_share)
        self.epoch, self._reduction, self._bad, self._cooling = 0, 1.0, 0, 0
        self._best: float | None = None

    @property
    def encoder_learns(self) -> bool:
        """False in the frozen epochs."""
        return self.epoch >= self.frozen_epochs

    def set_rates(self, optimizer: torch.optim.Optimizer, step: int = 0) -> None:
        """Write the rates of an update into the optimiser's groups.

        Args:
            optimizer: its groups are from `parameter_groups`.
            step: of the epoch, from 0.

        Raises:
            ValueError: a frozen start that edits rates, on groups whose rates differ by depth.
        """
        decay = self._reduction
        if self.plan.decay == "cosine":
            decay = self._cosine.lr(self.epoch * self.steps_per_epoch + step + 1)
        frozen = self.plan.frozen
        layered = len({group["base_lr"] for group in optimizer.param_groups}) > 1
        if layered and frozen is not None and (frozen.factor != 1 or frozen.scope == "all"):
            raise ValueError("layer-wise rates stay as they are when unfreezing: factor 1 and scope encoder (8.4)")
        thawed = frozen is not None and self.epoch >= self.frozen_epochs > 0
        for group in optimizer.param_groups:
            factor = 1.0
            if thawed and frozen is not None and (frozen.scope == "all" or group["part"] == "encoder"):
                factor = frozen.factor
            group["lr"] = group["base_lr"] * factor * decay

    def end_epoch(self, value: float) -> None:
        """Count an epoch and what came of it, frozen epochs included."""
        self.epoch += 1
        if self.plan.decay != "plateau":
            return
        rule = self.plan.plateau
        if self._improves(value):
            self._best, self._bad = value, 0
        else:
            self._bad += 1
        if self._cooling > 0:
            self._cooling, self._bad = self._cooling - 1, 0
        if self._bad > rule.patience:
            self._reduction, self._cooling, self._bad = self._reduction * rule.factor, rule.cooldown, 0
        frozen = self.plan.frozen
        if frozen is not None and frozen.scope == "all" and self.epoch == self.frozen_epochs:
            self._reduction = 1.0

    def state(self) -> dict[str, Any]:
        """Plain JSON for `load`."""
        return {
            "epoch": self.epoch,
            "reduction": self._reduction,
            "best": self._best,
            "bad": self._bad,
            "cooling": self._cooling,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.epoch, self._reduction, self._best = state["epoch"], state["reduction"], state["best"]
        self._bad, self._cooling = state["bad"], state["cooling"]

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return not math.isnan(value)
        gain = value - self._best if self.higher_is_better else self._best - value
        return gain > self.plan.plateau.threshold * abs(self._best)


class BestEpoch:
    """The epoch with the best validation value, and whether to go on. Improvement is strict."""

    def __init__(self, *, higher_is_better: bool, patience: int | None = None) -> None:
        """Begin.

        Args:
            higher_is_better: direction of the metric.
            patience: epochs without improvement after which training stops; None for never.
        """
        self.higher_is_better, self.patience = higher_is_better, patience
        self.value: float | None = None
        self.epoch: int | None = None
        self._last = -1

    def update(self, epoch: int, value: float) -> bool:
        """Look at an epoch's value; True where it is the best so far. NaN never is."""
        self._last = epoch
        better = self.value is None or (value > self.value if self.higher_is_better else value < self.value)
        if math.isnan(value) or not better:
            return False
        self.value, self.epoch = value, epoch
        return True

    @property
    def stops(self) -> bool:
        """True where patience is at its end."""
        since = self._last - (-1 if self.epoch is None else self.epoch)
        return self.patience is not None and since >= self.patience

    def state(self) -> dict[str, Any]:
        """Plain JSON for `load`."""
        return {"value": self.value, "epoch": self.epoch, "last": self._last}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.value, self.epoch, self._last = state["value"], state["epoch"], state["last"]
