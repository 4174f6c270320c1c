"""The input guard: do the pixels agree with what the catalogue says about them? (spec/inputs.md section 5)

Each scene is read once at low resolution, over the region. A contradiction is proof, not suspicion: dark pixels
prove that an offset is absent, dense vegetation and water that it is present, negative values that a radar image
is in decibels. What proves nothing is reported as figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.normalize import band_statistics
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines.providers import product
from olmoearth_pipelines.radiometry import has_power, to_decibel
from olmoearth_pipelines.read import ReadError, read_overview
from olmoearth_pipelines.scene import Scene

Array = np.ndarray
SIDE_PX = 256
"""Side of the low-resolution read."""
DARK_DN = 900
"""A 1st percentile below this proves that the offset of 1000 is not in the pixels."""
LIT_MEDIAN_DN = 1050
"""A median of B04 over vegetation or water above this proves that it is."""
ENOUGH_PIXELS = 200
"""Fewer class pixels than this prove nothing."""
SHADOWS = (2, 3)
DARK_COVER = (4, 6)
"""Scene classes whose red reflectance is known to be low: vegetation, water."""
FAR_Z = 3.0
"""Distance from the training mean, in training deviations, that is worth a warning."""
AMPLITUDE = 20.0
"""Median above this in decibels, or as stored: counts of an uncalibrated product."""
COLD_B9 = 12_000
"""Landsat's cirrus band is dark in Level 1; a mean above this is another product."""
HOW = "Choose another catalogue, or go on with --guard warn."


@dataclass(frozen=True, kw_only=True)
class GuardReport:
    """What the guard saw."""

    figures: list[dict[str, Any]]
    """Per scene: verdict, percentiles, medians, z per band."""
    contradictions: tuple[str, ...]
    """One line each: what failed, why, what to do."""
    warnings: tuple[str, ...]


@dataclass
class _Check:
    """One scene."""

    figures: dict[str, Any]
    contradiction: str | None = None
    warning: str | None = None


def check_scenes(scenes: Sequence[Scene], boxes: Sequence[PixelBox], *, threads: int = 8) -> GuardReport:
    """Look at every scene once.

    Args:
        scenes: the chosen ones.
        boxes: where the map will be; only this part of a scene is looked at.
        threads: scenes read side by side.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        checks = list(pool.map(lambda scene: _check(scene, boxes), scenes))
    return GuardReport(
        figures=[c.figures for c in checks],
        contradictions=tuple(c.contradiction for c in checks if c.contradiction),
        warnings=_summed([c.warning for c in checks if c.warning]),
    )


def _summed(warnings: Sequence[str]) -> tuple[str, ...]:
    """Warnings that differ only in the scene become one line with a count."""
    groups: dict[str, list[str]] = {}
    for line in warnings:
        scene, _, text = line.partition(": ")
        groups.setdefault(text, []).append(scene)
    return tuple(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}" for text, names in groups.items()
    )


def _check(scene: Scene, boxes: Sequence[PixelBox]) -> _Check:
    look = {"sentinel2_l2a": _sentinel2, "sentinel1": _sentinel1, "landsat": _landsat}[scene.modality]
    base = {"scene": scene.id, "product": scene.product}
    try:
        check = look(scene, boxes)
    except ReadError as error:
        # The tiles that need this scene will say so themselves; here it only means that nothing was proved.
        return _Check({**base, "verdict": "unreadable", "reason": str(error)})
    check.figures = {**base, **check.figures}
    return check


def _sentinel2(scene: Scene, boxes: Sequence[PixelBox]) -> _Check:
    """Does the stored pixel carry the offset, and does the provider's rule say so? (section 5.1)"""
    wanted = [b for b in MODALITIES["sentinel2_l2a"].bands if b in scene.assets]
    stored = {b: read_overview(scene, product(scene.product), b, boxes, side_px=SIDE_PX) for b in wanted}
    classes = (
        read_overview(scene, product(scene.product), "SCL", boxes, side_px=SIDE_PX) if "SCL" in scene.assets else None
    )
    found, figures = _offset_verdict(stored, classes)
    figures |= {"offset_by_rule": scene.offset_dn, "offset_by_pixels": found}
    figures["verdict"] = "inconclusive" if found is None else "consistent"
    z = _z_scores("sentinel2_l2a", {b: v[v > 0].astype(np.float64) - scene.offset_dn for b, v in stored.items()})
    check = _Check({**figures, "z": z})
    if found is not None and found != scene.offset_dn:
        check.figures["verdict"] = "contradiction"
        states = {0: "already without the offset", 1000: "still with the +1000 offset"}
        check.contradiction = (
            f"{scene.id}: the pixels are {states[found]} ({_evidence(figures)}), but {scene.product} says they are "
            f"{states[scene.offset_dn]}. {HOW}"
        )
    else:
        check.warning = _far(scene, z, "haze, snow or cloud, or a wrong offset or unit")
    return check


def _offset_verdict(stored: dict[str, Array], classes: Array | None) -> tuple[int | None, dict[str, Any]]:
    """0 or 1000 where the pixels prove it, else None; and the figures."""
    figures: dict[str, Any] = {}
    verdict = None
    for band in ("B04", "B12"):
        if band not in stored:
            continue
        lit = stored[band] > 0
        if classes is not None and classes.shape == lit.shape:
            lit &= ~np.isin(classes, SHADOWS)
        if lit.sum() >= ENOUGH_PIXELS:
            figures[f"p1_{band}"] = float(np.percentile(stored[band][lit], 1))
            if figures[f"p1_{band}"] < DARK_DN:
                verdict = 0
    if classes is not None and "B04" in stored and classes.shape == stored["B04"].shape:
        dark = np.isin(classes, DARK_COVER) & (stored["B04"] > 0)
        if dark.sum() >= ENOUGH_PIXELS:
            figures["median_dark"] = float(np.median(stored["B04"][dark]))
            if verdict is None and LIT_MEDIAN_DN < figures["median_dark"] < LIT_MEDIAN_DN + 1000:
                verdict = 1000
    return verdict, figures


def _evidence(figures: dict[str, Any]) -> str:
    names = {
        "p1_B04": "1st percentile of B04",
        "p1_B12": "1st percentile of B12",
        "median_dark": "median of B04 over vegetation and water",
    }
    return ", ".join(f"{words} {figures[name]:.0f}" for name, words in names.items() if name in figures)


def _sentinel1(scene: Scene, boxes: Sequence[PixelBox]) -> _Check:
    """Linear power, decibels or raw amplitude? The rule of every usable product is linear power (section 5.2)."""
    row = product(scene.product)
    power = {b: read_overview(scene, row, b, boxes, side_px=SIDE_PX) for b in ("vv", "vh") if b in scene.assets}
    vv = next(iter(power.values()))
    vv = vv[has_power(vv)]
    if vv.size < ENOUGH_PIXELS:
        return _Check({"verdict": "inconclusive"})
    median, negative = float(np.median(vv)), float((vv < 0).mean())
    figures: dict[str, Any] = {"median_stored": median, "negative_share": negative}
    found = "linear power"
    if negative > 0.5:
        found = "decibels"
    elif median > AMPLITUDE:
        found = "raw amplitude counts"
    z = _z_scores("sentinel1", {b: _known(to_decibel(v)) for b, v in power.items()})
    check = _Check({**figures, "verdict": "consistent", "units_by_pixels": found, "z": z})
    if found != "linear power":
        check.figures["verdict"] = "contradiction"
        check.contradiction = (
            f"{scene.id}: the pixels are {found} (median {median:.4g}, {negative:.0%} negative), but {scene.product} "
            f"holds linear power. {HOW}"
        )
    else:
        check.warning = _far(scene, z, "another unit or calibration")
    return check


def _landsat(scene: Scene, boxes: Sequence[PixelBox]) -> _Check:
    """Raw Level-1 counts have a dark cirrus band (section 5.3)."""
    row = product(scene.product)
    bands = [b for b in MODALITIES["landsat"].bands if b in scene.assets]
    stored = {b: read_overview(scene, row, b, boxes, side_px=SIDE_PX) for b in bands}
    z = _z_scores("landsat", {b: v[v > 0].astype(np.float64) for b, v in stored.items()})
    cirrus = stored.get("B9")
    lit = cirrus[cirrus > 0] if cirrus is not None else np.empty(0)
    check = _Check({"verdict": "consistent" if lit.size else "inconclusive", "z": z})
    if cirrus is None or (lit.size and lit.mean() > COLD_B9):
        check.figures["verdict"] = "contradiction"
        why = "it has no cirrus band B9" if cirrus is None else f"B9 has a mean of {lit.mean():.0f}"
        check.contradiction = f"{scene.id}: {why}; Level-1 counts are near 4600. This looks like Level 2. {HOW}"
    else:
        check.warning = _far(scene, z, "another processing level")
    return check


def _known(values: Array) -> Array:
    return values[np.isfinite(values)]


def _z_scores(modality: str, values: dict[str, Array]) -> dict[str, float]:
    """Band -> (mean - training mean) / training deviation; bands without pixels are left out (section 5.4)."""
    statistics = band_statistics(modality)
    scores = {}
    for k, band in enumerate(MODALITIES[modality].bands):
        if band in values and values[band].size:
            scores[band] = round(float((values[band].mean() - statistics.mean[k]) / statistics.std[k]), 3)
    return scores


def _far(scene: Scene, z: dict[str, float], cause: str) -> str | None:
    far = [band for band, score in z.items() if abs(score) > FAR_Z]
    if not far:
        return None
    return f"{scene.id}: {', '.join(far)} more than {FAR_Z:.0f} deviations from the training mean: {cause}"
