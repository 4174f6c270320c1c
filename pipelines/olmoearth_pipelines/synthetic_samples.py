"""Pretraining samples of made-up land, in the published layout: for trials, tests and the demo encoder.

    python -m olmoearth_pipelines.synthetic_samples FOLDER --tiles 100 --seed 1000

Every tile is another landscape (`synthetic`), another year and season of clouds. Sentinel-2, Sentinel-1 and the land
cover as WorldCover codes. Nothing of it was observed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from olmoearth_cli.geo.periods import periods, stamps
from olmoearth_pipelines.landscape import BANDS, CLASSES, Landscape, landscape
from olmoearth_pipelines.radiometry import remove_offset, to_decibel
from olmoearth_pipelines.samples.dataset_writer import DatasetWriter
from olmoearth_pipelines.samples.layout import TILE_PX
from olmoearth_pipelines.samples.sample_file import SampleData
from olmoearth_pipelines.synthetic import OFFSET, Acquisition, Scenery, acquisitions, optical, radar

Array = np.ndarray
MODALITIES = ("sentinel2_l2a", "sentinel1", "worldcover")
SIZE_PX = 264
"""Side of the imagery: the next one above a tile on which all bands fit."""
YEARS = (2017, 2025)
WORLDCOVER = {
    "water": 80,
    "broadleaf": 10,
    "conifer": 10,
    "grassland": 30,
    "winter_cereal": 40,
    "maize": 40,
    "bare": 60,
    "built": 50,
}
"""ESA WorldCover's codes."""


def make_tile(seed: int) -> SampleData:
    """One tile of 256 px; the same seed gives the same tile. Up to three periods lack Sentinel-2."""
    rng = np.random.default_rng([seed, 40])
    scenery = Scenery(
        seed=seed,
        size_px=SIZE_PX,
        year=int(rng.integers(*YEARS)),
        without_s2=int(rng.integers(0, 14)),
        without_s1=-1,
        swath_edge=-1,
    )
    land = landscape(seed, SIZE_PX)
    passes = list(acquisitions(scenery))
    missing = set(rng.integers(0, 12, int(rng.integers(0, 3))).tolist())
    clearest = _clearest(passes, missing)
    present = {
        "sentinel2_l2a": np.array([period in clearest for period in range(scenery.periods)]),
        "sentinel1": np.ones(scenery.periods, dtype=bool),
    }
    images = {
        "sentinel2_l2a": np.stack([_optical(scenery, land, clearest[p]) for p in sorted(clearest)], axis=2),
        "sentinel1": np.stack([_radar(scenery, land, one) for kind, one in passes if kind == "s1"], axis=2),
        "worldcover": _worldcover(land),
    }
    west, south, east, north = scenery.square.bbox
    return SampleData(
        latlon=np.array([(south + north) / 2, (west + east) / 2], dtype=np.float32),
        timestamps=np.array(stamps(periods(scenery.first_day.date(), scenery.periods)), dtype=np.int32),
        images=images,
        present=present,
    )


def make_samples(folder: Path, seeds: Sequence[int], *, workers: int = 1) -> Path:
    """Write a dataset of one tile (four samples) per seed; continues one that was interrupted.

    Args:
        folder: root of the dataset.
        seeds: of the tiles, in the order of the dataset.
        workers: processes.

    Returns:
        The finished leaf folder.
    """
    writer = DatasetWriter(folder, MODALITIES, settings={"synthetic": True, "first_seed": seeds[0]})
    todo = [seed for seed in seeds if f"seed-{seed}" not in writer]
    with ProcessPoolExecutor(workers) as pool:
        for seed, tile in zip(todo, pool.map(make_tile, todo), strict=True):
            writer.add(f"seed-{seed}", tile)
    return writer.finish()


def _clearest(passes: Sequence[tuple[str, Acquisition]], missing: set[int]) -> dict[int, Acquisition]:
    """Period -> its least cloudy optical pass."""
    found: dict[int, Acquisition] = {}
    for kind, one in passes:
        period = one.number // 10
        if kind == "s2" and period not in missing:
            found[period] = min(found.get(period, one), one, key=lambda a: a.cloudiness)
    return found


def _optical(scenery: Scenery, land: Landscape, one: Acquisition) -> Array:
    """uint16 [256, 256, C] digital numbers without the offset, coarse bands repeated."""
    bands, _ = optical(scenery, land, one)
    grids = [_to_10m(remove_offset(bands[name], OFFSET)) for name in BANDS]
    return np.stack(grids, axis=-1)[:TILE_PX, :TILE_PX]


def _to_10m(values: Array) -> Array:
    """A band on the 10 m grid as in the stacks that the encoder sees: 60 m is warped to 40 m first."""
    step = SIZE_PX // len(values)
    if step == 6:
        values = np.rint(ndimage.zoom(values.astype(np.float32), 1.5, order=1, mode="nearest", grid_mode=True))
        step = 4
    return values.astype(np.uint16).repeat(step, axis=0).repeat(step, axis=1)


def _radar(scenery: Scenery, land: Landscape, one: Acquisition) -> Array:
    """float32 [256, 256, 2] decibels."""
    return np.moveaxis(to_decibel(radar(scenery, land, one)), 0, -1)[:TILE_PX, :TILE_PX]


def _worldcover(land: Landscape) -> Array:
    codes = np.array([0, *(WORLDCOVER[name] for name in CLASSES)], dtype=np.uint8)
    return codes[land.classes][:TILE_PX, :TILE_PX, None, None]


def main() -> None:
    """Command line: make a dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1000, help="of the first tile; the others follow")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    run = partial(make_samples, asked.folder, range(asked.seed, asked.seed + asked.tiles))
    run(workers=asked.workers)


if __name__ == "__main__":
    main()
