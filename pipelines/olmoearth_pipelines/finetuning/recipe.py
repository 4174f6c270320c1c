"""How a model learns: the published recipes of fine-tuning as data (spec/evaluation.md section 8)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from olmoearth_cli.core.finetune.augment import Augmentation
from olmoearth_cli.core.finetune.heads import DEFAULT_HIDDEN
from olmoearth_cli.core.finetune.model import PRECISIONS
from olmoearth_cli.core.finetune.objective import ERRORS
from olmoearth_cli.core.finetune.schedule import DECAYS, FrozenStart, RatePlan
from olmoearth_cli.errors import InputError

RECIPES = ("frozen-start", "full", "head")
CLASS_WEIGHTS = ("none", "balanced")
LR, LLRD_LR = 5e-4, 1e-4
"""Rate where none is asked: the middle of the published sweep (8.1), and that of layer-wise decay (8.4)."""
PIXEL_BATCH, WINDOW_BATCH = 8, 32
"""Windows of an update where none is asked: with a target per pixel, and with one per window."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides how training goes, beside model and data."""

    name: str | None = None
    """One of `RECIPES`; None for `full` with `llrd` or `lora`, else `frozen-start`."""
    llrd: float | None = None
    """Decay of the rate per layer, for example 0.65; None for the same rate everywhere."""
    lora: int | None = None
    """Rank of low-rank corrections that learn in place of the encoder's weights; None for none."""
    frozen_share: float = 0.2
    """Share of the epochs in which the head learns alone (`frozen-start`)."""
    unfreeze_factor: float | None = None
    """On the rates after that; None for 0.1, and 1 with `llrd`, whose rates are never edited."""
    unfreeze_head: bool = True
    """True lowers the head's rate as well, as the research code does; factor 1 leaves it alone in any case."""
    epochs: int = 50
    lrs: tuple[float, ...] = ()
    """Base rates: one training each, the best on validation is kept. Empty for one: 1e-4 with `llrd`, else 5e-4."""
    decay: str = "plateau"
    """`plateau` (on the validation metric), `cosine` (after a warm-up) or `constant`."""
    patience: int | None = None
    """Epochs without improvement after which training stops; None for never."""
    batch_size: int | None = None
    """Windows of an update; None for 8 with a target per pixel, 32 with one per window."""
    accumulate: int = 1
    """Parts in which an update's windows are computed, one after the other: less memory, the same update."""
    weight_decay: float = 0.01
    clip_norm: float | None = None
    """Largest norm of the gradients; None does not clip, as the recipes."""
    drop_path: float | None = None
    """Rate of stochastic depth; None for the model's own."""
    precision: str = "float32"
    """`float32` or `bfloat16`."""
    augmentation: Augmentation | None = None
    """None varies nothing, as the recipes."""
    class_weights: str = "none"
    """`none` or `balanced`."""
    dice: bool = False
    """True adds the dice term (segmentation)."""
    error: str = "squared"
    """Of regression: `squared`, `absolute` or `huber`."""
    decoder: str = "linear"
    """As in `HeadSpec`."""
    hidden: tuple[int, ...] = DEFAULT_HIDDEN
    """Widths of the hidden layers of `mlp` and `pooling`."""
    centre: bool | None = None
    """True answers from the middle patch alone; None: where the windows were cut around labels."""
    metric: str | None = None
    """What selects and is reported; None for the primary metric of the kind of target."""
    seed: int = 42
    """Of the head's first weights, the order of the windows and all that is drawn."""
    cache_features: bool = True
    """True computes a frozen encoder's features once; False anew each epoch, with stochastic depth, as the
    research code does."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kind(self) -> str:
        """One of `RECIPES`."""
        return self.name or ("frozen-start" if self.llrd is None and self.lora is None else "full")

    @property
    def plan(self) -> RatePlan:
        """The course of the rates."""
        return RatePlan(decay=self.decay, frozen=_frozen(self))

    @property
    def rates(self) -> tuple[float, ...]:
        """Base rates, one training each."""
        return self.lrs or (LR if self.llrd is None else LLRD_LR,)

    def batch_windows(self, *, per_window: bool) -> int:
        """Windows of an update, for a kind with one target per window or one per pixel."""
        return self.batch_size or (WINDOW_BATCH if per_window else PIXEL_BATCH)

    @property
    def words(self) -> str:
        """The recipe, for people."""
        if self.kind == "head":
            return "head only"
        parts = []
        if self.lora is not None:
            parts.append(f"LoRA of rank {self.lora}")
        if (frozen := self.plan.frozen) is not None:
            share = f"frozen start, {frozen.epochs(self.epochs)} of {self.epochs} epochs"
            parts.append(f"{share}, then {'all' if frozen.scope == 'all' else 'encoder'} rates x {frozen.factor:g}")
        if self.llrd is not None:
            parts.append(f"layer-wise rates x {self.llrd:g}")
        return ", ".join(parts) or "full"

    def settings(self) -> dict[str, Any]:
        """What decides the result, as plain JSON."""
        return {**dataclasses.asdict(self), "name": self.kind, "lrs": list(self.rates), "hidden": list(self.hidden)}


def _frozen(recipe: Recipe) -> FrozenStart | None:
    if recipe.kind == "head":
        return FrozenStart(share=1.0, factor=1.0, scope="encoder")
    if recipe.kind == "full":
        return None
    factor = recipe.unfreeze_factor
    if factor is None:
        factor = 0.1 if recipe.llrd is None else 1.0
    scope = "all" if recipe.unfreeze_head and factor != 1 else "encoder"
    return FrozenStart(share=recipe.frozen_share, factor=factor, scope=scope)


def _check(recipe: Recipe) -> None:
    """Refuse what a user can have asked for and cannot be.

    Raises:
        InputError: names the flag.
    """
    _check_choices(recipe)
    _check_numbers(recipe)
    if recipe.kind == "head" and (recipe.llrd is not None or recipe.lora is not None):
        raise InputError("--recipe head: the encoder does not learn, so --llrd and --lora have no use. Leave them out.")
    if recipe.llrd is not None and recipe.lora is not None:
        raise InputError("--llrd and --lora are two ways to hold an encoder back. Give one of them.")
    if recipe.llrd is not None and recipe.unfreeze_factor not in {None, 1.0}:
        raise InputError(
            f"--unfreeze-factor {recipe.unfreeze_factor:g} with --llrd: rates by layer are never edited. Leave it out."
        )


def _check_choices(recipe: Recipe) -> None:
    choices = (
        ("--recipe", recipe.kind, RECIPES),
        ("--decay", recipe.decay, DECAYS),
        ("--precision", recipe.precision, tuple(PRECISIONS)),
        ("--class-weights", recipe.class_weights, CLASS_WEIGHTS),
        ("--loss", recipe.error, ERRORS),
    )
    for flag, value, known in choices:
        if value not in known:
            raise InputError(f"{flag} {value}: known are {', '.join(known)}.")


def _check_numbers(recipe: Recipe) -> None:
    counts = {
        "--epochs": recipe.epochs,
        "--batch-size": recipe.batch_size,
        "--accumulate": recipe.accumulate,
        "--patience": recipe.patience,
        "--lora": recipe.lora,
    }
    low = [f"{flag} {value}" for flag, value in counts.items() if value is not None and value < 1]
    above = {"--clip-norm": recipe.clip_norm, "--unfreeze-factor": recipe.unfreeze_factor, "--lr": min(recipe.rates)}
    low += [f"{flag} {v:g}" for flag, v in above.items() if v is not None and not 0 < v < math.inf]
    if low:
        raise InputError(f"{', '.join(low)}: must be above 0.")
    if recipe.llrd is not None and not 0 < recipe.llrd <= 1:
        raise InputError(f"--llrd {recipe.llrd:g}: the decay per layer lies between 0 and 1; 0.65 is published.")
    if not 0 <= recipe.frozen_share <= 1:
        raise InputError(f"--frozen-share {recipe.frozen_share:g}: a share lies between 0 and 1.")
    if recipe.drop_path is not None and not 0 <= recipe.drop_path < 1:
        raise InputError(f"--drop-path {recipe.drop_path:g}: a rate is at least 0 and below 1.")
    if not 0 <= recipe.weight_decay < math.inf:
        raise InputError(f"--weight-decay {recipe.weight_decay:g}: must not be below 0.")
    if len(set(recipe.rates)) < len(recipe.rates):
        raise InputError(f"--sweep lr={','.join(f'{lr:g}' for lr in recipe.rates)}: names a rate twice.")
