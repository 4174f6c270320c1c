"""Windows to look at: what the satellite saw, what was labelled, what the model answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.finetune.loop import scores_of
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.probe.decide import decide
from olmoearth_pipelines.finetuning.report import Shown
from olmoearth_pipelines.finetuning.setup import Setup
from olmoearth_pipelines.windows.window import Window

SHOWN = 8
"""Windows."""
TRUE_COLOUR = {"sentinel2_l2a": ("B04", "B03", "B02"), "landsat": ("B4", "B3", "B2")}
"""Red, green and blue, in the order of preference."""
STRETCH = (2, 98)
"""Percentiles that become black and white."""


def shown(network: FinetuneModel, setup: Setup, split: str) -> list[Shown]:
    """Some windows of a split, evenly spread over it.

    Args:
        network: fine-tuned.
        setup: of the run.
        split: `val` or `test`.
    """
    numbers = setup.survey.numbers[split]
    chosen = numbers[np.unique(np.linspace(0, len(numbers) - 1, SHOWN).round().astype(int))]
    kind = setup.plan.head.kind
    found = []
    for number in chosen:
        window = setup.reader.window(int(number))
        scores = scores_of(network, setup.reader.batch(np.array([number])), setup.objective.target)
        answer = decide(kind, scores.numpy())[0]
        found.append(Shown(id=window.id, picture=picture_of(window), truth=window.target, predicted=answer))
    return found


def picture_of(window: Window) -> npt.NDArray[np.uint8]:
    """[H, W, 3]: true colour of the period with most data (of several such the least cloudy, the darkest one), grey
    for radar alone, grey for whatever else there is; black where nothing is known."""
    for name, bands in TRUE_COLOUR.items():
        if name in window.images and window.valid[name].any():
            index = [MODALITIES[name].bands.index(band) for band in bands]
            return _stretched(*_clearest(window, name, index))
    name = "sentinel1" if "sentinel1" in window.images else next(iter(window.images))
    return _stretched(*_clearest(window, name, [0, 0, 0]))


def _clearest(window: Window, name: str, bands: list[int]) -> tuple[Any, npt.NDArray[np.bool_]]:
    """Values [H, W, 3] and where they are known, of one period."""
    values = window.images[name][..., bands].astype(np.float32)  # H W T 3
    known = window.valid[name] & ~window.absent[name][:, bands].any(axis=1)  # H W T
    share = known.mean(axis=(0, 1))
    bright = np.where(known[..., None], values, 0).sum(axis=(0, 1, 3)) / np.maximum(known.sum(axis=(0, 1)), 1)
    best = min(range(len(share)), key=lambda t: (-share[t], bright[t]))
    return values[:, :, best], known[:, :, best]


def _stretched(values: Any, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    if not known.any():
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(values[known], STRETCH)
    grey = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.where(known[..., None], grey, 0).round().astype(np.uint8)
