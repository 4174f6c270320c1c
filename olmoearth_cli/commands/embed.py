"""`olmoearth embed`: from a region to an embedding map."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from olmoearth_cli.commands.options import (
    Blend,
    Guard,
    MapType,
    Precision,
    option,
    to_catalogs,
    to_modalities,
)
from olmoearth_cli.console import Console, Progress, duration, size

if TYPE_CHECKING:
    from olmoearth_pipelines.embed import Prepared, RunSummary

EXAMPLE = "Example: olmoearth embed --aoi region.geojson --year 2024 --catalog planetary-computer"
WITH_GAPS = 3
"""Exit code of a run that finished with gaps."""
DAYS = ["%Y-%m-%d"]


def embed(  # noqa: PLR0913, PLR0917 - one argument per flag
    aoi: Annotated[str, option(help="Region: a vector file with polygons, or minx,miny,maxx,maxy in lon/lat.")],
    start: Annotated[
        datetime | None, option(formats=DAYS, show_default="1 January", help="First day of the first period.")
    ] = None,
    end: Annotated[datetime | None, option(formats=DAYS, help="Day after the last one.")] = None,
    year: Annotated[
        int | None, option(show_default="the last complete one", help="Calendar year: 12 periods of 30 days.")
    ] = None,
    periods: Annotated[int | None, option(min=1, show_default="12", help="Number of 30-day periods.")] = None,
    catalog: Annotated[
        str | None,
        option(
            show_default="by the modalities",
            help="planetary-computer, earth-search, cdse, usgs, the URL of a STAC API, or a static catalogue on disk; "
            "several with commas.",
        ),
    ] = None,
    modalities: Annotated[
        str | None,
        option(show_default="s2,s1 where the catalogue has them", help="s2, s1, landsat; several with commas."),
    ] = None,
    model: Annotated[
        str, option(help="Name or repository of a published model (see: olmoearth models), or a folder.")
    ] = "v1.2-tiny",
    patch_size: Annotated[int, option(help="Side of a map cell in 10 m pixels, 1 to 8.")] = 4,
    window: Annotated[int, option(help="Side of a model window in pixels.")] = 64,
    overlap: Annotated[int, option(help="Pixels that neighbouring windows share.")] = 32,
    blend: Annotated[Blend, option(help="Where windows overlap: the owner's vector, or a Hann mean.")] = Blend.NONE,
    precision: Annotated[Precision, option(help="Arithmetic of the encoder.")] = Precision.FLOAT32,
    dtype: Annotated[MapType, option(help="Numbers in the tiles.")] = MapType.INT8,
    out: Annotated[
        Path | None,
        option("--out", "-o", show_default="embeddings/ and the region's name", help="Output folder."),
    ] = None,
    workers: Annotated[int, option(min=1, help="Local worker processes; each takes its share of the cores.")] = 1,
    scheduler: Annotated[str | None, option(help="Address of a running Dask scheduler.")] = None,
    device: Annotated[str, option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    tile_size: Annotated[
        int | None, option(min=1, show_default="256 to 1024 by the region", help="Side of an output tile in pixels.")
    ] = None,
    guard: Annotated[
        Guard, option(help="When pixels contradict the catalogue: stop, warn, or do not look.")
    ] = Guard.STRICT,
    plan: Annotated[bool, option("--plan", help="Say what the run would cost, and stop.")] = False,
    overwrite: Annotated[bool, option("--overwrite", help="Replace a map made with other settings.")] = False,
    json: Annotated[bool, option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress, no notes.")] = False,
) -> None:
    """Turn a region into an embedding map: find the scenes, composite them, encode, write tiles.

    Prints the map's folder (and the preview's path on stderr). Run the same command again to continue an
    interrupted map; a finished one is left as it is.
    """
    from olmoearth_pipelines.request import EmbedRequest, prepare

    console = Console(quiet=quiet, as_json=json)
    request = EmbedRequest(
        aoi=aoi,
        start=start.date() if start else None,
        end=end.date() if end else None,
        year=year,
        periods=periods,
        catalogs=to_catalogs(catalog),
        modalities=to_modalities(modalities),
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

    progress = Progress(console)
    try:
        for report in run(prepared, console.note, console.warn):
            if isinstance(report, TileReport):
                progress.advance(report)
            else:
                progress.close()
                _finish(report, console)
    finally:
        progress.close()


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
