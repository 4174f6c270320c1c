"""The published pretraining recipes as data (spec/pretraining.md sections 0 and 6)."""

from __future__ import annotations

from dataclasses import dataclass, field

from olmoearth_cli.core.masking import Masking
from olmoearth_cli.core.objective import Objective
from olmoearth_cli.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a released model was pretrained."""

    peak_lr: float
    """Learning rate after warm-up."""
    weight_decay: float
    """Of all parameters."""
    microbatch: int = 64
    """Samples of one forward pass; the instance contrast sees no others."""
    masking: Masking = field(default_factory=Masking)
    """How views are drawn."""
    objective: Objective = field(default_factory=Objective)
    """What is minimised."""
    augment: str = "none"
    """`none`, or `per_view`: another flip or rotation for each view."""


def released_recipe(release: str, size: str) -> Recipe:
    """The recipe of a release and size; v1.2-large has one though no weights.

    Raises:
        ModelError: none is known.
    """
    if release == "v1" and size in ("nano", "tiny", "base", "large"):
        return Recipe(
            peak_lr=1e-4,
            weight_decay=0.02,
            microbatch=32,
            masking=Masking(strategy="v1"),
            objective=Objective(twin_modalities=(), contrast_weight=0.1),
            augment="per_view",
        )
    if release in ("v1.1", "v1.2") and size in ("nano", "tiny", "small", "base", "large"):
        small = size in ("nano", "tiny", "small")
        return Recipe(peak_lr=2e-4 if small else 1e-4, weight_decay=0.002 if size == "tiny" else 0.02)
    raise ModelError(
        f"no pretraining recipe is published for {release} {size}. Known are v1, v1.1 and v1.2; start from v1.2-nano."
    )
