"""Runs small enough for tests: samples of 8 px, a nano model, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from olmoearth_pipelines.training.devices import Alone
from olmoearth_pipelines.training.request import PretrainRequest
from olmoearth_pipelines.training.setup import prepare
from olmoearth_pipelines.training.trainer import Trainer

S2, S1 = "sentinel2_l2a", "sentinel1"


def put_samples(leaf: Path, count: int, *, side: int = 8, periods: int = 4, classes: int = 2) -> Path:
    """Samples with Sentinel-2, Sentinel-1 and WorldCover; a sample's class decides how bright it is."""
    leaf.mkdir(parents=True)
    rng = np.random.default_rng(5)
    present = np.arange(12) < periods
    stamps = np.array([(1, m, 2020) for m in range(12)], dtype=np.int32)
    for i in range(count):
        with h5py.File(leaf / f"sample_{i}.h5", "w") as file:
            kind = i % classes
            # Coarse noise: files stay small.
            noise = rng.normal(0, 100, (2, 2, periods, 12)).repeat(side // 2, 0).repeat(side // 2, 1)
            file["latlon"], file["timestamps"] = np.zeros(2, np.float32), stamps
            file[S2] = (1000 + 1500 * kind + noise).astype(np.uint16)
            file[S1] = (-15 + 5 * kind + noise[..., :2] / 100).astype(np.float32)
            file["worldcover"] = np.full((side, side, 1, 1), 10 * (kind + 1), dtype=np.uint8)
            for name in (S2, S1):
                file[f"missing_timesteps_masks/{name}"] = present
    names = [S2, S1, "worldcover"]
    rows = [f"{i},1,1,1" for i in range(count)]
    (leaf / "sample_metadata.csv").write_text("\n".join([",".join(["sample_index", *names]), *rows]) + "\n")
    return leaf


def tiny_request(data: Path, out: Path, **changes: Any) -> PretrainRequest:
    """Nano, batches of 4, 6 steps."""
    given: dict[str, Any] = {
        "size": "nano",
        "modalities": (S2, S1, "worldcover"),
        "batch_size": 4,
        "steps": 6,
        "workers": 0,
        "device": "cpu",
        **changes,
    }
    return PretrainRequest(data=data, out=out, **given)


def trainer_of(request: PretrainRequest) -> Trainer:
    """A trainer in this process."""
    return Trainer(prepare(request), Alone("cpu"))
