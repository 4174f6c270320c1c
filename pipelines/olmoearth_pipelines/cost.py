"""What a run would take, before anything is downloaded: `olmoearth embed --plan`.

All figures are arithmetic on the request and the chosen scenes, but for the speed, which is a short matrix
product timed on this machine times the share of it that the encoder reaches (spec/performance.md section 4).
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from olmoearth_cli.core.spec import gmacs_per_window
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.geo.tiles import needed_blocks, pixels_of
from olmoearth_pipelines.cluster import TILES_IN_FLIGHT, local_cores
from olmoearth_pipelines.request import Prepared

BYTES_PER_PIXEL = {
    "sentinel2_l2a": 4 * 2 + 6 * 2 / 4 + 2 * 2 / 36 + 1 / 4,
    "sentinel1": 8.0,
    "landsat": 2 / 2.25 + 10 * 2 / 9,
}
"""Decoded bytes per 10 m pixel and period at native resolution, class layer included."""
HELD_PER_PIXEL = {"sentinel2_l2a": 12 * 2 + 2, "sentinel1": 2 * 4 + 1, "landsat": 11 * 2 + 1}
"""Bytes that a worker holds per 10 m pixel and period: the cube and its masks."""
GEMM_SHARE = {128: 0.35, 192: 0.45, 384: 0.55, 768: 0.6, 1024: 0.65}
"""Embedding size -> share of the machine's matrix speed that the encoder reaches on a CPU."""
GPU_SHARE = {128: 0.06, 192: 0.1, 384: 0.18, 768: 0.25, 1024: 0.3}
START_UP_S = 8.0
WORKER_BASE_BYTES = 700_000_000
"""A worker with torch and GDAL loaded and nothing to do; measured."""
STORED_SHARE = {"int8": 0.8, "float32": 0.9}
"""Compressed size of a tile over its plain size; measured on maps of real imagery."""


def estimate(prepared: Prepared) -> dict[str, Any]:
    """Tiles, scenes, bytes, GFLOPs, memory, time and disk of a prepared run, as a JSON-able dict."""
    table, grid, windowing, request = prepared.table, prepared.grid, prepared.grid.windowing, prepared.request
    modalities = table.modalities
    present = {m: _mean_periods(prepared, m) for m in modalities}
    encoded = sum(len(needed_blocks(tile, windowing, request.blend)) for tile in grid.tiles)
    windows = encoded * windowing.batch_side**2
    cells = windowing.cells_per_window**2
    tokens = sum(present[m] * len(prepared.spec.band_sets(m)) for m in modalities) * cells
    gflops = 2 * gmacs_per_window(prepared.spec, tokens) * windows
    read_px = sum(_pixels(pixels_of(tile, windowing, request.blend)) for tile in grid.tiles)
    bytes_to_read = sum(present[m] * BYTES_PER_PIXEL[m] for m in modalities) * read_px
    tile_px = (grid.tile_px + windowing.overlap_px) ** 2
    held = sum(HELD_PER_PIXEL[m] * len(prepared.periods) for m in modalities) * tile_px
    map_cells = (grid.tile_px // windowing.patch_px) ** 2
    d = prepared.spec.embedding_size
    rate, device = _speed(request.device, d)
    item = 1 if request.dtype == "int8" else 4
    all_cells = grid.blocks * (windowing.block_px // windowing.patch_px) ** 2
    return {
        "region_km2": prepared.aoi.area_km2,
        "encoded_km2": grid.area_km2,
        "start": prepared.periods[0].start.date().isoformat(),
        "end": prepared.periods[-1].end.date().isoformat(),
        "periods": len(prepared.periods),
        "model": prepared.spec.name,
        "tiles": len(grid.tiles),
        "tile_px": grid.tile_px,
        "windows": windows,
        "scenes": {m: sum(s.modality == m for s in table.scenes()) for m in modalities},
        "bytes_to_read": int(bytes_to_read),
        "gflops": gflops,
        "workers": request.workers,
        "memory_per_worker": int(
            WORKER_BASE_BYTES
            + prepared.spec.encoder_params * 4
            + TILES_IN_FLIGHT * (held + map_cells * d * 5)
            + local_cores() * tokens * d * 40
        ),
        "device": device,
        "expected_seconds": START_UP_S + gflops / rate + bytes_to_read / 2e8 / local_cores(),
        "disk_bytes": int(all_cells * d * item * STORED_SHARE[request.dtype]),
    }


def _mean_periods(prepared: Prepared, modality: str) -> float:
    """Periods with at least one scene, mean over the scene-selection cells."""
    counts: dict[tuple[int, tuple[int, int]], int] = {}
    for selection in prepared.table.selections:
        if selection.modality == modality:
            key = (selection.epsg, selection.cell)
            counts[key] = counts.get(key, 0) + bool(selection.scenes)
    return sum(counts.values()) / len(counts) if counts else 0.0


def _pixels(box: PixelBox) -> int:
    return box.height * box.width


def _speed(device: str, dimensions: int) -> tuple[float, str]:
    """GFLOP/s that the encoder should reach here, and what that was measured on."""
    nearest = min(GEMM_SHARE, key=lambda d: abs(math.log(d / dimensions)))
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            return _gpu_gflops() * GPU_SHARE[nearest], torch.cuda.get_device_name()
    a, b = np.ones((1024, 768), np.float32), np.ones((768, 3072), np.float32)
    a @ b
    best = math.inf
    for _ in range(5):
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2 * 1024 * 768 * 3072 / best / 1e9 * GEMM_SHARE[nearest], f"{local_cores()} CPU cores"


def _gpu_gflops() -> float:
    import torch

    a = torch.ones((4096, 4096), device="cuda")
    a @ a
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(5):
        a @ a
    torch.cuda.synchronize()
    return 5 * 2 * 4096**3 / (time.perf_counter() - begin) / 1e9
