"""Tiny datasets in the published format, written with h5py alone where the writer is not what is tested."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_pipelines.samples.rules import DTYPES
from olmoearth_pipelines.samples.sample_file import SampleData

SATELLITES = ("sentinel2_l2a", "sentinel1", "landsat")
BAND_SETS = dict.fromkeys(MODALITIES, 1)
STAMPS = np.array([(1 + m, m, 2020) for m in range(12)], dtype=np.int32)
S2, S1, LANDSAT = SATELLITES
FULL = np.ones(12, dtype=bool)


def image(name: str, side: int, periods: int, rng: np.random.Generator) -> np.ndarray:
    """Plausible numbers in the published dtype, [side, side, periods, C]."""
    shape = (side, side, periods, len(MODALITIES[name].bands))
    if name == S1:
        return rng.normal(-12, 4, shape).astype(np.float32)
    low, high = {S2: (200, 4000), LANDSAT: (6000, 15000), "openstreetmap_raster": (0, 2)}.get(name, (1, 100))
    return rng.integers(low, high, shape).astype(DTYPES[name])


def sample(side: int, present: dict[str, Any], maps: tuple[str, ...] = (), *, seed: int = 0) -> SampleData:
    """A sample, or a tile, with these satellites at these timesteps."""
    rng = np.random.default_rng(seed)
    seen = {name: np.asarray(mask, dtype=bool) for name, mask in present.items()}
    images = {name: image(name, side, int(mask.sum()), rng) for name, mask in seen.items()}
    images |= {name: image(name, side, 1, rng) for name in maps}
    place = np.array([45.0 + seed / 8, 7.25], dtype=np.float32)
    return SampleData(latlon=place, timestamps=STAMPS, images=images, present=seen)


def put(path: Path, content: SampleData, *, masks: bool = True) -> Path:
    """Write a sample plainly."""
    with h5py.File(path, "w") as file:
        for name, values in {"latlon": content.latlon, "timestamps": content.timestamps, **content.images}.items():
            file.create_dataset(name, data=values, chunks=values.shape if values.size else None, **hdf5plugin.Zstd(3))
        for name, mask in content.present.items() if masks else ():
            file[f"missing_timesteps_masks/{name}"] = mask
    return path


def some_presence(rng: np.random.Generator, count: int = 12) -> dict[str, np.ndarray]:
    """Sentinel-2 always, the others sometimes, each at some timesteps."""
    present = {S2: rng.random(count) < 0.6}
    present[S2][rng.integers(count)] = True
    for name in (S1, LANDSAT):
        mask = rng.random(count) < 0.4
        if rng.random() < 0.7 and mask.any():
            present[name] = mask
    return present


def put_dataset(leaf: Path, samples: list[SampleData]) -> Path:
    """A leaf folder with its tables."""
    leaf.mkdir(parents=True)
    for i, content in enumerate(samples):
        put(leaf / f"sample_{i}.h5", content)
    with (leaf / "sample_metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sample_index", *reversed(MODALITIES)])
        table.writerows([i, *(int(name in s.images) for name in reversed(MODALITIES))] for i, s in enumerate(samples))
    np.save(leaf / "latlon_distribution.npy", np.array([s.latlon for s in samples], dtype=np.float64))
    (leaf / "compression_settings.json").write_text('{"compression": "zstd", "compression_opts": 3, "shuffle": null}')
    return leaf
