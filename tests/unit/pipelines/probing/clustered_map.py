"""Embedding maps whose vectors lie around known directions, and probes that know them.

Run as a program it writes a class map, so that a test can kill it: clustered_map.py MAP PROBE OUT WORKERS
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from olmoearth_cli.core.probe.knn import fit_knn
from olmoearth_cli.core.probe.saved import SavedProbe, save_probe
from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.maps.embedding_map import EmbeddingMap, MapSpec, TileResult, write_tile
from olmoearth_pipelines.probing.class_map import write_class_map

DIMENSIONS = 8
PATCH_PX = 4
SHA = "ab" * 32
NAMES = ("water", "forest", "built-up")


def spec(**changes) -> MapSpec:
    fields = {
        "title": "Clusters",
        "model_name": "v1.2-nano",
        "model_id": "allenai/OlmoEarth-v1_2-Nano",
        "demo": False,
        "weights_sha256": SHA,
        "dimensions": DIMENSIONS,
        "patch_px": PATCH_PX,
        "dtype": "float32",
        "scale": None,
        "offset": None,
        "start": datetime(2024, 1, 1, tzinfo=UTC),
        "end": datetime(2024, 12, 26, tzinfo=UTC),
        "modalities": ("sentinel2_l2a",),
        "software": {"olmoearth": "0.1.0"},
    }
    return MapSpec(**{**fields, **changes})


def truth(box: PixelBox) -> np.ndarray:
    """[Y, X] class of every cell of the global grid: stripes three cells wide, and -1 in a corner without data."""
    p = PATCH_PX
    y, x = np.mgrid[box.row0 // p : box.row1 // p, box.col0 // p : box.col1 // p]
    found = (x // 3 + y // 5) % len(NAMES)
    return np.where((y % 24 < 3) & (x % 24 < 5), -1, found)


def vectors(classes: np.ndarray, dimensions: int = DIMENSIONS, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """[..., D] near the axis of each class, NaN for -1."""
    rng = np.random.default_rng(seed)
    out = np.eye(dimensions, dtype=np.float32)[classes] + rng.normal(0, noise, (*classes.shape, dimensions))
    out[classes < 0] = np.nan
    return out.astype(np.float32)


def make_map(
    folder: Path, boxes: Sequence[PixelBox], of: MapSpec | None = None, content: Callable = truth, noise: float = 0.05
) -> EmbeddingMap:
    of = of or spec()
    for number, box in enumerate(boxes):
        v = vectors(content(box), of.dimensions, noise, seed=number)
        quality = {"disagreement": np.where(np.isfinite(v[..., 0]), 0, np.nan).astype(np.float32)}
        result = TileResult(tile_id=f"t{number:03d}", box=box, vectors=v, quality=quality, sources={}, facts={})
        write_tile(folder, of, result)
    return EmbeddingMap.open(folder)


def tiles(rows: int, cols: int, epsg: int = 32631, side: int = 96) -> list[PixelBox]:
    """Neighbouring squares in the Netherlands."""
    return [square(epsg, side, -5760 * 96 // side + i, 600 * 96 // side + j) for i in range(rows) for j in range(cols)]


def saved(kind: str = "classification", *, targets: np.ndarray | None = None, x=None, **changes) -> SavedProbe:
    """A kNN probe over vectors near the three axes (ten each), or over what is given."""
    ids = np.repeat(np.arange(len(NAMES)), 10)
    x = vectors(ids, seed=99) if x is None else x
    names = () if kind == "regression" else NAMES
    probe = fit_knn(x, ids if targets is None else targets, kind=kind, classes=len(names) or 1, k=5)
    fields = {
        "probe": probe,
        "method": "knn",
        "class_names": names,
        "field": "cover",
        "temperature": 1.0,
        "model_id": "allenai/OlmoEarth-v1_2-Nano",
        "model_name": "v1.2-nano",
        "weights_sha256": SHA,
        "demo": False,
        "patch_px": PATCH_PX,
        "labels": len(x),
        "software": {"olmoearth": "0.1.0"},
    }
    return SavedProbe(**{**fields, **changes})


def stored(path: Path, probe: SavedProbe) -> Path:
    save_probe(path, probe)
    return path


if __name__ == "__main__":
    made = write_class_map(
        EmbeddingMap.open(sys.argv[1]),
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        workers=int(sys.argv[4]),
        scheduler=None,
        overwrite=False,
    )
    for _ in made:
        pass
