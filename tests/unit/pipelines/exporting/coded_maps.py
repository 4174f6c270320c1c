"""Embedding maps whose codes say where a cell is: row, column and a constant, each within int8."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.maps import run_record
from olmoearth_cli.maps.embedding_map import EmbeddingMap, MapSpec, TileResult, write_tile

PATCH_PX = 4
SCALE, OFFSET = (0.5, 0.25, 1.0), (0.0, 1.0, -2.0)


def spec(**changes) -> MapSpec:
    fields = {
        "title": "Coded",
        "model_name": "v1.2-nano",
        "model_id": "allenai/OlmoEarth-v1_2-Nano",
        "demo": False,
        "weights_sha256": "cd" * 32,
        "dimensions": 3,
        "patch_px": PATCH_PX,
        "dtype": "int8",
        "scale": SCALE,
        "offset": OFFSET,
        "start": datetime(2024, 1, 1, tzinfo=UTC),
        "end": datetime(2024, 12, 26, tzinfo=UTC),
        "modalities": ("sentinel2_l2a",),
        "software": {"olmoearth": "0.1.0"},
    }
    return MapSpec(**{**fields, **changes})


def codes_at(row: np.ndarray, col: np.ndarray, third: int = 7) -> np.ndarray:
    """[..., 3] codes of cells of the global grid; -128 in a corner of every 24 x 24 cells."""
    codes = np.stack([row % 100 - 50, col % 100 - 50, np.full(np.shape(row), third)], axis=-1)
    return np.where(((row % 24 < 3) & (col % 24 < 5))[..., None], -128, codes).astype(np.int8)


def codes_of(box: PixelBox, third: int = 7) -> np.ndarray:
    """[Y, X, 3] codes of a box."""
    p = PATCH_PX
    row, col = np.mgrid[box.row0 // p : box.row1 // p, box.col0 // p : box.col1 // p]
    return codes_at(row, col, third)


def decoded(codes: np.ndarray) -> np.ndarray:
    repeats = codes.shape[-1] // len(SCALE)
    values = codes * np.float32(SCALE * repeats) + np.float32(OFFSET * repeats)
    return np.where(codes == -128, np.nan, values).astype(np.float32)


def make_map(
    folder: Path,
    boxes: Sequence[PixelBox],
    *,
    thirds: Sequence[int] | None = None,
    repeats: int = 1,
    complete: bool = True,
    **changes,
) -> EmbeddingMap:
    """One tile per box; `thirds`: the constant of each tile's third code; `repeats`: of the three dimensions."""
    if repeats > 1:
        changes |= {"dimensions": 3 * repeats, "scale": SCALE * repeats, "offset": OFFSET * repeats}
    of = spec(**changes)
    run_record.start(folder, {})
    for number, box in enumerate(boxes):
        v = decoded(np.tile(codes_of(box, thirds[number] if thirds else 7), repeats))
        quality = {"disagreement": np.where(np.isfinite(v[..., 0]), 0, np.nan).astype(np.float32)}
        result = TileResult(tile_id=f"t{number:03d}", box=box, vectors=v, quality=quality, sources={}, facts={})
        write_tile(folder, of, result)
    if complete:
        run_record.finish(folder, {}, {"complete": True})
    return EmbeddingMap.open(folder)


def tiles(rows: int, cols: int, epsg: int = 32631) -> list[PixelBox]:
    """Neighbouring squares of 24 x 24 cells in the Netherlands (or at the same place of another zone)."""
    return [square(epsg, 96, -5760 + i, 600 + j) for i in range(rows) for j in range(cols)]
