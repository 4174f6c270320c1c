"""A small set of windows in memory, of which every kind of target can be learned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_pipelines.finetune import FinetuneRequest, Recipe
from olmoearth_pipelines.windows.window import Window, WindowTask

S2 = "sentinel2_l2a"
SIDE, PERIODS = 16, 2
SPECTRA = 1000 + 3000 * np.repeat(np.eye(3), 4, axis=1)
"""[3, 12] digital numbers: each class is bright in four bands of its own."""


@dataclass(kw_only=True)
class Memory:
    """A `WindowSource`."""

    task: WindowTask
    windows: list[Window]
    splits: list[str]
    reads: list[int] = field(default_factory=list)

    def split(self, name: str) -> Any:
        return np.flatnonzero(np.array(self.splits) == name).astype(np.int64)

    def read(self, number: int) -> Window:
        self.reads.append(number)
        return self.windows[number]

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.task).encode())
        for window, split in zip(self.windows, self.splits, strict=True):
            digest.update(window.images[S2].tobytes() + window.target.tobytes() + split.encode())
        return digest.hexdigest()


def window_of(name: str, classes: Any, target: Any, group: int, rng: np.random.Generator) -> Window:
    """A window whose pixels [H, W] show classes (floats mix them)."""
    low, share = np.minimum(np.asarray(classes, int), 1), np.asarray(classes, float)[..., None]
    level = SPECTRA[low] + (SPECTRA[low + 1] - SPECTRA[low]) * (share - low[..., None])  # H W C
    image = (level[:, :, None] + rng.normal(0, 60, (SIDE, SIDE, PERIODS, 12))).astype(np.float32)
    return Window(
        id=name,
        images={S2: image},
        valid={S2: np.ones((SIDE, SIDE, PERIODS), bool)},
        absent={S2: np.zeros((PERIODS, 12), bool)},
        timestamps=np.array([[1, 3, 2024], [1, 6, 2024]])[:PERIODS],
        target=target,
        group=group,
    )


def make_source(kind: str, *, count: int = 24, sparse: bool = False, seed: int = 0, **changes: Any) -> Memory:
    """Windows of a kind: two in four train, one each to choose and to judge."""
    rng = np.random.default_rng(seed)
    names = () if "regression" in kind else ("water", "field", "town")
    windows = []
    for i in range(count):
        halves = np.zeros((SIDE, SIDE))
        halves[:, : SIDE // 2], halves[:, SIDE // 2 :] = i // 4 % 3, (i // 4 + 1 + i % 2) % 3
        whole = np.full((SIDE, SIDE), float(i // 4 % 3))
        value = rng.uniform()
        pictures: dict[str, tuple[Any, Any]] = {
            "classification": (whole, np.array(i // 4 % 3)),
            "segmentation": (halves, halves.astype(np.int64)),
            "multilabel": (halves, np.array([c in halves for c in range(3)], dtype=np.uint8)),
            "regression": (np.full((SIDE, SIDE), value), np.array(100 * value, np.float32)),
            "pixel_regression": (halves, (100 + 50 * halves).astype(np.float32)),
        }
        picture, target = pictures[kind]
        if sparse:
            few = np.full((SIDE, SIDE), -1 if names else np.nan, target.dtype)
            for row, column in ((0, 0), (4, 12)):
                few[row : row + 4, column : column + 4] = target[row : row + 4, column : column + 4]
            target = few
        windows.append(window_of(f"w{i:03}", picture, target, i // 4, rng))
    task = WindowTask(
        name="made",
        kind=kind,
        class_names=names,
        field="cover",
        modalities=(S2,),
        window_px=SIDE,
        periods=PERIODS,
        sparse=sparse,
    )
    order = ("train", "train", "val", "test")
    return Memory(task=replace(task, **changes), windows=windows, splits=[order[i % 4] for i in range(count)])


SMALL = EncoderConfig(embedding_size=32, depth=2, num_heads=2, mlp_ratio=2.0)
"""Fewer layers than any published model, where only the road matters."""


def make_request(out: Path, recipe: Recipe, **more: Any) -> FinetuneRequest:
    settings: dict[str, Any] = {"dataset": Path("in memory"), "bootstrap": 50, "baselines": False, "device": "cpu"}
    return FinetuneRequest(out=out, recipe=recipe, **{**settings, **more})
