"""What the HTML pages share: a document without script or network, and the sections that any judged method has."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from olmoearth_pipelines.probing.class_layout import colours
from olmoearth_pipelines.probing.report_figures import (
    MATRIX_CLASSES,
    Bar,
    Colour,
    comparison,
    confusion_matrix,
    css,
    escape,
    number,
)
from olmoearth_pipelines.probing.report_style import STYLE

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
KINDS = {"multilabel": "multi-label classification", "pixel_regression": "regression per pixel"}
PAIRS_SHOWN = 12
"""Most frequent confusions that are spelled out beside a matrix too dense to read at a glance."""
PAIRS_FROM = 10
"""Number of classes from which they are."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, *, mark: str, sections: Iterable[str]) -> str:
    """One HTML document without any outside reference.

    Args:
        title: as text.
        mark: tag that tells who made the page, by which it is known again.
        sections: HTML; empty ones are left out.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"{mark}"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def demo_banner(text: str) -> str:
    """A warning above everything else that the weights have learned nothing."""
    return f'<div class="banner">DEMO WEIGHTS: {text}</div>'


def metric_name(metric: str) -> str:
    """A metric, for people."""
    return METRICS.get(metric, metric)


def readable(metric: str, values: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """`value`, `low` and `high` as people read them: an error is positive, although a search maximises its negative."""
    value, low, high = (values.get(key) for key in ("value", "low", "high"))
    if metric == "neg_rmse":
        value, low, high = (None if v is None else -v for v in (value, high, low))
    return value, low, high


def bar(metric: str, values: Mapping[str, Any], name: str, *, own: bool = False) -> Bar:
    """A judged method as a row of the comparison."""
    value, low, high = readable(metric, values)
    return Bar(name=name, value=math.nan if value is None else value, low=low, high=high, own=own)


def headline(title: str, subtitle: str, facts: Mapping[str, str], *, metric: str, value: float | None) -> str:
    """What was done, the one number that counts, and a few beside it.

    Args:
        title: as text.
        subtitle: as text; may be empty.
        facts: name -> value as text; empty values are left out.
        metric: the one that decides.
        value: as people read it; None where it is not defined.
    """
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    return (
        f'<h1>{escape(title)}</h1><p class="muted">{escape(subtitle)}</p>'
        f'<div class="headline"><div><span class="muted">{escape(metric_name(metric))}</span>'
        f"<b>{number(value)}</b></div><dl>{items}</dl></div>"
    )


def other_metrics(metric: str, metrics: Mapping[str, float | None]) -> dict[str, str]:
    """Name -> value of the metrics that are worth a place beside the one that decides: not that one itself, not its
    negative, and not what the table of classes says."""
    twins = {"neg_rmse", "rmse"}
    shown = {}
    for name, value in metrics.items():
        same = name == metric or {name, metric} <= twins
        if value is not None and not same and name != "neg_rmse" and not name.startswith("f1_class_"):
            shown[metric_name(name)] = number(value)
    return shown


def compared(bars: Sequence[Bar], metric: str, judged: str) -> str:
    """Bars with intervals; nothing where there is nothing to compare with.

    Args:
        bars: the judged method first.
        metric: the one that decides.
        judged: on what, as text.
    """
    drawn = [one for one in bars if math.isfinite(one.value)]
    if len(drawn) < 2:
        return ""
    better = "smaller is better" if metric in {"neg_rmse", "rmse", "mae"} else "larger is better"
    return (
        f'<h2>Compared with</h2><div class="scroll">{comparison(drawn)}</div>'
        f'<p class="muted">{escape(f"{metric_name(metric)} on {judged}, {better}")}; whiskers are 95 % intervals.</p>'
    )


def whole(value: float | None) -> str:
    """A count with thin spaces between the thousands; empty for none."""
    return "" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def bullets(lines: Sequence[str], title: str) -> str:
    """A list under a heading."""
    return f"<h2>{title}</h2>{_list(lines)}" if lines else ""


def alert(lines: Sequence[str], title: str) -> str:
    """A list that must not be overlooked."""
    return f'<div class="alert"><strong>{title}</strong>{_list(lines)}</div>' if lines else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def legend(entries: Iterable[tuple[str, Colour]]) -> str:
    """Names with their colours."""
    drawn = "".join(f"<span>{chip(ink)}{escape(name)}</span>" for name, ink in entries)
    return f'<div class="legend">{drawn}</div>' if drawn else ""


def chip(colour: Colour) -> str:
    """A small square."""
    return f'<span class="chip" style="background:{css(colour)}"></span>'


def cell(text: str, share: float | None = None) -> str:
    """A number in a table, over a bar of its share where it has one."""
    if share is None or not math.isfinite(share):
        return f'<td class="n">{text}</td>'
    return f'<td class="n bar" style="--v:{100 * share:.1f}%">{text}</td>'


def table(head: Sequence[str], rows: Iterable[str], *, names: int = 1) -> str:
    """A table that scrolls sideways where it must.

    Args:
        head: of the columns, as text.
        rows: cells of each row, as HTML.
        names: columns at the left that hold words.
    """
    columns = "".join(
        f"<th>{escape(text)}</th>" if k < names else f'<th class="n">{escape(text)}</th>' for k, text in enumerate(head)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'


def class_table(
    names: Sequence[str], counts: Sequence[int] | None, per_class: Sequence[Mapping[str, Any]] | None
) -> str:
    """One row per class: how many samples it has, and how well it is found.

    Args:
        names: C class names.
        counts: C labelled samples; None where they are not known.
        per_class: `name`, `support`, `precision`, `recall` and `f1` of each class; None where it is not known.
    """
    scores = {score["name"]: score for score in per_class or []}
    columns = [*(["Samples"] if counts else []), *(["Tested", "Precision", "Recall", "F1"] if scores else [])]
    if not names or not columns:
        return ""
    rows = []
    for k, (name, ink) in enumerate(zip(names, colours(names), strict=True)):
        cells = [cell(whole(counts[k]), counts[k] / max(*counts, 1))] if counts else []
        if scores:
            score = scores.get(name, {})
            cells.append(cell(whole(score.get("support")) or "–"))
            cells += [cell(number(score.get(key)), score.get(key)) for key in ("precision", "recall", "f1")]
        rows.append(f'<td class="name">{chip(ink)}{escape(name)}</td>{"".join(cells)}')
    note = "Samples: labelled samples of the class. Tested: those that were judged." if counts and scores else ""
    return f'<h2>Classes</h2>{table(["Class", *columns], rows)}<p class="muted">{note}</p>'


def confusion_section(confusion: Sequence[Sequence[int]] | None, names: Sequence[str]) -> str:
    """The confusion matrix, and the most frequent confusions where it is large."""
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
    rows = (
        f"<td>{escape(names[t])}</td><td>{escape(names[p])}</td>"
        f"{cell(whole(n))}{cell(f'{n / sum(confusion[t]):.1%}', n / sum(confusion[t]))}"
        for n, t, p in pairs
    )
    head = ("True", "Predicted", "Count", "Of the true class")
    return f"<h2>Most frequent confusions</h2>{table(head, rows, names=2)}"


def facts_table(facts: Mapping[str, Any]) -> str:
    """Settings and the like, a row each; None is left out, and what is no text is shown as JSON."""
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(value if isinstance(value, str) else json.dumps(value))}</td></tr>"
        for key, value in facts.items()
        if value is not None
    )
    return f'<h2>Settings</h2><table class="facts"><tbody>{rows}</tbody></table>'


def command_section(command: str | None) -> str:
    """The command, to type again."""
    return f"<h2>To do this again</h2><pre>{escape(command)}</pre>" if command else ""
