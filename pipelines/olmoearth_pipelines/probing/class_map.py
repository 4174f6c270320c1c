"""The class map road: a fitted probe over every cell of an embedding map -> one GeoTIFF.

Tiles are scored on Dask workers into a hidden work folder beside the output and merged at the end. A run that was
killed keeps its finished tiles; the output appears whole or not at all, and says in its metadata what made it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
from rasterio.errors import RasterioError

from olmoearth_cli.errors import InputError, OutputError, RunError
from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_cli.maps.files import (
    file_sha256,
    output_error,
    publish,
    read_json,
    remove,
    write_bytes,
    write_json,
    write_text,
)
from olmoearth_cli.maps.merge import check_zones
from olmoearth_cli.maps.tile_files import TileEntry
from olmoearth_pipelines.cluster import TILES_IN_FLIGHT, check_folder, connect, local_cores
from olmoearth_pipelines.fanout import Lost, fan_out
from olmoearth_pipelines.probing.class_layout import Layout, aux_xml, check_probe, layout_of, tags
from olmoearth_pipelines.probing.class_merge import merge, place
from olmoearth_pipelines.probing.class_tile import PROBE, ClassJob, ClassWork, classify_tile, tile_path

if TYPE_CHECKING:
    from olmoearth_cli.core.probe.saved import SavedProbe

FORMAT = 1
"""Raised when the same probe and map give another file."""
SETTINGS_TAG = "OLMOEARTH_CLASS_MAP"
"""Metadata key under which a class map names the settings that made it, as a SHA-256."""


@dataclass(frozen=True, kw_only=True)
class ClassTile:
    """One tile is classified."""

    tile: str
    status: str
    """`done`, or `gap` where its workers died again and again."""
    reason: str | None
    km2: float
    tiles_to_do: int
    km2_to_do: float


@dataclass(frozen=True, kw_only=True)
class ClassMapSummary:
    """The class map in numbers."""

    path: str
    tiles: int
    kept: int
    """Tiles found finished from an earlier run."""
    gaps: int
    """Tiles that the embedding map lacks."""
    km2: float
    """Area with a class."""
    classes: dict[str, dict[str, float]]
    """Name -> `km2` and `share` of the area; multi-label: where the class is more likely than not."""
    mean_confidence: float | None
    """Mean calibrated probability of the chosen class, 0 to 1; None without classes."""
    values: dict[str, float] | None
    """`mean`, `min`, `max` of a regression."""
    seconds: float
    unchanged: bool = False


def write_class_map(
    emap: EmbeddingMap, probe_file: Path, out: Path, *, workers: int, scheduler: str | None, overwrite: bool
) -> Iterator[ClassTile | ClassMapSummary]:
    """Classify a map; yields a report per tile and a summary at the end.

    Args:
        emap: the embedding map; its gaps stay without data.
        probe_file: what `save_probe` wrote.
        out: the GeoTIFF to write; the colours and class names go into `<out>.aux.xml`.
        workers: local worker processes; ignored with a scheduler.
        scheduler: address of a running Dask scheduler, or None.
        overwrite: replace a file that something else, or other settings, made.

    Raises:
        InputError: the probe belongs to another model, or the map is too wide for one UTM zone.
        OutputError: the output is there and is not this class map, or cannot be written.
        RunError: workers died again and again on some tiles; the others are kept for a later run.
    """
    from olmoearth_cli.core.probe.saved import load_probe

    started = time.monotonic()
    out = Path(out).absolute()
    saved = load_probe(probe_file)
    check_probe(saved, emap.spec)
    check_zones(emap.tiles, "Map the region in parts no wider than five zones and make a class map of each.")
    layout = layout_of(saved, emap.spec.patch_px)
    settings = _settings(emap, probe_file)
    work = out.with_name(f".{out.name}.work")
    if _is_finished(out, _fingerprint(settings), overwrite=overwrite):
        if not _legend(out).exists():
            _write_legend(out, layout)  # the run was killed just before
        _clear(work)
        yield _summary(emap, out, started, kept=0, unchanged=True)
        return
    _start(work, settings, probe_file)
    done = [tile for tile in emap.tiles if tile.status == "done"]
    todo = [tile for tile in done if not tile_path(work, tile.id).is_file()]
    lost = 0
    for report in _tiles(emap, work, todo, workers=workers, scheduler=scheduler):
        lost += report.status == "gap"
        yield report
    if lost:
        raise RunError(
            f"{out}: not written: the workers died again and again on {lost} of {len(todo)} tiles (out of memory?). "
            "The others are kept: run the same command again, with fewer workers or more memory."
        )
    _finish(emap, layout, work, out, _fingerprint(settings))
    yield _summary(emap, out, started, kept=len(done) - len(todo), unchanged=False)


def classify_map(
    emap: EmbeddingMap, saved: SavedProbe, out: Path, *, workers: int, scheduler: str | None, overwrite: bool
) -> Iterator[ClassTile | ClassMapSummary]:
    """`write_class_map` with a probe that need not be a file."""
    from olmoearth_cli.core.probe.saved import save_probe

    out = Path(out).absolute()
    # Beside the output, not in /tmp: workers of a cluster must see it. A run after a killed one takes its place.
    file = out.with_name(f".{out.name}.probe")
    try:
        save_probe(file, replace(saved, facts={}))  # figures change no pixel: the same map, with or without them
        yield from write_class_map(emap, file, out, workers=workers, scheduler=scheduler, overwrite=overwrite)
    finally:
        remove(file)


def _settings(emap: EmbeddingMap, probe_file: Path) -> dict[str, Any]:
    """All that the file's pixels depend on."""
    return {
        "format": FORMAT,
        "probe_sha256": file_sha256(probe_file),
        "model": {"id": emap.spec.model_id, "sha256": emap.spec.weights_sha256, "patch_px": emap.spec.patch_px},
        "tiles": {tile.id: tile.facts["sha256"] for tile in emap.tiles if tile.status == "done"},
    }


def _fingerprint(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def made_by(out: Path, *, overwrite: bool) -> str | None:
    """Fingerprint of the class map that is there; None where there is nothing, or it may be overwritten.

    Raises:
        OutputError: something else is there, and may not be overwritten.
    """
    if not out.exists():
        return None
    if not out.is_file():
        raise OutputError(f"{out}: is a folder. Name a file, for example {out / 'classes.tif'}.")
    if overwrite:
        return None
    try:
        with rasterio.open(out) as source:
            found = source.tags().get(SETTINGS_TAG)
    except RasterioError:
        found = None
    if found is None:
        raise _in_the_way(out, "no class map")
    return str(found)


def _is_finished(out: Path, fingerprint: str, *, overwrite: bool) -> bool:
    """True where the output is this class map already.

    Raises:
        OutputError: something else is there, and may not be overwritten.
    """
    found = made_by(out, overwrite=overwrite)
    if found not in (None, fingerprint):
        raise _in_the_way(out, "a class map made with another probe or from other tiles")
    return found is not None


def _in_the_way(out: Path, what: str) -> OutputError:
    return OutputError(f"{out}: is there already and is {what}. Choose another file, or replace it with --overwrite.")


def _start(work: Path, settings: dict[str, Any], probe_file: Path) -> None:
    """A work folder for these settings: an earlier run's, or an empty one."""
    record = work / "settings.json"
    try:
        same = record.is_file() and read_json(record) == settings
    except InputError:
        same = False
    if same:
        return
    _clear(work)
    write_bytes(work / PROBE, probe_file.read_bytes())
    write_json(record, settings)


def _clear(work: Path) -> None:
    try:
        if work.exists():
            shutil.rmtree(work)
    except OSError as error:
        raise output_error(work, error) from error


def _tiles(
    emap: EmbeddingMap, work: Path, todo: list[TileEntry], *, workers: int, scheduler: str | None
) -> Iterator[ClassTile]:
    if not todo:
        return
    share = None if scheduler else max(1, local_cores() // workers)
    common = ClassWork(folder=str(work), spec=emap.spec, threads=share)
    jobs = (ClassJob(tile=t.id, box=t.box, path=str(Path(str(t.path)).absolute()), work=common) for t in todo)
    km2 = {tile.id: _km2(tile) for tile in todo}
    km2_to_do = sum(km2.values())
    with (
        tempfile.TemporaryDirectory(prefix="olmoearth-") as scratch,
        connect(workers=workers, scheduler=scheduler, scratch=Path(scratch)) as client,
    ):
        if scheduler:
            check_folder(client, work)
            check_folder(client, emap.folder.absolute())
        slots = len(client.scheduler_info(n_workers=-1)["workers"]) * TILES_IN_FLIGHT
        for job, result in fan_out(client, classify_tile, jobs, slots=slots):
            reason = str(result) if isinstance(result, Lost) else None
            yield ClassTile(
                tile=job.tile,
                status="gap" if reason else "done",
                reason=reason,
                km2=km2[job.tile],
                tiles_to_do=len(todo),
                km2_to_do=km2_to_do,
            )


def _km2(tile: TileEntry) -> float:
    """Area with data."""
    return float(tile.box.height * tile.box.width * 1e-4 * tile.facts["percent_valid"] / 100)


def _finish(emap: EmbeddingMap, layout: Layout, work: Path, out: Path, fingerprint: str) -> None:
    """Merge the tiles and put the file in its place, the legend after it, the work folder away."""
    files = {tile.id: tile_path(work, tile.id) for tile in emap.tiles if tile.status == "done"}
    described = {
        SETTINGS_TAG: fingerprint,
        "EMB_MODEL": emap.spec.model_id,
        "EMB_WEIGHTS_SHA256": emap.spec.weights_sha256,
        "EMB_DEMO_WEIGHTS": str(emap.spec.demo).lower(),
        "EMB_PERIOD": f"{emap.spec.start:%Y-%m-%d}/{emap.spec.end:%Y-%m-%d}",
        "KIND": layout.kind,
        **tags(layout),
    }
    cog = merge(place(emap.tiles, files, emap.spec.patch_px), layout, work, described)
    remove(_legend(out))  # an older file's names must never stand beside the new one
    publish(cog, out)
    _write_legend(out, layout)
    _clear(work)


def _legend(out: Path) -> Path:
    return out.with_name(f"{out.name}.aux.xml")


def _write_legend(out: Path, layout: Layout) -> None:
    if layout.has_classes:
        write_text(_legend(out), aux_xml(layout))


def _summary(emap: EmbeddingMap, out: Path, started: float, *, kept: int, unchanged: bool) -> ClassMapSummary:
    """From the figures that the file itself carries."""
    with rasterio.open(out) as source:
        figures = json.loads(source.tags()["OLMOEARTH_FIGURES"])
    done = sum(tile.status == "done" for tile in emap.tiles)
    return ClassMapSummary(
        path=str(out),
        tiles=done,
        kept=done if unchanged else kept,
        gaps=len(emap.tiles) - done,
        seconds=round(time.monotonic() - started, 2),
        unchanged=unchanged,
        **figures,
    )
