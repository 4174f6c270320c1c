"""The report's table over the benchmarks that are there: run, resume, and set beside the published figures.

Every finished column leaves `<column>.json` in the output folder and is taken from there when the same settings are
asked for again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.files import read_json, write_json, write_text
from olmoearth_pipelines.tasks.features import TaskProgress
from olmoearth_pipelines.tasks.protocol import TaskResult, run_task
from olmoearth_pipelines.tasks.published import (
    Published,
    column_name,
    columns_of,
    is_comparable,
    published_average,
    published_for,
)
from olmoearth_pipelines.tasks.registry import TASKS, find_task, open_task
from olmoearth_pipelines.tasks.request import TaskRequest, plan_task
from olmoearth_pipelines.tasks.task import Reader, Task

PLACES = (".", "geobench", "geo-bench-1.0")
"""Where below the data folder a benchmark may lie, beside the places that its reader knows."""
TABLE = "table"
_HEAD = ("task", "modality", "regime", "metric", "val", "test", "95 % interval", "published")
_ALL_COLUMNS = 24


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A column that has no figures."""

    column: str
    """As in the reports' table."""
    why: str
    """For people: what was looked for and not found, or what could not be used."""


def run_table(
    model: OlmoEarthModel, data: Path, names: Sequence[str] | None, request: TaskRequest, *, out: Path
) -> Iterator[TaskProgress | TaskResult | Skipped]:
    """Run every column whose data is there, and write the table.

    Args:
        model: the encoder.
        data: folder below which the benchmarks lie.
        names: tasks; None or none: all.
        request: how; `modalities` None runs every published combination.
        out: folder for `<column>.json`, `table.json` and `table.md`.

    Yields:
        Progress, and one `TaskResult` or `Skipped` per column.

    Raises:
        InputError: unknown task, or not one column could be run.
    """
    results: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for task in [find_task(name) for name in names] if names else TASKS.values():
        for modalities in columns_of(task) if request.modalities is None else [request.modalities]:
            for report in _run_column(model, task, data, replace(request, modalities=modalities), out):
                if isinstance(report, TaskResult):
                    results.append(report.content)
                elif isinstance(report, Skipped):
                    skipped.append(report)
                yield report
    if not results:
        raise InputError(f"{data}: nothing could be run. {skipped[0].column}: {skipped[0].why}")
    write_json(out / f"{TABLE}.json", to_json(results, skipped))
    write_text(out / f"{TABLE}.md", to_markdown(results, skipped))


def to_json(results: Sequence[Mapping[str, Any]], skipped: Sequence[Skipped] = ()) -> dict[str, Any]:
    """The table as plain JSON: every result whole, its published figures, and what was left out."""
    rows = [{**result, "published": [asdict(figure) for figure in _published(result)]} for result in results]
    return {"results": rows, "skipped": [{"column": column.column, "why": column.why} for column in skipped]}


def to_markdown(results: Sequence[Mapping[str, Any]], skipped: Sequence[Skipped] = ()) -> str:
    """The table for people, in percent.

    Args:
        results: contents of `TaskResult`, of one model.
        skipped: columns without figures, listed below the table.
    """
    lines = [_title(result) for result in results[:1]]
    lines += ["", _row(_HEAD), _row(["---"] * len(_HEAD))]
    sources: list[str] = []
    for result in results:
        figures = _published(result)
        sources += [figure.source for figure in figures if figure.source not in sources]
        published = ", ".join(f"{figure.value:.1f} [{sources.index(figure.source) + 1}]" for figure in figures)
        lines.append(_row([*_own(result), published or "-"]))
    if sources:
        lines += ["", *(f"[{number}] {source}" for number, source in enumerate(sources, start=1))]
    lines += _averages(results)
    if any(_unlike(result) for result in results):
        lines += ["", "No published figure stands beside runs with other data, regime or metric than the published."]
    if skipped:
        lines += ["", "Not run:", "", *(f"- {column.column}: {column.why}" for column in skipped)]
    return "\n".join(lines) + "\n"


def _run_column(
    model: OlmoEarthModel, task: Task, data: Path, request: TaskRequest, out: Path
) -> Iterator[TaskProgress | TaskResult | Skipped]:
    column = column_name(task.name, request.modalities or task.modalities)
    path = out / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', column)}.json"
    try:
        reader = _find(task, data, reference=request.parity)
        settings = plan_task(task, request).settings(model, reader)
        finished = _finished(path, settings)
        if finished is not None:
            yield TaskResult(content=finished)
            return
        for report in run_task(model, task, reader, request):
            if isinstance(report, TaskResult):
                write_json(path, report.content)
            yield report
    except InputError as error:
        yield Skipped(column=column, why=str(error))


def _find(task: Task, data: Path, *, reference: bool) -> Reader:
    """The reader of a task whose data is below a folder.

    Raises:
        InputError: it is in none of the usual places; what the first one lacks.
    """
    first: InputError | None = None
    for place in PLACES:
        try:
            return open_task(task.name, data / place, reference=reference)
        except InputError as error:
            first = first or error
    raise first or AssertionError("no place to look in")


def _finished(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier run with the same settings found."""
    if not path.is_file():
        return None
    content = read_json(path)
    same = isinstance(content, dict) and content.get("settings") == settings
    return content if same else None


def _title(result: Mapping[str, Any]) -> str:
    model = result["model"]
    demo = " **Demo weights: the figures say nothing about the published models.**" if model["demo"] else ""
    return f"{model['name']} (weights {model['weights_sha256'][:12]}), frozen encoder, in percent.{demo}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _own(result: Mapping[str, Any]) -> list[str]:
    metric, spread = result["metric"], result["bootstrap"]
    task, _, modality = result["column"].rpartition(" ")
    interval = "-"
    if spread is not None and spread["metric"] == metric and spread["low"] is not None:
        interval = f"{_percent(spread['low'])} to {_percent(spread['high'])}"
    figures = [_percent(result[split].get(metric)) for split in ("val", "test")]
    return [task, modality, result["regime"], metric, *figures, interval]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _unlike(result: Mapping[str, Any]) -> bool:
    """True for a run that the published figures are no measure for."""
    fewer = any(result["settings"][name] is not None for name in ("partition", "max_train", "max_samples"))
    return fewer or not is_comparable(result["column"], result["regime"], result["metric"])


def _published(result: Mapping[str, Any]) -> list[Published]:
    if _unlike(result):
        return []
    return published_for(result["task"], tuple(result["modalities"]), result["model"]["architecture"])


def _averages(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Our mean beside the published one, where every column of the table is there."""
    alike = [result for result in results if not _unlike(result)]
    average = published_average(results[0]["model"]["architecture"]) if results else None
    values = [result["test"][result["metric"]] for result in alike]
    if len(values) != _ALL_COLUMNS or None in values or average is None:
        return []
    own = sum(values) / len(values)
    return ["", f"Mean over {_ALL_COLUMNS} columns: {_percent(own)}; published {average.value:.1f} ({average.source})."]
