"""What the bands of a class map hold, how a probe's scores become them, and the colours and names that go with them."""

from __future__ import annotations

import colorsys
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.geo.grid import PIXEL_M
from olmoearth_cli.maps.map_spec import MapSpec
from olmoearth_cli.maps.merge import Form

if TYPE_CHECKING:
    from olmoearth_cli.core.probe.saved import SavedProbe

Array = npt.NDArray[Any]
Colour = tuple[int, int, int]
WINDOW = 512
"""Side of a class map's blocks, and of what is merged at once."""
PERCENT = 0.01
"""GDAL scale of a band in percent: what is read times this is a probability."""

_CUSTOMARY: tuple[tuple[frozenset[str], Colour], ...] = tuple(
    (frozenset(words.split()), colour)
    for words, colour in (
        # The legend of ESA WorldCover, which readers of land-cover maps know; the narrower word comes first.
        ("mangrove mangroves", (0, 207, 117)),
        ("wetland wetlands marsh swamp bog peatland", (0, 150, 160)),
        ("water river rivers lake lakes sea ocean", (0, 100, 200)),
        ("snow ice glacier glaciers", (240, 240, 240)),
        ("urban built builtup buildings building settlement settlements city impervious artificial", (250, 0, 0)),
        ("forest forests tree trees woodland woods", (0, 100, 0)),
        ("shrub shrubs shrubland scrub", (255, 187, 34)),
        ("crop crops cropland croplands agriculture arable farmland", (240, 150, 255)),
        ("grass grassland grasslands pasture meadow rangeland", (255, 255, 76)),
        ("moss lichen", (250, 230, 160)),
        ("bare barren sand rock desert soil", (180, 180, 180)),
    )
)
RESEMBLING = 80.0
"""Colours nearer than this in RGB are taken for one another."""
_NEGATIONS = frozenset({"no", "non", "not", "other"})
_PALETTE: tuple[Colour, ...] = (
    # Okabe and Ito's colours, told apart with every common kind of colour blindness, then Tol's muted ones.
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (51, 34, 136),
    (136, 204, 238),
    (68, 170, 153),
    (153, 153, 51),
    (221, 204, 119),
    (136, 34, 85),
    (170, 68, 153),
    (17, 119, 51),
    (204, 102, 119),
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The form of a class map."""

    kind: str
    """`classification`, `multilabel`, `segmentation` or `regression`."""
    class_names: tuple[str, ...]
    """[C] in the order of the class ids; empty for regression."""
    bands: tuple[str, ...]
    """Band descriptions."""
    dtype: str
    """`uint8`, `uint16` (more classes than a byte tells apart) or `float32`."""
    nodata: float
    scales: tuple[float, ...]
    """GDAL scale of each band."""
    cell_px: int
    """Side of an embedding cell in pixels of the class map: 1, or the patch size for segmentation."""
    patch_px: int
    """Side of an embedding cell in 10 m pixels."""

    @property
    def pixel_px(self) -> int:
        """Side of a pixel of the class map in 10 m pixels."""
        return self.patch_px // self.cell_px

    @property
    def pixel_m(self) -> int:
        """Side of a pixel of the class map in metres."""
        return self.pixel_px * PIXEL_M

    @property
    def has_classes(self) -> bool:
        """True where band 1 holds class ids and band 2 the confidence."""
        return self.kind in {"classification", "segmentation"}

    @property
    def form(self) -> Form:
        """The bands as they are written. A class and its confidence stay together in overviews, as one cell's."""
        return Form(
            names=self.bands,
            dtype=self.dtype,
            nodata=self.nodata,
            scales=self.scales,
            offsets=(0.0,) * len(self.bands),
            block=WINDOW,
            window=WINDOW,
            averaged=not self.has_classes,
        )

    def empty(self, height: int, width: int) -> Array:
        """[bands, height, width] without data."""
        return self.form.empty(height, width)

    def has_data(self, values: Array) -> npt.NDArray[np.bool_]:
        """True where band 1 of [bands, ...] holds data."""
        return self.form.has_data(values)


def check_probe(saved: SavedProbe, spec: MapSpec) -> None:
    """Refuse a probe that was fitted on vectors of another model than the map's.

    Raises:
        InputError: names both.
    """
    from olmoearth_cli.core.probe.saved import check_fits

    check_fits(
        saved,
        model_id=spec.model_id,
        weights_sha256=spec.weights_sha256,
        dimensions=spec.dimensions,
        patch_px=spec.patch_px,
    )


def layout_of(saved: SavedProbe, patch_px: int) -> Layout:
    """The form that a probe's class map has over cells of `patch_px`."""
    per_pixel = saved.kind == "segmentation"
    return layout_for(saved.kind, saved.class_names, saved.field, patch_px=patch_px, per_pixel=per_pixel)


def layout_for(kind: str, names: tuple[str, ...], field: str, *, patch_px: int, per_pixel: bool) -> Layout:
    """The form of a map of predictions.

    Args:
        kind: `classification`, `multilabel`, `segmentation` or `regression`.
        names: [C] of the classes; empty for regression.
        field: of the labels: names the values of a regression.
        patch_px: side of an embedding cell in pixels.
        per_pixel: True where every 10 m pixel has its own answer, False where a cell has one.
    """
    bands: tuple[str, ...]
    scales: tuple[float, ...]
    if kind == "regression":
        bands, dtype, nodata, scales = (field or "value",), "float32", float("nan"), (1.0,)
    elif kind == "multilabel":
        bands, dtype, nodata, scales = names, "uint8", 255.0, (PERCENT,) * len(names)
    else:
        wide = len(names) > 255  # ids 0 to 254 leave 255 for no data
        bands, scales = ("class", "confidence"), (1.0, PERCENT)
        dtype, nodata = ("uint16", 65535.0) if wide else ("uint8", 255.0)
    return Layout(
        kind=kind,
        class_names=names,
        bands=bands,
        dtype=dtype,
        nodata=nodata,
        scales=scales,
        cell_px=patch_px if per_pixel else 1,
        patch_px=patch_px,
    )


def encode(layout: Layout, saved: SavedProbe, vectors: npt.NDArray[np.float32]) -> Array:
    """Bands of cells.

    Args:
        layout: the form.
        saved: the probe.
        vectors: [N, D], finite.

    Returns:
        [bands, N, P, P] in the layout's type, P = `cell_px`. Pixels for which no labelled pixel voted have no data.
    """
    scores = saved.probe.scores(vectors)  # N C | N C P P | N
    if layout.kind == "regression":
        return scores.astype(np.float32)[None, :, None, None]
    shares = saved.calibrated(scores)
    if layout.kind == "multilabel":
        return percent(shares).T[:, :, None, None].astype(layout.dtype)
    ids = saved.probe.predict(scores)  # N | N P P
    confidence = np.take_along_axis(shares, ids[:, None], axis=1)[:, 0]
    bands = np.stack([ids, percent(confidence)]).astype(layout.dtype)
    if layout.kind == "classification":
        return bands[..., None, None]
    bands[:, scores.sum(axis=1) == 0] = layout.nodata
    return bands


def percent(shares: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities as the whole percentages that a map holds."""
    return np.rint(100 * np.clip(shares, 0, 1))


def colours(class_names: Sequence[str]) -> list[Colour]:
    """One colour per class, all different, the same for the same names.

    Well-known land covers have their customary colour (lighter for a second class of the same cover); the others
    take a colour-blind-safe palette in order.
    """
    times: Counter[Colour] = Counter()
    chosen: dict[int, Colour] = {}
    for number, name in enumerate(class_names):
        known = _customary(name)
        if known is not None:
            colour = _lighter(known, 0.65 ** times[known])
            times[known] += 1
            if colour not in chosen.values():
                chosen[number] = colour
    for number in range(len(class_names)):
        if number not in chosen:
            chosen[number] = _unlike(set(chosen.values()))
    return [chosen[number] for number in range(len(class_names))]


def _unlike(taken: set[Colour]) -> Colour:
    """The palette's first colour that no taken one resembles; hues by the golden ratio where it has run out."""
    for colour in _PALETTE:
        if all(math.dist(colour, other) >= RESEMBLING for other in taken):
            return colour
    turns = count(len(taken))
    return next(colour for colour in map(_turned, turns) if colour not in taken)


def _customary(name: str) -> Colour | None:
    words = set(re.findall(r"[^\W\d_]+", name.lower()))
    if words & _NEGATIONS:
        return None
    return next((colour for known, colour in _CUSTOMARY if words & known), None)


def _lighter(colour: Colour, share: float) -> Colour:
    r, g, b = (round(255 - (255 - value) * share) for value in colour)
    return r, g, b


def _turned(turn: int) -> Colour:
    """One of many hues, in four lightnesses."""
    r, g, b = colorsys.hls_to_rgb(turn * 0.618034 % 1.0, 0.35 + 0.1 * (turn % 4), 0.6)
    return round(255 * r), round(255 * g), round(255 * b)


def tags(layout: Layout) -> dict[str, str]:
    """Dataset metadata: class names one by one, and the classes as STAC's `classification:classes` lists them.

    The key has no colon: GDAL would split it there.
    """
    found = {f"CLASS_{number}": name for number, name in enumerate(layout.class_names)}
    if layout.has_classes:
        found["CLASSIFICATION_CLASSES"] = json.dumps(stac_classes(layout), ensure_ascii=False)
    return found


def stac_classes(layout: Layout) -> list[dict[str, Any]]:
    """The classes as the STAC classification extension lists them."""
    return [
        {
            "value": number,
            "name": _slug(name, number),
            "title": name,
            "color_hint": "{:02X}{:02X}{:02X}".format(*colour),
        }
        for number, (name, colour) in enumerate(zip(layout.class_names, colours(layout.class_names), strict=True))
    ]


def _slug(name: str, number: int) -> str:
    """A name in the letters that the STAC classification extension allows; the id makes it unique."""
    return f"{re.sub(r'[^0-9A-Za-z-]+', '_', name).strip('_') or 'class'}_{number}"


def aux_xml(layout: Layout) -> str:
    """The `.aux.xml` beside a class map, from which GDAL and QGIS read the colours and the names of band 1.

    Not in the TIFF itself: GDAL's COG driver declares the second band of a TIFF with a palette to be its
    transparency (measured with GDAL 3.10), and the second band here is the confidence.
    """
    names = "".join(f"<Category>{_xml(name)}</Category>" for name in layout.class_names)
    entries = "".join(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in colours(layout.class_names))
    return (
        '<PAMDataset><PAMRasterBand band="1"><ColorInterp>Palette</ColorInterp>'
        f"<CategoryNames>{names}</CategoryNames><ColorTable>{entries}</ColorTable></PAMRasterBand></PAMDataset>\n"
    )


def _xml(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
