"""The tiles of a prepared run over a cluster: what is left to do, and a report for each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from olmoearth_cli import __version__
from olmoearth_cli.geo.periods import stamps
from olmoearth_cli.geo.tiles import Tile
from olmoearth_cli.maps.embedding_map import tile_states
from olmoearth_cli.maps.stac_items import Described
from olmoearth_pipelines.cluster import TILES_IN_FLIGHT, check_folder, connect, local_cores
from olmoearth_pipelines.fanout import Lost, fan_out
from olmoearth_pipelines.request import Prepared
from olmoearth_pipelines.tile_job import TileJob, Work, give_up

Facts = dict[str, Any]


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
    facts: Facts


def remaining(prepared: Prepared) -> tuple[list[Tile], list[str]]:
    """Tiles still to make (gaps are tried again) and the ids of the finished ones."""
    done = {tile for tile, state in tile_states(prepared.folder).items() if state == "done"}
    tiles = prepared.grid.tiles
    return [t for t in tiles if t.id not in done], [t.id for t in tiles if t.id in done]


def shared_work(prepared: Prepared) -> dict[str, Any]:
    """The fields of `Work`."""
    request = prepared.request
    return {
        "folder": str(prepared.folder.resolve()),
        "model": str(Path(request.model).resolve()) if Path(request.model).is_dir() else request.model,
        "device": request.device,
        "precision": request.precision,
        "stamps": tuple(stamps(prepared.periods)),
        "windowing": prepared.grid.windowing,
        "blend": request.blend,
        "threads": None if request.scheduler else max(1, local_cores() // request.workers),
    }


def run_tiles(
    prepared: Prepared,
    todo: list[Tile],
    work: Work,
    spec: Described,
    run_tile: Callable[[TileJob], Facts],
) -> Iterator[TileReport]:
    """Run tiles on the workers that the request asks for.

    Args:
        prepared: of the run.
        todo: tiles to make.
        work: what they share.
        spec: of the map, for the record of a tile whose workers died again and again.
        run_tile: on a worker; its result has `status` and, for a gap, `reason`.
    """
    if not todo:
        return
    request = prepared.request
    km2_to_do = sum(_covered_km2(prepared, tile) for tile in todo)
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
                facts = give_up(prepared.folder, spec, job.tile, str(facts))
            yield TileReport(
                tile=job.tile.id,
                status=facts["status"],
                reason=facts.get("reason"),
                km2=_covered_km2(prepared, job.tile),
                tiles_to_do=len(todo),
                km2_to_do=km2_to_do,
                facts=facts,
            )


def software() -> dict[str, str]:
    """Program and libraries -> versions."""
    names = ("torch", "numpy", "dask", "distributed", "rasterio", "stackstac", "pystac")
    return {"olmoearth": __version__} | {name: version(name) for name in names}


def _covered_km2(prepared: Prepared, tile: Tile) -> float:
    return len(tile.blocks) * prepared.grid.windowing.block_km2
