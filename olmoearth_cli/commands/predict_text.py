"""A prediction as a person reads it on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from olmoearth_cli.console import duration, size, table

if TYPE_CHECKING:
    from olmoearth_pipelines.predict import ClassMapSummary, PredictSummary

MOST_CLASSES = 20
"""Classes that are listed, the largest; the raster holds the others as well."""


def summary_text(summary: PredictSummary) -> str:
    """What was predicted, where it lies, and how the area divides."""
    if summary.unchanged:
        return f"{summary.folder}: already complete ({summary.tiles} tiles); nothing to do."
    tiles = f"{summary.tiles} tiles" + (f" ({summary.kept} kept from before)" if summary.kept else "")
    parts = [tiles, f"{summary.km2:.3g} km2 in {duration(summary.seconds)}", *_figures(summary)]
    if summary.demo:
        parts.append("DEMO WEIGHTS: fine-tuned from weights that had learned nothing")
    lines = ["; ".join(parts), *_areas(summary.classes)]
    written = (("map", summary.path), ("preview", summary.preview), ("polygons", summary.vector))
    return "\n".join([*lines, *(f"{name}: {path}" for name, path in written if path)])


def class_map_text(summary: ClassMapSummary) -> str:
    """What a probe made of a map."""
    if summary.unchanged:
        return f"{summary.path}: already made of this probe and this map; nothing to do."
    parts = [f"{summary.tiles} tiles", f"{summary.km2:.3g} km2 in {duration(summary.seconds)}", *_figures(summary)]
    if summary.gaps:
        parts.append(f"{summary.gaps} gaps of the map stay without data")
    return "\n".join(["; ".join(parts), *_areas(summary.classes)])


def plan_text(figures: Mapping[str, Any]) -> str:
    """What a run would take."""
    scenes = ", ".join(f"{name} {count}" for name, count in figures["scenes"].items())
    rows = [
        ("region", f"{figures['region_km2']:.1f} km2"),
        ("dates", f"{figures['start']} to {figures['end']}, {figures['periods']} periods of 30 days"),
        ("tiles", f"{figures['tiles']} of {figures['tile_px']} px, {figures['windows']} windows"),
        ("scenes", scenes),
        ("to read", f"about {size(figures['bytes_to_read'])} (decoded)"),
        ("to compute", f"{figures['gflops']:,.0f} GFLOP with {figures['model']} (without the head)"),
        ("memory", f"about {size(figures['memory_per_worker'])} per worker, {figures['workers']} worker(s)"),
        ("time", f"about {duration(figures['expected_seconds'])} on {figures['device']}"),
        ("disk", f"up to {size(figures['disk_bytes'])} in {figures['folder']}"),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in rows)


def _figures(summary: PredictSummary | ClassMapSummary) -> list[str]:
    found = []
    if summary.mean_confidence is not None:
        found.append(f"mean confidence {summary.mean_confidence:.2f}")
    if summary.values is not None:
        values = summary.values
        found.append(f"values {values['min']:.4g} to {values['max']:.4g}, mean {values['mean']:.4g}")
    return found


def _areas(classes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Classes by area, the largest first."""
    if not classes:
        return []
    order = sorted(classes, key=lambda name: -classes[name]["km2"])
    rows = [(name, f"{classes[name]['km2']:.3f}", f"{classes[name]['share']:.1%}") for name in order[:MOST_CLASSES]]
    more = [f"and {len(order) - MOST_CLASSES} smaller classes"] if len(order) > MOST_CLASSES else []
    return [table(("class", "km2", "share"), rows), *more]
