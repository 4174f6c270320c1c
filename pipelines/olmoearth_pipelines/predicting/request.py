"""A request to predict, checked against what the fine-tuned model learned, and laid out."""

from __future__ import annotations

from calendar import month_name
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.files import file_sha256
from olmoearth_cli.maps.merge import check_zones
from olmoearth_cli.maps.run_record import PREDICTION, PRODUCT
from olmoearth_cli.maps.tile_files import TileEntry
from olmoearth_pipelines.predicting.prediction import PredictionSpec, layout_of_task
from olmoearth_pipelines.predicting.vectors import check_vector
from olmoearth_pipelines.request import EmbedRequest, Note, Prepared, prepare
from olmoearth_pipelines.scene_table import MODALITY_ORDER
from olmoearth_pipelines.tile_run import software

if TYPE_CHECKING:
    from olmoearth_cli.core.finetune.saved import Finetuned
    from olmoearth_cli.core.finetune.task import TaskDescription

MANY_CLASSES = 32
"""With more, tiles are small unless a size is asked for: blending holds every class of a tile's pixels in memory."""
SMALL_TILE_PX = 256


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """What the user asked for; the flags of `olmoearth predict --model`, one to one."""

    model: str
    """Folder that `olmoearth finetune` wrote."""
    aoi: str
    start: date | None = None
    end: date | None = None
    year: int | None = None
    periods: int | None = None
    catalogs: tuple[str, ...] | None = None
    modalities: tuple[str, ...] | None = None
    patch_size: int | None = None
    window: int | None = None
    overlap: int | None = None
    """Pixels that neighbouring windows share; half a window where None."""
    blend: str = "hann"
    precision: str = "float32"
    probabilities: bool = False
    """True keeps the probabilities of all classes."""
    vector: Path | None = None
    """File for polygons of equal class."""
    out: Path | None = None
    workers: int = 1
    scheduler: str | None = None
    device: str = "auto"
    tile_size: int | None = None
    guard: str = "strict"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """A request with everything looked up that needs no pixels."""

    request: PredictRequest
    prepared: Prepared
    """As for a map of embeddings: periods, tiles, scenes, folder, settings."""
    spec: PredictionSpec
    task: TaskDescription


def prepare_prediction(request: PredictRequest, note: Note, warn: Note) -> Prediction:
    """Check a request and lay out its tiles. Reads the region and the fine-tuned model.

    Raises:
        InputError, ModelError, OutputError: whatever cannot be used as asked.
    """
    finetuned = open_finetuned(request.model)
    task = finetuned.task
    _check_flags(request, task)
    modalities = _modalities(request, finetuned, warn)
    prepared = prepare(_embed_request(request, task, modalities), note, parent="predictions")
    if len(prepared.periods) != task.periods:
        raise InputError(
            f"--end: {len(prepared.periods)} periods of 30 days, but {request.model} learned from {task.periods}. "
            "Leave --end out, or choose dates that give as many."
        )
    _warn_of_season(request.model, task, prepared.periods[0].start.month, warn)
    _check_output(request, prepared, task)
    checkpoint = file_sha256(Path(request.model).expanduser() / _description())
    del prepared.settings["dtype"]  # of embeddings
    prepared.settings.update(
        {PRODUCT: PREDICTION, "checkpoint_sha256": checkpoint, "probabilities": request.probabilities}
    )
    spec = PredictionSpec(
        title=f"{task.field} of {prepared.aoi.name} by {Path(request.model).name}",
        model_name=Path(request.model).resolve().name,
        base_id=str(finetuned.base.get("id", finetuned.model.spec.id)),
        checkpoint_sha256=checkpoint,
        demo=finetuned.model.demo,
        layout=layout_of_task(task),
        probabilities=request.probabilities,
        blend=request.blend,
        start=prepared.periods[0].start,
        end=prepared.periods[-1].end,
        modalities=modalities,
        software=software(),
    )
    return Prediction(request=request, prepared=prepared, spec=spec, task=task)


def _warn_of_season(name: str, task: TaskDescription, month: int, warn: Note) -> None:
    """A series that begins in another season shows the model fields that it has not seen at that place of the year."""
    if task.first_month is None:
        return
    apart = abs(month - task.first_month) % 12
    if min(apart, 12 - apart) > 1:
        warn(
            f"{name} learned from series that begin in {month_name[task.first_month]}; these begin in "
            f"{month_name[month]}. Give --start the same month for answers to rely on."
        )


def open_finetuned(name: str) -> Finetuned:
    """Load a fine-tuned model.

    Raises:
        InputError: a plain encoder, or no model.
        ModelError: it is damaged.
    """
    from olmoearth_cli.core.finetune.saved import load_finetuned
    from olmoearth_cli.core.spec import CONFIG_FILE, released_spec

    folder = Path(name).expanduser()
    finished = (folder / _description()).is_file()
    if not finished and (released_spec(name) is not None or (folder / CONFIG_FILE).is_file()):
        raise InputError(
            f"--model {name}: an encoder that has learned no labels. Fine-tune it (olmoearth finetune --labels ...) "
            "and give the folder of that run; or make a map of the region (olmoearth embed) and probe it with your "
            "labels (olmoearth probe linear --predict classes.tif)."
        )
    return load_finetuned(folder)


def _description() -> str:
    from olmoearth_cli.core.finetune.saved import DESCRIPTION

    return DESCRIPTION


def _check_flags(request: PredictRequest, task: TaskDescription) -> None:
    """Refuse flags that contradict what the model learned with."""
    learned = {
        "--patch-size": (request.patch_size, task.head.patch_px),
        "--window": (request.window, task.window_px),
        "--periods": (request.periods, task.periods),
    }
    wrong = [
        f"{flag} {asked} (it learned with {own})" for flag, (asked, own) in learned.items() if asked not in {None, own}
    ]
    if wrong:
        raise InputError(
            f"{request.model} cannot be used with {', '.join(wrong)}. Leave the flag out: the model's folder says it."
        )
    if not task.real_dates and task.periods > 1:
        raise InputError(
            f"{request.model}: it learned from {task.periods} periods with dates that stand for unknown ones, which no "
            "catalogue can give. Fine-tune on windows with their own dates."
        )


def _modalities(request: PredictRequest, finetuned: Finetuned, warn: Note) -> tuple[str, ...]:
    """Products to read, in canonical order."""
    learned, readable = finetuned.task.modalities, finetuned.model.spec.encoder.input_modalities
    stray = [m for m in learned if m not in readable or m not in MODALITY_ORDER]
    if stray:
        raise InputError(
            f"{request.model}: it learned from {', '.join(stray)}, which is not read from a catalogue of scenes. "
            f"Fine-tune on {', '.join(MODALITY_ORDER)} alone."
        )
    if not request.modalities:
        return tuple(m for m in MODALITY_ORDER if m in learned)
    foreign = [m for m in request.modalities if m not in learned]
    if foreign:
        raise InputError(
            f"--modalities: {request.model} learned from {', '.join(learned)}, not from {', '.join(foreign)}. "
            "Leave the flag out."
        )
    if missing := [m for m in learned if m not in request.modalities]:
        warn(f"{request.model} learned from {', '.join(missing)} as well; without, its answers may be worse")
    return request.modalities


def _embed_request(request: PredictRequest, task: TaskDescription, modalities: tuple[str, ...]) -> EmbedRequest:
    patch_px, window_px = task.head.patch_px, task.window_px
    half = window_px // 2 // (2 * patch_px) * 2 * patch_px
    crowded = task.head.classes > MANY_CLASSES
    return EmbedRequest(
        aoi=request.aoi,
        start=request.start,
        end=request.end,
        year=request.year,
        periods=None if request.end is not None else task.periods,
        catalogs=request.catalogs,
        modalities=modalities,
        model=request.model,
        patch_size=patch_px,
        window=window_px,
        overlap=half if request.overlap is None else request.overlap,
        blend=request.blend,
        precision=request.precision,
        out=request.out,
        workers=request.workers,
        scheduler=request.scheduler,
        device=request.device,
        tile_size=request.tile_size or (SMALL_TILE_PX if crowded else None),
        guard=request.guard,
        overwrite=request.overwrite,
    )


def _check_output(request: PredictRequest, prepared: Prepared, task: TaskDescription) -> None:
    """Refuse results that this task or this region does not have."""
    layout = layout_of_task(task)
    if request.probabilities and not layout.has_classes:
        why = "its map holds values" if task.head.regresses else "its map holds the probability of each label already"
        raise InputError(f"--probabilities: {request.model} predicts no single class: {why}. Leave the flag out.")
    if request.vector is not None:
        check_vector(request.vector, layout)
    check_zones(
        [_planned(tile.id, tile.box) for tile in prepared.grid.tiles],
        "Predict the region in parts no wider than five zones.",
    )


def _planned(tile: str, box: PixelBox) -> TileEntry:
    return TileEntry(id=tile, box=box, path=None, status="done", reason=None, facts={}, item={})
