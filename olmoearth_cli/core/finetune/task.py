"""What a fine-tuned model was taught, as plain JSON: all that is needed to feed it and to read its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from olmoearth_cli.core.finetune.heads import HeadSpec
from olmoearth_cli.core.modality import MODALITIES

Limits = tuple[tuple[float, ...], tuple[float, ...]]
"""[C] values that become 0 and [C] that become 1."""


@dataclass(frozen=True, kw_only=True)
class TaskDescription:
    """A task, for those who use the model later."""

    head: HeadSpec
    """The head, with the kind of target and the patch size."""
    class_names: tuple[str, ...]
    """[C] names in the order of the class ids; empty for regression."""
    field: str
    """Field of the labels that was learned."""
    modalities: tuple[str, ...]
    """Modalities that training read."""
    window_px: int
    """Side of the training windows."""
    periods: int
    """Timesteps T of a training sample; the longest series where they differ."""
    real_dates: bool = True
    """False where dates were replaced by fixed months (spec/evaluation.md section 13)."""
    first_month: int | None = None
    """Month (1-12) in which the training series begin; None where it is not one."""
    normalisation: Mapping[str, Limits] | None = None
    """{modality: limits} of the data set's own statistics; None for those of pretraining (core.normalize)."""
    target: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training values (regression)."""

    def __post_init__(self) -> None:
        names = 0 if self.head.regresses else self.head.classes
        if len(self.class_names) != names:
            raise ValueError(f"{len(self.class_names)} class names for {names} classes")
        unknown = [name for name in self.modalities if name not in MODALITIES]
        if unknown or not self.modalities:
            raise ValueError(f"modalities {', '.join(unknown) or '(none)'} are not known")
        if self.window_px < 1 or self.window_px % self.head.patch_px or self.periods < 1:
            raise ValueError(f"windows of {self.window_px} px, {self.head.patch_px} px patches, {self.periods} periods")
        if self.first_month not in (None, *range(1, 13)):
            raise ValueError(f"there is no month {self.first_month}")
        if not (math.isfinite(self.target[0]) and 0 < self.target[1] < math.inf):
            raise ValueError(f"mean and standard deviation of the targets cannot be {self.target}")
        for name, (low, high) in (self.normalisation or {}).items():
            bands = len(MODALITIES[name].bands) if name in MODALITIES else 0
            if not len(low) == len(high) == bands or not all(a < b for a, b in zip(low, high, strict=True)):
                raise ValueError(f"normalisation of {name}: {bands} pairs of rising limits are needed")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for `from_json`."""
        limits = self.normalisation
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "head": self.head.to_json(),
            "class_names": list(self.class_names),
            "modalities": list(self.modalities),
            "normalisation": limits and {name: [list(side) for side in pair] for name, pair in limits.items()},
            "target": list(self.target),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TaskDescription:
        """The task that `to_json` described.

        Raises:
            KeyError, TypeError, ValueError: it describes none.
        """
        limits = content["normalisation"]
        if limits is not None:
            limits = {name: tuple(tuple(map(float, side)) for side in pair) for name, pair in limits.items()}
        mean, deviation = map(float, content["target"])
        return cls(
            head=HeadSpec.from_json(content["head"]),
            class_names=tuple(map(str, content["class_names"])),
            field=str(content["field"]),
            modalities=tuple(map(str, content["modalities"])),
            window_px=int(content["window_px"]),
            periods=int(content["periods"]),
            real_dates=bool(content["real_dates"]),
            first_month=None if content["first_month"] is None else int(content["first_month"]),
            normalisation=limits,
            target=(mean, deviation),
        )
