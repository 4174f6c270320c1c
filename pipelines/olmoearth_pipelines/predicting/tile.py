"""One tile on a worker: read, encode, answer, write. No array leaves the worker; what comes back is a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from olmoearth_cli.core.finetune.saved import DESCRIPTION, load_finetuned
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.errors import ModelError
from olmoearth_cli.geo.tiles import Tile
from olmoearth_cli.maps.cog import Raster, cog_bytes
from olmoearth_cli.maps.files import file_sha256, remove, write_json
from olmoearth_cli.maps.tile_files import FOLDERS, GAPS, ITEMS, item_path, store_tile
from olmoearth_pipelines.cube import ReadError
from olmoearth_pipelines.encode import BlockEncoder
from olmoearth_pipelines.predicting.prediction import PredictedTile, PredictionSpec
from olmoearth_pipelines.predicting.records import predicted_item
from olmoearth_pipelines.predicting.scores import BlockScorer, score_tile
from olmoearth_pipelines.probing.class_layout import Layout, tags
from olmoearth_pipelines.tile_job import NO_IMAGERY, Pixels, Resident, TileJob, Work, give_up, read_pixels, resident_of

ASSETS = ("prediction", "probabilities")
"""Assets of a tile's Item, in the order of the specification's layouts."""


@dataclass(frozen=True, kw_only=True)
class PredictWork(Work):
    """What all tiles of a prediction share; `model` is the folder of the fine-tuned model."""

    spec: PredictionSpec


class Predictor(Resident):
    """What a worker keeps between tiles: as `Resident`, with the head."""

    def __init__(self, work: Work) -> None:
        assert isinstance(work, PredictWork)
        self._sha256 = work.spec.checkpoint_sha256
        super().__init__(work, self._load)
        self.network = self.finetuned.network(work.precision)

    def _load(self, folder: str, device: str) -> OlmoEarthModel:
        if file_sha256(Path(folder) / DESCRIPTION) != self._sha256:
            raise ModelError(f"{folder}: the fine-tuned model was replaced while it was used. Run predict again.")
        self.finetuned = load_finetuned(folder, device)
        return self.finetuned.model


def predict_tile(job: TileJob) -> dict[str, Any]:
    """From pixels to file.

    Returns:
        `status` (`done`, or `gap` with its `reason`) and the tile's figures.

    Raises:
        OutputError: the tile cannot be written; ends the run.
    """
    work, tile = job.work, job.tile
    assert isinstance(work, PredictWork)
    predictor = resident_of(work, Predictor)
    with predictor.slots:
        try:
            pixels = read_pixels(work, tile, predictor)
        except ReadError as error:
            return give_up(work.folder, work.spec, tile, str(error))
        return _score_and_write(work, tile, pixels, predictor)


def _score_and_write(work: PredictWork, tile: Tile, pixels: Pixels, predictor: Predictor) -> dict[str, Any]:
    task, windowing = predictor.finetuned.task, work.windowing
    encoder = BlockEncoder(pixels.cube, predictor.spec, predictor.plan, windowing, normalisation=task.normalisation)
    with predictor.encoding:
        scored = score_tile(
            tile,
            BlockScorer(encoder, predictor.network, task, work.stamps),
            windowing=windowing,
            layouts=work.spec.layouts,
            blend=work.blend,
            pool=predictor.pool,
        )
    if not work.spec.layout.has_data(scored.rasters[0]).any():
        return give_up(work.folder, work.spec, tile, NO_IMAGERY)
    facts = {
        "km2": len(tile.blocks) * windowing.block_km2,
        "windows": scored.windows,
        "tokens": scored.tokens,
        "bytes_read": pixels.cube.bytes_read,
        "read_s": round(pixels.read_s, 3),
        "encode_s": round(scored.seconds, 3),
        "device": predictor.device,
        "threads": predictor.threads,
    }
    predicted = PredictedTile(
        tile_id=tile.id, box=tile.box, rasters=scored.rasters, sources=pixels.sources, facts=facts
    )
    return {"status": "done", **facts, **write_predicted(Path(work.folder), work.spec, predicted)}


def write_predicted(folder: Path, spec: PredictionSpec, tile: PredictedTile) -> dict[str, Any]:
    """Write a tile's files, then the item that makes it done.

    Returns:
        `bytes` of the files, `sha256` of the main one, `percent_valid`.

    Raises:
        OutputError: the folder cannot be written. Earlier files stay.
    """
    remove(item_path(folder, ITEMS, tile.tile_id))
    files = {
        name: store_tile(folder, FOLDERS[name], tile.tile_id, cog_bytes(_raster(spec, layout, tile, number)))
        for number, (name, layout) in enumerate(zip(ASSETS, spec.layouts, strict=False))
    }
    seen = spec.layout.has_data(tile.rasters[0])
    measured = {
        "bytes": sum(file.bytes for file in files.values()),
        "sha256": files["prediction"].sha256,
        "percent_valid": round(100.0 * float(np.mean(seen)), 3),
    }
    write_json(item_path(folder, ITEMS, tile.tile_id), predicted_item(spec, tile, files, measured))
    remove(item_path(folder, GAPS, tile.tile_id))
    return measured


def _raster(spec: PredictionSpec, layout: Layout, tile: PredictedTile, number: int) -> Raster:
    return Raster(
        values=tile.rasters[number],
        epsg=tile.box.epsg,
        transform=tile.box.transform(layout.pixel_m),
        nodata=layout.nodata,
        names=layout.bands,
        scale=layout.scales,
        offset=layout.form.offsets,
        tags={**spec.tags(layout), **tags(layout)},
        averaged=layout.form.averaged,
    )
