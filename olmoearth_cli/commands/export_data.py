"""`olmoearth export data`: pretraining samples from a region or points and a catalogue."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from olmoearth_cli.commands.options import Guard, option, to_catalogs, to_modalities
from olmoearth_cli.console import Console, Progress, duration

if TYPE_CHECKING:
    from olmoearth_pipelines.export_data import DataRequest, DataSummary

EXAMPLE = "Example: olmoearth export data --aoi region.geojson --year 2024 --catalog planetary-computer --out samples"
WITH_GAPS, BAD_DATASET = 3, 2
SHOWN = 20
"""Findings that are shown one by one."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Flags that say how the command speaks."""

    json: Annotated[bool, option("--json", help="One JSON object on stdout.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress, no notes.")] = False


@dataclass(frozen=True, kw_only=True)
class DataFlags(Speech):
    """Pretraining samples in the published HDF5 layout: 12 periods of 30 days on tiles of 2560 m.

    A tile needs one satellite product in all 12 periods. Prints the folder with the samples. Run the same command again
    to continue an interrupted export. With --validate, an existing dataset is checked and nothing is written.
    """

    aoi: Annotated[
        str | None, option(help="Region: a vector file with polygons, or minx,miny,maxx,maxy in lon/lat.")
    ] = None
    points: Annotated[
        Path | None,
        option(help="In place of a region: a CSV (lon, lat) or vector file of points."),
    ] = None
    start: Annotated[
        datetime | None,
        option(formats=["%Y-%m-%d"], show_default="1 January", help="First day of the first period."),
    ] = None
    year: Annotated[
        int | None, option(show_default="the last complete one", help="In place of --start: a calendar year.")
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
        str | None,
        option(show_default="s2,s1 where the catalogue has them", help="s2, s1, landsat; several with commas."),
    ] = None
    maps: Annotated[
        str | None,
        option(
            metavar="NAME=FILE,...",
            help="Rasters (files or URLs) of map modalities: worldcover, srtm, openstreetmap_raster, "
            "wri_canopy_height_map, cdl, worldcereal.",
        ),
    ] = None
    max_tiles: Annotated[int | None, option(min=1, show_default="all", help="At most so many tiles, at random.")] = None
    seed: Annotated[int, option(min=0, help="Of that draw.")] = 0
    side: Annotated[int, option(help="Side of a sample in pixels: 128 (four per tile, as published) or 256.")] = 128
    out: Annotated[
        Path | None,
        option("--out", "-o", show_default="samples/ and the region's name", help="Output folder."),
    ] = None
    workers: Annotated[int, option(min=1, help="Local worker processes.")] = 1
    scheduler: Annotated[str | None, option(help="Address of a running Dask scheduler.")] = None
    guard: Annotated[Guard, option(help="When pixels contradict the catalogue: stop, warn, or do not look.")] = (
        Guard.STRICT
    )
    allow_gaps: Annotated[
        bool, option("--allow-gaps", help="Finish although scenes of some tiles cannot be read (exit code 3).")
    ] = False
    validate: Annotated[Path | None, option(help="Check this dataset, and do nothing else.")] = None


def run(flags: DataFlags) -> None:
    """Run `export data`."""
    console = Console(quiet=flags.quiet, as_json=flags.json)
    if flags.validate is not None:
        _validate(flags.validate, console)
        return
    from olmoearth_pipelines import export_data

    prepared = export_data.prepare(_request(flags), console.note)
    progress = Progress(console)
    try:
        for report in export_data.run(prepared, console.note, console.warn):
            if isinstance(report, export_data.SampleTile):
                progress.advance(report)
            else:
                progress.close()
                _finish(report, console)
    finally:
        progress.close()


def _request(flags: DataFlags) -> DataRequest:
    from olmoearth_pipelines.export_data import DataRequest

    return DataRequest(
        aoi=flags.aoi,
        points=flags.points,
        start=flags.start.date() if flags.start else None,
        year=flags.year,
        catalogs=to_catalogs(flags.catalog),
        modalities=to_modalities(flags.modalities),
        maps=flags.maps,
        max_tiles=flags.max_tiles,
        seed=flags.seed,
        side=flags.side,
        out=flags.out,
        workers=flags.workers,
        scheduler=flags.scheduler,
        guard=flags.guard.value,
        allow_gaps=flags.allow_gaps,
    )


def _finish(summary: DataSummary, console: Console) -> None:
    if summary.unchanged:
        console.note(f"{summary.folder}: already complete ({summary.samples} samples); nothing to do.")
    else:
        console.note(f"{summary.samples} samples of {summary.tiles} tiles in {duration(summary.seconds)}")
    for reason, count in summary.skipped.items():
        console.note(f"{count} tile(s) skipped: {reason}")
    for reason, count in summary.left_out.items():
        console.note(f"{count} tile(s) go without {reason}")
    for reason, count in summary.unreadable.items():
        console.warn(f"{count} tile(s) missing: {reason}")
    _show(summary.findings, console)
    console.result(summary.folder, asdict(summary))
    if summary.errors:
        raise typer.Exit(1)
    if summary.unreadable:
        raise typer.Exit(WITH_GAPS)


def _validate(folder: Path, console: Console) -> None:
    from olmoearth_pipelines.export_data import check_dataset, finding_text

    errors, findings = check_dataset(folder)
    _show([finding_text(finding) for finding in findings], console)
    text = f"{folder}: {errors} error(s), {len(findings) - errors} warning(s)"
    facts = {"folder": str(folder), "errors": errors, "findings": [asdict(finding) for finding in findings]}
    console.result(text, facts)
    if errors:
        raise typer.Exit(BAD_DATASET)


def _show(findings: list[str] | tuple[str, ...], console: Console) -> None:
    for line in findings[:SHOWN]:
        console.warn(line)
    if len(findings) > SHOWN:
        console.warn(f"{len(findings) - SHOWN} more findings; --json lists all")
