"""What the reports published, for the tables that show it beside a run (spec/reported_results.json).

The per-task rows of v1.2 were never published: for those models a table can only show the validation values of
the ablations (Base), the average over all columns, and the row of v1 in the same size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from olmoearth_pipelines.tasks.task import Task

SHORT = {"landsat": "L8", "sentinel1": "S1", "sentinel2_l2a": "S2"}
"""The reports' abbreviations of the modalities."""
METHODS = {"knn": "kNN", "linear": "LP"}
METRICS = {"accuracy": "accuracy", "f1": "micro F1", "miou": "mIoU"}
"""Our names of regimes and metrics -> the reports'."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published figure."""

    source: str
    """Which report and table, which model where it is not the one asked for, and the split."""
    value: float
    """In percent."""
    split: str
    """`test` or `val`."""


def column_name(task: str, modalities: tuple[str, ...]) -> str:
    """A column as the reports' table writes it, for example `CropHarvest-Togo S1+S2`, whatever the task's case."""
    name = f"{task} {modality_name(modalities)}"
    known = {column["id"].casefold(): column["id"] for column in _facts()["columns"]}
    return known.get(name.casefold(), name)


def modality_name(modalities: tuple[str, ...]) -> str:
    """`S1+S2` for (`sentinel2_l2a`, `sentinel1`), whatever their order."""
    return "+".join(sorted(SHORT.get(name, name) for name in modalities))


def columns_of(task: Task) -> list[tuple[str, ...]]:
    """The combinations of a task's modalities that the table has a column for; each alone where it has none."""
    listed = {column["id"] for column in _facts()["columns"]}
    singles: list[tuple[str, ...]] = [(name,) for name in task.modalities]
    both = [task.modalities] if len(task.modalities) > 1 else []
    return [column for column in (*singles, *both) if column_name(task.name, column) in listed] or singles


def is_comparable(column: str, method: str, metric: str) -> bool:
    """True where the table judges a column by this regime and metric.

    Args:
        column: from `column_name`.
        method: `knn` or `linear`.
        metric: by our name, for example `f1`.
    """
    wanted = {"id": column, "method": METHODS[method], "metric": METRICS.get(metric)}
    return any(all(row[name] == value for name, value in wanted.items()) for row in _facts()["columns"])


def published_for(task: str, modalities: tuple[str, ...], model_name: str) -> list[Published]:
    """Figures for one column: the model's own first, then those of the nearest published relative.

    Args:
        task: for example `m-eurosat`, in any case.
        modalities: in the models' names.
        model_name: for example `v1.2-base`; other names have no figures.

    Returns:
        Possibly empty.
    """
    facts, column = _facts(), column_name(task, modalities)
    found = _test_row(model_name, column)
    for table in facts["validation"]:
        if table["model"] == model_name and column in table["values"]:
            found.append(Published(source=table["source"], value=table["values"][column], split="val"))
    cashew = facts["cashew_patch"]
    if (model_name, column) == (cashew["model"], cashew["column"]):
        for patch, value in cashew["values"].items():
            found.append(Published(source=f"{cashew['source']}, patch {patch}", value=value, split="test"))
    release, _, size = model_name.partition("-")
    return found if release == "v1" else found + _test_row(f"v1-{size}", column)


def _test_row(model_name: str, column: str) -> list[Published]:
    test = _facts()["test"]
    value = test["rows"].get(model_name, {}).get(column)
    return [] if value is None else [Published(source=f"{model_name}: {test['source']}", value=value, split="test")]


def published_average(model_name: str) -> Published | None:
    """The average over all 24 columns; None where none is published (v1.2 Small)."""
    averages = _facts()["averages"]
    value = averages["rows"].get(model_name)
    return None if value is None else Published(source=averages["source"], value=value, split="test")


@cache
def _facts() -> dict[str, Any]:
    text = (files("olmoearth_pipelines.tasks") / "published_results.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts
