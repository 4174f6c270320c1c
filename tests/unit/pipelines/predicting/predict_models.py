"""Small fine-tuned models and pixels for them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
from olmoearth_cli.core.finetune.saved import Finetuned
from olmoearth_cli.core.finetune.task import TaskDescription
from olmoearth_cli.core.model import OlmoEarthModel, random_model
from olmoearth_cli.core.plan import EmbedPlan
from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.geo.tiles import Tile, Windowing
from olmoearth_pipelines.cube import Cube
from olmoearth_pipelines.encode import BlockEncoder
from olmoearth_pipelines.predicting.scores import BlockScorer

EPSG = 32631
STAMPS = ((1, 0, 2024), (31, 0, 2024), (1, 2, 2024))
CLASSES = ("water", "forest", "crops")
MODALITIES = ("sentinel2_l2a", "sentinel1")
WINDOWING = Windowing(window_px=16, overlap_px=8, patch_px=4)
TILE = Tile(id="t", box=square(EPSG, 32, -7, 5), blocks=tuple((i, j) for i in range(-28, -24) for j in range(20, 24)))


@cache
def encoder_model() -> OlmoEarthModel:
    return random_model("v1.2-nano", seed=2)


def finetuned(
    kind: str = "segmentation", decoder: str = "linear", *, centre: bool = False, **task: object
) -> Finetuned:
    """A model with a head that has random weights, as if it had been trained."""
    regresses = kind.endswith("regression")
    head = HeadSpec(
        kind=kind,
        classes=1 if regresses else len(CLASSES),
        width=encoder_model().spec.embedding_size,
        patch_px=4,
        decoder=decoder,
        centre=centre,
    )
    about = {
        "class_names": () if regresses else CLASSES,
        "field": "height" if regresses else "cover",
        "modalities": MODALITIES,
        "window_px": WINDOWING.window_px,
        "periods": len(STAMPS),
        "target": (20.0, 5.0) if regresses else (0.0, 1.0),
    }
    built = build_head(head, seed=3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3)  # answers that differ from pixel to pixel
    base = {"id": "allenai/OlmoEarth-v1_2-Nano", "name": "v1.2-nano", "sha256": "0" * 64}
    return Finetuned(model=encoder_model(), head=built, task=TaskDescription(head=head, **{**about, **task}), base=base)


def cube_over(box: PixelBox, *, seed: int = 0, unseen: PixelBox | None = None) -> Cube:
    """Noise with a period that lacks Sentinel-2; nothing at all in `unseen`."""
    rng = np.random.default_rng(seed)
    t, h, w = len(STAMPS), box.height, box.width
    values = {
        "sentinel2_l2a": rng.integers(200, 4000, (t, 12, h, w)).astype(np.uint16),
        "sentinel1": rng.normal(-12, 4, (t, 2, h, w)).astype(np.float32),
    }
    valid = {name: np.ones((t, h, w), bool) for name in values}
    valid["sentinel2_l2a"][1] = False
    if unseen is not None:
        rows, cols = unseen.slices_in(box)
        for mask in valid.values():
            mask[:, rows, cols] = False
    values["sentinel2_l2a"][~valid["sentinel2_l2a"][:, None].repeat(12, 1)] = 0
    values["sentinel1"][~valid["sentinel1"][:, None].repeat(2, 1)] = np.nan
    absent = {name: np.zeros((t, v.shape[1]), bool) for name, v in values.items()}
    return Cube(box=box, values=values, valid=valid, absent_bands=absent, clear=None, used=(), bytes_read=0)


def scorer_over(model: Finetuned, cube: Cube, windowing: Windowing = WINDOWING) -> BlockScorer:
    plan = EmbedPlan(model.model, np.array(STAMPS), MODALITIES, windowing.window_px, windowing.patch_px)
    encoder = BlockEncoder(cube, model.model.spec, plan, windowing, normalisation=model.task.normalisation)
    return BlockScorer(encoder, model.network(), model.task, STAMPS)
