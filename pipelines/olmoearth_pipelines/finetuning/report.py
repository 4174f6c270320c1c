"""What comes of fine-tuning, as plain data: for the progress, the table, the JSON and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training windows."""

    epoch: int
    """From 1."""
    loss: float | None
    """Mean training loss; None where nothing was labelled."""
    value: float
    """Metric on the validation windows."""
    lr: float
    """Rate of the head at the end of the epoch."""
    lr_encoder: float
    """Rate of the encoder's last block; 0 while it is frozen."""
    seconds: float
    samples_per_s: float


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch is over and can be gone on from: for the progress."""

    leg: int
    """From 1."""
    legs: int
    """Trainings of the sweep."""
    lr: float
    """Base learning rate of the leg."""
    epochs: int
    """That a leg has at most."""
    epoch: Epoch
    metric: str
    best: bool
    """True where the validation value is the leg's best so far."""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One training of a sweep; without a sweep the only one."""

    lr: float
    """Base learning rate."""
    epochs: tuple[Epoch, ...]
    best_epoch: int
    best_value: float
    stopped: bool
    """True where patience ended it."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Leg:
        """The leg that `asdict` described."""
        return cls(**{**content, "epochs": tuple(Epoch(**row) for row in content["epochs"])})


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well one method does on one split."""

    name: str
    """For example `fine-tuned`, `linear probe`, `kNN`, `raw bands, kNN`, `majority class`."""
    value: float
    """The metric."""
    low: float | None
    high: float | None
    """95 % interval by bootstrap over blocks of land (or windows); None where there are too few."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All metrics of the kind."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """A finished run."""

    out: str
    """Checkpoint folder, for `predict --model` and `load_model`."""
    kind: str
    class_names: tuple[str, ...]
    field: str
    data: str
    """Name of the window set."""
    model: str
    """Name of the model that training began with."""
    demo: bool
    """True for weights without learned meaning."""
    recipe: str
    """In words: `layer-wise rates x 0.65`, `frozen start`, `full`, `head only`, `LoRA of rank 8`, ..."""
    decoder: str
    metric: str
    higher_is_better: bool
    windows: Mapping[str, int]
    """Split -> number of windows."""
    labelled: Mapping[str, int]
    """Split -> labelled cells (pixel kinds) or windows."""
    parameters: int
    """That were trained."""
    legs: tuple[Leg, ...]
    lr: float
    """Of the leg that was kept."""
    best_epoch: int
    val: Score
    test: Score | None
    baselines: tuple[Score, ...]
    """On the test split (validation where there is no test split), fitted on the training split."""
    judged_on: str
    """`test`, or `val` where there is no test split: then the figures flatter, for the epoch was chosen on it."""
    confusion: tuple[tuple[int, ...], ...] | None
    """[C][C] true by predicted, of the split that was judged; None for regression and multi-label."""
    seconds: float
    samples_per_s: float
    """Of training, with the encoder learning."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: Mapping[str, Any]
    """Everything that decides the result, as plain JSON."""
    command: str
    """As typed."""
    unchanged: bool = False
    """True where the folder held this very run, finished."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A window of the judged split, to look at."""

    id: str
    picture: npt.NDArray[np.uint8]
    """[H, W, 3] true colour, the clearest period; grey for radar alone."""
    truth: npt.NDArray[Any]
    """As in `Window.target`."""
    predicted: npt.NDArray[Any]
    """Class ids or values in the form of `truth`; uint8 0/1 [C] for multi-label."""
