"""Flags of `olmoearth finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from olmoearth_cli.commands.options import Guard, Precision, option

DATA = "Data"
RECIPE = "Recipe"
TRAINING = "Training"
DEVICES = "Devices"
DAYS = ["%Y-%m-%d"]
LABELS_ONLY = (
    *("labels", "val_labels", "test_labels", "catalog", "year", "start", "end", "periods", "split", "max_windows"),
    *("scheduler", "guard", "allow_gaps"),
)
"""Flags that only cutting windows for labels looks at."""
SAMPLES_TOO = ("field", "window", "block_km")
"""Flags that labels and samples look at."""


class RecipeName(StrEnum):
    """What learns, and when."""

    FROZEN_START = "frozen-start"
    FULL = "full"
    HEAD = "head"


class Decay(StrEnum):
    """How rates fall."""

    PLATEAU = "plateau"
    COSINE = "cosine"
    CONSTANT = "constant"


class Weights(StrEnum):
    """How much a class counts."""

    NONE = "none"
    BALANCED = "balanced"


class Loss(StrEnum):
    """Of regression."""

    SQUARED = "squared"
    ABSOLUTE = "absolute"
    HUBER = "huber"


class Decoder(StrEnum):
    """From embeddings to answers."""

    LINEAR = "linear"
    MLP = "mlp"
    CONV = "conv"
    UNET = "unet"
    UNET_TAPERED = "unet_tapered"
    RESHAPE = "reshape"
    POOLING = "pooling"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Flags that say how the command writes and speaks; last in the help."""

    out: Annotated[
        Path | None, option("--out", "-o", show_default="runs/ and the data's name", help="Folder of the run.")
    ] = None
    report: Annotated[
        Path | None, option(show_default="report.html in the run's folder", help="Page with curves and pictures.")
    ] = None
    tensorboard: Annotated[bool, option("--tensorboard", help="Figures for TensorBoard, in the run's folder.")] = False
    plan: Annotated[bool, option("--plan", help="Say what the run would take, and stop.")] = False
    overwrite: Annotated[bool, option("--overwrite", help="Replace a run made with other settings.")] = False
    json: Annotated[bool, option("--json", help="One JSON object on stdout.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress, no notes.")] = False


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Flags that say what is learned, and from which windows."""

    labels: Annotated[
        str | None,
        option(
            show_default="the only ones in the folder",
            help="Points or polygons (CSV, GeoJSON, GeoPackage, GeoParquet, shapefile), or a GeoTIFF.",
            rich_help_panel=DATA,
        ),
    ] = None
    field: Annotated[
        str | None,
        option(
            show_default="found; samples: worldcover",
            help="Attribute or band with the target; several 0/1 ones with commas. Of samples: a map.",
            rich_help_panel=DATA,
        ),
    ] = None
    task: Annotated[
        str | None,
        option(
            show_default="by the labels",
            help="segmentation, pixel_regression, classification, regression or multilabel; or a benchmark such as "
            "m-eurosat (with --data).",
            rich_help_panel=DATA,
        ),
    ] = None
    val_labels: Annotated[
        str | None, option(show_default="split off", help="Validation labels.", rich_help_panel=DATA)
    ] = None
    test_labels: Annotated[str | None, option(show_default="split off", help="Test labels.", rich_help_panel=DATA)] = (
        None
    )
    split: Annotated[
        str,
        option(
            help="spatial (whole blocks of land are held out), random, or field:NAME with train, val and test.",
            rich_help_panel=DATA,
        ),
    ] = "spatial"
    block_km: Annotated[
        float | None,
        option(show_default="how far labels are alike", help="Side of the blocks held out.", rich_help_panel=DATA),
    ] = None
    catalog: Annotated[
        str | None,
        option(
            show_default="by the modalities",
            help="planetary-computer, earth-search, cdse, usgs, the URL of a STAC API, or a static catalogue on disk; "
            "several with commas.",
            rich_help_panel=DATA,
        ),
    ] = None
    modalities: Annotated[
        str | None,
        option(
            show_default="what the data has",
            help="s2, s1, landsat; several with commas.",
            rich_help_panel=DATA,
        ),
    ] = None
    year: Annotated[
        int | None,
        option(
            show_default="the last complete one",
            help="Calendar year; periods count from 1 January.",
            rich_help_panel=DATA,
        ),
    ] = None
    start: Annotated[
        datetime | None,
        option(formats=DAYS, show_default="1 January", help="First day of the first period.", rich_help_panel=DATA),
    ] = None
    end: Annotated[datetime | None, option(formats=DAYS, help="Day after the last one.", rich_help_panel=DATA)] = None
    periods: Annotated[
        int | None, option(min=1, show_default="12", help="Number of 30-day periods.", rich_help_panel=DATA)
    ] = None
    window: Annotated[int, option(min=1, help="Side of the windows that are cut, in pixels.", rich_help_panel=DATA)] = (
        64
    )
    patch_size: Annotated[
        int | None,
        option(min=1, max=8, show_default="the data's, else 4", help="Side of a cell, pixels.", rich_help_panel=DATA),
    ] = None
    max_windows: Annotated[
        int | None,
        option(min=1, show_default="all", help="An even sample of the windows.", rich_help_panel=DATA),
    ] = None
    dataset: Annotated[
        Path | None, option(help="Windows that an earlier run cut (datasets/...).", rich_help_panel=DATA)
    ] = None
    data: Annotated[
        Path | None,
        option(
            help="Folder of a benchmark (with --task NAME), or of samples that `export data` wrote.",
            rich_help_panel=DATA,
        ),
    ] = None
    guard: Annotated[
        Guard,
        option(help="When pixels contradict the catalogue: stop, warn, or do not look.", rich_help_panel=DATA),
    ] = Guard.STRICT
    allow_gaps: Annotated[
        bool, option("--allow-gaps", help="Go on without scenes that cannot be read.", rich_help_panel=DATA)
    ] = False


@dataclass(frozen=True, kw_only=True)
class RecipeFlags:
    """Flags that say what learns, and how fast."""

    model: Annotated[str, option(help="Name of a published model, or a folder.", rich_help_panel=RECIPE)] = "v1.2-tiny"
    recipe: Annotated[
        RecipeName | None,
        option(
            show_default="frozen-start; full with --llrd or --lora",
            help="The head alone first, then all; all from the start; or the head alone.",
            rich_help_panel=RECIPE,
        ),
    ] = None
    llrd: Annotated[
        float | None,
        option(
            show_default="none",
            help="Each block learns slower than the next by this factor, for example 0.65.",
            rich_help_panel=RECIPE,
        ),
    ] = None
    lora: Annotated[
        int | None,
        option(min=1, show_default="none", help="Learn corrections of this rank only.", rich_help_panel=RECIPE),
    ] = None
    frozen_share: Annotated[
        float,
        option(min=0, max=1, help="Share of the epochs before the encoder learns.", rich_help_panel=RECIPE),
    ] = 0.2
    unfreeze_factor: Annotated[
        float | None,
        option(show_default="0.1; 1 with --llrd", help="On the rates once the encoder learns.", rich_help_panel=RECIPE),
    ] = None
    decoder: Annotated[Decoder, option(help="From embeddings to answers.", rich_help_panel=RECIPE)] = Decoder.LINEAR
    hidden: Annotated[
        str, option(help="Widths of hidden layers (mlp, pooling), with commas.", rich_help_panel=RECIPE)
    ] = "512"


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """Flags of the optimiser and of what it sees."""

    epochs: Annotated[int, option(min=1, help="Passes over the training windows.", rich_help_panel=TRAINING)] = 50
    lr: Annotated[
        float | None,
        option(show_default="5e-4; 1e-4 with --llrd", help="Learning rate of the head.", rich_help_panel=TRAINING),
    ] = None
    sweep: Annotated[
        str | None,
        option(
            show_default="none",
            help="Try several rates and keep the best on validation: lr=1e-4,5e-4,1e-3.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    decay: Annotated[Decay, option(help="How rates fall.", rich_help_panel=TRAINING)] = Decay.PLATEAU
    batch_size: Annotated[
        int | None,
        option(
            min=1,
            show_default="8; 32 with one target per window",
            help="Windows of an update.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    accumulate: Annotated[
        int, option(min=1, help="Parts in which an update is computed: less memory.", rich_help_panel=TRAINING)
    ] = 1
    patience: Annotated[
        int | None,
        option(
            min=1, show_default="never", help="Epochs without improvement before it stops.", rich_help_panel=TRAINING
        ),
    ] = None
    weight_decay: Annotated[float, option(min=0, help="Of AdamW.", rich_help_panel=TRAINING)] = 0.01
    clip_norm: Annotated[
        float | None, option(show_default="none", help="Largest norm of the gradients.", rich_help_panel=TRAINING)
    ] = None
    class_weights: Annotated[
        Weights, option(help="Count rare classes as much as frequent ones.", rich_help_panel=TRAINING)
    ] = Weights.NONE
    dice: Annotated[bool, option("--dice", help="Add the Dice loss (segmentation).", rich_help_panel=TRAINING)] = False
    loss: Annotated[Loss, option(help="Error that a regression lowers.", rich_help_panel=TRAINING)] = Loss.SQUARED
    augment: Annotated[
        bool, option("--augment", help="Turn and mirror training windows.", rich_help_panel=TRAINING)
    ] = False
    time_dropout: Annotated[
        float, option(min=0, max=0.99, help="Share of periods hidden in training.", rich_help_panel=TRAINING)
    ] = 0.0
    modality_dropout: Annotated[
        float, option(min=0, max=0.99, help="Share of modalities hidden in training.", rich_help_panel=TRAINING)
    ] = 0.0
    drop_path: Annotated[
        float | None,
        option(min=0, max=0.99, show_default="the model's", help="Rate of stochastic depth.", rich_help_panel=TRAINING),
    ] = None
    metric: Annotated[
        str | None,
        option(
            show_default="by the kind of target", help="What chooses the epoch and the rate.", rich_help_panel=TRAINING
        ),
    ] = None
    baselines: Annotated[
        bool, option(help="Judge kNN, linear probe and raw bands as well.", rich_help_panel=TRAINING)
    ] = True
    bootstrap: Annotated[
        int, option(min=0, help="Draws for the 95 % intervals; 0 for none.", rich_help_panel=TRAINING)
    ] = 1000
    cache_features: Annotated[
        bool,
        option(help="Compute the features of a frozen encoder once, not each epoch.", rich_help_panel=TRAINING),
    ] = True
    seed: Annotated[int, option(help="Of splits, first weights, and everything drawn.", rich_help_panel=TRAINING)] = 42


@dataclass(frozen=True, kw_only=True)
class DeviceFlags:
    """Flags that decide speed, not results."""

    device: Annotated[str, option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=DEVICES)] = "auto"
    precision: Annotated[Precision, option(help="Arithmetic of the network.", rich_help_panel=DEVICES)] = (
        Precision.FLOAT32
    )
    workers: Annotated[
        int | None,
        option(
            min=1,
            show_default="1 cuts, 2 read",
            help="Processes that cut windows, and threads that read them ahead.",
            rich_help_panel=DEVICES,
        ),
    ] = None
    scheduler: Annotated[
        str | None, option(help="Address of a running Dask scheduler, to cut windows.", rich_help_panel=DEVICES)
    ] = None


@dataclass(frozen=True, kw_only=True)
class Finetune(Ending, DeviceFlags, TrainingFlags, RecipeFlags, DataFlags):
    """Adapt a model to your labels: cut windows around them, train, judge on land held out, save.

    Prints the run's folder, which is a model: give it to `predict --model`. Bare, it takes the only labels in the
    folder and its table of olmoearth.toml; catalogue, dates and model that stand only under embed there hold here too.
    Windows are kept, and a second run reads no catalogue. Run the same command again to continue.
    """
