"""Tiny maps with known content."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.maps import run_record
from olmoearth_cli.maps.embedding_map import EmbeddingMap, MapSpec, TileResult, write_tile
from olmoearth_cli.maps.quantize import Quantizer

DIMENSIONS = 6
TILE_PX = 96


def make_spec(**changes) -> MapSpec:
    weight = np.linspace(0.5, 1.5, DIMENSIONS, dtype=np.float32)
    rule = Quantizer.from_layernorm(weight, np.linspace(-0.3, 0.3, DIMENSIONS))
    fields = {
        "title": "OlmoEarth embeddings of Test",
        "model_name": "v1.2-nano",
        "model_id": "allenai/OlmoEarth-v1_2-Nano",
        "demo": False,
        "weights_sha256": "ab" * 32,
        "dimensions": DIMENSIONS,
        "patch_px": 4,
        "dtype": "int8",
        "scale": tuple(map(float, rule.scale)),
        "offset": tuple(map(float, rule.offset)),
        "start": datetime(2024, 1, 1, tzinfo=UTC),
        "end": datetime(2024, 12, 26, tzinfo=UTC),
        "modalities": ("sentinel2_l2a", "sentinel1"),
        "software": {"olmoearth": "0.1.0", "torch": "2.9.0+cpu"},
    }
    fields |= changes
    if fields["dtype"] == "float32":
        fields |= {"scale": None, "offset": None}
    return MapSpec(**fields)


def make_vectors(box: PixelBox, spec: MapSpec, seed: int = 0) -> np.ndarray:
    """[Y, X, D]: smooth waves over the global grid, within the range of the codes; a corner without data."""
    p = spec.patch_px
    y, x = np.mgrid[box.row0 // p : box.row1 // p, box.col0 // p : box.col1 // p].astype(np.float64)
    waves = [np.sin(y / (5 + d) + d + seed) + np.cos(x / (7 + 2 * d)) for d in range(spec.dimensions)]
    vectors = np.stack(waves, axis=-1).astype(np.float32)
    vectors[:3, :5] = np.nan
    return vectors


def make_result(tile_id: str, box: PixelBox, spec: MapSpec, vectors: np.ndarray | None = None) -> TileResult:
    v = make_vectors(box, spec) if vectors is None else vectors
    periods = np.where(np.isfinite(v[..., 0]), 7.0, np.nan).astype(np.float32)
    return TileResult(
        tile_id=tile_id,
        box=box,
        vectors=v,
        quality={"periods_sentinel2_l2a": periods, "disagreement": periods / 100},
        sources={
            "S2A_1": "https://stac.example/v1/collections/sentinel-2-l2a/items/S2A_1",
            "S1A_2": None,
        },
        facts={
            "km2": 0.9,
            "seam": {"border_sum": 1.0, "border_count": 2, "inside_sum": 3.0, "inside_count": 4},
        },
    )


def make_tile_box(i: int = 0, j: int = 0, epsg: int = 32631) -> PixelBox:
    """Square (i, j) counted from one in the Netherlands (or at the same place of another zone)."""
    return square(epsg, TILE_PX, -5760 + i, 600 + j)


@pytest.fixture
def spec() -> MapSpec:
    return make_spec()


@pytest.fixture
def spec_with() -> Callable[..., MapSpec]:
    return make_spec


@pytest.fixture
def tile_box() -> Callable[..., PixelBox]:
    return make_tile_box


@pytest.fixture
def vectors_of() -> Callable[..., np.ndarray]:
    return make_vectors


@pytest.fixture
def result_of() -> Callable[..., TileResult]:
    return make_result


@pytest.fixture
def make_map(tmp_path) -> Callable[..., EmbeddingMap]:
    """Writes a map of these boxes (two neighbouring tiles if none are given) into `tmp_path / name`.

    Every cell has a vector, but for the corners of `make_vectors` where `holes` is True.
    """

    def make(*boxes, complete=True, name="map", holes=False, **changes):
        spec, folder = make_spec(**changes), tmp_path / name
        run_record.start(folder, {})
        for i, box in enumerate(boxes or [make_tile_box(0, 0), make_tile_box(0, 1)]):
            vectors = make_vectors(box, spec)
            write_tile(folder, spec, make_result(f"t{i}", box, spec, vectors if holes else np.nan_to_num(vectors)))
        if complete:
            run_record.finish(folder, {}, {"complete": True})
        return EmbeddingMap.open(folder)

    return make
