"""`olmoearth export`: maps and models as files that other programs read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from olmoearth_cli.commands import export_data, export_model
from olmoearth_cli.commands.options import MapType, Output, command_of, option
from olmoearth_cli.console import Console, TaskLine, size

if TYPE_CHECKING:
    from olmoearth_pipelines.export_map import MapReport

app = typer.Typer(help="Maps and models as files that other programs read.", no_args_is_help=True)
"""Subcommands register themselves here."""


class MapFormat(StrEnum):
    """Files that a map becomes."""

    COG = "cog"
    ZARR = "zarr"
    PARQUET = "parquet"


class RowGeometry(StrEnum):
    """What a row of a cell holds."""

    POINT = "point"
    CELL = "cell"


@dataclass(frozen=True, kw_only=True)
class MapFlags(Output):
    """An embedding map as one file: a GeoTIFF (COG), a Zarr v3 store, or a GeoParquet table.

    The ending of --to says which. Only a few windows are in memory at once, and the file appears whole or not at all.
    A half-finished map is exported as far as it is complete.
    """

    map: Annotated[Path, typer.Argument(help="Folder that `olmoearth embed` made.", metavar="MAP")]
    to: Annotated[Path, option("--to", help="File or store to write: .tif, .zarr or .parquet.")]
    format: Annotated[MapFormat | None, option(show_default="by the ending of --to", help="Format.")] = None
    epsg: Annotated[
        int | None,
        option(
            show_default="the map's UTM zone",
            help="Reference system of a COG or Zarr store; nearest cell, never mixed.",
        ),
    ] = None
    resolution: Annotated[
        float | None,
        option(show_default="the map's cell", help="Side of a pixel, in metres or degrees as --epsg has it."),
    ] = None
    aoi: Annotated[
        str | None,
        option(show_default="the whole map", help="Polygons (a vector file) or minx,miny,maxx,maxy to keep."),
    ] = None
    dtype: Annotated[
        MapType | None, option(show_default="the map's; float32 with --pool", help="int8 codes, or float32 vectors.")
    ] = None
    shard: Annotated[bool, option("--shard", help="Zarr: fewer, larger files (GDAL reads them from 3.13 on).")] = False
    pool: Annotated[
        Path | None, option(help="GeoParquet: one row per polygon of this vector file, the mean of its cells.")
    ] = None
    geometry: Annotated[RowGeometry, option(help="GeoParquet: the cell's centre or its square.")] = RowGeometry.POINT
    threads: Annotated[int | None, option(min=1, show_default="cores, at most 8", help="Readers side by side.")] = None


def export_map(flags: MapFlags) -> None:
    """Run `export map`."""
    from olmoearth_pipelines.export_map import MapRequest, run

    console = Console(quiet=flags.quiet, as_json=flags.json)
    request = MapRequest(
        map=flags.map,
        to=flags.to,
        format=None if flags.format is None else flags.format.value,
        epsg=flags.epsg,
        resolution=flags.resolution,
        aoi=flags.aoi,
        dtype=None if flags.dtype is None else flags.dtype.value,
        shard=flags.shard,
        pool=flags.pool,
        geometry=flags.geometry.value,
        threads=flags.threads,
        overwrite=flags.overwrite,
    )
    line = TaskLine(console)
    try:
        report = run(request, lambda step, done, total: line.show("export", step, done, total))
    finally:
        line.close()
    for note in report.notes:
        console.note(note)
    if report.demo:
        console.warn("DEMO WEIGHTS: these vectors come from weights that learned nothing.")
    console.note(_map_text(report))
    console.result(report.path, asdict(report))


def _map_text(report: MapReport) -> str:
    """What was written, in a line."""
    what = [f"{report.dimensions} dimensions as {report.dtype}", size(report.bytes), f"{report.seconds:.0f} s"]
    if report.rows is not None:
        what.insert(0, f"{report.rows} rows")
    for layer in report.layers:
        name = f"{layer['name']}: " if layer["name"] else ""
        what.insert(0, f"{name}EPSG:{layer['epsg']} {layer['height']} x {layer['width']}, {layer['cells']} cells")
    return f"{report.format}: {', '.join(what)}"


app.command("map", epilog="Example: olmoearth export map embeddings/region --to region.tif")(
    command_of(MapFlags, export_map, last=Output)
)
app.command("data", epilog=export_data.EXAMPLE)(
    command_of(export_data.DataFlags, export_data.run, last=export_data.Speech)
)
app.command("model", epilog=export_model.EXAMPLE)(command_of(export_model.ModelFlags, export_model.run, last=Output))
