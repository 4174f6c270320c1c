"""The probe's report as one HTML file that opens anywhere: no script, no network, light, dark and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from olmoearth_cli.maps.files import write_text
from olmoearth_pipelines.probing.class_layout import colours
from olmoearth_pipelines.probing.report_figures import (
    MOST_LABELS,
    MOST_POINTS,
    Bar,
    Label,
    escape,
    interval,
    map_picture,
    number,
    scatter,
)
from olmoearth_pipelines.probing.report_page import (
    KINDS,
    alert,
    bar,
    bullets,
    cell,
    class_table,
    command_section,
    compared,
    confusion_section,
    demo_banner,
    document,
    facts_table,
    headline,
    legend,
    metric_name,
    other_metrics,
    table,
    whole,
)

__all__ = ["render", "write_report"]

Report = Mapping[str, Any]
PROBES = {"knn": "k-nearest neighbours", "linear": "Linear probe"}
_MARK = '<meta name="generator" content="olmoearth probe">'


def is_report(path: Path) -> bool:
    """True for a page that `write_report` made."""
    with path.open("rb") as file:
        return _MARK.encode() in file.read(4096)


def render(
    report: Report,
    *,
    class_map_png: bytes | None = None,
    preview_png: bytes | None = None,
    labels: Sequence[Label] | None = None,
) -> str:
    """The report as a page.

    Args:
        report: what `probe` writes as JSON. `probe`, `kind`, `metric` and `value` are needed, anything else may be
            missing or None. Every text in it is shown as text, never as markup.
        class_map_png: the predicted map; its classes' colours are those of `class_layout.colours`.
        preview_png: the embeddings as colours.
        labels: (share of width, share of height, class index) of the labels over the preview, from its upper left
            corner; the index counts for classification only.

    Returns:
        One HTML document without any outside reference.
    """
    title = f"{_probe(report)}: {metric_name(report['metric'])}"
    names = report.get("class_names") or []
    return document(
        title,
        mark=_MARK,
        sections=(
            _banner(report),
            _headline(report),
            alert(report.get("warnings") or (), "Warnings"),
            _comparison(report),
            _maps(report, class_map_png, preview_png, labels or ()),
            class_table(names, report.get("class_counts"), report.get("per_class")),
            confusion_section(report.get("confusion"), names),
            _scatter(report),
            _prediction(report),
            _calibration(report),
            bullets(report.get("notes") or (), "Notes"),
            _settings(report),
            command_section(report.get("command")),
        ),
    )


def write_report(
    path: Path,
    report: Report,
    *,
    class_map_png: bytes | None = None,
    preview_png: bytes | None = None,
    labels: Sequence[Label] | None = None,
) -> None:
    """Write the page of `render` in one step.

    Raises:
        OutputError: the file cannot be written; an older one is untouched.
    """
    write_text(path, render(report, class_map_png=class_map_png, preview_png=preview_png, labels=labels))


def _banner(report: Report) -> str:
    if not report.get("demo"):
        return ""
    return demo_banner(
        "the model of this map has random weights. "
        "The figures show that the road works; they say nothing about OlmoEarth or the land."
    )


def _probe(report: Report) -> str:
    return str(PROBES.get(report["probe"], report["probe"]))


def _headline(report: Report) -> str:
    result = _result(report)
    facts = {
        "95 % interval": interval(result.low, result.high),
        "Samples": whole(report.get("samples")),
        "Classes": whole(len(report["class_names"])) if report.get("class_names") else "",
        **other_metrics(report["metric"], report.get("metrics") or {}),
    }
    field = f" of “{report['field']}”" if report.get("field") else ""
    what, split = f"{_probe(report)}, {KINDS.get(report['kind'], report['kind'])}", _split_text(report)
    return headline(
        what + field, f"Split: {split}" if split else "", facts, metric=report["metric"], value=result.value
    )


def _result(report: Report) -> Bar:
    return bar(report["metric"], report, "this probe", own=True)


def _split_text(report: Report) -> str:
    split = report.get("split") or {}
    if split.get("description"):
        return str(split["description"])
    parts = [f"by {split['how']}"] if split.get("how") else []
    parts += [f"{split['folds']} folds"] if split.get("folds") else []
    parts += [f"blocks of {split['block_km']:g} km"] if split.get("block_km") else []
    return ", ".join(parts)


def _comparison(report: Report) -> str:
    baselines = [bar(report["metric"], b, b["name"]) for b in report.get("baselines") or []]
    return compared((_result(report), *baselines), report["metric"], "the same samples and folds")


def _maps(report: Report, class_map: bytes | None, preview: bytes | None, labels: Sequence[Label]) -> str:
    names = report.get("class_names") or []
    # Only here does a label have one class; elsewhere its index says nothing and a colour would mislead.
    single = report["kind"] == "classification"
    figures = []
    if class_map:
        figures.append((map_picture(class_map, "predicted map"), "Predicted map"))
    if preview:
        drawn = min(len(labels), MOST_LABELS)
        caption = "Embeddings (principal components as colours)"
        caption += f", {drawn} label{'s' if drawn > 1 else ''} drawn" if labels else ""
        figures.append((map_picture(preview, caption, labels, colours(names) if single else ()), caption))
    if not figures:
        return ""
    pictures = "".join(f"<figure>{svg}<figcaption>{caption}</figcaption></figure>" for svg, caption in figures)
    key = legend(zip(names, colours(names), strict=True)) if class_map or (labels and single) else ""
    return f'<h2>Map</h2><div class="maps">{pictures}</div>{key}'


def _scatter(report: Report) -> str:
    points = report.get("scatter")
    if not points or not points.get("true"):
        return ""
    total = len(points["true"])
    shown = f"{MOST_POINTS} of {whole(total)} samples" if total > MOST_POINTS else f"{total} samples"
    drawing = scatter(points["true"], points["predicted"], report.get("field") or "value")
    return f'<h2>Predicted against true</h2>{drawing}<p class="muted">{shown}; the dashed line is equality.</p>'


def _prediction(report: Report) -> str:
    predict = report.get("predict")
    if not predict:
        return ""
    lines = [f"<p>Written to <code>{escape(predict['path'])}</code>.</p>"] if predict.get("path") else []
    if predict.get("mean_confidence") is not None:
        lines.append(f"<p>Mean confidence {number(predict['mean_confidence'])}.</p>")
    areas = predict.get("km2_by_class") or {}
    total = sum(areas.values())
    rows = [
        f'<td class="name">{escape(name)}</td>{cell(number(km2))}'
        f"{cell(f'{km2 / total:.1%}' if total else '–', km2 / total if total else None)}"
        for name, km2 in areas.items()
    ]
    if rows:
        lines.append(table(("Class", "km²", "Share"), rows))
    return f"<h2>Predicted map</h2>{''.join(lines)}"


def _calibration(report: Report) -> str:
    calibration = report.get("calibration")
    if not calibration:
        return ""
    return (
        f"<h2>Calibration</h2><p>Temperature {number(calibration.get('temperature'))}; expected calibration error "
        f"{number(calibration.get('ece_before'))} before, {number(calibration.get('ece_after'))} after.</p>"
    )


def _settings(report: Report) -> str:
    sha, seconds = report.get("weights_sha256"), report.get("seconds")
    facts = {
        "Map": report.get("map"),
        "Labels": report.get("labels"),
        "Field": report.get("field"),
        "Model": report.get("model"),
        "Weights (SHA-256)": f"{str(sha)[:12]}…" if sha else None,
        "Weights": "demo (random)" if report.get("demo") else None,
        "Split": _split_text(report) or None,
        "Time": f"{seconds:.1f} s" if seconds is not None else None,
        "olmoearth": report.get("version"),
        **(report.get("settings") or {}),
    }
    return facts_table(facts)
