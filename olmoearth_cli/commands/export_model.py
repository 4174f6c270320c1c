"""`olmoearth export model`: a checkpoint as what other programs load."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from olmoearth_cli.commands.options import Output, option, to_modalities
from olmoearth_cli.console import Console, size

EXAMPLE = "Example: olmoearth export model runs/nano --to nano.onnx --modalities s2,s1"
FOLDER = "Model folder"
GRAPH = "ONNX and torch.export"


class WeightsFile(StrEnum):
    """File that holds the weights."""

    PTH = "pth"
    SAFETENSORS = "safetensors"


class WeightsType(StrEnum):
    """Numbers that weights are stored as."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@dataclass(frozen=True, kw_only=True)
class ModelFlags(Output):
    """A checkpoint in the published layout (a folder), as ONNX, or for torch.export.load.

    The ending of --to says which. A card and a STAC item stand beside it. An ONNX or .pt2 file maps normalised images
    and dates to one vector per cell; only the number of samples is free. It appears once its vectors were found equal
    to the encoder's own, to 1e-4.
    """

    model: Annotated[
        str,
        typer.Argument(
            help="Run or checkpoint of `olmoearth pretrain`, model folder, or published name.", metavar="MODEL"
        ),
    ]
    to: Annotated[Path, option("--to", help="Folder, or file ending in .onnx or .pt2.")]
    encoder_only: Annotated[
        bool, option("--encoder-only", help="Leave decoder and target out.", rich_help_panel=FOLDER)
    ] = False
    weights: Annotated[
        WeightsFile | None,
        option(show_default="pth, which the reference reads", help="File of the weights.", rich_help_panel=FOLDER),
    ] = None
    dtype: Annotated[
        WeightsType | None, option(show_default="float32", help="Numbers in the file.", rich_help_panel=FOLDER)
    ] = None
    modalities: Annotated[
        str | None, option(show_default="s2", help="s2, s1, landsat; several with commas.", rich_help_panel=GRAPH)
    ] = None
    window: Annotated[
        int | None, option(min=1, show_default="64", help="Side of the images in pixels.", rich_help_panel=GRAPH)
    ] = None
    patch_size: Annotated[
        int | None, option(min=1, max=8, show_default="4", help="Side of a cell in pixels.", rich_help_panel=GRAPH)
    ] = None
    periods: Annotated[int | None, option(min=1, show_default="12", help="Periods.", rich_help_panel=GRAPH)] = None
    masks: Annotated[
        bool, option("--masks", help="With inputs that say where there is data.", rich_help_panel=GRAPH)
    ] = False


def run(flags: ModelFlags) -> None:
    """Run `export model`."""
    from olmoearth_pipelines import export_model

    console = Console(quiet=flags.quiet, as_json=flags.json)
    request = export_model.ModelRequest(
        model=flags.model,
        to=flags.to,
        encoder_only=flags.encoder_only,
        weights=None if flags.weights is None else flags.weights.value,
        dtype=None if flags.dtype is None else flags.dtype.value,
        modalities=to_modalities(flags.modalities),
        window_px=flags.window,
        patch_px=flags.patch_size,
        periods=flags.periods,
        masks=flags.masks,
        overwrite=flags.overwrite,
    )
    report = export_model.run(request, console.note)
    for note in report.notes:
        console.note(note)
    if report.demo:
        console.warn("DEMO WEIGHTS: this model learned nothing, or too little to be of use.")
    checked = "" if report.difference is None else f", vectors within {report.difference:.1g} of the encoder's"
    total = size(sum(report.files.values()))
    console.note(f"{report.model} ({report.architecture}): {report.parameters:,} parameters, {total}{checked}")
    console.result(report.path, asdict(report))
