"""A probe's result as a person reads it on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from olmoearth_cli.console import table

if TYPE_CHECKING:
    from olmoearth_pipelines.probing.outcome import ProbeReport

WIDEST_MATRIX = 12
"""Classes up to which the confusion matrix is printed; `--report` draws larger ones."""
LONGEST_NAME = 40
"""Letters of a class name that a table on the terminal shows."""
METHODS = {"knn": "kNN", "linear": "linear probe"}


def report_text(report: ProbeReport) -> str:
    """Headline, comparison, classes, confusion, and what was written."""
    parts = [_headline(report), _comparison(report)]
    if report.per_class:
        parts.append(class_scores(report.per_class))
    if report.confusion is not None and len(report.confusion) <= WIDEST_MATRIX:
        parts.append(_matrix(report))
    written = _written(report)
    return "\n\n".join([*parts, written] if written else parts)


def _headline(report: ProbeReport) -> str:
    what = METHODS[report.probe]
    if report.k is not None:
        what += f" (k {report.k})"
    if report.lr is not None:
        what += f" (rate {report.lr:g})"
    interval = f" (95 % interval {figure(report.low)} to {figure(report.high)})" if report.low is not None else ""
    lines = [
        f"{what}: {report.metric} {figure(report.value)}{interval}",
        f"{report.samples} labelled cells of {report.map}" if report.map else f"{report.samples} labelled vectors",
        f"{report.labels}, field {report.field}; {report.split['description']}",
    ]
    if report.demo:
        lines.append("DEMO WEIGHTS (random): the figures show the road, not what a trained model knows")
    return "\n".join(lines)


def _comparison(report: ProbeReport) -> str:
    rows = [
        (f"{METHODS[report.probe]} on the {'map' if report.map else 'vectors'}", report.value, report.low, report.high)
    ]
    for other in report.baselines:
        name = other["name"]
        name = f"{METHODS[report.probe]} on {name}" if name == "raw bands" else name
        rows.append((name, other["value"], other["low"], other["high"]))
    return table(
        ("", report.metric, "95 % interval"),
        [(name, figure(value), f"{figure(low)} to {figure(high)}") for name, value, low, high in rows],
    )


def class_scores(per_class: Sequence[Mapping[str, Any]]) -> str:
    """A row per class: how many were tested, and how well it is found."""
    rows = [
        (_short(row["name"]), str(row["support"]), *(figure(row[name]) for name in ("precision", "recall", "f1")))
        for row in per_class
    ]
    return table(("class", "tested", "precision", "recall", "F1"), rows)


def _matrix(report: ProbeReport) -> str:
    assert report.confusion is not None
    names = [_short(name) for name in report.class_names]
    rows = [(name, *(str(count) for count in row)) for name, row in zip(names, report.confusion, strict=True)]
    return table(("true \\ predicted", *names), rows)


def _written(report: ProbeReport) -> str:
    lines = []
    if report.predict:
        confidence = report.predict["mean_confidence"]
        more = f", mean confidence {confidence:.2f}" if confidence is not None else ""
        lines.append(f"class map: {report.predict['path']} ({report.predict['km2']:.3g} km2{more})")
    for what, path in (
        ("where to label", report.where_to_label),
        ("probe", report.saved),
        ("report", report.report),
    ):
        if path:
            lines.append(f"{what}: {path}")
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def figure(value: float | None) -> str:
    """A metric's value; a hyphen where it is not defined."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
