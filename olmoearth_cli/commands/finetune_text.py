"""A fine-tuning run as a person reads it on the terminal."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from olmoearth_cli.commands.probe_text import class_scores, figure
from olmoearth_cli.console import LINE_EVERY_S, Console, Progress, TaskLine, duration, size, table

if TYPE_CHECKING:
    from olmoearth_pipelines.finetune import EpochDone, TrainReport
    from olmoearth_pipelines.finetuning.report import Score
    from olmoearth_pipelines.tasks.features import TaskProgress
    from olmoearth_pipelines.windows.prepare import CutTile

SPLITS = {"train": "training", "val": "validation", "test": "test"}
MOST_CLASSES = 20
"""Classes that are listed; the page lists all."""


class Watch:
    """Progress of all that a run does: live lines on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console, self._line = console, TaskLine(console)
        self._cut: Progress | None = None
        self._best: float | None = None
        self._last = float("-inf")

    def note(self, text: str) -> None:
        """A remark of the road, on a line of its own."""
        self.close()
        self._console.note(text)

    def warn(self, text: str) -> None:
        """A warning of the road, on a line of its own."""
        self.close()
        self._console.warn(text)

    def show(self, step: CutTile | TaskProgress | EpochDone) -> None:
        """Say how far the run is."""
        from olmoearth_pipelines.finetune import EpochDone
        from olmoearth_pipelines.windows.prepare import CutTile

        if isinstance(step, CutTile):
            self._cut = self._cut or Progress(self._console)
            self._cut.advance(step)
        elif isinstance(step, EpochDone):
            self._epoch(step)
        else:
            self._line.show(step.task, step.step, step.done, step.total)

    def close(self) -> None:
        """End a live line."""
        self._line.close()
        if self._cut is not None:
            self._cut.close()

    def _epoch(self, event: EpochDone) -> None:
        number = event.epoch.epoch
        if number == 1:
            self.close()
            self._best = None
        if event.best:
            self._best = event.epoch.value
        now = time.monotonic()
        if sys.stderr.isatty() or number in {1, event.epochs} or now - self._last >= LINE_EVERY_S:
            self._last = now
            self._line.show(training_text(event), epoch_text(event, self._best), number, event.epochs)


def training_text(event: EpochDone) -> str:
    """Which training an epoch belongs to."""
    return f"training {event.leg} of {event.legs}, rate {event.lr:g}" if event.legs > 1 else "training"


def epoch_text(event: EpochDone, best: float | None) -> str:
    """An epoch in a line.

    Args:
        event: the epoch.
        best: validation value of the best one so far; None where it is not known.
    """
    row = event.epoch
    metric, (value, top) = _name(event.metric), _values(event.metric, row.value, best)
    at_least = "at least " if row.lr_encoder == 0 else ""
    left = row.seconds * (event.epochs - row.epoch + (event.legs - event.leg) * event.epochs)
    parts = [
        "nothing labelled" if row.loss is None else f"loss {row.loss:.4f}",
        f"{metric} {figure(value)}{' (best)' if event.best else '' if top is None else f' (best {figure(top)})'}",
        f"lr {row.lr:.2e}" + (", encoder frozen" if row.lr_encoder == 0 else ""),
        f"{row.samples_per_s:.3g} windows/s",
        f"{at_least}{duration(left)} left",
    ]
    return f"{', '.join(parts)}; epoch"


def report_text(report: TrainReport) -> str:
    """Headline, comparison, sweep and classes."""
    judged = report.val if report.test is None else report.test
    parts = [_headline(report, judged), _comparison(report, judged)]
    if len(report.legs) > 1:
        parts.append(_sweep(report))
    if report.confusion is not None and len(report.class_names) <= MOST_CLASSES:
        from olmoearth_pipelines.finetuning.report_html import per_class

        parts.append(class_scores(per_class(report.confusion, report.class_names)))
    return "\n\n".join(parts)


def next_text(report: TrainReport, page: str) -> str:
    """Where everything is, and what to do with it."""
    return "\n".join(
        [
            f"checkpoint: {report.out}",
            f"report: {page}",
            f"next: olmoearth predict --model {shlex.quote(report.out)} --aoi region.geojson",
        ]
    )


def plan_text(figures: Mapping[str, Any]) -> str:
    """What a run would take."""
    classes = f", {len(figures['class_names'])} classes" if figures["class_names"] else ""
    demo = " (DEMO WEIGHTS)" if figures["demo"] else ""
    side, periods = figures["window_px"], figures["periods"]
    rows = [
        ("task", f"{figures['kind']} of {figures['field']}{classes}; chosen by {figures['metric']}"),
        ("windows", f"{_counts(figures['windows'])}; {side} px, {figures['patch_px']} px patches, {periods} periods"),
        ("imagery", ", ".join(figures["modalities"])),
    ]
    if figures["bytes_to_read"]:
        read = f"about {size(figures['bytes_to_read'])} (decoded) in {figures['groups_to_cut']} groups of windows"
        rows.append(("to read", f"{read}, before training and once"))
    trainings = f"{figures['trainings']} x " if figures["trainings"] > 1 else ""
    rows += [
        ("model", f"{figures['model']}{demo}, {figures['parameters'] / 1e6:.2f} million trained parameters"),
        ("recipe", figures["recipe"]),
        ("steps", f"{figures['steps']} of {figures['batch_size']} windows ({trainings}{figures['epochs']} epochs)"),
        ("step", f"about {figures['step_s']:.3g} s on {figures['device']}, timed"),
        ("time", f"about {duration(figures['seconds'])} to train"),
        ("output", figures["out"]),
    ]
    return "\n".join(f"{name:<9}{text}" for name, text in rows)


def _headline(report: TrainReport, judged: Score) -> str:
    value, interval = _judgement(report, judged)
    interval = f" (95 % interval {interval})" if interval else ""
    last = next(leg for leg in report.legs if leg.lr == report.lr).epochs[-1].epoch
    lines = [f"{report.out}: already trained with these settings; nothing to do."] if report.unchanged else []
    lines += [
        f"{report.model} fine-tuned: {_name(report.metric)} {value}{interval} on the "
        f"{SPLITS[report.judged_on]} windows",
        f"{report.kind} of {report.field}, {report.data}: {_counts(report.windows)} windows",
        f"{report.recipe}; {report.decoder} head; rate {report.lr:g}, best epoch {report.best_epoch} of {last}",
        f"{report.parameters / 1e6:.2f} million parameters trained in {duration(report.seconds)} "
        f"({report.samples_per_s:.3g} windows/s)",
    ]
    if report.judged_on == "val":
        lines.append("judged on validation, where the epoch was chosen: the figures flatter")
    return "\n".join(lines)


def _comparison(report: TrainReport, judged: Score) -> str:
    rows = []
    for score in (judged, *report.baselines):
        value, interval = _judgement(report, score)
        rows.append((score.name, value, interval or "-"))
    return table((f"on {report.judged_on}", _name(report.metric), "95 % interval"), rows)


def _sweep(report: TrainReport) -> str:
    rows = [
        (
            f"{leg.lr:g}{' (kept)' if leg.lr == report.lr else ''}",
            figure(_values(report.metric, leg.best_value)[0]),
            str(leg.best_epoch),
            f"{leg.epochs[-1].epoch}{' (stopped early)' if leg.stopped else ''}",
        )
        for leg in report.legs
    ]
    return table(("rate", f"{_name(report.metric)} on val", "best epoch", "epochs"), rows)


def _counts(windows: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {SPLITS[split]}" for split, count in windows.items())


def _judgement(report: TrainReport, score: Score) -> tuple[str, str]:
    """Value and interval; an empty interval where there is none."""
    value, low, high = _values(report.metric, score.value, score.low, score.high)
    if low is None or high is None:
        return figure(value), ""
    return figure(value), f"{figure(min(low, high))} to {figure(max(low, high))}"


def _name(metric: str) -> str:
    return "rmse" if metric == "neg_rmse" else metric


def _values(metric: str, *values: float | None) -> list[float | None]:
    """Values as people read them: an error is positive, although a search maximises its negative."""
    return [None if value is None else -value if metric == "neg_rmse" else value for value in values]
