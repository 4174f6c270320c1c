"""`olmoearth probe`: what a few labels make of a map, and the benchmark tasks of the report."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from olmoearth_cli.commands.options import (
    Polygons,
    Precision,
    Raw,
    command_of,
    option,
    to_modalities,
    to_numbers,
)
from olmoearth_cli.console import Console, Progress, TaskLine
from olmoearth_cli.errors import InputError

if TYPE_CHECKING:
    from olmoearth_pipelines.probing.evaluate import KnnMethod, LinearMethod
    from olmoearth_pipelines.tasks.request import TaskRequest

KINDS = ("classification", "multilabel", "segmentation", "regression")
BENCHMARK = "Benchmark tasks"
PRODUCTS = "What to make"

app = typer.Typer(help="What do a few labels make of a map?", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Flags of every probe command that say how it speaks."""

    seed: Annotated[int, option(help="Of folds, samples, initial weights and the bootstrap.")] = 42
    json: Annotated[bool, option("--json", help="One JSON object on stdout.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress, no notes.")] = False


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Flags of the published protocol."""

    data: Annotated[Path | None, option(help="Folder below which the benchmarks lie.", rich_help_panel=BENCHMARK)] = (
        None
    )
    model: Annotated[str, option(help="Name of a published model, or a folder.", rich_help_panel=BENCHMARK)] = (
        "v1.2-tiny"
    )
    modalities: Annotated[
        str | None,
        option(show_default="the task's", help="s2, s1, landsat; several with commas.", rich_help_panel=BENCHMARK),
    ] = None
    sweep: Annotated[
        bool, option(help="Choose normalisation, pooling and rate on validation.", rich_help_panel=BENCHMARK)
    ] = True
    norm_method: Annotated[
        str, option(help="Formula of the benchmark's own statistics.", rich_help_panel=BENCHMARK)
    ] = "norm_no_clip_2_std"
    patch_size: Annotated[
        int | None, option(min=1, max=8, show_default="the task's", help="Pixels.", rich_help_panel=BENCHMARK)
    ] = None
    centre_token: Annotated[
        bool, option("--centre-token", help="The middle patch alone.", rich_help_panel=BENCHMARK)
    ] = False
    partition: Annotated[
        str | None, option(help="Published label fraction, for example 0.10.", rich_help_panel=BENCHMARK)
    ] = None
    max_train: Annotated[
        int | None, option(min=1, show_default="all", help="Training rows of the probe.", rich_help_panel=BENCHMARK)
    ] = None
    max_samples: Annotated[
        int | None,
        option(min=1, show_default="all", help="Samples of each split, for a trial.", rich_help_panel=BENCHMARK),
    ] = None
    quantise: Annotated[
        bool,
        option("--quantise", help="Send the vectors through int8 (signed square root).", rich_help_panel=BENCHMARK),
    ] = False
    pca: Annotated[
        int | None, option(min=1, show_default="none", help="Principal components kept.", rich_help_panel=BENCHMARK)
    ] = None
    parity: Annotated[bool, option("--parity", help="Keep the reference's quirks.", rich_help_panel=BENCHMARK)] = False
    precision: Annotated[Precision, option(help="Arithmetic of the encoder.", rich_help_panel=BENCHMARK)] = (
        Precision.FLOAT32
    )
    device: Annotated[str, option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=BENCHMARK)] = "auto"
    cache: Annotated[
        Path | None,
        option(
            show_default="none; table: features/ in --out", help="Keeps extracted features.", rich_help_panel=BENCHMARK
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Labelled(Benchmark, Output):
    """Flags of a probe over a map or a file of vectors."""

    map: Annotated[
        Path | None, option(show_default="the only one in the folder", help="Folder that `olmoearth embed` made.")
    ] = None
    labels: Annotated[
        Path | None,
        option(
            show_default="the only ones in the folder",
            help="Points or polygons (CSV, GeoJSON, GeoPackage, GeoParquet, shapefile), or a GeoTIFF.",
        ),
    ] = None
    vectors: Annotated[
        Path | None, option(help="Labelled vectors in a .npz or .parquet file, in place of a map and labels.")
    ] = None
    field: Annotated[
        str | None,
        option(show_default="found", help="Attribute that holds the target; several 0/1 ones with commas."),
    ] = None
    task: Annotated[
        str | None,
        option(
            show_default="by the labels",
            help="classification, multilabel, segmentation or regression; or a benchmark such as m-eurosat (with "
            "--data).",
        ),
    ] = None
    polygons: Annotated[
        Polygons, option(help="Cells whose middle is covered, or cells that one class covers most of.")
    ] = Polygons.COVERED
    max_cells: Annotated[int, option(min=10, help="Labelled cells used at most; an even sample beyond.")] = 50_000
    split: Annotated[str, option(help="spatial (whole blocks of land are held out), random, or field:NAME.")] = (
        "spatial"
    )
    folds: Annotated[int, option(min=2, help="Folds of the cross-validation.")] = 5
    block_km: Annotated[
        float | None, option(show_default="how far labels are alike", help="Side of the blocks held out.")
    ] = None
    metric: Annotated[
        str | None, option(show_default="by the kind of target", help="Metric that decides and is reported first.")
    ] = None
    bootstrap: Annotated[int, option(min=0, help="Draws for the 95 % interval; 0 for none.")] = 1000
    raw: Annotated[
        Raw, option(help="Judge the raw bands beside the map: auto where the imagery is on this machine.")
    ] = Raw.AUTO
    predict: Annotated[
        Path | None, option(help="Write a class map (GeoTIFF) with a confidence band.", rich_help_panel=PRODUCTS)
    ] = None
    where_to_label: Annotated[
        int | None,
        option(min=1, help="Propose N places to label, as where-to-label.geojson.", rich_help_panel=PRODUCTS),
    ] = None
    save: Annotated[Path | None, option(help="Keep the fitted probe (.safetensors).", rich_help_panel=PRODUCTS)] = None
    report: Annotated[Path | None, option(help="Write a page (.html).", rich_help_panel=PRODUCTS)] = None
    workers: Annotated[int, option(min=1, help="Local processes for --predict.", rich_help_panel=PRODUCTS)] = 1
    scheduler: Annotated[
        str | None, option(help="Address of a running Dask scheduler, for --predict.", rich_help_panel=PRODUCTS)
    ] = None
    overwrite: Annotated[
        bool, option("--overwrite", help="Replace another file at --predict.", rich_help_panel=PRODUCTS)
    ] = False


@dataclass(frozen=True, kw_only=True)
class Knn(Labelled):
    """Cosine k-nearest neighbours: nothing is trained, so it says what the vectors themselves know.

    Bare, it takes the only map and the only labels in the folder. Whole blocks of land are held out, so that the
    figure holds for places without labels near by; a majority-class and a raw-band baseline stand beside it.
    """

    k: Annotated[int, option("-k", "--k", min=1, help="Neighbours.")] = 20
    temperature: Annotated[float, option(min=0.001, help="Of the vote.")] = 0.07


@dataclass(frozen=True, kw_only=True)
class Linear(Labelled):
    """Linear probe: one linear layer on the frozen vectors, its learning rate chosen on held-out labels.

    Bare, it takes the only map and the only labels in the folder; validation is as for `probe knn`.
    """

    lr: Annotated[
        str | None, option(show_default="1e-4 to 0.5, swept", help="Learning rate, or several with commas.")
    ] = None
    epochs: Annotated[int, option(min=1, help="Passes over the labels.")] = 50
    batch_size: Annotated[
        int | None, option(min=1, show_default="32, more for many labels", help="Labels per step.")
    ] = None
    weight_decay: Annotated[float, option(min=0, help="Of AdamW.")] = 0.01
    warmup: Annotated[float, option(min=0, max=0.99, help="Share of the epochs with a rising rate.")] = 0.1
    eval_interval: Annotated[
        int | None, option(min=1, show_default="5; 50 with --parity", help="Epochs between validations.")
    ] = None
    dice: Annotated[bool, option("--dice", help="Add the Dice loss (segmentation).")] = False


@dataclass(frozen=True, kw_only=True)
class Table(Benchmark, Output):
    """Run every benchmark task that is there and set it beside the published figures.

    A finished column is kept in the output folder; run the same command again to continue.
    """

    tasks: Annotated[str | None, option(show_default="all", help="Names with commas.")] = None
    method: Annotated[
        str | None, option(show_default="that of the published tables", help="knn or linear, for every task.")
    ] = None
    bootstrap: Annotated[int, option(min=0, help="Draws for the 95 % interval; 0 for none.")] = 1000
    out: Annotated[Path, option("--out", "-o", help="Folder for the table and every column's figures.")] = Path(
        "benchmark"
    )


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
    """True for a benchmark's name; what it excludes is refused."""
    if flags.task is None or flags.task in KINDS:
        if flags.data is not None:
            raise InputError("--data goes with a benchmark: name one with --task, for example --task m-eurosat.")
        return False
    given = {"--map": flags.map, "--labels": flags.labels, "--vectors": flags.vectors, "--predict": flags.predict}
    clash = [name for name, value in given.items() if value is not None]
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
    try:
        for step in run(request, console.note):
            if isinstance(step, ProbeReport):
                progress.close()
                for line in step.notes:
                    console.note(line)
                for line in step.warnings:
                    console.warn(line)
                console.result(report_text(step), asdict(step))
            else:
                progress.advance(step)
    finally:
        progress.close()


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
