"""`olmoearth embed`: from a region to an embedding map."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from olmoearth_cli.commands.options import Blend, Guard, MapType, Precision, catalogs, modalities
from olmoearth_cli.console import Console, Progress, duration, size

if TYPE_CHECKING:
    from olmoearth_pipelines.embed import Prepared, RunSummary

EXAMPLE = "Example: olmoearth embed --aoi region.geojson --year 2024 --catalog planetary-computer"
WITH_GAPS = 3
"""Exit code of a run that finished with gaps."""
DAYS = ["%Y-%m-%d"]


def embed(  # noqa: PLR0913, PLR0917 - one argument per flag
    aoi: Annotated[
        str,
        typer.Option(help="Region: a vector file with polygons, or minx,miny,maxx,maxy in lon/lat."),
    ],
    start: Annotated[datetime | None, typer.Option(formats=DAYS, help="First day of the first period.")] = None,
    end: Annotated[datetime | None, typer.Option(formats=DAYS, help="Day after the last one.")] = None,
    year: Annotated[
        int | None,
        typer.Option(help="Calendar year: 12 periods of 30 days from 1 January. [default: the last complete]"),
    ] = None,
    periods: Annotated[int | None, typer.Option(min=1, help="Number of 30-day periods. [default: 12]")] = None,
    catalog: Annotated[
        str | None,
        typer.Option(
            help="planetary-computer, earth-search, cdse, usgs, a STAC API's URL, or a static catalogue on "
            "disk; several with commas. [default: by what the modalities need]"
        ),
    ] = None,
    modality_list: Annotated[
        str | None,
        typer.Option(
            "--modalities", help="s2, s1, landsat; with commas. [default: s2,s1 where the catalogue has them]"
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Short name (see olmoearth models), Hugging Face repo id, or a folder.")
    ] = "v1.2-tiny",
    patch_size: Annotated[int, typer.Option(help="Side of a map cell in 10 m pixels, 1 to 8.")] = 4,
    window: Annotated[int, typer.Option(help="Side of a model window in pixels.")] = 64,
    overlap: Annotated[int, typer.Option(help="Pixels that neighbouring windows share.")] = 32,
    blend: Annotated[
        Blend, typer.Option(help="Where windows overlap: the owner's vector, or a Hann mean.")
    ] = Blend.NONE,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the encoder.")] = Precision.FLOAT32,
    dtype: Annotated[MapType, typer.Option(help="Numbers in the tiles.")] = MapType.INT8,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder. [default: embeddings/<region's name>]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Local worker processes; each takes its share of the cores.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    tile_size: Annotated[
        int | None, typer.Option(min=1, help="Side of an output tile in pixels. [default: 256 to 1024 by region]")
    ] = None,
    guard: Annotated[
        Guard, typer.Option(help="When pixels contradict the catalogue: stop, warn, or do not look.")
    ] = Guard.STRICT,
    plan: Annotated[bool, typer.Option("--plan", help="Say what the run would cost, and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a map made with other settings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")] = False,
) -> None:
    """Turn a region into an embedding map: find the scenes, composite them, encode, write tiles.

    Prints the map's folder (and the preview's path on stderr). Run the same command again to continue an
    interrupted map; a finished one is left as it is.
    """
    from olmoearth_pipelines.request import EmbedRequest, prepare

    console = Console(quiet=quiet, as_json=as_json)
    request = EmbedRequest(
        aoi=aoi,
        start=start.date() if start else None,
        end=end.date() if end else None,
        year=year,
        periods=periods,
        catalogs=catalogs(catalog),
        modalities=modalities(modality_list),
        model=model,
        patch_size=patch_size,
        window=window,
        overlap=overlap,
        blend=blend.value,
        precision=precision.value,
        dtype=dtype.value,
        out=out,
        workers=workers,
        scheduler=scheduler,
        device=device,
        tile_size=tile_size,
        guard=guard.value,
        overwrite=overwrite,
    )
    prepared = prepare(request, console.note)
    if plan:
        from olmoearth_pipelines.cost import estimate

        figures = estimate(prepared)
        console.result(_plan_text(figures, prepared), {**figures, "folder": str(prepared.folder)})
        return
    _run(prepared, console)


def _run(prepared: Prepared, console: Console) -> None:
    from olmoearth_pipelines.embed import TileReport, run

    progress = None
    for report in run(prepared, console.note, console.warn):
        if isinstance(report, TileReport):
            if progress is None:
                progress = Progress(console, tiles=report.tiles_to_do, km2=report.km2_to_do)
            progress.advance(km2=report.km2, gap=report.status == "gap")
        else:
            if progress:
                progress.close()
            _finish(report, console)


def _finish(summary: RunSummary, console: Console) -> None:
    console.note(_summary_text(summary))
    for reason, count in summary.gaps.items():
        console.warn(f"{count} tile(s) without a map: {reason}")
    if summary.preview:
        console.note(f"preview: {summary.preview}")
    console.result(str(summary.folder), asdict(summary))
    if summary.gaps:
        raise typer.Exit(WITH_GAPS)


def _summary_text(summary: RunSummary) -> str:
    if summary.unchanged:
        return f"{summary.folder}: already complete ({summary.tiles} tiles); nothing to do."
    parts = [
        f"{summary.tiles} tiles ({summary.kept} kept from before)" if summary.kept else f"{summary.tiles} tiles",
        f"{summary.km2:.1f} km2 in {duration(summary.seconds)}",
    ]
    if summary.mean_cosine is not None:
        parts.append(f"int8 against float32: mean cosine {summary.mean_cosine:.5f}, {summary.saturation:.3%} saturated")
    if summary.seam is not None:
        parts.append(f"seam figure {summary.seam:.2f} (1.00 is seamless)")
    if summary.demo:
        parts.append("DEMO WEIGHTS: the vectors carry no learned meaning")
    return "; ".join(parts)


def _plan_text(figures: dict[str, Any], prepared: Prepared) -> str:
    scenes = ", ".join(f"{name} {count}" for name, count in figures["scenes"].items())
    rows = [
        ("region", f"{prepared.aoi.source}, {figures['region_km2']:.1f} km2"),
        ("dates", f"{figures['start']} to {figures['end']}, {figures['periods']} periods of 30 days"),
        (
            "tiles",
            f"{figures['tiles']} of {figures['tile_px']} px, {figures['windows']} windows, "
            f"{figures['encoded_km2']:.1f} km2",
        ),
        ("scenes", scenes),
        ("to read", f"about {size(figures['bytes_to_read'])} (decoded)"),
        ("to compute", f"{figures['gflops']:,.0f} GFLOP with {figures['model']}"),
        ("memory", f"about {size(figures['memory_per_worker'])} per worker, {figures['workers']} worker(s)"),
        ("time", f"about {duration(figures['expected_seconds'])} on {figures['device']}"),
        ("disk", f"about {size(figures['disk_bytes'])} in {prepared.folder}"),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in rows)
