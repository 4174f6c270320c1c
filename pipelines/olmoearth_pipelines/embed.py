"""The embed road: region -> scenes -> tiles on workers -> embedding map.

Order matters for safety: everything that can be refused (region, model, settings, scenes, guard) is
checked before the output folder is touched; a tile counts as done only when its item is written.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from olmoearth_cli import __version__
from olmoearth_cli.errors import RunError
from olmoearth_cli.geo.periods import stamps
from olmoearth_cli.geo.tiles import Tile
from olmoearth_cli.maps import run_record
from olmoearth_cli.maps.embedding_map import MapSpec, finish_map, tile_states, write_gap
from olmoearth_cli.maps.seam import SeamSums
from olmoearth_pipelines.cluster import TILES_IN_FLIGHT, check_folder, connect, local_cores
from olmoearth_pipelines.fanout import Lost, fan_out
from olmoearth_pipelines.guard import GuardReport
from olmoearth_pipelines.guarded import guard_table
from olmoearth_pipelines.models import check_device, open_model
from olmoearth_pipelines.request import EmbedRequest, Note, Prepared, prepare
from olmoearth_pipelines.stac import SceneTable
from olmoearth_pipelines.tile_job import TileJob, Work, run_tile

__all__ = ["EmbedRequest", "Prepared", "RunSummary", "TileReport", "prepare", "run"]


@dataclass(frozen=True, kw_only=True)
class TileReport:
    """One tile is finished."""

    tile: str
    status: str
    """`done` or `gap`."""
    reason: str | None
    km2: float
    tiles_to_do: int
    km2_to_do: float
    facts: dict[str, Any]


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
    todo, kept = _todo(prepared, folder)
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
        software=_versions(),
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "numpy", "dask", "distributed", "rasterio", "stackstac", "pystac")
    return {"olmoearth": __version__} | {name: version(name) for name in names}


def _todo(prepared: Prepared, folder: Path) -> tuple[list[Tile], list[str]]:
    """Tiles still to make (gaps are tried again) and the ids of the finished ones."""
    done = {tile for tile, state in tile_states(folder).items() if state == "done"}
    tiles = prepared.grid.tiles
    return [t for t in tiles if t.id not in done], [t.id for t in tiles if t.id in done]


def _tiles(prepared: Prepared, spec: MapSpec, todo: list[Tile]) -> Iterator[TileReport]:
    if not todo:
        return
    request = prepared.request
    work = Work(
        folder=str(prepared.folder.resolve()),
        map_spec=spec,
        model=str(Path(request.model).resolve()) if Path(request.model).is_dir() else request.model,
        device=request.device,
        precision=request.precision,
        stamps=tuple(stamps(prepared.periods)),
        windowing=prepared.grid.windowing,
        blend=request.blend,
        threads=None if request.scheduler else max(1, local_cores() // request.workers),
    )
    km2_to_do = sum(_encoded_km2(prepared, tile) for tile in todo)
    jobs = (TileJob(tile=tile, work=work) for tile in todo)
    with (
        tempfile.TemporaryDirectory(prefix="olmoearth-") as scratch,
        connect(workers=request.workers, scheduler=request.scheduler, scratch=Path(scratch)) as client,
    ):
        if request.scheduler:
            check_folder(client, prepared.folder.resolve())
        slots = len(client.scheduler_info(n_workers=-1)["workers"]) * TILES_IN_FLIGHT
        for job, result in fan_out(client, run_tile, jobs, slots=slots):
            facts = result
            if isinstance(facts, Lost):
                write_gap(prepared.folder, spec, job.tile.id, job.tile.box, str(facts))
                facts = {"status": "gap", "reason": str(facts)}
            yield TileReport(
                tile=job.tile.id,
                status=facts["status"],
                reason=facts.get("reason"),
                km2=_encoded_km2(prepared, job.tile),
                tiles_to_do=len(todo),
                km2_to_do=km2_to_do,
                facts=facts,
            )


def _encoded_km2(prepared: Prepared, tile: Tile) -> float:
    return len(tile.blocks) * prepared.grid.windowing.block_km2


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
