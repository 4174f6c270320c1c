"""Windows of the judged split as pictures: what the satellite saw, what was labelled, what the model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.maps.preview import png_bytes
from olmoearth_pipelines.finetuning.report import Shown
from olmoearth_pipelines.probing.class_layout import Colour, colours
from olmoearth_pipelines.probing.class_picture import STRETCH, shades
from olmoearth_pipelines.probing.report_figures import escape, map_picture, number
from olmoearth_pipelines.probing.report_page import chip, legend

Image = npt.NDArray[np.uint8]
PER_PIXEL = ("segmentation", "pixel_regression")
SCALE_STEPS = 5
"""Colours of a scale of values that the legend names."""


def samples(shown: Sequence[Shown], kind: str, class_names: Sequence[str]) -> str:
    """Windows side by side with their legend, as HTML; empty for none.

    Args:
        shown: windows of the judged split.
        kind: of the targets, as in `HeadSpec`.
        class_names: C names; empty for regression.
    """
    if not shown:
        return ""
    key = _key(shown, kind, class_names)
    figures = "".join(_figure(one, kind, key) for one in shown)
    per_pixel = kind in PER_PIXEL
    note = " Grey in the labels: not labelled." if per_pixel else ""
    return (
        f'<h2>Samples</h2><div class="samples" style="--w:{300 if per_pixel else 150}px">{figures}</div>'
        f"{legend(key.entries) if per_pixel else ''}"
        f'<p class="muted">Windows of the judged split, evenly picked, their brightness stretched.{note}</p>'
    )


@dataclass(frozen=True, kw_only=True)
class _Key:
    """What colours mean."""

    entries: tuple[tuple[str, Colour], ...]
    """Classes, or some values of the scale."""
    low: float = 0.0
    high: float = 1.0
    """Ends of the scale of values."""


def _key(shown: Sequence[Shown], kind: str, class_names: Sequence[str]) -> _Key:
    if kind != "pixel_regression":
        return _Key(entries=tuple(zip(class_names, colours(class_names), strict=True)))
    values = np.concatenate([np.ravel(part).astype(np.float64) for one in shown for part in (one.truth, one.predicted)])
    values = values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(values, STRETCH)) if len(values) else (0.0, 1.0)
    steps = np.linspace(low, high, SCALE_STEPS)
    inks = shades(steps, low, high).tolist()
    return _Key(
        entries=tuple((number(v), (r, g, b)) for v, (r, g, b) in zip(steps, inks, strict=True)), low=low, high=high
    )


def _figure(one: Shown, kind: str, key: _Key) -> str:
    panes, caption = [("picture", one.picture)], escape(one.id)
    if kind in PER_PIXEL:
        panes += [(name, _painted(part, one, key)) for name, part in (("labels", one.truth), ("answer", one.predicted))]
    else:
        caption += f"<br>label: {_said(one.truth, kind, key)}<br>answer: {_said(one.predicted, kind, key)}"
    drawn = "".join(f"<span>{map_picture(_png(image), f'{name}, {one.id}')}{name}</span>" for name, image in panes)
    return f'<figure><div class="panes">{drawn}</div><figcaption>{caption}</figcaption></figure>'


def _painted(values: npt.NDArray[Any], one: Shown, key: _Key) -> Image:
    """[H, W, 3] values or classes [H, W] in their colours, over a pale grey picture where there are none."""
    pale = (one.picture.mean(axis=-1, keepdims=True) * 0.35 + 140).repeat(3, axis=-1)
    if values.dtype.kind == "f":
        known = np.isfinite(values)
        ink = shades(np.where(known, values, key.low), key.low, key.high)
    else:
        known = values >= 0
        ink = np.array([colour for _, colour in key.entries], np.uint8)[np.where(known, values, 0)]
    return np.where(known[..., None], ink, pale).astype(np.uint8)


def _said(target: npt.NDArray[Any], kind: str, key: _Key) -> str:
    """A window's target or answer in words, as HTML."""
    if kind == "regression":
        return number(float(target))
    chosen = np.flatnonzero(target) if kind == "multilabel" else np.ravel(target)
    names = [f"{chip(key.entries[k][1])}{escape(key.entries[k][0])}" for k in chosen.tolist() if k >= 0]
    return ", ".join(names) or "none"


def _png(image: Image) -> bytes:
    solid = np.full((1, *image.shape[:2]), 255, np.uint8)
    return png_bytes(np.concatenate([np.moveaxis(image, -1, 0), solid]))
