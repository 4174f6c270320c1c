"""The probe's report as one HTML file that opens anywhere: no script, no network, light, dark and on paper."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from olmoearth_cli.maps.files import write_text
from olmoearth_pipelines.probing.class_layout import colours
from olmoearth_pipelines.probing.report_figures import (
    MATRIX_CLASSES,
    MOST_LABELS,
    MOST_POINTS,
    Bar,
    Label,
    comparison,
    confusion_matrix,
    css,
    escape,
    interval,
    map_picture,
    number,
    scatter,
)
from olmoearth_pipelines.probing.report_style import STYLE

__all__ = ["render", "write_report"]

Report = Mapping[str, Any]
PROBES = {"knn": "k-nearest neighbours", "linear": "Linear probe"}
KINDS = {"multilabel": "multi-label classification"}
METRICS = {
    "accuracy": "Accuracy",
    "f1": "F1 (micro)",
    "macro_f1": "F1 (mean over classes)",
    "micro_f1": "F1 (micro)",
    "miou": "Mean IoU",
    "overall_acc": "Overall accuracy",
    "macro_acc": "Accuracy (mean over classes)",
    "micro_map": "Average precision (micro)",
    "auroc": "AUROC",
    "prauc": "PR-AUC",
    "rmse": "RMSE",
    "neg_rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
}
PAIRS_SHOWN = 12
"""Most frequent confusions that are spelled out beside a matrix too dense to read at a glance."""
PAIRS_FROM = 10
"""Number of classes from which they are."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    title = f"{PROBES.get(report['probe'], report['probe'])}: {_metric_name(report['metric'])}"
    sections = (
        _banner(report),
        _headline(report),
        _lines(report, "warnings", "Warnings", "alert"),
        _comparison(report),
        _maps(report, class_map_png, preview_png, labels or ()),
        _classes(report),
        _confusion(report),
        _scatter(report),
        _prediction(report),
        _calibration(report),
        _lines(report, "notes", "Notes", ""),
        _settings(report),
        _command(report),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"{_MARK}"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
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
    return (
        '<div class="banner">DEMO WEIGHTS: the model of this map has random weights. '
        "The figures show that the road works; they say nothing about OlmoEarth or the land.</div>"
    )


def _headline(report: Report) -> str:
    bar = _result(report)
    metrics = report.get("metrics") or {}
    facts = {
        "95 % interval": interval(bar.low, bar.high),
        "Samples": _whole(report.get("samples")),
        "Classes": _whole(len(report["class_names"])) if report.get("class_names") else "",
        **{_metric_name(k): number(v) for k, v in metrics.items() if v is not None and _is_shown(report, k)},
    }
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    what = f"{PROBES.get(report['probe'], report['probe'])}, {KINDS.get(report['kind'], report['kind'])}"
    field = f" of “{report['field']}”" if report.get("field") else ""
    name, split = _metric_name(report["metric"]), _split_text(report)
    return (
        f'<h1>{escape(what + field)}</h1><p class="muted">{escape(f"Split: {split}" if split else "")}</p>'
        f'<div class="headline"><div><span class="muted">{escape(name)}</span><b>{number(bar.value)}</b></div>'
        f"<dl>{items}</dl></div>"
    )


def _is_shown(report: Report, metric: str) -> bool:
    """False for the headline's own metric, for its negative, and for what the table of classes says."""
    twins = {"neg_rmse", "rmse"}
    same = metric == report["metric"] or {metric, report["metric"]} <= twins
    return not same and metric != "neg_rmse" and not metric.startswith("f1_class_")


def _metric_name(metric: str) -> str:
    return METRICS.get(metric, metric)


def _result(report: Report) -> Bar:
    return _bar(report, report, "this probe", own=True)


def _bar(report: Report, values: Mapping[str, Any], name: str, *, own: bool = False) -> Bar:
    """A value with its interval as people read it: an error is positive, although a search maximises its negative."""
    value, low, high = (values.get("value"), values.get("low"), values.get("high"))
    if report["metric"] == "neg_rmse":
        value, low, high = (None if v is None else -v for v in (value, high, low))
    return Bar(name=name, value=math.nan if value is None else value, low=low, high=high, own=own)


def _split_text(report: Report) -> str:
    split = report.get("split") or {}
    if split.get("description"):
        return str(split["description"])
    parts = [f"by {split['how']}"] if split.get("how") else []
    parts += [f"{split['folds']} folds"] if split.get("folds") else []
    parts += [f"blocks of {split['block_km']:g} km"] if split.get("block_km") else []
    return ", ".join(parts)


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def _lines(report: Report, key: str, title: str, kind: str) -> str:
    lines = report.get(key) or []
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    if kind:
        return f'<div class="{kind}"><strong>{title}</strong><ul>{items}</ul></div>'
    return f"<h2>{title}</h2><ul>{items}</ul>"


def _comparison(report: Report) -> str:
    baselines = [_bar(report, b, b["name"]) for b in report.get("baselines") or []]
    bars = [bar for bar in (_result(report), *baselines) if math.isfinite(bar.value)]
    if len(bars) < 2:
        return ""
    better = "smaller is better" if report["metric"] in {"neg_rmse", "rmse", "mae"} else "larger is better"
    return (
        f"<h2>Compared with</h2>{comparison(bars)}"
        f'<p class="muted">{escape(_metric_name(report["metric"]))} on the same samples and folds, {better}; '
        "whiskers are 95 % intervals.</p>"
    )


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
    legend = _legend(names) if class_map or (labels and single) else ""
    return f'<h2>Map</h2><div class="maps">{pictures}</div>{legend}'


def _legend(names: Sequence[str]) -> str:
    entries = "".join(
        f"<span>{_chip(css(ink))}{escape(name)}</span>" for name, ink in zip(names, colours(names), strict=True)
    )
    return f'<div class="legend">{entries}</div>' if names else ""


def _chip(colour: str) -> str:
    return f'<span class="chip" style="background:{colour}"></span>'


def _classes(report: Report) -> str:
    """One row per class: how many samples it has, and how well it is found."""
    names = report.get("class_names") or []
    if not names:
        return ""
    counts = report.get("class_counts")
    scores = {score["name"]: score for score in report.get("per_class") or []}
    columns = ["Samples"] if counts else []
    columns += ["Tested", "Precision", "Recall", "F1"] if scores else []
    if not columns:
        return ""
    head = "".join(f'<th class="n">{column}</th>' for column in columns)
    rows = []
    for k, (name, ink) in enumerate(zip(names, colours(names), strict=True)):
        cells = [_cell(_whole(counts[k]), counts[k] / max(*counts, 1))] if counts else []
        if scores:
            score = scores.get(name, {})
            cells.append(_cell(_whole(score.get("support")) or "–", None))
            cells += [_cell(number(score.get(key)), score.get(key)) for key in ("precision", "recall", "f1")]
        rows.append(f'<tr><td class="name">{_chip(css(ink))}{escape(name)}</td>{"".join(cells)}</tr>')
    note = "Samples: labelled samples of the class. Tested: those that were judged." if counts and scores else ""
    return (
        f'<h2>Classes</h2><div class="scroll"><table><thead><tr><th>Class</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="muted">{note}</p>'
    )


def _cell(text: str, share: float | None) -> str:
    """A number over a bar of its share."""
    if share is None or not math.isfinite(share):
        return f'<td class="n">{text}</td>'
    return f'<td class="n bar" style="--v:{100 * share:.1f}%">{text}</td>'


def _confusion(report: Report) -> str:
    confusion, names = report.get("confusion"), report.get("class_names") or []
    if not confusion or not names:
        return ""
    parts = ["<h2>Confusion matrix</h2>"]
    if len(names) <= MATRIX_CLASSES:
        parts.append(f'<div class="scroll">{confusion_matrix(confusion, names)}</div>')
        parts.append(
            '<p class="muted">Rows are true classes, columns predicted ones. Numbers are counts; the shade is the '
            "share of the row. Outlined: correct.</p>"
        )
    else:
        parts.append(f'<p class="muted">Not drawn for {len(names)} classes; the report’s JSON has it.</p>')
    return "".join(parts) + (_confused_pairs(confusion, names) if len(names) >= PAIRS_FROM else "")


def _confused_pairs(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    pairs = [(n, t, p) for t, row in enumerate(confusion) for p, n in enumerate(row) if n and t != p]
    pairs = sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:PAIRS_SHOWN]
    if not pairs:
        return ""
    rows = "".join(
        f"<tr><td>{escape(names[t])}</td><td>{escape(names[p])}</td>"
        f"{_cell(_whole(n), None)}{_cell(f'{n / sum(confusion[t]):.1%}', n / sum(confusion[t]))}</tr>"
        for n, t, p in pairs
    )
    return (
        '<h2>Most frequent confusions</h2><div class="scroll"><table><thead><tr><th>True</th><th>Predicted</th>'
        f'<th class="n">Count</th><th class="n">Of the true class</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _scatter(report: Report) -> str:
    points = report.get("scatter")
    if not points or not points.get("true"):
        return ""
    total = len(points["true"])
    shown = f"{MOST_POINTS} of {_whole(total)} samples" if total > MOST_POINTS else f"{total} samples"
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
    rows = "".join(
        f'<tr><td class="name">{escape(name)}</td>{_cell(number(km2), None)}'
        f"{_cell(f'{km2 / total:.1%}' if total else '–', km2 / total if total else None)}</tr>"
        for name, km2 in areas.items()
    )
    if rows:
        lines.append(
            '<table><thead><tr><th>Class</th><th class="n">km²</th><th class="n">Share</th></tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )
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
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(value if isinstance(value, str) else json.dumps(value))}</td></tr>"
        for key, value in facts.items()
        if value is not None
    )
    return f'<h2>Settings</h2><table class="facts"><tbody>{rows}</tbody></table>'


def _command(report: Report) -> str:
    command = report.get("command")
    return f"<h2>To do this again</h2><pre>{escape(command)}</pre>" if command else ""
