"""The exportable graph against the plain encoder."""

from __future__ import annotations

import pytest
import torch

from olmoearth_cli.core.graph import EncoderGraph
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.model import random_model

S2, S1, LANDSAT = "sentinel2_l2a", "sentinel1", "landsat"


def batch(modalities: tuple[str, ...], *, window: int, periods: int, samples: int = 3):
    generator = torch.Generator().manual_seed(0)
    images = {
        m: torch.randn(samples, window, window, periods, len(MODALITIES[m].bands), generator=generator)
        for m in modalities
    }
    stamps = [[(1 + (5 * i + k) % 28, (i + 3 * k) % 12, 2019 + k) for i in range(periods)] for k in range(samples)]
    return images, torch.tensor(stamps)


@pytest.mark.parametrize("patch", [1, 3, 4, 8])
@pytest.mark.parametrize("name", ["v1-nano", "v1.1-nano", "v1.2-nano"])
def test_it_equals_encode_and_pool(name: str, patch: int) -> None:
    model = random_model(name, seed=3)
    images, stamps = batch((S2, S1), window=2 * patch, periods=2)
    wanted = model.pool(model.encode(images, stamps, patch_size=patch))
    found = EncoderGraph(model.encoder, window_px=2 * patch, patch_px=patch)(stamps, images)
    assert found.shape == wanted.shape == (3, 2, 2, 128)
    assert float((found - wanted).abs().max()) < 5e-6


@pytest.mark.parametrize("name", ["v1-nano", "v1.2-nano"])
def test_patches_without_data_are_neither_attended_to_nor_pooled(name: str) -> None:
    model = random_model(name, seed=3)
    images, stamps = batch((S2, S1, LANDSAT), window=12, periods=3)
    generator = torch.Generator().manual_seed(1)
    seen = {m: torch.rand(3, 3, 3, 3, generator=generator) < 0.6 for m in images}
    seen[LANDSAT][1] = False  # a modality without data
    for each in seen.values():
        each[2] = False  # a sample without data
    masks = {}
    for m, each in seen.items():
        sets = len(model.spec.band_sets(m))
        codes = torch.where(each, 0, 3).repeat_interleave(4, 1).repeat_interleave(4, 2)
        masks[m] = codes[..., None].expand(-1, -1, -1, -1, sets)
    wanted = model.pool(model.encode(images, stamps, masks, patch_size=4), masks)
    found = EncoderGraph(model.encoder, window_px=12, patch_px=4)(stamps, images, seen)
    assert float((found - wanted).abs().max()) < 5e-6
    assert (found[2] == 0).all() and found.isfinite().all()
    everything = EncoderGraph(model.encoder, window_px=12, patch_px=4)(stamps, images)
    assert float((found - everything)[:2].abs().max()) > 0.1, "the masks matter"
