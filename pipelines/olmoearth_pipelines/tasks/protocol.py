"""One benchmark task by the report's protocol (spec/evaluation.md sections 3 to 7).

For each normalisation the training and validation samples are encoded once and pooled twice; for each pooling a
probe is fitted and judged on validation. The best one, and only that, is then judged on the test split, once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.probe.diagnostics import map_figures, vector_figures
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.features import Extractor, TaskProgress
from olmoearth_pipelines.tasks.judging import judge
from olmoearth_pipelines.tasks.request import TaskRequest, plan_task
from olmoearth_pipelines.tasks.results import about_choice, about_run, about_test, about_work, plain
from olmoearth_pipelines.tasks.sweep import Candidate, beats, fit_candidate
from olmoearth_pipelines.tasks.task import SPLITS, Reader, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What a run found."""

    content: dict[str, Any]
    """Plain JSON, with everything that section 17 lists (`tasks.results`)."""


def run_task(
    model: OlmoEarthModel, task: Task, reader: Reader, request: TaskRequest
) -> Iterator[TaskProgress | TaskResult]:
    """Extract, sweep, choose on validation, and score the test split once.

    Args:
        model: the encoder.
        task: what is judged.
        reader: its data.
        request: how.

    Yields:
        Progress, and at last one `TaskResult`.

    Raises:
        InputError: a split is absent, or the request does not suit the task, the model or the data.
    """
    started, plan = time.perf_counter(), plan_task(task, request)
    absent = [split for split in SPLITS if not reader.splits().get(split)]
    if absent:
        raise InputError(f"{task.name}: no {', '.join(absent)} samples here; the protocol needs train, val and test.")
    extractor = Extractor(model, task, reader, plan.extraction, request.cache)
    best: Candidate | None = None
    points, diagnostics, sizes = [], {}, {}
    for normalisation, poolings in plan.legs:
        train = yield from extractor.features("train", normalisation)
        val = yield from extractor.features("val", normalisation)
        sizes = {"train": len(train), "val": len(val)}
        for done, pooling in enumerate(poolings):
            step = f"fit {plan.method}, {normalisation} statistics, {pooling} pooling"
            yield TaskProgress(task=plan.column, step=step, done=done, total=len(poolings))
            candidate = fit_candidate(
                plan, train, val, normalisation=normalisation, pooling=pooling, device=str(model.device)
            )
            points.append(candidate.point())
            if beats(candidate, best, plan.metric):
                figures = map_figures if task.kind == "segmentation" else vector_figures
                best, diagnostics = candidate, figures(train.vectors[pooling], seed=request.seed)
    if best is None:
        raise InputError(f"{plan.column}: {plan.metric} is not defined on the validation split. Choose another metric.")
    if plan.method == "knn" and request.k > best.train_rows:
        logger.warning("%s: k lowered from %d to the %d training rows", plan.column, request.k, best.train_rows)
    test = yield from extractor.features("test", best.normalisation)
    judged = judge(
        best.probe, best.transform.apply(test.vectors[best.pooling]), test.targets, by_position=request.parity
    )
    content = {
        **about_run(plan, model, reader, {**sizes, "test": len(test)}),
        **about_choice(plan, best, points),
        **about_test(plan, judged),
        "diagnostics": diagnostics,
        **about_work(plan, model, extractor, seconds=time.perf_counter() - started),
    }
    yield TaskResult(content=plain(content))
