"""The report of fine-tuning as one HTML file that opens anywhere: no script, no network, light, dark and on paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from olmoearth_cli.maps.files import write_text
from olmoearth_pipelines.finetuning.report import Epoch, Leg, Score, Shown, TrainReport
from olmoearth_pipelines.finetuning.report_curves import Curve, chart
from olmoearth_pipelines.finetuning.report_pictures import samples
from olmoearth_pipelines.probing.class_layout import colours
from olmoearth_pipelines.probing.report_figures import Colour, css, escape, interval, number
from olmoearth_pipelines.probing.report_page import (
    KINDS,
    alert,
    bar,
    bullets,
    cell,
    chip,
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
    readable,
    table,
    whole,
)

SPLITS = {"train": "training", "val": "validation", "test": "test"}
_MARK = '<meta name="generator" content="olmoearth finetune">'
_DEMO = "training began with random weights. The figures show that the road works; they say nothing about OlmoEarth."
_ON_VAL = (
    "There is no test split: the figures are those of the validation windows, on which the epoch and the rate were "
    "chosen, and flatter the model."
)


def is_page(path: Path) -> bool:
    """True for a file that `write_page` made."""
    with path.open("rb") as file:
        return _MARK.encode() in file.read(4096)


def write_page(path: Path, report: TrainReport, shown: Sequence[Shown] = ()) -> None:
    """Write the page of `render` in one step.

    Raises:
        OutputError: the file cannot be written; an older one is untouched.
    """
    write_text(path, render(report, shown))


def render(report: TrainReport, shown: Sequence[Shown] = ()) -> str:
    """The report as a page.

    Args:
        report: of a finished run. Every text in it is shown as text, never as markup.
        shown: windows of the judged split.

    Returns:
        One HTML document without any outside reference.
    """
    judged = _judged(report)
    names = report.class_names
    return document(
        f"Fine-tuned {report.model}: {metric_name(report.metric)}",
        mark=_MARK,
        sections=(
            demo_banner(_DEMO) if report.demo else "",
            _headline(report, judged),
            alert([*([_ON_VAL] if report.judged_on == "val" else []), *report.warnings], "Warnings"),
            _comparison(report, judged),
            _curves(report),
            _sweep(report),
            samples(shown, report.kind, names),
            class_table(names, None, per_class(report.confusion, names) if report.confusion else None),
            confusion_section(report.confusion, names),
            _methods(report, judged),
            bullets(report.notes, "Notes"),
            facts_table(dict(_facts(report))),
            command_section(report.command),
        ),
    )


def per_class(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Support, precision, recall and F1 of each class.

    Args:
        confusion: C rows of C counts, true by predicted.
        names: C class names.

    Returns:
        C dicts with `name`, `support`, `precision`, `recall` and `f1`; None where a share is not defined.
    """
    found = []
    for k, name in enumerate(names):
        hits, true, predicted = confusion[k][k], sum(confusion[k]), sum(row[k] for row in confusion)
        found.append(
            {
                "name": name,
                "support": true,
                "precision": hits / predicted if predicted else None,
                "recall": hits / true if true else None,
                "f1": 2 * hits / (true + predicted) if true + predicted else None,
            }
        )
    return found


def _judged(report: TrainReport) -> Score:
    return report.val if report.test is None else report.test


def _headline(report: TrainReport, judged: Score) -> str:
    value, low, high = readable(report.metric, vars(judged))
    windows = ", ".join(f"{whole(count)} {SPLITS[split]}" for split, count in report.windows.items() if count)
    facts = {
        "95 % interval": interval(low, high),
        "Judged on": SPLITS[report.judged_on],
        "Windows": windows,
        "Best epoch": f"{report.best_epoch} of {_kept(report)[1].epochs[-1].epoch}",
        "Learning rate": f"{report.lr:g}",
        "Trained parameters": whole(report.parameters),
        **other_metrics(report.metric, judged.metrics),
    }
    title = f"{report.model} fine-tuned: {KINDS.get(report.kind, report.kind)} of “{report.field}”"
    subtitle = f"{report.data}; {report.recipe}; {report.decoder} head"
    return headline(title, subtitle, facts, metric=report.metric, value=value)


def _comparison(report: TrainReport, judged: Score) -> str:
    others = (bar(report.metric, vars(score), score.name) for score in report.baselines)
    split = f"the {SPLITS[report.judged_on]} windows, learned from the same training windows"
    return compared((bar(report.metric, vars(judged), judged.name, own=True), *others), report.metric, split)


def _kept(report: TrainReport) -> tuple[int, Leg]:
    """Position and leg whose weights were kept."""
    return next((k, leg) for k, leg in enumerate(report.legs) if leg.lr == report.lr)


def _inks(report: TrainReport) -> list[Colour]:
    """One colour per leg."""
    return colours([f"leg {k}" for k in range(len(report.legs))])


def _curves(report: TrainReport) -> str:
    name = metric_name(report.metric)
    rates = [
        *_courses(report, lambda row: row.lr),
        *_courses(report, lambda row: row.lr_encoder, dashed=True),
    ]
    figures = (
        (chart(_courses(report, lambda row: row.loss), "training loss"), "Training loss"),
        (
            chart(_courses(report, lambda row: _read(report, row.value), marked=True), name),
            f"{name} on validation; dot: best epoch",
        ),
        (
            chart(rates, "learning rate", logarithmic=True),
            "Learning rate: of the head (line) and of the encoder’s last block while it learns (dashed)",
        ),
    )
    drawn = "".join(
        f"<figure>{drawing}<figcaption>{escape(text)}</figcaption></figure>" for drawing, text in figures if drawing
    )
    key = legend([(f"rate {leg.lr:g}", ink) for leg, ink in zip(report.legs, _inks(report), strict=True)])
    return f'<h2>Training</h2><div class="maps">{drawn}</div>{key if len(report.legs) > 1 else ""}'


def _courses(
    report: TrainReport, pick: Callable[[Epoch], float | None], *, marked: bool = False, dashed: bool = False
) -> list[Curve]:
    """One curve per leg, the kept one last."""
    best, inks = _kept(report)[0], _inks(report)
    curves = [
        Curve(
            name=f"rate {leg.lr:g}",
            points=tuple((row.epoch, pick(row)) for row in leg.epochs),
            colour=css(inks[k]) if len(report.legs) > 1 else "var(--own)",
            kept=k == best,
            dashed=dashed,
            mark=leg.best_epoch if marked else None,
        )
        for k, leg in enumerate(report.legs)
    ]
    return sorted(curves, key=lambda curve: curve.kept)


def _read(report: TrainReport, value: float | None) -> float | None:
    """A value of the metric as people read it."""
    return readable(report.metric, {"value": value})[0]


def _sweep(report: TrainReport) -> str:
    if len(report.legs) < 2:
        return ""
    best, inks = _kept(report)[0], _inks(report)
    rows = []
    for k, leg in enumerate(report.legs):
        value = _read(report, leg.best_value)
        ran = f"{leg.epochs[-1].epoch}{' (stopped early)' if leg.stopped else ''}"
        kept = " – kept" if k == best else ""
        rows.append(
            f"<td>{chip(inks[k])}{leg.lr:g}{kept}</td>{cell(number(value))}{cell(str(leg.best_epoch))}{cell(ran)}"
        )
    head = ("Learning rate", f"{metric_name(report.metric)} on validation", "Best epoch", "Epochs")
    return f"<h2>Sweep</h2>{table(head, rows)}"


def _methods(report: TrainReport, judged: Score) -> str:
    """Every metric of every method; those of single classes are in the table of classes."""
    scores = [judged, *report.baselines]
    metrics = [
        metric
        for metric in dict.fromkeys(name for score in scores for name in score.metrics)
        if metric != "neg_rmse" and not metric.startswith("f1_class_")
    ]
    if not metrics:
        return ""
    rows = [
        f'<td class="name">{escape(score.name)}</td>{"".join(cell(number(score.metrics.get(m))) for m in metrics)}'
        for score in scores
    ]
    return f"<h2>All metrics</h2>{table(('Method', *map(metric_name, metrics)), rows)}"


def _facts(report: TrainReport) -> Iterator[tuple[str, Any]]:
    yield "Checkpoint", report.out
    yield "Data", report.data
    yield "Field", report.field
    yield "Model", f"{report.model}{' (demo weights)' if report.demo else ''}"
    yield "Recipe", report.recipe
    for split, count in report.labelled.items():
        yield f"Labelled, {SPLITS[split]}", whole(count)
    yield "Training time", f"{report.seconds:.1f} s, {number(report.samples_per_s)} windows/s"
    for key, value in report.settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}: {name}", part) for name, part in value.items())
        else:
            yield key, value
