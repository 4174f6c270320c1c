"""Flags to architecture and recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from olmoearth_cli.core.architecture import PositionEncoding
from olmoearth_cli.core.masking import MAPS
from olmoearth_cli.core.modality import ENCODER_INPUTS
from olmoearth_cli.core.pretrain_step import PretrainModel
from olmoearth_cli.core.spec import RELEASED
from olmoearth_cli.errors import InputError, ModelError
from olmoearth_pipelines.training.request import PretrainRequest, config_of, recipe_of, words_of


def request(**changes: Any) -> PretrainRequest:
    return PretrainRequest(data=Path("data"), out=Path("out"), **changes)


@pytest.mark.parametrize("spec", [s for s in RELEASED if s.supported], ids=lambda s: s.name)
def test_without_switches_the_architecture_is_the_released_one(spec: Any) -> None:
    assert config_of(request(recipe=spec.release, size=spec.size)) == spec.encoder


@pytest.mark.parametrize(
    ("size", "trained"),
    [
        ("nano", 2_525_520),
        ("tiny", 14_320_288),
        ("small", 43_012_672),
        ("base", 143_528_320),
        ("large", 393_660_672),
    ],
)
def test_trained_parameters_are_those_of_the_specification(size: str, trained: int) -> None:
    with torch.device("meta"):
        model = PretrainModel(config_of(request(size=size)))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def test_each_switch_changes_what_it_says_and_nothing_else() -> None:
    plain = config_of(request(size="nano"))
    words = {"projection": "nonlinear", "band_groups": "single", "position_encoding": "3d-rope-mixed"}
    assert words_of(plain) == words
    changes = {"projection": "linear", "band_groups": "v1", "position_encoding": "ape"}
    for name, value in changes.items():
        config = config_of(request(size="nano", **{name: value}))
        assert words_of(config) == {**words, name: value}
    assert config_of(request(size="nano", band_dropout=0.0)).band_dropout_rate == 0
    axial = config_of(request(size="nano", position_encoding="3d-rope"))
    assert axial.position_encoding is PositionEncoding.ROPE_3D
    assert (axial.rope_base, axial.rope_temporal_base, axial.rope_temporal_coordinate_scale) == (1e4, 1e3, 1 / 30)


def test_the_recipe_takes_the_switches_and_keeps_the_rest() -> None:
    plain = request(size="nano")
    recipe = recipe_of(plain, config_of(plain))
    assert (recipe.peak_lr, recipe.weight_decay, recipe.microbatch, recipe.augment) == (2e-4, 0.02, 64, "none")
    changed = request(size="nano", masking="v1", loss="v1", contrast_weight=0.0, lr=1e-3, augment="shared")
    other = recipe_of(changed, config_of(changed))
    assert (other.masking.strategy, other.objective.twin_modalities, other.objective.contrast_weight) == ("v1", (), 0.0)
    assert (other.peak_lr, other.weight_decay, other.augment) == (1e-3, 0.02, "shared")
    v1 = request(recipe="v1", size="base")
    assert recipe_of(v1, config_of(v1)).microbatch == 32


def test_modalities_keep_the_models_order_and_leave_the_lists() -> None:
    asked = request(size="nano", modalities=("srtm", "landsat", "sentinel2_l2a"))
    config = config_of(asked)
    recipe = recipe_of(asked, config)
    assert config.modalities == ("sentinel2_l2a", "landsat", "srtm")
    assert config.input_modalities == ("sentinel2_l2a", "landsat")
    assert recipe.masking.decode_only == recipe.objective.twin_modalities == ("srtm",)
    everything = recipe_of(request(), config_of(request()))
    assert everything.masking.decode_only == MAPS and len(ENCODER_INPUTS) == 3


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"modalities": ("srtm",)}, InputError, "nothing to encode"),
        ({"masking": "v1", "time_masking": 0.5}, InputError, "hides no whole periods"),
        ({"time_masking": 1.5}, InputError, "from 0 to 1"),
        ({"band_dropout": 1.0}, InputError, "--band-dropout"),
        ({"recipe": "v1", "size": "small"}, ModelError, "no pretraining recipe"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        recipe_of(request(**changes), config_of(request(**changes)))
