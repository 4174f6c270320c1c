"""The embed road: region -> scenes -> tiles on workers -> embedding map.

Order matters for safety: everything that can be refused (region, model, settings, scenes, guard) is
checked before the output folder is touched; a tile counts as done only when its item is written.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from olmoearth_cli.errors import RunError
from olmoearth_cli.geo.tiles import Tile
from olmoearth_cli.maps import run_record
from olmoearth_cli.maps.embedding_map import MapSpec, finish_map
from olmoearth_cli.maps.seam import SeamSums
from olmoearth_pipelines.guard import GuardReport
from olmoearth_pipelines.guarded import guard_table
from olmoearth_pipelines.models import check_device, open_model
from olmoearth_pipelines.request import EmbedRequest, Note, Prepared, prepare
from olmoearth_pipelines.stac import SceneTable
from olmoearth_pipelines.tile_job import EmbedWork, run_tile
from olmoearth_pipelines.tile_run import TileReport, remaining, run_tiles, shared_work, software

__all__ = ["EmbedRequest", "Prepared", "RunSummary", "TileReport", "prepare", "run"]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The whole run in numbers; what `--json` prints."""

    folder: str
    preview: str | None
    tiles: int
    kept: int
    """Tiles found finished from an earlier run."""
    gaps: dict[str, int]
    """Reason -> number of tiles."""
    km2: float
    seconds: float
    mean_cosine: float | None = None
    saturation: float | None = None
    seam: float | None = None
    encoder_share: float | None = None
    """Share of this run's wall time in which its workers were encoding, mean over the workers."""
    model: str = ""
    demo: bool = False
    unchanged: bool = False


def run(prepared: Prepared, note: Note, warn: Note) -> Iterator[TileReport | RunSummary]:
    """Make the map; yields a report per tile and a summary at the end.

    Raises:
        OlmoEarthError: what cannot go on; finished tiles stay and a later run continues.
    """
    started = time.monotonic()
    folder, request = prepared.folder, prepared.request
    if not request.scheduler:
        check_device(request.device)
    # Here once, although the workers load their own: a bad one must fail before anything is read or written.
    model = open_model(request.model, note)
    prepared.settings["weights_sha256"] = model.weights_sha256
    run_record.check(folder, prepared.settings, overwrite=request.overwrite)
    finished = None if request.overwrite else run_record.finished(folder, prepared.settings)
    if finished is not None:
        yield RunSummary(**{**finished["summary"], "folder": str(folder), "unchanged": True})
        return
    table = prepared.table
    for line in table.notes():
        note(line)
    boxes = [tile.box for tile in prepared.grid.tiles]
    guard = guard_table(table, boxes, mode=request.guard, warn=warn)
    run_record.start(folder, prepared.settings, overwrite=request.overwrite)
    run_record.write_text(folder / "scenes.json", table.to_json())
    spec = _map_spec(prepared, model, table)
    del model  # the workers load their own
    todo, kept = remaining(prepared)
    if kept:
        note(f"{len(kept)} of {len(prepared.grid.tiles)} tiles are finished; doing the rest")
    encoding = 0.0
    for report in _tiles(prepared, spec, todo):
        encoding += report.facts.get("encode_s", 0.0)
        yield report
    summary = _finish(prepared, spec, kept=len(kept))
    seconds = time.monotonic() - started
    share = None if request.scheduler or not todo else encoding / seconds / request.workers
    yield _record(prepared, spec, guard, replace(summary, seconds=round(seconds, 2), encoder_share=share))


def _map_spec(prepared: Prepared, model: Any, table: SceneTable) -> MapSpec:
    from olmoearth_cli.maps.quantize import Quantizer

    request = prepared.request
    quantizer = Quantizer.from_layernorm(*model.output_affine()) if request.dtype == "int8" else None
    return MapSpec(
        title=f"OlmoEarth embeddings of {prepared.aoi.name}",
        model_name=model.name,
        model_id=model.spec.id,
        demo=model.demo,
        weights_sha256=model.weights_sha256,
        dimensions=model.spec.embedding_size,
        patch_px=request.patch_size,
        dtype=request.dtype,
        scale=tuple(map(float, quantizer.scale)) if quantizer else None,
        offset=tuple(map(float, quantizer.offset)) if quantizer else None,
        start=prepared.periods[0].start,
        end=prepared.periods[-1].end,
        modalities=table.modalities,
        software=software(),
    )


def _tiles(prepared: Prepared, spec: MapSpec, todo: list[Tile]) -> Iterator[TileReport]:
    work = EmbedWork(map_spec=spec, **shared_work(prepared))
    return run_tiles(prepared, todo, work, spec, run_tile)


def _finish(prepared: Prepared, spec: MapSpec, *, kept: int) -> RunSummary:
    """Write what describes the whole map, from the finished tiles alone."""
    folder = prepared.folder
    states = run_record.tile_facts(folder)
    done = [facts for facts in states.values() if facts["status"] == "done"]
    gaps = Counter(facts["reason"] for facts in states.values() if facts["status"] == "gap")
    if len(states) < len(prepared.grid.tiles):
        missing = len(prepared.grid.tiles) - len(states)
        raise RunError(f"{folder}: {missing} tiles neither finished nor reported. Run the same command again.")
    preview = finish_map(folder, spec) if done else None
    cosine, saturation = _loss(done)
    return RunSummary(
        folder=str(folder),
        preview=str(preview) if preview else None,
        tiles=len(done),
        kept=kept,
        gaps=dict(gaps),
        km2=round(sum(facts["km2"] for facts in done), 4),
        seconds=0.0,
        mean_cosine=cosine,
        saturation=saturation,
        seam=_seam(done),
        model=spec.model_name,
        demo=spec.demo,
    )


def _record(prepared: Prepared, spec: MapSpec, guard: GuardReport | None, summary: RunSummary) -> RunSummary:
    """Close `run.json`: from now on the map is finished, or finished but for its gaps."""
    folder = prepared.folder
    run_record.finish(
        folder,
        prepared.settings,
        {
            "summary": asdict(summary),
            "complete": not summary.gaps,
            "guard": asdict(guard) if guard else "off",
            "tiles": run_record.tile_facts(folder),
            "model": {"id": spec.model_id, "name": spec.model_name, "sha256": spec.weights_sha256, "demo": spec.demo},
            "software": dict(spec.software),
            "scenes_sha256": hashlib.sha256((folder / "scenes.json").read_bytes()).hexdigest(),
        },
    )
    return summary


def _loss(done: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """Mean cosine and saturation of the quantised map, weighted by cells; None for float32."""
    losses = [facts["loss"] for facts in done if facts.get("loss")]
    cells = sum(loss["cells"] for loss in losses)
    if not cells:
        return None, None
    cosine = sum(loss["mean_cosine"] * loss["cells"] for loss in losses) / cells
    return cosine, sum(loss["saturation"] * loss["cells"] for loss in losses) / cells


def _seam(done: list[dict[str, Any]]) -> float | None:
    """Seam figure of the whole map from the tiles' sums."""
    total = SeamSums()
    for facts in done:
        total += SeamSums(**facts["seam"])
    return total.ratio
