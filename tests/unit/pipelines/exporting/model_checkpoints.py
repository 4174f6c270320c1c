"""Small models of the family's two kinds, as training leaves them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.optimizer import adamw
from olmoearth_cli.core.pretrain_step import PretrainModel, fresh_model
from olmoearth_cli.core.spec import find_spec
from olmoearth_pipelines.export_model import ModelReport, ModelRequest, run
from olmoearth_pipelines.training.checkpoint import write_checkpoint

S2, S1, LANDSAT = "sentinel2_l2a", "sentinel1", "landsat"


@cache
def trained(release: str, depth: int = 2) -> PretrainModel:
    """Band sets, patch projection and positions of a release, few narrow blocks, no parameter as it started."""
    config = find_spec(f"{release}-nano").encoder
    model = fresh_model(replace(config, embedding_size=32, depth=depth, num_heads=2), 3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def checkpoint(folder: Path, release: str, *, step: int = 5, depth: int = 2) -> Path:
    """A checkpoint in a run's folder, written by training's own routine."""
    model = trained(release, depth)
    about = {"name": "trial", "pretraining": {"step": step, "init_sha256": None}}
    return write_checkpoint(folder, model, adamw(model, weight_decay=0.02), {"step": step}, about=about)


def export(model: Path | str, to: Path, **options) -> ModelReport:
    """Through the road, silently."""
    return run(ModelRequest(model=str(model), to=to, **options), lambda _: None)


def window(modalities: tuple[str, ...], *, samples: int, side: int, periods: int) -> tuple[dict[str, Tensor], Tensor]:
    """Normalised images and dates."""
    generator = torch.Generator().manual_seed(11)
    size = (samples, side, side, periods)
    images = {m: torch.randn(*size, len(MODALITIES[m].bands), generator=generator) for m in modalities}
    stamps = [[(1 + 4 * k, (5 * i + k) % 12, 2015 + 4 * k) for i in range(periods)] for k in range(samples)]
    return images, torch.tensor(stamps)


def pooled(model: OlmoEarthModel, images: dict[str, Tensor], stamps: Tensor, patch: int) -> Tensor:
    """Vectors of the plain encoder."""
    return model.pool(model.encode(images, stamps, patch_size=patch))
