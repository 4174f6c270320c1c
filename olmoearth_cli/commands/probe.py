"""`olmoearth probe`: what a few labels make of a map, and the benchmark tasks of the report."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from olmoearth_cli.commands.options import command_of, to_modalities, to_numbers
from olmoearth_cli.commands.probe_flags import (
    BENCHMARK_ONLY,
    LABELS_ONLY,
    Benchmark,
    Knn,
    Labelled,
    Linear,
    Output,
    Table,
    changed_flags,
)
from olmoearth_cli.console import Console, Progress, TaskLine
from olmoearth_cli.errors import InputError

if TYPE_CHECKING:
    from olmoearth_pipelines.probing.evaluate import KnnMethod, LinearMethod
    from olmoearth_pipelines.tasks.request import TaskRequest

KINDS = ("classification", "multilabel", "segmentation", "regression")

app = typer.Typer(help="What do a few labels make of a map?", no_args_is_help=True)


def knn(flags: Knn) -> None:
    """Run `probe knn`."""
    if _is_benchmark(flags):
        _benchmark(flags, method="knn", probe={"k": flags.k, "temperature": flags.temperature})
        return
    from olmoearth_pipelines.probing.evaluate import KnnMethod

    _labelled(flags, KnnMethod(k=flags.k, temperature=flags.temperature))


def linear(flags: Linear) -> None:
    """Run `probe linear`."""
    given: dict[str, Any] = {
        "lrs": to_numbers(flags.lr, flag="--lr"),
        "batch_size": flags.batch_size,
        "eval_interval": flags.eval_interval,
        "epochs": flags.epochs,
        "weight_decay": flags.weight_decay,
        "warmup": flags.warmup,
        "dice": flags.dice,
    }
    recipe = {name: value for name, value in given.items() if value is not None}
    if _is_benchmark(flags):
        _benchmark(flags, method="linear", probe={"recipe": recipe})
        return
    from olmoearth_cli.core.probe.recipe import LinearRecipe
    from olmoearth_pipelines.probing.evaluate import LinearMethod

    try:
        method = LinearMethod(recipe=LinearRecipe(**recipe, seed=flags.seed))
    except ValueError as error:
        raise InputError(f"{error}.") from None
    _labelled(flags, method, grow_batch=flags.batch_size is None)


def table(flags: Table) -> None:
    """Run `probe table`."""
    from olmoearth_pipelines.tasks.protocol import TaskResult
    from olmoearth_pipelines.tasks.table import Skipped, run_table, to_json, to_markdown

    console = Console(quiet=flags.quiet, as_json=flags.json)
    data = _data(flags)
    model = _model(flags, console)
    names = None if flags.tasks is None else [name.strip() for name in flags.tasks.split(",") if name.strip()]
    request = _task_request(flags, method=flags.method, cache=flags.cache or flags.out / "features")
    results: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    line = TaskLine(console)
    try:
        for step in run_table(model, data, names, request, out=flags.out):
            if isinstance(step, TaskResult):
                line.close()
                results.append(step.content)
            elif isinstance(step, Skipped):
                line.close()
                skipped.append(step)
                console.note(f"{step.column}: left out: {step.why}")
            else:
                line.show(step.task, step.step, step.done, step.total)
    finally:
        line.close()
    console.note(f"written: {flags.out / 'table.md'}, {flags.out / 'table.json'}")
    console.result(to_markdown(results, skipped).rstrip(), to_json(results, skipped))


app.command("knn", epilog="Example: olmoearth probe knn --map embeddings/region --labels labels.geojson")(
    command_of(Knn, knn, last=Output)
)
app.command("linear", epilog="Example: olmoearth probe linear --labels fields.gpkg --field crop --predict crops.tif")(
    command_of(Linear, linear, last=Output)
)
app.command("table", epilog="Example: olmoearth probe table --data benchmarks/ --model v1.2-base -o report/")(
    command_of(Table, table, last=Output)
)


def _is_benchmark(flags: Labelled) -> bool:
    """True for a benchmark's name; flags that would have no effect are refused."""
    if flags.task is None or flags.task in KINDS:
        without_effect = changed_flags(flags, BENCHMARK_ONLY)
        if without_effect:
            raise InputError(
                f"{', '.join(without_effect)}: for benchmarks only. Leave it out, or name a benchmark with --task, for "
                "example --task m-eurosat."
            )
        return False
    clash = changed_flags(flags, LABELS_ONLY)
    if clash:
        raise InputError(
            f"--task {flags.task}: a benchmark brings its own samples and labels; leave {', '.join(clash)} out. "
            f"For your own labels --task is one of {', '.join(KINDS)}."
        )
    return True


def _labelled(flags: Labelled, method: KnnMethod | LinearMethod, *, grow_batch: bool = False) -> None:
    from olmoearth_cli.commands.probe_text import report_text
    from olmoearth_pipelines.probe import ProbeReport, ProbeRequest, run

    console = Console(quiet=flags.quiet, as_json=flags.json)
    request = ProbeRequest(
        method=method,
        grow_batch=grow_batch,
        map=flags.map,
        labels=flags.labels,
        vectors=flags.vectors,
        field=flags.field,
        kind=flags.task,
        polygons=flags.polygons.value,
        max_cells=flags.max_cells,
        split=flags.split,
        folds=flags.folds,
        block_km=flags.block_km,
        metric=flags.metric,
        bootstrap=flags.bootstrap,
        seed=flags.seed,
        raw=flags.raw.value,
        save=flags.save,
        predict=flags.predict,
        where_to_label=flags.where_to_label,
        report=flags.report,
        workers=flags.workers,
        scheduler=flags.scheduler,
        overwrite=flags.overwrite,
        command=" ".join(["olmoearth", *sys.argv[1:]]),
    )
    progress = Progress(console)
    report, whole = None, False
    try:
        for step in run(request, console.note):
            if isinstance(step, ProbeReport):
                report = step
            else:
                progress.advance(step)
        whole = True
    finally:
        progress.close()
        if report is not None and not whole:  # a file could not be made; the figures are worth having
            console.note(report_text(report))
    assert report is not None
    for line in report.notes:
        console.note(line)
    for line in report.warnings:
        console.warn(line)
    console.result(report_text(report), asdict(report))


def _benchmark(flags: Labelled, *, method: str, probe: dict[str, Any]) -> None:
    from olmoearth_pipelines.tasks.protocol import TaskResult, run_task
    from olmoearth_pipelines.tasks.published import columns_of
    from olmoearth_pipelines.tasks.registry import find_task, open_task
    from olmoearth_pipelines.tasks.request import plan_task
    from olmoearth_pipelines.tasks.table import to_json, to_markdown

    console = Console(quiet=flags.quiet, as_json=flags.json)
    assert flags.task is not None
    task = find_task(flags.task)
    reader = open_task(task.name, _data(flags), reference=flags.parity)
    request = _task_request(flags, method=method, metric=flags.metric, cache=flags.cache, **probe)
    columns = columns_of(task) if request.modalities is None else [request.modalities]
    for modalities in columns:
        plan_task(task, replace(request, modalities=modalities))  # refuse before the model is loaded
    model = _model(flags, console)
    results = []
    line = TaskLine(console)
    try:
        for modalities in columns:
            for step in run_task(model, task, reader, replace(request, modalities=modalities)):
                if isinstance(step, TaskResult):
                    results.append(step.content)
                else:
                    line.show(step.task, step.step, step.done, step.total)
    finally:
        line.close()
    console.result(to_markdown(results).rstrip(), to_json(results))


def _task_request(flags: Any, *, method: str | None, **more: Any) -> TaskRequest:
    from olmoearth_pipelines.tasks.request import TaskRequest

    return TaskRequest(
        method=method,
        modalities=to_modalities(flags.modalities),
        sweep=flags.sweep,
        norm_method=flags.norm_method,
        patch_px=flags.patch_size,
        centre_token=flags.centre_token,
        precision=flags.precision.value,
        partition=flags.partition,
        max_train=flags.max_train,
        max_samples=flags.max_samples,
        rounds=flags.bootstrap,
        quantise=flags.quantise,
        pca=flags.pca,
        parity=flags.parity,
        seed=flags.seed,
        **more,
    )


def _data(flags: Benchmark) -> Path:
    if flags.data is None:
        raise InputError("--data is missing: name the folder below which the benchmarks lie.")
    if not flags.data.is_dir():
        raise InputError(f"--data {flags.data}: no such folder.")
    return flags.data


def _model(flags: Benchmark, console: Console) -> Any:
    from olmoearth_pipelines.models import open_model

    return open_model(flags.model, console.note, device=flags.device)
