"""What describes the whole prediction, made from its finished tiles alone and so the same after a resume."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio

from olmoearth_cli.maps.files import publish, remove, write_bytes, write_json, write_text
from olmoearth_cli.maps.finish import write_index
from olmoearth_cli.maps.tile_files import FOLDERS, GAPS, read_tiles
from olmoearth_pipelines.exporting.output import work_folder
from olmoearth_pipelines.predicting.prediction import PredictionSpec
from olmoearth_pipelines.predicting.records import predicted_collection
from olmoearth_pipelines.predicting.tile import ASSETS
from olmoearth_pipelines.probing.class_layout import Layout, aux_xml, tags
from olmoearth_pipelines.probing.class_merge import merge, place
from olmoearth_pipelines.probing.pictures import class_map_png

PREVIEW = "preview.png"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What was written over the tiles."""

    raster: Path
    """The main merged raster."""
    preview: Path
    figures: Mapping[str, Any]
    """`km2`, `classes`, `mean_confidence`, `values`: see `class_map.ClassMapSummary`."""


def main_raster(layout: Layout) -> str:
    """File name of the main merged raster."""
    return "values.tif" if layout.kind == "regression" else "classes.tif"


def described_by(spec: PredictionSpec) -> tuple[str, ...]:
    """Files without which a prediction is not finished."""
    legend = [f"{main_raster(spec.layout)}.aux.xml"] if spec.layout.has_classes else []
    return (*_merged(spec), *legend, PREVIEW, "index.parquet", "collection.json")


def finish_prediction(folder: Path, spec: PredictionSpec) -> Finished:
    """Merge the tiles, and write picture, index and collection over them.

    Args:
        folder: of the prediction; at least one tile is finished.
        spec: what all tiles share.

    Raises:
        InputError: a tile's file is gone or damaged.
        OutputError: the folder cannot be written.
    """
    tiles = read_tiles(folder)
    done = [tile for tile in tiles if tile.status == "done"]
    with contextlib.suppress(OSError):
        (folder / GAPS).rmdir()  # stays where there are gaps
    merged = _merged(spec)
    main = folder / main_raster(spec.layout)
    for (name, layout), asset in zip(merged.items(), ASSETS, strict=False):
        files = {tile.id: folder / FOLDERS[asset] / f"{tile.id}.tif" for tile in done}
        with work_folder(folder / name) as work:
            placed = place(done, files, layout.patch_px)
            cog = merge(placed, layout, work, {**spec.tags(layout), **tags(layout)})
            remove(folder / f"{name}.aux.xml")  # older names must never stand beside the new raster
            publish(cog, folder / name)
    if spec.layout.has_classes:
        write_text(folder / f"{main.name}.aux.xml", aux_xml(spec.layout))
    write_bytes(folder / PREVIEW, class_map_png(main))
    write_index(folder, tiles)
    write_json(folder / "collection.json", predicted_collection(spec, done, merged))
    with rasterio.open(main) as source:
        figures = json.loads(source.tags()["OLMOEARTH_FIGURES"])
    return Finished(raster=main, preview=folder / PREVIEW, figures=figures)


def _merged(spec: PredictionSpec) -> dict[str, Layout]:
    """File names of the merged rasters, with their forms."""
    names = (main_raster(spec.layout), "probabilities.tif")
    return dict(zip(names, spec.layouts, strict=False))
