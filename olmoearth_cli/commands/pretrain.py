"""`olmoearth pretrain`: train a model of the family from samples on disk."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from olmoearth_cli import console as terminal
from olmoearth_cli.commands.options import Precision, command_of, option
from olmoearth_cli.commands.pretrain_text import plan_text, probe_text, step_text, summary_text
from olmoearth_cli.console import LINE_EVERY_S, Console, TaskLine
from olmoearth_cli.errors import InputError

if TYPE_CHECKING:
    from olmoearth_pipelines.pretrain import StepReport
    from olmoearth_pipelines.training.request import PretrainRequest

EXAMPLE = (
    "Example: olmoearth pretrain --data samples/ --recipe v1.2 --size nano --steps 2000 --batch-size 32 -o runs/nano"
)
SWITCHES = "Switches of the report's ablations"
SPEED = "Devices and speed"
RECORDS = "Records and probes"
LIVE_EVERY_S = 0.2
SHORT_NAMES = {
    "s2": "sentinel2_l2a",
    "s1": "sentinel1",
    "osm": "openstreetmap_raster",
    "canopy": "wri_canopy_height_map",
}


class Release(StrEnum):
    """Whose recipe and architecture."""

    V1 = "v1"
    V1_1 = "v1.1"
    V1_2 = "v1.2"


class Size(StrEnum):
    """Of the family."""

    NANO = "nano"
    TINY = "tiny"
    SMALL = "small"
    BASE = "base"
    LARGE = "large"


class MaskingKind(StrEnum):
    """How views are drawn."""

    UPDATED = "updated"
    V1 = "v1"


class Projection(StrEnum):
    """Patches to tokens."""

    LINEAR = "linear"
    NONLINEAR = "nonlinear"


class Loss(StrEnum):
    """Which predicted tokens are negatives."""

    MASKED_NEGATIVES = "masked-negatives"
    V1 = "v1"


class Encoding(StrEnum):
    """How tokens know their place and time."""

    APE = "ape"
    ROPE_2D = "2d-rope"
    ROPE_2D_MIXED = "2d-rope-mixed"
    ROPE_3D = "3d-rope"
    ROPE_3D_MIXED = "3d-rope-mixed"


class Groups(StrEnum):
    """Bands that become one token."""

    SINGLE = "single"
    V1 = "v1"


class Augment(StrEnum):
    """Flips and quarter turns."""

    NONE = "none"
    SHARED = "shared"
    PER_VIEW = "per-view"


class Budget(StrEnum):
    """Whose band groups the token budget counts."""

    V1 = "v1"
    MODEL = "model"


class GridPer(StrEnum):
    """What shares a patch and crop size."""

    BATCH = "batch"
    MICROBATCH = "microbatch"


RECIPE = "the recipe's"


@dataclass(frozen=True, kw_only=True)
class Output:
    """Flags that say how the command speaks."""

    plan: Annotated[bool, option("--plan", help="Say what the run would take, and stop.")] = False
    overwrite: Annotated[bool, option("--overwrite", help="Replace a run made with other settings.")] = False
    json: Annotated[bool, option("--json", help="One JSON object on stdout.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress, no notes.")] = False


@dataclass(frozen=True, kw_only=True)
class Pretrain(Output):
    """Pretrain a model of the family from samples on disk, with the recipe of its release.

    Prints the last checkpoint's folder, which is a model: give it to `embed --model`. Run the same command again to
    go on after an interruption; the losses and weights are those of a run that never stopped.
    """

    data: Annotated[
        Path | None, option(help="Folder of the samples (the published HDF5 layout, or what `export data` wrote).")
    ] = None
    recipe: Annotated[Release, option(help="Release whose recipe and architecture to follow.")] = Release.V1_2
    size: Annotated[Size, option(help="Size of the model.")] = Size.TINY
    init: Annotated[
        str | None, option(show_default="fresh weights", help="Model whose weights to start from: a name, or a folder.")
    ] = None
    epochs: Annotated[int | None, option(show_default="300", help="Passes over the samples.")] = None
    steps: Annotated[int | None, option(show_default="by --epochs", help="Steps, in place of --epochs.")] = None
    batch_size: Annotated[int, option(help="Samples of a step, over all devices.")] = 512
    lr: Annotated[float | None, option(show_default=RECIPE, help="Peak learning rate.")] = None
    warmup: Annotated[
        int | None,
        option(show_default="8000, or a tenth of a shorter run", help="Steps of rising learning rate."),
    ] = None
    weight_decay: Annotated[float | None, option(show_default=RECIPE, help="Of all parameters.")] = None
    seed: Annotated[
        int | None, option(show_default="12536 for weights, 3622 for data", help="Of weights and data.")
    ] = None
    out: Annotated[
        Path | None, option("--out", "-o", show_default="runs/ and the model's name", help="Output folder.")
    ] = None
    modalities: Annotated[
        str | None,
        option(
            show_default="all nine",
            help="What is read and predicted: s2, s1, landsat, worldcover, srtm, osm, canopy, cdl, worldcereal.",
            rich_help_panel=SWITCHES,
        ),
    ] = None
    masking: Annotated[
        MaskingKind | None, option(show_default=RECIPE, help="How views are masked.", rich_help_panel=SWITCHES)
    ] = None
    time_masking: Annotated[
        float | None,
        option(show_default="0.5", help="Share of samples whose periods are hidden whole.", rich_help_panel=SWITCHES),
    ] = None
    band_dropout: Annotated[
        float | None,
        option(show_default=RECIPE, help="Highest share of dropped bands; 0 for none.", rich_help_panel=SWITCHES),
    ] = None
    projection: Annotated[
        Projection | None,
        option(
            show_default=RECIPE, help="Patches to tokens: with a per-pixel layer or without.", rich_help_panel=SWITCHES
        ),
    ] = None
    loss: Annotated[
        Loss | None,
        option(show_default=RECIPE, help="Leave near-identical negatives out, or not.", rich_help_panel=SWITCHES),
    ] = None
    position_encoding: Annotated[
        Encoding | None,
        option(show_default=RECIPE, help="How tokens know their place and time.", rich_help_panel=SWITCHES),
    ] = None
    band_groups: Annotated[
        Groups | None,
        option(show_default=RECIPE, help="One token per image, or v1's groups.", rich_help_panel=SWITCHES),
    ] = None
    contrast_weight: Annotated[
        float | None,
        option(show_default=RECIPE, help="Weight of the instance contrast; 0 for none.", rich_help_panel=SWITCHES),
    ] = None
    augment: Annotated[
        Augment | None,
        option(show_default=RECIPE, help="Flips and turns: none, of both views, of each.", rich_help_panel=SWITCHES),
    ] = None
    microbatch: Annotated[
        int | None,
        option(
            show_default=RECIPE,
            help="Samples of a forward pass; the contrast sees no others.",
            rich_help_panel=SWITCHES,
        ),
    ] = None
    budget_groups: Annotated[
        Budget, option(help="Whose band groups the token budget counts.", rich_help_panel=SWITCHES)
    ] = Budget.V1
    grid_per: Annotated[
        GridPer,
        option(
            help="What shares a patch and crop size: each microbatch, or a device's batch.", rich_help_panel=SWITCHES
        ),
    ] = GridPer.MICROBATCH
    workers: Annotated[int, option(help="Processes per device that read ahead.", rich_help_panel=SPEED)] = 2
    devices: Annotated[
        int, option(help="GPUs of this machine (or CPU processes) that share a batch.", rich_help_panel=SPEED)
    ] = 1
    device: Annotated[str, option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=SPEED)] = "auto"
    precision: Annotated[
        Precision, option(help="Arithmetic of the networks; positions and losses stay float32.", rich_help_panel=SPEED)
    ] = Precision.FLOAT32
    compile: Annotated[bool, option("--compile", help="Compile the blocks' MLPs.", rich_help_panel=SPEED)] = False
    save_every: Annotated[int, option(help="Steps between checkpoints.", rich_help_panel=RECORDS)] = 500
    keep: Annotated[int, option(help="Checkpoints kept, the newest ones.", rich_help_panel=RECORDS)] = 3
    log_every: Annotated[int, option(help="Steps between lines of log.jsonl.", rich_help_panel=RECORDS)] = 10
    probe_every: Annotated[
        int,
        option(help="Steps between kNN probes on a tenth of the tiles, held out; 0 for none.", rich_help_panel=RECORDS),
    ] = 0
    probe_map: Annotated[str, option(help="Map whose classes the probe asks for.", rich_help_panel=RECORDS)] = (
        "worldcover"
    )
    grid_intensity: Annotated[
        float | None, option(show_default="not said", help="Grams of CO2 per kWh.", rich_help_panel=RECORDS)
    ] = None
    water_intensity: Annotated[
        float | None, option(show_default="not said", help="Litres of water per kWh.", rich_help_panel=RECORDS)
    ] = None
    tensorboard: Annotated[
        bool, option("--tensorboard", help="Figures for TensorBoard, in the output folder.", rich_help_panel=RECORDS)
    ] = False
    wandb: Annotated[
        str | None, option(show_default="none", help="Project of Weights & Biases.", rich_help_panel=RECORDS)
    ] = None


def pretrain(flags: Pretrain) -> None:
    """Run `pretrain`."""
    request = _request(flags)
    console = Console(quiet=flags.quiet, as_json=flags.json)
    from olmoearth_pipelines.training.devices import place

    if place()[1] > 1 or request.devices == 1:
        _train(flags, request, console)
        return
    from olmoearth_pipelines.pretrain import prepare_team
    from olmoearth_pipelines.training.launch import launch

    setup, device = prepare_team(request)
    if flags.plan:
        _plan(setup, device, console)
        return
    code = launch(partial(_train, flags, request, console), terminal.error, devices=request.devices, device=device)
    if code:
        raise typer.Exit(code)


def _train(flags: Pretrain, request: PretrainRequest, console: Console) -> None:
    from olmoearth_pipelines.pretrain import ProbeReport, StepReport, prepare_here, run

    setup, device = prepare_here(request)
    if flags.plan:
        _plan(setup, device, console)
        return
    line = _Line(console, request.model_name)
    try:
        for report in run(setup, device, console.note, console.warn):
            if isinstance(report, StepReport):
                line.step(report)
            elif isinstance(report, ProbeReport):
                line.close()
                console.note(probe_text(report))
            else:
                line.close()
                console.note(summary_text(report))
                console.result(report.checkpoint, asdict(report))
    finally:
        line.close()


class _Line:
    """The progress line: live on a terminal, now and then elsewhere."""

    def __init__(self, console: Console, name: str) -> None:
        self._line, self._name = TaskLine(console), name
        self._every = LIVE_EVERY_S if sys.stderr.isatty() else LINE_EVERY_S
        self._last = time.monotonic()

    def step(self, report: StepReport) -> None:
        """Say how far the run is, if it is time to."""
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        self._line.show(self._name, step_text(report), report.step, report.steps)

    def close(self) -> None:
        """End a live line."""
        self._line.close()


def _request(flags: Pretrain) -> PretrainRequest:
    """Flags as the road takes them: same names, plain values."""
    if flags.data is None:
        raise InputError("--data is missing: name the folder of the samples, or set data under [pretrain].")
    from olmoearth_pipelines.training.request import PretrainRequest

    own = {f.name for f in fields(PretrainRequest)}
    values: dict[str, Any] = {name: value for name, value in vars(flags).items() if name in own}
    values = {name: value.value if isinstance(value, StrEnum) else value for name, value in values.items()}
    values["modalities"] = _modalities(flags.modalities)
    values["augment"] = values["augment"] and values["augment"].replace("-", "_")
    values["out"] = flags.out or Path("runs") / f"{flags.recipe.value}-{flags.size.value}"
    return PretrainRequest(**values)


def _modalities(text: str | None) -> tuple[str, ...] | None:
    if not text:
        return None
    from olmoearth_cli.core.modality import MODALITIES

    names = [SHORT_NAMES.get(word.strip(), word.strip()) for word in text.lower().split(",")]
    unknown = [name for name in names if name not in MODALITIES]
    if unknown:
        raise InputError(
            f"--modalities: unknown {', '.join(unknown)}. Known: {', '.join((*SHORT_NAMES, *MODALITIES))}."
        )
    return tuple(names)


def _plan(setup: Any, device: str, console: Console) -> None:
    from olmoearth_pipelines.training.estimate import estimate

    figures = estimate(setup, device)
    console.result(plan_text(figures), figures)


command = command_of(Pretrain, pretrain, last=Output)
