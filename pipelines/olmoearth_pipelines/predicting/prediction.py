"""What all tiles of a prediction share, and the tile that is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines.probing.class_layout import Array, Layout, layout_for, percent

if TYPE_CHECKING:
    from olmoearth_cli.core.finetune.task import TaskDescription


@dataclass(frozen=True, kw_only=True)
class PredictionSpec:
    """What all tiles of a prediction share."""

    title: str
    model_name: str
    """Name of the fine-tuned model's folder."""
    base_id: str
    """Published id of the encoder that fine-tuning began with."""
    checkpoint_sha256: str
    """Of the description of the fine-tuned model, which holds the checksums of its files."""
    demo: bool
    """True where the encoder began with random weights."""
    layout: Layout
    """Form of the main raster: classes, probabilities of labels, or values."""
    probabilities: bool
    """True where the probabilities of all classes are kept beside the classes."""
    blend: str
    """`none` or `hann`: what windows that overlap make of a pixel."""
    start: datetime
    """First day of the first period, timezone aware."""
    end: datetime
    """Day after the last period."""
    modalities: tuple[str, ...]
    software: Mapping[str, str] = field(hash=False)
    """Program or library -> version."""

    @property
    def collection_id(self) -> str:
        """Id of the STAC Collection: the title in letters, digits and dashes."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "prediction"

    @property
    def gsd_m(self) -> int:
        """Side of a pixel in metres."""
        return self.layout.pixel_m

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The main raster's form, and that of the probabilities where they are kept."""
        return (self.layout, shares_of(self.layout)) if self.probabilities else (self.layout,)

    def tags(self, layout: Layout) -> dict[str, str]:
        """Dataset metadata on what made a raster."""
        return {
            "KIND": layout.kind,
            "OLMOEARTH_MODEL": self.model_name,
            "OLMOEARTH_BASE_MODEL": self.base_id,
            "OLMOEARTH_CHECKPOINT_SHA256": self.checkpoint_sha256,
            "EMB_DEMO_WEIGHTS": str(self.demo).lower(),
            "EMB_PERIOD": f"{self.start:%Y-%m-%d}/{self.end:%Y-%m-%d}",
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedTile:
    """What a worker computed for one tile."""

    tile_id: str
    box: PixelBox
    rasters: tuple[Array, ...]
    """One per layout of the specification: [bands, H, W] in its type."""
    sources: Mapping[str, str | None]
    """Scene id -> link to the catalogue's item, for `derived_from`."""
    facts: Mapping[str, Any]
    """Plain JSON figures: timings, tokens."""


def layout_of_task(task: TaskDescription) -> Layout:
    """The form of the map that a fine-tuned model makes: pixels of 10 m where each had a target, else map cells."""
    head = task.head
    kind = "regression" if head.regresses else head.kind
    return layout_for(kind, task.class_names, task.field, patch_px=head.patch_px, per_pixel=not head.per_window)


def shares_of(layout: Layout) -> Layout:
    """The form of the probabilities behind a map of classes: one band each, in percent."""
    per_pixel = layout.cell_px == layout.patch_px
    return layout_for("multilabel", layout.class_names, "", patch_px=layout.patch_px, per_pixel=per_pixel)


def bands_of(layout: Layout, scores: npt.NDArray[np.float32]) -> Array:
    """Scores as a raster holds them.

    Args:
        layout: form of the raster.
        scores: [H, W, K] probabilities of the classes, or values (K = 1); NaN where nothing was seen.

    Returns:
        [bands, H, W] in the layout's type; the lowest id wins where classes are equally likely.
    """
    seen = np.isfinite(scores).all(axis=-1)
    known = scores[seen]  # N K
    out = layout.empty(*seen.shape)
    if layout.has_classes:
        found = np.stack([known.argmax(axis=1), percent(known.max(axis=1, initial=0))])
    else:
        found = known.T if layout.kind == "regression" else percent(known.T)
    out[:, seen] = found.astype(layout.dtype)
    return out
