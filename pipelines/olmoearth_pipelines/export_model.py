"""The road of `olmoearth export model`: a checkpoint becomes what other programs load."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.files import file_sha256, publish, write_json, write_text
from olmoearth_pipelines.exporting.output import check_output, work_folder

if TYPE_CHECKING:
    from olmoearth_pipelines.exporting.model_card import Exported
    from olmoearth_pipelines.exporting.model_source import ModelSource

FOLDER = "folder"
GRAPHS = {".onnx": "onnx", ".pt2": "pt2"}
"""Ending of the output -> format; anything else is a folder."""
NO_FOLDERS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".h5", ".tflite", ".pb", ".json")
"""Endings that nobody gives a folder."""
CARD, ITEM = "README.md", "model.json"
OWN_FILES = {"config.json", "weights.pth", "model.safetensors", CARD, ITEM}
"""What an exported folder may hold: a folder with anything else is not replaced."""
MODALITIES = ("sentinel2_l2a",)
WINDOW_PX, PATCH_PX, PERIODS = 64, 4, 12
"""Of a graph; the setting of `olmoearth embed`."""


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What to export, and how. What is None has its default, or no meaning for the format."""

    model: str
    """Checkpoint, run folder, model folder, or published name."""
    to: Path
    """Its ending says the format: `.onnx`, `.pt2`, anything else a folder."""
    encoder_only: bool = False
    """True leaves decoder and target out of a folder."""
    weights: str | None = None
    """`pth` or `safetensors`, of a folder."""
    dtype: str | None = None
    """`float32` or `float16`: what a folder's weights are stored as."""
    modalities: tuple[str, ...] | None = None
    """Inputs of a graph."""
    window_px: int | None = None
    """Side of a graph's images."""
    patch_px: int | None = None
    """Patch side of a graph."""
    periods: int | None = None
    """Periods of a graph."""
    masks: bool = False
    """True: a graph has inputs that say where there is data."""
    overwrite: bool = False
    """True replaces what an earlier export left."""


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """What was exported."""

    path: str
    """Folder or file, as it was asked for."""
    format: str
    """`folder`, `onnx` or `pt2`."""
    model: str
    """Name."""
    architecture: str
    """Released architecture that it has, or its own name."""
    demo: bool
    """True for weights that learned nothing."""
    parameters: int
    """Of a folder: in its weights. Of a graph: of the encoder, whatever the graph uses of it."""
    encoder_only: bool
    """True: without decoder and target."""
    files: dict[str, int]
    """Name -> bytes."""
    sha256: str
    """Of the weights file."""
    inputs: tuple[str, ...] | None
    """Of a graph, in order."""
    difference: float | None
    """Largest difference of a graph's vectors from the plain encoder's."""
    seconds: float
    """That it took."""
    notes: tuple[str, ...]
    """What a user should know."""


def run(request: ModelRequest, note: Callable[[str], None]) -> ModelReport:
    """Export a model.

    Args:
        request: what and how.
        note: told what is about to take long.

    Raises:
        InputError: options that do not go together or do not fit the model.
        ModelError: the model is not there, damaged, holds code, or is of another architecture.
        OutputError: the output is there already, or cannot be written.
        RunError: an exported graph gives other vectors than the encoder.
    """
    started = time.monotonic()
    kind = _format(request.to)
    _check_options(request, kind)
    places = _places(request.to.absolute(), kind)
    chosen = _newest(request.model)
    _check_places(places, chosen, request, is_folder=kind == FOLDER)
    from olmoearth_pipelines.exporting.model_source import open_source

    source = open_source(chosen)
    notes = _notes(request.model, chosen, source)
    with work_folder(places[0], flag="--to") as work:
        if kind == FOLDER:
            made = _folder(request, source, work, notes)
        else:
            note("translating the encoder, and comparing its vectors with the plain encoder's")
            made = _graph(request, source, work / places[0].name, kind, notes)
        _publish(source, made, work, places, is_folder=kind == FOLDER)
    files = sorted(places[0].iterdir()) if kind == FOLDER else places
    return ModelReport(
        path=str(request.to),
        format=kind,
        model=source.name,
        architecture=source.model.spec.name,
        demo=source.model.demo,
        parameters=made.parameters,
        encoder_only=made.encoder_only,
        files={path.name: path.stat().st_size for path in files},
        sha256=made.sha256,
        inputs=made.graph.inputs if made.graph else None,
        difference=made.difference,
        seconds=round(time.monotonic() - started, 2),
        notes=tuple(notes),
    )


def _folder(request: ModelRequest, source: ModelSource, work: Path, notes: list[str]) -> Exported:
    from olmoearth_pipelines.exporting.model_card import Exported
    from olmoearth_pipelines.exporting.model_folder import write_published

    alone = request.encoder_only or not source.has_decoder
    if alone and not request.encoder_only:
        notes.append(f"{source.weights.parent}: has an encoder and no decoder; the encoder alone was exported")
    path, parameters = write_published(
        source, work, encoder_only=alone, weights=request.weights or "pth", dtype=request.dtype or "float32"
    )
    if request.weights == "safetensors" and not alone:
        notes.append("the reference package reads weights.pth only: export with --weights pth for it")
    return Exported(
        file=path.name,
        sha256=file_sha256(path),
        parameters=parameters,
        graph=None,
        difference=None,
        encoder_only=alone,
    )


def _graph(request: ModelRequest, source: ModelSource, path: Path, kind: str, notes: list[str]) -> Exported:
    from olmoearth_pipelines.exporting.model_card import Exported
    from olmoearth_pipelines.exporting.model_graph import MUCH_MEMORY, GraphShape, check_shape, write_onnx, write_pt2

    shape = GraphShape(
        modalities=request.modalities or MODALITIES,
        window_px=WINDOW_PX if request.window_px is None else request.window_px,
        periods=PERIODS if request.periods is None else request.periods,
        patch_px=PATCH_PX if request.patch_px is None else request.patch_px,
        masks=request.masks,
    )
    check_shape(source.model, shape)
    needed = shape.attention_bytes(source.model)
    if kind == "onnx" and needed > MUCH_MEMORY:
        notes.append(
            f"onnxruntime holds every pair of tokens: {needed / 1e9:.1f} GB for one sample. A smaller --window, a "
            "larger --patch-size or fewer --periods need less"
        )
    difference = (write_onnx if kind == "onnx" else write_pt2)(source, shape, path)
    return Exported(
        file=path.name,
        sha256=file_sha256(path),
        parameters=sum(p.numel() for p in source.model.encoder.parameters()),
        graph=shape,
        difference=difference,
        encoder_only=True,
    )


def _publish(source: ModelSource, made: Exported, work: Path, places: list[Path], *, is_folder: bool) -> None:
    """Write card and item beside the weights, and move all to their places; the weights come last."""
    from olmoearth_pipelines.exporting.model_card import card, stac_item

    write_text(work / CARD, card(source, made))
    write_json(work / ITEM, stac_item(source, made))
    if is_folder:
        publish(work, places[0])
        return
    for name, place in reversed(list(zip((made.file, CARD, ITEM), places, strict=True))):
        publish(work / name, place)


def _notes(asked: str, chosen: str, source: ModelSource) -> list[str]:
    notes = [] if chosen == asked else [f"{asked}: a run; exporting its newest checkpoint, {chosen}"]
    if source.tuned is not None:
        notes.append(f"{chosen}: a fine-tuned model; its encoder is exported, and its head is left out")
    if source.dropped:
        notes.append(
            f"{len(source.dropped)} entries left out that are no encoder, decoder or target: {source.dropped[0]}, ..."
        )
    return notes


def _format(to: Path) -> str:
    suffix = to.suffix.lower()
    if suffix in NO_FOLDERS:
        raise InputError(
            f"--to {to}: give a folder (config.json and weights are written there), or a file that ends in "
            ".onnx or .pt2."
        )
    return GRAPHS.get(suffix, FOLDER)


def _check_options(request: ModelRequest, kind: str) -> None:
    """Refuse options that the format has no use for, rather than ignore them."""
    of_folders = {
        "--weights": request.weights,
        "--dtype": request.dtype,
        "--encoder-only": request.encoder_only or None,
    }
    of_graphs = {
        "--modalities": request.modalities,
        "--window": request.window_px,
        "--patch-size": request.patch_px,
        "--periods": request.periods,
        "--masks": request.masks or None,
    }
    wrong = of_graphs if kind == FOLDER else of_folders
    given = [flag for flag, value in wrong.items() if value is not None]
    if given:
        raise InputError(
            f"{', '.join(given)}: no meaning for {'a model folder' if kind == FOLDER else f'.{kind} files'}. "
            "Leave it out, or choose another ending for --to."
        )


def _places(out: Path, kind: str) -> list[Path]:
    """What is written: the folder, or the file with its card and its item beside it."""
    if kind == FOLDER:
        return [out]
    return [out, out.with_name(f"{out.name}.md"), out.with_name(f"{out.name}.stac.json")]


def _check_places(places: list[Path], model: str, request: ModelRequest, *, is_folder: bool) -> None:
    out = places[0]
    source = Path(model).expanduser()
    if is_folder and source.is_dir() and source.resolve() == out.resolve():
        raise OutputError(f"{request.to}: is the model itself. Choose another folder.")
    for place in places:
        check_output(place, overwrite=request.overwrite, own_file="config.json" if is_folder else None)
    if is_folder and out.is_dir():
        others = sorted(path.name for path in out.iterdir() if path.name not in OWN_FILES)
        if others:
            raise OutputError(
                f"{request.to}: holds files that no export of a model wrote ({others[0]}). Choose another folder; "
                "this one is left alone."
            )


def _newest(model: str) -> str:
    """The newest checkpoint of a run's folder; anything else as it is."""
    from olmoearth_pipelines.training.checkpoint import checkpoints

    folder = Path(model).expanduser()
    found = [] if (folder / "config.json").exists() else checkpoints(folder)
    return str(found[0]) if found else model
