"""Our encoder against the reference implementation, every parameter randomised (spec/model.md section 12)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from olmoearth_cli.core.architecture import EncoderConfig, PositionEncoding
from olmoearth_cli.core.model import OlmoEarthModel, load_model, random_model
from tests.parity import oracle
from tests.parity.cases import CASES, DEEP, NOT_SQUARE, Case, cases_for, difference, pair
from tests.parity.oracle import LANDSAT, S1, S2

SMALL = ("v1-nano", "v1-tiny", "v1.1-nano", "v1.1-tiny", "v1.2-nano", "v1.2-tiny")
LARGE = ("v1-base", "v1-large", "v1.1-base", "v1.2-small", "v1.2-base")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    oracle.require_hash_seed()
    torch.set_num_threads(1)


def tolerance(name: str) -> float:
    return 1e-5 if name.endswith("nano") else 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_tokens_equal_the_reference(name: str) -> None:
    ours, theirs = pair(name)
    found = {case.name: difference(ours, theirs, case) for case in cases_for(name)}
    assert max(found.values()) <= tolerance(name), found


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_tokens_of_the_large_models_equal_the_reference(name: str) -> None:
    ours, theirs = pair(name)
    found = {case.name: difference(ours, theirs, case) for case in DEEP}
    assert max(found.values()) <= tolerance(name), found


@pytest.fixture(scope="module")
def nano() -> tuple[OlmoEarthModel, object]:
    torch.set_num_threads(1)
    return pair("v1.2-nano")


def test_without_quirks_a_ragged_batch_equals_the_reference_run_sample_by_sample(
    nano: tuple[OlmoEarthModel, object],
) -> None:
    ours, theirs = nano
    plain = replace_quirks(ours, quirks=False)
    inputs, stamps = oracle.sample((S2, S1), b=3, h=16, w=16, t=3)
    masks = oracle.random_masks(inputs, oracle.sets_of(theirs), 8, seed=1, equal=False)
    found = plain.encode(inputs, stamps, masks, 8)
    quirky = ours.encode(inputs, stamps, masks, 8)
    for i in range(3):
        one = slice(i, i + 1)
        alone = oracle.encode(
            theirs,
            {m: v[one] for m, v in inputs.items()},
            stamps[one],
            {m: v[one] for m, v in masks.items()},
            8,
        )
        assert oracle.largest_difference({m: v[one] for m, v in found.items()}, alone) <= 1e-5
    assert oracle.largest_difference(found, quirky) > 0.1, "the padding error of the reference must be visible here"


def replace_quirks(model: OlmoEarthModel, *, quirks: bool) -> OlmoEarthModel:
    return replace(model, reference_quirks=quirks)


def test_pooled_map_equals_the_mean_of_the_references_tokens(nano: tuple[OlmoEarthModel, object]) -> None:
    ours, theirs = nano
    inputs, stamps = oracle.sample((S2, S1), b=2, h=16, w=16, t=3)
    tokens = oracle.encode(theirs, inputs, stamps, None, 4)
    expected = torch.stack([values.mean(dim=(3, 4)) for values in tokens.values()]).mean(dim=0)
    found = ours.pool(ours.encode(inputs, stamps, None, 4))
    assert (found - expected).abs().max() <= 1e-5


def test_decoder_entries_and_legacy_keys_do_not_disturb_loading(tmp_path: Path) -> None:
    theirs = oracle.build("v1.1-nano")
    extra = {
        f"{part}.composite_encodings.pos_embed": torch.zeros(12, 32)
        for part in ("encoder", "decoder", "target_encoder")
    }
    extra |= {
        "supervision_head.weight": torch.zeros(2),
        "location_token_distillation_head.weight": torch.zeros(2),
    }
    oracle.save_published(theirs, "v1.1-nano", tmp_path, extra)
    assert difference(load_model(tmp_path), theirs, CASES[0]) <= 1e-5


@pytest.mark.parametrize("encoding", [e for e in PositionEncoding if e.value not in ("absolute", "rope_3d_mixed")])
@pytest.mark.parametrize("case", [NOT_SQUARE[1], CASES[8]], ids=lambda case: case.name)
def test_position_encodings_without_published_weights_equal_the_reference(
    encoding: PositionEncoding, case: Case
) -> None:
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.flexi_vit import EncoderConfig as TheirConfig

    shape = {"embedding_size": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
    options = {"rope_coordinate_scale": 0.5, "rope_temporal_coordinate_scale": 1 / 30, "qk_norm": True}
    config = EncoderConfig(
        modalities=(S2, S1, LANDSAT), linear_patch_embed=True, position_encoding=encoding, **shape, **options
    )
    ours = replace_quirks(random_model(config, seed=0), quirks=True)
    torch.manual_seed(0)
    theirs = TheirConfig(
        supported_modality_names=[S2, S1, LANDSAT],
        use_linear_patch_embed=True,
        position_encoding=encoding.value,
        **shape,
        **options,
    ).build()
    oracle.randomise(theirs, 3)
    ours.encoder.load_state_dict(theirs.state_dict())
    wrapper = torch.nn.Module()
    wrapper.encoder = theirs.eval()
    assert difference(ours, wrapper, case) <= 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_normalisation_equals_the_reference_missing_bands_included() -> None:
    import numpy as np
    from olmoearth_pretrain_minimal import Normalizer
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality

    from olmoearth_cli.core.modality import ENCODER_INPUTS, MODALITIES
    from olmoearth_cli.core.normalize import band_statistics, normalize

    rng = np.random.default_rng(0)
    for name in ENCODER_INPUTS:
        stats = band_statistics(name)
        values = (stats.mean + stats.std * rng.normal(size=(4, 5, len(MODALITIES[name].bands)))).astype(np.float32)
        holes = values.copy()
        holes[rng.random(values.shape) < 0.3] = np.nan
        holes[rng.random(values.shape) < 0.1] = -99999
        for release in ("v1", "v1.1", "v1.2", "v1.3"):
            for case in (values, holes):
                expected = Normalizer(model_type=release).normalize(Modality.get(name), case.copy())
                found = normalize(name, case, release=release)
                np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7)
                np.testing.assert_array_equal(found == 0, np.asarray(expected) == 0)
