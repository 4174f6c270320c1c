"""Labelled windows from a seed, and tasks for them."""

from __future__ import annotations

import numpy as np

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_pipelines.windows.window import Window, WindowTask

S2, S1 = "sentinel2_l2a", "sentinel1"


def some_task(**more: object) -> WindowTask:
    row = {"kind": "segmentation", "class_names": ("a", "b", "c"), "field": "crop", "modalities": (S2, S1)}
    return WindowTask(**{"name": "fields", "window_px": 8, "periods": 3, **row, **more})  # type: ignore[arg-type]


def some_window(
    name: str, *, side: int = 8, periods: int = 3, seed: int = 0, modalities=(S2, S1), target=None
) -> Window:
    """Everything is seen; the target is a map of three classes unless given."""
    rng = np.random.default_rng(seed)
    shapes = {m: (side, side, periods, len(MODALITIES[m].bands)) for m in modalities}
    images = {
        m: rng.normal(-12, 3, shape).astype(np.float32) if m == S1 else rng.integers(1, 5000, shape).astype(np.uint16)
        for m, shape in shapes.items()
    }
    return Window(
        id=name,
        images=images,
        valid={m: np.ones(shape[:3], bool) for m, shape in shapes.items()},
        absent={m: np.zeros(shape[2:], bool) for m, shape in shapes.items()},
        timestamps=np.stack([np.ones(periods), np.arange(periods), np.full(periods, 2022)], axis=1).astype(np.int64),
        target=rng.integers(-1, 3, (side, side)) if target is None else np.asarray(target),
        lonlat=(5.25, 50.75),
        group=seed,
    )
