"""The predict road: the embed road with a head at its end, or a saved probe over a finished map.

Everything that can be refused is checked before the output folder is touched; a tile counts as done only when its item
is written, and what describes the whole is made from the finished tiles alone.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from olmoearth_cli.errors import RunError
from olmoearth_cli.geo.tiles import Tile
from olmoearth_cli.maps import run_record
from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_pipelines.cost import estimate
from olmoearth_pipelines.guard import GuardReport
from olmoearth_pipelines.guarded import guard_table
from olmoearth_pipelines.models import check_device
from olmoearth_pipelines.predicting.finish import PREVIEW, described_by, finish_prediction, main_raster
from olmoearth_pipelines.predicting.request import Prediction, PredictRequest, prepare_prediction
from olmoearth_pipelines.predicting.tile import PredictWork, predict_tile
from olmoearth_pipelines.predicting.vectors import check_place, write_vector
from olmoearth_pipelines.probing.class_map import ClassMapSummary, ClassTile, classify_map
from olmoearth_pipelines.probing.sources import find_map
from olmoearth_pipelines.request import Note
from olmoearth_pipelines.tasks.common import SINGLE_DATE
from olmoearth_pipelines.tile_run import TileReport, remaining, run_tiles, shared_work

__all__ = [
    "ClassMapSummary",
    "ClassTile",
    "PredictRequest",
    "PredictSummary",
    "Prediction",
    "TileReport",
    "apply_probe",
    "estimate_prediction",
    "prepare_prediction",
    "run",
]


@dataclass(frozen=True, kw_only=True)
class PredictSummary:
    """The whole prediction in numbers; what `--json` prints."""

    folder: str
    path: str | None
    """The merged raster; None where no tile has imagery."""
    preview: str | None
    kind: str
    """`classification`, `segmentation`, `multilabel` or `regression`."""
    tiles: int
    kept: int
    """Tiles found finished from an earlier run."""
    gaps: dict[str, int]
    """Reason -> number of tiles."""
    km2: float
    """Area with an answer."""
    classes: dict[str, dict[str, float]]
    """Name -> `km2` and `share` of the area; multi-label: where the label is more likely than not."""
    mean_confidence: float | None
    """Mean probability of the chosen class, 0 to 1; None without classes."""
    values: dict[str, float] | None
    """`mean`, `min`, `max` of a regression."""
    seconds: float
    encoder_share: float | None = None
    """Share of this run's wall time in which its workers were encoding, mean over the workers."""
    model: str = ""
    demo: bool = False
    vector: str | None = None
    """File of polygons."""
    unchanged: bool = False


def run(prediction: Prediction, note: Note, warn: Note) -> Iterator[TileReport | PredictSummary]:
    """Predict; yields a report per tile and a summary at the end.

    Raises:
        OlmoEarthError: what cannot go on; finished tiles stay and a later run continues.
    """
    prepared, request = prediction.prepared, prediction.request
    folder, settings = prepared.folder, prepared.settings
    if not request.scheduler:
        check_device(request.device)
    run_record.check(folder, settings, overwrite=request.overwrite)
    if request.vector is not None:
        check_place(request.vector, folder, overwrite=request.overwrite)
    finished = None
    if not request.overwrite:
        finished = run_record.finished(folder, settings, described=described_by(prediction.spec))
    if finished is not None:
        places = {
            "folder": str(folder),
            "path": str(folder / main_raster(prediction.spec.layout)),
            "preview": str(folder / PREVIEW),
        }
        summary = PredictSummary(**{**finished["summary"], **places, "unchanged": True})
    else:
        summary = yield from _predict(prediction, note, warn)
    yield _with_vector(prediction, summary)


def _predict(prediction: Prediction, note: Note, warn: Note) -> Generator[TileReport, None, PredictSummary]:
    """Make what is missing; returns the summary."""
    started = time.monotonic()
    prepared, request = prediction.prepared, prediction.request
    table = prepared.table
    for line in table.notes():
        note(line)
    guard = guard_table(table, [tile.box for tile in prepared.grid.tiles], mode=request.guard, warn=warn)
    run_record.start(prepared.folder, prepared.settings, overwrite=request.overwrite)
    run_record.write_text(prepared.folder / "scenes.json", table.to_json())
    todo, kept = remaining(prepared)
    if kept:
        note(f"{len(kept)} of {len(prepared.grid.tiles)} tiles are finished; doing the rest")
    encoding = 0.0
    for report in _tiles(prediction, todo):
        encoding += report.facts.get("encode_s", 0.0)
        yield report
    summary = _finish(prediction, kept=len(kept))
    seconds = time.monotonic() - started
    share = None if request.scheduler or not todo else encoding / seconds / request.workers
    return _record(prediction, guard, replace(summary, seconds=round(seconds, 2), encoder_share=share))


def _tiles(prediction: Prediction, todo: list[Tile]) -> Iterator[TileReport]:
    prepared = prediction.prepared
    shared = shared_work(prepared)
    if not prediction.task.real_dates:
        shared["stamps"] = tuple(map(tuple, SINGLE_DATE.tolist()))  # what stood for unknown dates in training
    work = PredictWork(spec=prediction.spec, **shared)
    return run_tiles(prepared, todo, work, prediction.spec, predict_tile)


def _finish(prediction: Prediction, *, kept: int) -> PredictSummary:
    """Write what describes the whole, from the finished tiles alone."""
    folder, spec = prediction.prepared.folder, prediction.spec
    states = run_record.tile_facts(folder)
    done = [facts for facts in states.values() if facts["status"] == "done"]
    gaps = Counter(facts["reason"] for facts in states.values() if facts["status"] == "gap")
    missing = len(prediction.prepared.grid.tiles) - len(states)
    if missing > 0:
        raise RunError(f"{folder}: {missing} tiles neither finished nor reported. Run the same command again.")
    nothing: dict[str, Any] = {"km2": 0.0, "classes": {}, "mean_confidence": None, "values": None}
    made = finish_prediction(folder, spec) if done else None
    return PredictSummary(
        folder=str(folder),
        path=str(made.raster) if made else None,
        preview=str(made.preview) if made else None,
        kind=spec.layout.kind,
        tiles=len(done),
        kept=kept,
        gaps=dict(gaps),
        seconds=0.0,
        model=spec.model_name,
        demo=spec.demo,
        **(made.figures if made else nothing),
    )


def _record(prediction: Prediction, guard: GuardReport | None, summary: PredictSummary) -> PredictSummary:
    """Close `run.json`: from now on the prediction is finished, or finished but for its gaps."""
    folder, spec = prediction.prepared.folder, prediction.spec
    run_record.finish(
        folder,
        prediction.prepared.settings,
        {
            "summary": asdict(summary),
            "complete": not summary.gaps,
            "guard": asdict(guard) if guard else "off",
            "tiles": run_record.tile_facts(folder),
            "model": {
                "name": spec.model_name,
                "base": spec.base_id,
                "checkpoint_sha256": spec.checkpoint_sha256,
                "demo": spec.demo,
                "task": prediction.task.to_json(),
            },
            "software": dict(spec.software),
            "scenes_sha256": hashlib.sha256((folder / "scenes.json").read_bytes()).hexdigest(),
        },
    )
    return summary


def _with_vector(prediction: Prediction, summary: PredictSummary) -> PredictSummary:
    """Write the polygons where they are asked for and not there."""
    path = prediction.request.vector
    if path is None or summary.path is None:
        return summary
    written = write_vector(Path(summary.path), path, prediction.spec.layout)
    return replace(summary, vector=str(path), unchanged=summary.unchanged and not written)


def estimate_prediction(prediction: Prediction) -> dict[str, Any]:
    """What a run would take: the figures of `cost.estimate` with the rasters of a prediction, as a JSON-able dict."""
    prepared, spec = prediction.prepared, prediction.spec
    figures = estimate(prepared)
    pixel_bytes = sum(len(layout.bands) * np.dtype(layout.dtype).itemsize for layout in spec.layouts)
    pixels = figures["encoded_km2"] * 1e6 / spec.gsd_m**2
    held = (prepared.grid.tile_px // spec.layout.pixel_px) ** 2 * (prediction.task.head.classes + 1) * 4
    return {
        **figures,
        "memory_per_worker": figures["memory_per_worker"] + held,
        "disk_bytes": int(2 * pixels * pixel_bytes),  # tiles and merged
        "folder": str(prepared.folder),
    }


def apply_probe(
    probe: Path, emap: Path | None, out: Path, *, workers: int, scheduler: str | None, overwrite: bool
) -> Iterator[ClassTile | ClassMapSummary]:
    """A saved probe over a finished map; yields a report per tile and a summary at the end.

    Args:
        probe: what `olmoearth probe --save` wrote.
        emap: what `olmoearth embed` made; the only one in the working folder where None.
        out: the GeoTIFF to write.
        workers: local worker processes; ignored with a scheduler.
        scheduler: address of a running Dask scheduler, or None.
        overwrite: replace a file that something else, or other settings, made.

    Raises:
        OlmoEarthError: what cannot go on; finished tiles stay and a later run continues.
    """
    from olmoearth_cli.core.probe.saved import load_probe

    saved = load_probe(probe)
    opened = EmbeddingMap.open(emap or find_map(Path.cwd()))
    yield from classify_map(opened, saved, out, workers=workers, scheduler=scheduler, overwrite=overwrite)
