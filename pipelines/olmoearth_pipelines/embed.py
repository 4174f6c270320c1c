"""The embed road: region -> scenes -> tiles on workers -> embedding map.

Order matters for safety: everything that can be refused (region, model, settings, scenes, guard) is
checked before the output folder is touched; a tile counts as done only when its item is written.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from olmoearth_pipelines import cost
from olmoearth_pipelines.cluster import TILES_IN_FLIGHT, check_folder, connect, local_cores
from olmoearth_pipelines.fanout import Lost, fan_out
from olmoearth_pipelines.guard import GuardReport, check_scenes
from olmoearth_pipelines.scene import Scene
from olmoearth_pipelines.stac import CELL_PX, SceneTable, search
from olmoearth_pipelines.tile_job import TileJob, Work, run_tile

from olmoearth_cli import __version__
from olmoearth_cli.core.spec import ModelSpec, find_spec
from olmoearth_cli.errors import GuardError, RunError
from olmoearth_cli.geo.aoi import Aoi, read_aoi
from olmoearth_cli.geo.periods import Period, resolve_periods, stamps
from olmoearth_cli.geo.tiles import Tile, TileGrid, Windowing, tile_grid
from olmoearth_cli.maps import run_record
from olmoearth_cli.maps.embedding_map import MapSpec, finish_map, tile_states, write_gap

Note = Callable[[str], None]

GUARDED_SCENES = 200
"""Scenes per modality that the guard looks at; evenly spread where a region has more."""
TOKENS_PER_BATCH = {"cpu": 3072, "cuda": 49152}
"""Micro-batch that suits a device (spec/performance.md section 2)."""


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What the user asked for; the flags of `olmoearth embed`, one to one."""

    aoi: str
    start: date | None = None
    end: date | None = None
    year: int | None = None
    periods: int | None = None
    catalogs: tuple[str, ...] | None = None
    modalities: tuple[str, ...] | None = None
    model: str = "v1.2-tiny"
    patch_size: int = 4
    window: int = 64
    overlap: int = 32
    blend: str = "none"
    precision: str = "float32"
    dtype: str = "int8"
    out: Path | None = None
    workers: int = 1
    scheduler: str | None = None
    device: str = "auto"
    tile_size: int | None = None
    guard: str = "strict"
    overwrite: bool = False


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
    """Share of the cores' wall time that was spent in the encoder."""
    model: str = ""
    demo: bool = False
    unchanged: bool = False


@dataclass(kw_only=True)
class Prepared:
    """A request with everything looked up that needs no pixels."""

    request: EmbedRequest
    aoi: Aoi
    periods: tuple[Period, ...]
    spec: ModelSpec
    grid: TileGrid
    folder: Path
    settings: dict[str, Any]
    note: Note
    _table: SceneTable | None = field(default=None, repr=False)

    @property
    def table(self) -> SceneTable:
        """The chosen scenes: from an earlier run in the same folder, else from the catalogue, once."""
        if self._table is None:
            self._table = self._saved_table() or self._search()
        return self._table

    def cost(self) -> dict[str, Any]:
        """What the run would take (`--plan`)."""
        return cost.estimate(self)

    def _saved_table(self) -> SceneTable | None:
        path = self.folder / "scenes.json"
        if not path.is_file() or not run_record.matches(self.folder, self.settings):
            return None
        self.note(f"scenes as chosen before ({path})")
        return SceneTable.from_json(path.read_text(encoding="utf-8"))

    def _search(self) -> SceneTable:
        cells = sorted({(t.box.epsg, i, j) for t in self.grid.tiles for i, j in self._reach(t)})
        return search(cells, self.periods, self.request.catalogs, self.request.modalities)

    def _reach(self, tile: Tile) -> list[tuple[int, int]]:
        from olmoearth_pipelines.encode import pixels_of

        return pixels_of(tile, self.grid.windowing, self.request.blend).squares(CELL_PX)


def prepare(request: EmbedRequest, note: Note) -> Prepared:
    """Check a request and lay out its tiles. Reads the region and the model's description only.

    Raises:
        InputError, ModelError: whatever cannot be used as asked.
    """
    aoi = read_aoi(request.aoi)
    periods = resolve_periods(request.start, request.end, request.year, request.periods, date.today())
    spec = find_spec(request.model)
    windowing = Windowing(
        window_px=request.window,
        overlap_px=request.overlap,
        patch_px=request.patch_size,
        batch_side=_batch_side(request, spec, len(periods)),
    )
    grid = tile_grid(aoi, windowing, tile_px=request.tile_size)
    folder = request.out or Path("embeddings") / aoi.name
    return Prepared(
        request=request,
        aoi=aoi,
        periods=periods,
        spec=spec,
        grid=grid,
        folder=folder,
        settings=_settings(request, aoi, periods, grid),
        note=note,
    )


def _batch_side(request: EmbedRequest, spec: ModelSpec, periods: int) -> int:
    """Windows per side of a block: as many as fill a micro-batch when nothing is missing."""
    modalities = request.modalities or ("sentinel2_l2a", "sentinel1")
    per_cell = sum(len(spec.band_sets(m)) for m in modalities) * periods
    tokens = per_cell * (request.window // max(request.patch_size, 1)) ** 2
    limit = TOKENS_PER_BATCH["cuda" if request.device.startswith("cuda") else "cpu"]
    return max(k for k in (1, 2, 4, 8) if k == 1 or k * k * tokens <= limit)


def _settings(
    request: EmbedRequest, aoi: Aoi, periods: tuple[Period, ...], grid: TileGrid
) -> dict[str, Any]:
    """What decides the map's content; a folder never mixes two of these."""
    from shapely import to_wkb

    return {
        "aoi": aoi.source,
        "aoi_sha256": hashlib.sha256(to_wkb(aoi.geometry, output_dimension=2)).hexdigest(),
        "start": periods[0].start.date().isoformat(),
        "periods": len(periods),
        "catalog": list(request.catalogs or ("default",)),
        "modalities": list(request.modalities or ("default",)),
        "model": request.model,
        "patch_size": request.patch_size,
        "window": request.window,
        "overlap": request.overlap,
        "blend": request.blend,
        "precision": request.precision,
        "dtype": request.dtype,
        "tile_size": grid.tile_px,
        "batch_side": grid.windowing.batch_side,
    }


def run(prepared: Prepared, note: Note, warn: Note) -> Iterator[TileReport | RunSummary]:
    """Make the map; yields a report per tile and a summary at the end.

    Raises:
        OlmoEarthError: what cannot go on; finished tiles stay and a later run continues.
    """
    started = time.monotonic()
    folder, request = prepared.folder, prepared.request
    run_record.check(folder, prepared.settings, overwrite=request.overwrite)
    finished = None if request.overwrite else run_record.finished(folder, prepared.settings)
    if finished is not None:
        yield RunSummary(**{**finished["summary"], "folder": str(folder), "unchanged": True})
        return
    model = _load(prepared, note)
    table = prepared.table
    for line in table.notes():
        note(line)
    guard = _guard(prepared, table, warn)
    run_record.start(folder, prepared.settings, overwrite=request.overwrite)
    run_record.write_text(folder / "scenes.json", table.to_json())
    spec = _map_spec(prepared, model, table)
    todo, kept = _todo(prepared, folder)
    if kept:
        note(f"{len(kept)} of {len(prepared.grid.tiles)} tiles are finished; doing the rest")
    yield from _tiles(prepared, spec, todo)
    yield _finish(prepared, spec, guard, kept=len(kept), started=started)


def _load(prepared: Prepared, note: Note) -> Any:
    """Load the model once here: a bad one must fail before anything is read or written."""
    from olmoearth_cli.core import load_model

    model = load_model(prepared.request.model)
    if model.demo:
        note(f"{prepared.request.model}: DEMO WEIGHTS (random); the map shows the road, not the land")
    return model


def _guard(prepared: Prepared, table: SceneTable, warn: Note) -> GuardReport | None:
    if prepared.request.guard == "off":
        return None
    chosen: dict[str, dict[str, Scene]] = {}
    for selection in table.selections:
        for scene in selection.scenes[: selection.accepted]:
            chosen.setdefault(scene.modality, {})[scene.id] = scene
    scenes = []
    for members in chosen.values():
        every = sorted(members.values(), key=lambda scene: (scene.acquired, scene.id))
        step = max(1, -(-len(every) // GUARDED_SCENES))
        scenes += every[::step]
    report = check_scenes(scenes, boxes=[tile.box for tile in prepared.grid.tiles], threads=2 * local_cores())
    for line in report.warnings:
        warn(line)
    if report.contradictions and prepared.request.guard == "strict":
        more = f" ({len(report.contradictions) - 1} more scenes)" if len(report.contradictions) > 1 else ""
        raise GuardError(report.contradictions[0] + more)
    for line in report.contradictions:
        warn(line)
    return report


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
            if isinstance(result, Lost):
                write_gap(prepared.folder, spec, job.tile.id, job.tile.box, str(result))
                result = {"status": "gap", "reason": str(result)}
            yield TileReport(
                tile=job.tile.id,
                status=result["status"],
                reason=result.get("reason"),
                km2=_encoded_km2(prepared, job.tile),
                tiles_to_do=len(todo),
                km2_to_do=km2_to_do,
                facts=result,
            )


def _encoded_km2(prepared: Prepared, tile: Tile) -> float:
    return len(tile.blocks) * (prepared.grid.windowing.block_px / 100) ** 2


def _finish(
    prepared: Prepared, spec: MapSpec, guard: GuardReport | None, *, kept: int, started: float
) -> RunSummary:
    """Write what describes the whole map, from the finished tiles alone."""
    folder = prepared.folder
    states = run_record.tile_facts(folder)
    done = [facts for facts in states.values() if facts["status"] == "done"]
    gaps = Counter(facts["reason"] for facts in states.values() if facts["status"] == "gap")
    if len(states) < len(prepared.grid.tiles):
        missing = len(prepared.grid.tiles) - len(states)
        raise RunError(f"{folder}: {missing} tiles neither finished nor reported. Run the same command again.")
    preview = finish_map(folder, spec) if done else None
    seconds = time.monotonic() - started
    summary = RunSummary(
        folder=str(folder),
        preview=str(preview) if preview else None,
        tiles=len(done),
        kept=kept,
        gaps=dict(gaps),
        km2=sum(facts["km2"] for facts in done),
        seconds=round(seconds, 2),
        **_quality(done),
        model=spec.model_name,
        demo=spec.demo,
    )
    run_record.finish(
        folder,
        prepared.settings,
        {
            "summary": asdict(summary),
            "complete": not gaps,
            "guard": asdict(guard) if guard else "off",
            "tiles": states,
            "model": {"id": spec.model_id, "name": spec.model_name, "sha256": spec.weights_sha256, "demo": spec.demo},
            "software": spec.software,
            "scenes_sha256": hashlib.sha256((folder / "scenes.json").read_bytes()).hexdigest(),
        },
    )
    return summary


def _quality(done: list[dict[str, Any]]) -> dict[str, float | None]:
    """Quantisation loss and seam figure of the whole map, weighted by what each tile measured."""
    losses = [facts["loss"] for facts in done if facts.get("loss")]
    cells = sum(loss["cells"] for loss in losses)
    border = [sum(facts["seam"][k] for facts in done) for k in ("border_sum", "border_count")]
    inside = [sum(facts["seam"][k] for facts in done) for k in ("inside_sum", "inside_count")]
    ratio = None
    if border[1] and inside[1] and inside[0]:
        ratio = (border[0] / border[1]) / (inside[0] / inside[1])
    return {
        "mean_cosine": sum(loss["mean_cosine"] * loss["cells"] for loss in losses) / cells if cells else None,
        "saturation": sum(loss["saturation"] * loss["cells"] for loss in losses) / cells if cells else None,
        "seam": ratio,
    }


