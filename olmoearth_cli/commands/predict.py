"""`olmoearth predict`: a map of what a fine-tuned model, or a saved probe, has learned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from olmoearth_cli.commands.options import (
    Blend,
    Guard,
    Precision,
    command_of,
    option,
    to_catalogs,
    to_modalities,
)
from olmoearth_cli.commands.predict_text import class_map_text, plan_text, summary_text
from olmoearth_cli.console import Console, Progress
from olmoearth_cli.errors import InputError

if TYPE_CHECKING:
    from olmoearth_pipelines.predict import ClassMapSummary, PredictRequest, PredictSummary

EXAMPLE = "Example: olmoearth predict --model runs/labels --aoi region.geojson --year 2024"
WITH_GAPS = 3
"""Exit code of a run that finished with gaps."""
DAYS = ["%Y-%m-%d"]
PROBE = "A saved probe over a map"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Flags that stand last."""

    overwrite: Annotated[bool, option("--overwrite", help="Replace what other settings made.")] = False
    json: Annotated[bool, option("--json", help="One JSON object on stdout.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress, no notes.")] = False


@dataclass(frozen=True, kw_only=True)
class Predict(Ending):
    """Map what a fine-tuned model has learned: find the scenes, encode, answer, blend, write.

    Prints the map's folder: one raster of all tiles (classes.tif with its confidence, or values.tif), the tiles with
    STAC, and a picture. Run the same command again to continue. With --probe a finished map of embeddings is read
    instead, and one raster is written.
    """

    model: Annotated[
        str | None, option(help="Folder that `olmoearth finetune` wrote; a saved probe is taken as --probe.")
    ] = None
    aoi: Annotated[
        str | None, option(help="Region: a vector file with polygons, or minx,miny,maxx,maxy in lon/lat.")
    ] = None
    start: Annotated[
        datetime | None, option(formats=DAYS, show_default="1 January", help="First day of the first period.")
    ] = None
    end: Annotated[datetime | None, option(formats=DAYS, help="Day after the last one.")] = None
    year: Annotated[
        int | None, option(show_default="the last complete one", help="Calendar year; periods count from 1 January.")
    ] = None
    periods: Annotated[
        int | None, option(min=1, show_default="the model's", help="Number of 30-day periods; any other is refused.")
    ] = None
    catalog: Annotated[
        str | None,
        option(
            show_default="by the modalities",
            help="planetary-computer, earth-search, cdse, usgs, the URL of a STAC API, or a static catalogue on disk; "
            "several with commas.",
        ),
    ] = None
    modalities: Annotated[
        str | None, option(show_default="the model's", help="Fewer than it learned from: s2, s1, landsat.")
    ] = None
    patch_size: Annotated[int | None, option(show_default="the model's", help="Any other is refused.")] = None
    window: Annotated[int | None, option(show_default="the model's", help="Any other is refused.")] = None
    overlap: Annotated[
        int | None, option(show_default="half a window", help="Pixels that neighbouring windows share.")
    ] = None
    blend: Annotated[
        Blend, option(help="Where windows overlap: the owner's answer, or a Hann mean of the probabilities.")
    ] = Blend.HANN
    precision: Annotated[Precision, option(help="Arithmetic of the network.")] = Precision.FLOAT32
    probabilities: Annotated[
        bool, option("--probabilities", help="Keep the probabilities of all classes (probabilities.tif).")
    ] = False
    vector: Annotated[Path | None, option(help="Polygons of equal class as well: .gpkg, .geojson or .parquet.")] = None
    out: Annotated[
        Path | None,
        option(
            "--out",
            "-o",
            show_default="predictions/ and the region's name",
            help="Output folder; the raster with --probe.",
        ),
    ] = None
    workers: Annotated[int, option(min=1, help="Local worker processes; each takes its share of the cores.")] = 1
    scheduler: Annotated[str | None, option(help="Address of a running Dask scheduler.")] = None
    device: Annotated[str, option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    tile_size: Annotated[
        int | None, option(min=1, show_default="256 to 1024 by the region", help="Side of a tile in pixels.")
    ] = None
    guard: Annotated[Guard, option(help="When pixels contradict the catalogue: stop, warn, or do not look.")] = (
        Guard.STRICT
    )
    plan: Annotated[bool, option("--plan", help="Say what the run would cost, and stop.")] = False
    probe: Annotated[Path | None, option(help="File that `olmoearth probe --save` wrote.", rich_help_panel=PROBE)] = (
        None
    )
    map: Annotated[
        Path | None,
        option(
            show_default="the only one in the folder",
            help="Folder that `olmoearth embed` made.",
            rich_help_panel=PROBE,
        ),
    ] = None


WITH_PROBE = {"model", "probe", "map", "out", "workers", "scheduler", "overwrite", "json", "quiet"}
"""Flags that a probe over a map looks at."""


def predict(flags: Predict, typed: set[str]) -> None:
    """Run `predict`."""
    console = Console(quiet=flags.quiet, as_json=flags.json)
    probe = _probe(flags, typed)
    if probe is not None:
        _over_map(flags, probe, console)
        return
    if "map" in typed:
        raise InputError("--map: a fine-tuned model reads imagery, not a map. Give --aoi, or a --probe with the map.")
    if flags.aoi is None:
        raise InputError("--aoi is missing: name the region to predict (a vector file, or minx,miny,maxx,maxy).")
    _over_region(flags, console)


command = command_of(Predict, predict, last=Ending, tells_typed=True)


def _probe(flags: Predict, typed: set[str]) -> Path | None:
    """The probe that is meant; None for a fine-tuned model.

    Args:
        flags: of the command.
        typed: fields that were typed; others may come from `olmoearth.toml` and speak of the other road.
    """
    given = [name for name in ("model", "probe") if getattr(flags, name) is not None]
    if any(name in typed for name in given):
        given = [name for name in given if name in typed]
    if len(given) != 1:
        raise InputError(
            "give either --model, a folder that `olmoearth finetune` wrote, or --probe, a file that `olmoearth probe "
            "--save` wrote."
        )
    path = Path(str(getattr(flags, given[0])))
    if given == ["model"] and not path.is_file():
        return None
    without_effect = [
        f"--{f.name.replace('_', '-')}" for f in fields(flags) if f.name in typed and f.name not in WITH_PROBE
    ]
    if without_effect:
        raise InputError(
            f"{', '.join(without_effect)}: a probe reads a finished map and nothing else. Leave it out (the map of a "
            "region: olmoearth embed --aoi ...)."
        )
    return path


def _request(flags: Predict) -> PredictRequest:
    from olmoearth_pipelines.predict import PredictRequest

    return PredictRequest(
        model=str(flags.model),
        aoi=str(flags.aoi),
        start=flags.start.date() if flags.start else None,
        end=flags.end.date() if flags.end else None,
        year=flags.year,
        periods=flags.periods,
        catalogs=to_catalogs(flags.catalog),
        modalities=to_modalities(flags.modalities),
        patch_size=flags.patch_size,
        window=flags.window,
        overlap=flags.overlap,
        blend=flags.blend.value,
        precision=flags.precision.value,
        probabilities=flags.probabilities,
        vector=flags.vector,
        out=flags.out,
        workers=flags.workers,
        scheduler=flags.scheduler,
        device=flags.device,
        tile_size=flags.tile_size,
        guard=flags.guard.value,
        overwrite=flags.overwrite,
    )


def _over_region(flags: Predict, console: Console) -> None:
    from olmoearth_pipelines.predict import PredictSummary, estimate_prediction, prepare_prediction, run

    prediction = prepare_prediction(_request(flags), console.note, console.warn)
    if flags.plan:
        figures = estimate_prediction(prediction)
        console.result(plan_text(figures), figures)
        return
    progress = Progress(console)
    summary = None
    try:
        for report in run(prediction, console.note, console.warn):
            if isinstance(report, PredictSummary):
                summary = report
            else:
                progress.advance(report)
    finally:
        progress.close()
    assert summary is not None
    _finish(summary, console)


def _finish(summary: PredictSummary, console: Console) -> None:
    console.note(summary_text(summary))
    for reason, count in summary.gaps.items():
        console.warn(f"{count} tile(s) without an answer: {reason}")
    console.result(summary.folder, asdict(summary))
    if summary.gaps:
        raise typer.Exit(WITH_GAPS)


def _over_map(flags: Predict, probe: Path, console: Console) -> None:
    from olmoearth_pipelines.predict import ClassMapSummary, apply_probe

    progress = Progress(console)
    summary: ClassMapSummary | None = None
    steps = apply_probe(
        probe,
        flags.map,
        flags.out or Path("classes.tif"),
        workers=flags.workers,
        scheduler=flags.scheduler,
        overwrite=flags.overwrite,
    )
    try:
        for step in steps:
            if isinstance(step, ClassMapSummary):
                summary = step
            else:
                progress.advance(step)
    finally:
        progress.close()
    assert summary is not None
    console.note(class_map_text(summary))
    console.result(summary.path, asdict(summary))
