"""Flags of the `olmoearth probe` commands."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from olmoearth_cli.commands.options import Polygons, Precision, Raw, option

BENCHMARK = "Benchmark tasks"
PRODUCTS = "What to make"
BENCHMARK_ONLY = (
    *("--data", "--modalities", "--no-sweep", "--norm-method", "--patch-size", "--centre-token", "--partition"),
    *("--max-train", "--max-samples", "--quantise", "--pca", "--parity"),
)
"""Flags that change a benchmark's figures, and nothing elsewhere."""
LABELS_ONLY = (
    *("--map", "--labels", "--vectors", "--field", "--polygons", "--max-cells", "--split", "--folds", "--block-km"),
    *("--raw", "--predict", "--where-to-label", "--save", "--report"),
)
"""Flags that a benchmark does not look at."""


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


def changed_flags(flags: Labelled, names: tuple[str, ...]) -> list[str]:
    """Those of the flags that are not at their default."""
    changed = [f for f in fields(flags) if getattr(flags, f.name) != f.default]
    spelled = {f"--{'no-' if f.default is True else ''}{f.name.replace('_', '-')}" for f in changed}
    return [name for name in names if name in spelled]
