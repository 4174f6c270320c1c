"""How training went as inline SVG: losses, validation values and rates over the epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from olmoearth_pipelines.probing.report_figures import axis_line, escape, svg, tick_text, ticks

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 366, 12, 206
"""Edges of the plot within the drawing."""
EPOCH_TICKS = 6


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    name: str
    """For those who point at it."""
    points: tuple[tuple[int, float | None], ...]
    """(epoch from 1, value); None or not finite where there is none."""
    colour: str
    """In CSS."""
    kept: bool = True
    """True for the training whose weights were kept: drawn stronger."""
    dashed: bool = False
    mark: int | None = None
    """Epoch that is marked; None for none."""


def chart(curves: Sequence[Curve], title: str, *, logarithmic: bool = False) -> str:
    """Lines over epochs; empty where there is no value.

    Args:
        curves: those drawn last lie on top.
        title: of the vertical axis.
        logarithmic: True spaces powers of ten evenly, and leaves values that are not positive out.
    """
    drawn = [(curve, _finite(curve, logarithmic=logarithmic)) for curve in curves]
    values = [value for _, points in drawn for _, value in points]
    if not values:
        return ""
    last = max(epoch for curve in curves for epoch, _ in curve.points)
    down, marks = _axis(values, logarithmic=logarithmic)

    def across(epoch: float) -> float:
        return LEFT + (RIGHT - LEFT) * (epoch - 1) / max(last - 1, 1)

    parts = [axis_line(across(epoch), TOP, BOTTOM, str(epoch)) for epoch in _epochs(last)]
    parts += [
        f'<path class="grid" d="M{LEFT} {down(value):.1f}H{RIGHT}"/>'
        f'<text class="muted end" x="{LEFT - 6}" y="{down(value) + 4:.1f}">{text}</text>'
        for value, text in marks
    ]
    parts += [_line(curve, points, across, down) for curve, points in drawn if points]
    parts.append(f'<text class="muted mid" x="{(LEFT + RIGHT) / 2:.0f}" y="{HEIGHT - 6}">epoch</text>')
    return svg(WIDTH, HEIGHT, parts, f"{title} by epoch")


Place = Callable[[float], float]
Points = list[tuple[int, float]]


def _finite(curve: Curve, *, logarithmic: bool) -> Points:
    return [
        (epoch, value)
        for epoch, value in curve.points
        if value is not None and math.isfinite(value) and (value > 0 or not logarithmic)
    ]


def _axis(values: Sequence[float], *, logarithmic: bool) -> tuple[Place, list[tuple[float, str]]]:
    """Place of a value, and the labelled ones."""
    if logarithmic:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        high = max(high, low + 1)
        step = max(1, math.ceil((high - low) / 5))
        marks = [(10.0**power, f"1e{power}".replace("-", "−")) for power in range(low, high + 1, step)]
        return lambda value: BOTTOM - (BOTTOM - TOP) * (math.log10(value) - low) / (high - low), marks
    lines = ticks(min(values), max(values))
    first, last = lines[0], lines[-1]
    labels = [(value, tick_text(value, lines)) for value in lines]
    return lambda value: BOTTOM - (BOTTOM - TOP) * (value - first) / (last - first), labels


def _epochs(last: int) -> list[int]:
    """Whole epochs to label, the first among them."""
    if last <= EPOCH_TICKS:
        return list(range(1, last + 1))
    round_ones = [round(value) for value in ticks(0, last) if value == round(value)]
    return [1, *(epoch for epoch in round_ones if 1 < epoch <= last)]


def _line(curve: Curve, points: Points, across: Place, down: Place) -> str:
    kinds = " ".join(["line", *(["kept"] if curve.kept else []), *(["dashed"] if curve.dashed else [])])
    path = "L".join(f"{across(epoch):.1f} {down(value):.1f}" for epoch, value in points)
    ink, name = escape(curve.colour), f"<title>{escape(curve.name)}</title>"
    # A path of one point has no length, and would not be seen.
    dots = [(e, v) for e, v in points if e == curve.mark or len(points) == 1]
    circles = "".join(
        f'<circle cx="{across(epoch):.1f}" cy="{down(value):.1f}" r="4.5" style="fill:{ink}">{name}</circle>'
        for epoch, value in dots
    )
    return f'<path class="{kinds}" style="stroke:{ink}" d="M{path}">{name}</path>{circles}'
