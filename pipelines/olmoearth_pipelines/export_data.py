"""The road of `olmoearth export data`: a region or points and a catalogue become pretraining samples.

Tiles are read on workers in any order and added to the dataset in the order of the grid, so that the same request gives
the same files, however many workers there are and however often it was interrupted.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from olmoearth_cli import __version__
from olmoearth_cli.errors import InputError, OutputError, RunError
from olmoearth_cli.geo.aoi import read_aoi
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_cli.geo.periods import Period, resolve_periods, stamps
from olmoearth_cli.geo.tiles import tile_id
from olmoearth_cli.maps.files import remove, sha256
from olmoearth_pipelines.cluster import TILES_IN_FLIGHT, check_folder, connect
from olmoearth_pipelines.exporting import data_folder
from olmoearth_pipelines.exporting.data_folder import SCENES, WORK
from olmoearth_pipelines.exporting.data_maps import MapRaster, open_maps
from olmoearth_pipelines.exporting.data_tile import (
    DONE,
    SKIPPED,
    UNREADABLE,
    SampleJob,
    Work,
    read_tile,
    run_tile,
    tile_file,
)
from olmoearth_pipelines.exporting.data_tiles import drawn, tiles_at, tiles_of
from olmoearth_pipelines.fanout import Lost, fan_out
from olmoearth_pipelines.guarded import guard_table
from olmoearth_pipelines.samples.dataset_writer import DatasetWriter
from olmoearth_pipelines.samples.layout import TILE_PX, pieces_per_tile
from olmoearth_pipelines.samples.sample_file import PERIODS
from olmoearth_pipelines.samples.validate import Finding, validate
from olmoearth_pipelines.stac import CELL_PX, SceneTable, search

Note = Callable[[str], None]
TILE_KM2 = (TILE_PX * PIXEL_M) ** 2 / 1e6
MOST_CHECKED = 4000
"""Samples that are read again at the end, evenly spread where there are more."""


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """What the user asked for; the flags of `olmoearth export data`, one to one."""

    aoi: str | None = None
    points: Path | None = None
    start: date | None = None
    year: int | None = None
    catalogs: tuple[str, ...] | None = None
    modalities: tuple[str, ...] | None = None
    maps: str | None = None
    max_tiles: int | None = None
    seed: int = 0
    side: int = 128
    out: Path | None = None
    workers: int = 1
    scheduler: str | None = None
    guard: str = "strict"
    allow_gaps: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request, checked and laid out: everything that needs no catalogue."""

    request: DataRequest
    periods: tuple[Period, ...]
    tiles: tuple[PixelBox, ...]
    maps: tuple[MapRaster, ...]
    folder: Path
    settings: dict[str, Any]
    before: dict[str, Any] | None
    """Record of an earlier run with the same settings in the same folder."""


@dataclass(frozen=True, kw_only=True)
class SampleTile:
    """One tile is dealt with."""

    tile: str
    status: str
    """`done`, or `gap` with its `reason`."""
    reason: str | None
    tiles_to_do: int
    km2: float = TILE_KM2

    @property
    def km2_to_do(self) -> float:
        """Area of all tiles of this run."""
        return self.tiles_to_do * self.km2


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """The whole export in numbers; what `--json` prints."""

    folder: str
    """Leaf folder of the dataset."""
    samples: int
    tiles: int
    """Tiles that became samples."""
    skipped: dict[str, int]
    """Why tiles have too little data -> how many."""
    unreadable: dict[str, int]
    """Why tiles could not be read -> how many."""
    left_out: dict[str, int]
    """`modality: reason` -> tiles that go without the modality."""
    findings: tuple[str, ...]
    """What the validation found."""
    errors: int
    """Findings that are errors."""
    seconds: float
    unchanged: bool = False


def prepare(request: DataRequest, note: Note) -> Prepared:
    """Check a request and lay out its tiles. Reads the region or the points, and the maps' headers.

    Raises:
        InputError, OutputError: whatever cannot be used as asked.
    """
    if (request.aoi is None) == (request.points is None):
        raise InputError("Give either --aoi, a region, or --points, a file of points: samples are made around them.")
    pieces_per_tile(request.side)
    periods = resolve_periods(request.start, None, request.year, PERIODS, date.today())
    maps = open_maps(request.maps)
    tiles, name = _tiles(request, note)
    folder = request.out or Path("samples") / name
    settings = {
        "region": request.aoi or str(request.points),
        "tiles": len(tiles),
        "tiles_sha256": sha256("\n".join(map(tile_id, tiles)).encode()),
        "start": periods[0].start.date().isoformat(),
        "catalog": list(request.catalogs or ("default",)),
        "modalities": list(request.modalities or ("default",)),
        "maps": {raster.name: raster.shown for raster in maps},
        "side": request.side,
    }
    before = data_folder.check(folder, settings)
    return Prepared(
        request=request, periods=periods, tiles=tiles, maps=maps, folder=folder, settings=settings, before=before
    )


def run(prepared: Prepared, note: Note, warn: Note) -> Iterator[SampleTile | DataSummary]:
    """Write the samples; yields a report per tile and a summary at the end.

    Raises:
        OlmoEarthError: what cannot go on; finished tiles stay and a later run continues.
    """
    started = time.monotonic()
    folder = prepared.folder
    finished = _finished(prepared)
    if finished is not None:
        yield finished
        return
    table = _scenes(prepared)
    for line in table.notes():
        note(line)
    guard = guard_table(table, prepared.tiles, mode=prepared.request.guard, warn=warn)
    data_folder.begin(folder, prepared.settings, table.to_json())
    modalities = (*table.modalities, *(raster.name for raster in prepared.maps))
    writer = DatasetWriter(folder, modalities, side_px=prepared.request.side, settings=prepared.settings)
    known = data_folder.recorded(folder, map(tile_id, prepared.tiles), writer)
    if known:
        note(f"{len(known)} of {len(prepared.tiles)} tiles are known from before; doing the rest")
    yield from _fill(prepared, table, writer, known)
    summary = _close(prepared, writer, known, note)
    summary = replace(summary, seconds=round(time.monotonic() - started, 2))
    facts = {
        "leaf": Path(summary.folder).relative_to(folder).as_posix(),
        "summary": asdict(summary),
        "guard": asdict(guard) if guard else "off",
        "olmoearth": __version__,
    }
    data_folder.close(folder, prepared.settings, facts)
    yield summary


def check_dataset(folder: Path) -> tuple[int, tuple[Finding, ...]]:
    """Look at every sample of a dataset, ours or published: how many errors there are, and all findings."""
    findings = tuple(validate(folder))
    return _errors(findings), findings


def _finished(prepared: Prepared) -> DataSummary | None:
    """The summary of an export that is complete already; None where there is something to do."""
    before = prepared.before
    if not before or before.get("status") != "finished":
        return None
    try:
        leaf = prepared.folder / before["leaf"]
        summary = DataSummary(**{**before["summary"], "folder": str(leaf), "unchanged": True})
    except (KeyError, TypeError) as error:
        raise OutputError(
            f"{prepared.folder}: its record is not one that this version writes ({error}). Choose another folder with "
            "--out."
        ) from error
    return replace(summary, findings=tuple(summary.findings)) if leaf.is_dir() else None


def _tiles(request: DataRequest, note: Note) -> tuple[tuple[PixelBox, ...], str]:
    """The tiles, and a name for the output folder."""
    if request.aoi is not None:
        aoi = read_aoi(request.aoi)
        tiles, name = tiles_of(aoi), aoi.name
    else:
        path = Path(str(request.points))
        (tiles, notes), name = tiles_at(path), path.stem
        for line in notes:
            note(line)
    kept = drawn(tiles, request.max_tiles, request.seed)
    if len(kept) < len(tiles):
        note(f"{len(kept)} of {len(tiles)} tiles drawn with seed {request.seed}")
    return kept, name


def _scenes(prepared: Prepared) -> SceneTable:
    """The chosen scenes: from an earlier run in the same folder, else from the catalogue."""
    path = prepared.folder / SCENES
    if prepared.before and path.is_file():
        return SceneTable.from_json(path.read_text(encoding="utf-8"))
    cells = sorted({(box.epsg, i, j) for box in prepared.tiles for i, j in box.squares(CELL_PX)})
    return search(cells, prepared.periods, prepared.request.catalogs, prepared.request.modalities)


def _fill(
    prepared: Prepared, table: SceneTable, writer: DatasetWriter, known: dict[str, dict[str, Any]]
) -> Iterator[SampleTile]:
    """Read the tiles that are not known, and add all to the dataset in the order of the grid."""
    if len(writer) and writer.leaf.exists():  # finished, but interrupted before the record said so
        return
    names = [tile_id(box) for box in prepared.tiles]
    todo = [box for box, name in zip(prepared.tiles, names, strict=True) if name not in known and name not in writer]
    place = _add(prepared.folder, writer, names, known, 0)
    for box, facts in _read(prepared, table, todo):
        known[tile_id(box)] = facts
        place = _add(prepared.folder, writer, names, known, place)
        status = "done" if facts["status"] == DONE else "gap"
        yield SampleTile(tile=tile_id(box), status=status, reason=facts.get("reason"), tiles_to_do=len(todo))


def _read(prepared: Prepared, table: SceneTable, todo: Sequence[PixelBox]) -> Iterator[tuple[PixelBox, dict[str, Any]]]:
    """Tiles on the workers, in the order in which they get ready."""
    if not todo:
        return
    request, folder = prepared.request, prepared.folder.resolve()
    work = Work(
        folder=str(folder / WORK),
        scenes=str(folder / SCENES),
        scenes_sha256=hashlib.sha256((folder / SCENES).read_bytes()).hexdigest(),
        modalities=table.modalities,
        maps=prepared.maps,
        stamps=tuple(stamps(prepared.periods)),
    )
    with (
        tempfile.TemporaryDirectory(prefix="olmoearth-") as scratch,
        connect(workers=request.workers, scheduler=request.scheduler, scratch=Path(scratch)) as client,
    ):
        if request.scheduler:
            check_folder(client, folder)
        slots = len(client.scheduler_info(n_workers=-1)["workers"]) * TILES_IN_FLIGHT
        jobs = (SampleJob(box=box, work=work) for box in todo)
        for job, result in fan_out(client, run_tile, jobs, slots=slots):
            facts = {"status": UNREADABLE, "reason": str(result)} if isinstance(result, Lost) else result
            yield job.box, facts


def _add(
    folder: Path, writer: DatasetWriter, names: Sequence[str], known: Mapping[str, Mapping[str, Any]], place: int
) -> int:
    """Add waiting tiles from `place` on, up to the first one of which nothing is known yet; returns its place."""
    while place < len(names) and (names[place] in known or names[place] in writer):
        name = names[place]
        path = tile_file(folder / WORK, name)
        if name not in writer and known[name]["status"] == DONE:
            writer.add(name, read_tile(path))
        remove(path)
        place += 1
    return place


def _close(
    prepared: Prepared, writer: DatasetWriter, known: Mapping[str, Mapping[str, Any]], note: Note
) -> DataSummary:
    """Finish the dataset and look at it."""
    skipped = Counter(facts["reason"] for facts in known.values() if facts["status"] == SKIPPED)
    unreadable = Counter(facts["reason"] for facts in known.values() if facts["status"] == UNREADABLE)
    if unreadable and not prepared.request.allow_gaps:
        raise RunError(
            f"{prepared.folder}: {unreadable.total()} of {len(known)} tiles could not be read (first: "
            f"{next(iter(unreadable))}). The others are kept: run the same command again, or with --allow-gaps to "
            "finish without them."
        )
    if not len(writer):
        data_folder.clear(prepared.folder, writer.leaf.parent)
        reasons = "; ".join(f"{count} {reason}" for reason, count in (skipped + unreadable).most_common(3))
        raise InputError(
            f"{prepared.folder}: none of {len(known)} tiles has enough data ({reasons}). Choose other dates, another "
            "region or --catalog."
        )
    leaf = writer.finish()
    step = -(-len(writer) // MOST_CHECKED)
    note(f"looking at {'all' if step == 1 else f'every {step}th of'} {len(writer)} samples")
    findings = validate(leaf, indices=range(0, len(writer), step))
    left_out = Counter(f"{name}: {why}" for facts in known.values() for name, why in facts.get("left_out", {}).items())
    return DataSummary(
        folder=str(leaf),
        samples=len(writer),
        tiles=len(writer) // pieces_per_tile(prepared.request.side),
        skipped=dict(skipped),
        unreadable=dict(unreadable),
        left_out=dict(left_out),
        findings=tuple(finding_text(finding) for finding in findings),
        errors=_errors(findings),
        seconds=0.0,
    )


def finding_text(finding: Finding) -> str:
    """A finding in one line."""
    return f"{finding.level}: {finding.where}: {finding.what}"


def _errors(findings: Sequence[Finding]) -> int:
    return sum(finding.level == "error" for finding in findings)
