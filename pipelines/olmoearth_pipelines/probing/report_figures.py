"""The figures of the HTML pages as inline SVG: comparison bars, confusion matrix, scatter, maps with labels.

Colours come from the page's style sheet, so that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import base64
import html
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Colour = tuple[int, int, int]
Label = tuple[float, float, int]
"""(share of the width, share of the height, class index), from the upper left corner."""
MOST_POINTS = 500
"""Points of a scatter."""
MOST_LABELS = 5000
"""Labels drawn on a map."""
MATRIX_CLASSES = 60
"""Beyond this many classes a confusion matrix is a grey square of megabytes."""
_NAME_CHARS = 26


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of a comparison."""

    name: str
    value: float
    """NaN where it is not known."""
    low: float | None = None
    """Lower end of the interval; None where there is none."""
    high: float | None = None
    own: bool = False
    """True for the probe itself, False for what it is compared with."""


def escape(text: object) -> str:
    """Text that is safe in HTML, between tags and inside quoted attributes."""
    return html.escape(str(text), quote=True)


def number(value: float | None) -> str:
    """Three decimals below 10 and three digits above, an en dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    text = f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"
    if 0 < size < 0.001:
        text = f"{value:.2g}"
    return text.replace("-", "−").replace(",", "\u202f")


def count(value: int) -> str:
    """A count in at most four characters, for a cell of a matrix."""
    if value < 10_000:
        return str(value)
    if value < 999_500:
        return f"{value / 1e3:.0f}k"
    return f"{value / 1e6:.1f}M" if value < 9_950_000 else f"{value / 1e6:.0f}M"


def interval(low: float | None, high: float | None) -> str:
    """`0.841 to 0.902`; empty where an end is missing."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def css(colour: Colour) -> str:
    """`#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def comparison(bars: Sequence[Bar]) -> str:
    """Horizontal bars with intervals on one axis; the axis is 0 to 1 where all values are shares."""
    ends = [v for b in bars for v in (b.value, b.low, b.high) if v is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    marks = ticks(0.0, 1.0) if low >= 0 and 0.2 < high <= 1 else ticks(low, high)
    low, high = marks[0], marks[-1]
    left, width, row, top = 215.0, 380.0, 32, 8
    bottom = top + row * len(bars)

    def x(value: float) -> float:
        return left + width * (value - low) / (high - low)

    parts = [axis_line(x(t), top, bottom, tick_text(t, marks)) for t in marks]
    for k, bar in enumerate(bars):
        y = top + row * k
        parts.append(f'<text x="{left - 10:.0f}" y="{y + 20}" class="end">{_short(bar.name, 30)}</text>')
        parts.append(_bar_with_whisker(bar, y, x))
        parts.append(
            f'<text x="{left + width + 16:.0f}" y="{y + 20}"><tspan class="strong">{number(bar.value)}</tspan>'
            f'<tspan class="muted" dx="8">{interval(bar.low, bar.high)}</tspan></text>'
        )
    return svg(815, bottom + 24, parts, "comparison with baselines", fixed=True)


def _bar_with_whisker(bar: Bar, y: int, x: Callable[[float], float]) -> str:
    start, end = sorted((x(0.0), x(bar.value)))
    kind, middle = "own" if bar.own else "other", y + 16
    drawn = f'<rect class="{kind}" x="{start:.1f}" y="{y + 6}" width="{end - start:.1f}" height="20" rx="2"/>'
    if bar.low is None or bar.high is None:
        return drawn
    a, b = x(bar.low), x(bar.high)
    return (
        f'{drawn}<path class="whisker" d="M{a:.1f} {middle}H{b:.1f}M{a:.1f} {middle - 5}v10M{b:.1f} {middle - 5}v10"/>'
    )


def axis_line(x: float, top: float, bottom: float, label: str) -> str:
    """A vertical line of the grid with its label below."""
    return (
        f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>'
        f'<text class="muted mid" x="{x:.1f}" y="{bottom + 17}">{label}</text>'
    )


def confusion_matrix(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Counts [true, predicted], shaded by their share of the row.

    Args:
        confusion: C rows of C counts.
        names: C class names.
    """
    n = len(names)
    side, font = (46, 13) if n <= 12 else (32, 11) if n <= 20 else (21, 9)
    turn = 50 if n <= 20 else 70  # degrees of the column names: steeper ones need less room on the right
    reach = min(_NAME_CHARS, max(map(len, names))) * font * 0.58  # length of the longest name as drawn
    rise, run = reach * math.sin(math.radians(turn)), reach * math.cos(math.radians(turn))
    left, top = round(reach + 34), round(rise + 42)
    width, height = left + side * n + round(run), top + side * n + 4
    parts = [
        f'<g font-size="{font}">',
        f'<text class="muted" x="{left}" y="12">predicted →</text>',
        f'<text class="muted mid" transform="translate(12 {top + side * n / 2})rotate(-90)">← true</text>',
    ]
    for k, name in enumerate(names):
        at = side * k + side / 2
        parts.append(
            f'<text class="end" x="{left - 6}" y="{top + at + font * 0.35:.1f}">{_short(name)}</text>'
            f'<text transform="translate({left + at + font * 0.3:.1f} {top - 6})rotate(-{turn})">{_short(name)}</text>'
        )
    parts += [_matrix_row(row, k, side, names, (left, top)) for k, row in enumerate(confusion)]
    parts.append(f'<rect class="frame" x="{left}" y="{top}" width="{side * n}" height="{side * n}"/></g>')
    return svg(width, height, parts, "confusion matrix", fixed=n > 12)


def _matrix_row(row: Sequence[int], at: int, side: int, names: Sequence[str], origin: tuple[int, int]) -> str:
    """One true class; empty cells are not drawn, and only small matrices name their cells (43 classes: 1849)."""
    total, spelled = sum(row), len(names) <= 20
    parts = [f'<g transform="translate({origin[0]} {origin[1] + side * at})">']
    for k, value in enumerate(row):
        if not value:
            continue
        share = value / total
        title = (
            f"<title>{escape(names[at])} taken for {escape(names[k])}: {value} of {total} ({share:.1%})</title>"
            if spelled
            else ""
        )
        middle = side * k + side / 2
        parts.append(
            f'<rect class="own" x="{side * k}" width="{side}" height="{side}" opacity="{max(share, 0.06):.2f}"/>'
            f'<text class="mid{" on" if share > 0.55 else ""}" x="{middle:g}" y="{side * 0.64:.1f}">{count(value)}'
            f"{title}</text>"
        )
    parts.append(f'<rect class="right" x="{side * at}" width="{side}" height="{side}"/></g>')
    return "".join(parts)


def scatter(true: Sequence[float], predicted: Sequence[float], unit: str) -> str:
    """Predicted against true values with the line of equality; at most `MOST_POINTS`, evenly picked."""
    pairs = [(t, p) for t, p in zip(true, predicted, strict=True) if math.isfinite(t) and math.isfinite(p)]
    pairs = _thin(pairs, MOST_POINTS)
    values = [v for pair in pairs for v in pair] or [0.0, 1.0]
    low, high = min(values), max(values)
    margin = 0.03 * (high - low) or 1.0
    low, high = low - margin, high + margin
    marks = [tick for tick in ticks(low, high) if low <= tick <= high]
    left, top, side = 70.0, 10.0, 400.0

    def at(value: float) -> float:
        return side * (value - low) / (high - low)

    parts = []
    for tick in marks:
        x, y, label = left + at(tick), top + side - at(tick), tick_text(tick, marks)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {top}v{side}M{left} {y:.1f}h{side}"/>'
            f'<text class="muted mid" x="{x:.1f}" y="{top + side + 18}">{label}</text>'
            f'<text class="muted end" x="{left - 8}" y="{y + 4:.1f}">{label}</text>'
        )
    dots = "".join(f"M{left + at(t):.1f} {top + side - at(p):.1f}h0" for t, p in pairs)
    parts += [
        f'<path class="equal" d="M{left} {top + side}L{left + side} {top}"/>',
        f'<path class="dots" d="{dots}"/>',
        f'<text class="mid" x="{left + side / 2}" y="{top + side + 38}">true {escape(unit)}</text>',
        f'<text class="mid" transform="translate(16 {top + side / 2})rotate(-90)">predicted {escape(unit)}</text>',
    ]
    return svg(490, 460, parts, "predicted against true values")


def map_picture(png: bytes, title: str, labels: Sequence[Label] = (), colours: Sequence[Colour] = ()) -> str:
    """A PNG with the labels on it, in their classes' colours.

    Args:
        png: the picture.
        title: what it shows, for those who cannot see it.
        labels: at most `MOST_LABELS` are drawn, evenly picked.
        colours: of the classes; a label without one is drawn in the text's colour.
    """
    width, height = _png_size(png)
    scale = max(width, height) / 480  # pixels of the picture per pixel of the screen, about
    data = base64.b64encode(png).decode()
    parts = [f'<image width="{width}" height="{height}" href="data:image/png;base64,{data}"/>']
    by_class: dict[int, list[str]] = {}
    for x, y, k in _thin(labels, MOST_LABELS):
        by_class.setdefault(k, []).append(f"M{x * width:.1f} {y * height:.1f}h0")
    for border in (True, False):  # all rims first, so that none cuts a neighbour's dot
        for k, dots in sorted(by_class.items()):
            known = not border and 0 <= k < len(colours)
            ink, dot = "#fff" if border else css(colours[k]) if known else "#222", scale * (8 if border else 5.5)
            parts.append(f'<path class="label" stroke="{ink}" stroke-width="{dot:.2f}" d="{"".join(dots)}"/>')
    return svg(width, height, parts, title, kind="map")


def _png_size(png: bytes) -> tuple[int, int]:
    """(width, height) from the header."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise ValueError("not a PNG")
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


def _thin(values: Sequence[T], most: int) -> list[T]:
    """At most `most` of the values, evenly spread."""
    step = max(1.0, len(values) / most)
    return [values[int(k * step)] for k in range(min(len(values), most))]


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers (1, 2 or 5 times a power of ten) that enclose a range."""
    span = high - low or abs(high) or 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def tick_text(tick: float, marks: Sequence[float]) -> str:
    """A tick with the decimals that tell it from the next one."""
    decimals = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))
    return f"{tick:.{decimals}f}".replace("-", "−")


def _short(name: str, most: int = _NAME_CHARS) -> str:
    """An escaped name; a long one is cut, and whole in its tooltip."""
    if len(name) <= most:
        return escape(name)
    return f"{escape(name[: most - 1])}…<title>{escape(name)}</title>"


def svg(
    width: float, height: float, parts: Iterable[str], title: str, *, fixed: bool = False, kind: str = "figure"
) -> str:
    """A drawing that shrinks with the page; a fixed one keeps its size there, for text that must stay legible."""
    size = f' style="min-width:{width:.0f}px"' if fixed else ""
    return (
        f'<svg class="{kind}" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}"{size}>{"".join(parts)}</svg>'
    )
