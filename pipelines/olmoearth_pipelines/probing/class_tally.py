"""What a class map holds, in numbers: counted while it is written, window by window."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_pipelines.probing.class_layout import Array, Layout

HALF = 50
"""A class of a multi-label map counts as present above this percentage."""


@dataclass(kw_only=True, eq=False)
class Tally:
    """Sums over the pixels with data."""

    layout: Layout
    pixels: int = 0
    per_class: npt.NDArray[np.int64] = field(init=False)
    """[C] pixels of each class."""
    total: float = 0.0
    """Sum of the confidence in percent, or of the values (regression)."""
    low: float = float("inf")
    high: float = float("-inf")

    def __post_init__(self) -> None:
        self.per_class = np.zeros(len(self.layout.class_names), dtype=np.int64)

    def add(self, values: Array) -> None:
        """Count [bands, H, W]."""
        seen = values[:, self.layout.has_data(values)]  # bands N
        self.pixels += seen.shape[1]
        if self.layout.has_classes:
            self.per_class += np.bincount(seen[0], minlength=len(self.per_class))
            self.total += float(seen[1].sum(dtype=np.float64))
        elif self.layout.kind == "multilabel":
            self.per_class += (seen > HALF).sum(axis=1)
        elif seen.size:
            self.total += float(seen.sum(dtype=np.float64))
            self.low, self.high = min(self.low, float(seen.min())), max(self.high, float(seen.max()))

    def to_json(self) -> str:
        """The figures as they are stored in the file."""
        return json.dumps(self.figures())

    def figures(self) -> dict[str, Any]:
        """`km2` with data; `classes`: name -> `km2`, `share`; `mean_confidence` 0 to 1; `values` of a regression."""
        pixel_km2 = self.layout.pixel_m**2 / 1e6
        count = max(self.pixels, 1)
        found: dict[str, Any] = {"km2": round(self.pixels * pixel_km2, 6)}
        found["classes"] = {
            name: {"km2": round(int(n) * pixel_km2, 6), "share": int(n) / count}
            for name, n in zip(self.layout.class_names, self.per_class, strict=True)
        }
        found["mean_confidence"] = self.total / count / 100 if self.layout.has_classes and self.pixels else None
        regression = self.layout.kind == "regression" and self.pixels
        found["values"] = {"mean": self.total / count, "min": self.low, "max": self.high} if regression else None
        return found
