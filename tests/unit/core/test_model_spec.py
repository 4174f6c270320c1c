"""The released family and the reading of published configurations."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from olmoearth_cli.core.architecture import PositionEncoding, encoder_section, parse_encoder_config
from olmoearth_cli.core.modality import ENCODER_INPUTS, MODALITIES
from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.core.spec import (
    RELEASED,
    count_encoder_params,
    find_spec,
    gmacs_per_window,
    spec_of_config,
)
from olmoearth_cli.errors import ModelError

WITHOUT_POOLER = [spec for spec in RELEASED if spec.supported]


def config_of(name: str) -> dict:
    return {"model": {"encoder_config": encoder_section(find_spec(name).encoder)}}


def test_spec_modality_and_normalize_do_not_import_torch() -> None:
    code = (
        "import sys, olmoearth_cli.core.spec, olmoearth_cli.core.normalize, olmoearth_cli.core.hub, "
        "olmoearth_cli.core.modality; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "name", ["v1.2-tiny", "V1.2-Tiny", "OlmoEarth-v1_2-Tiny", "allenai/OlmoEarth-v1_2-Tiny", " v1.2-tiny "]
)
def test_name_id_and_repository_mean_the_same_model(name: str) -> None:
    spec = find_spec(name)
    assert (spec.name, spec.id, spec.repo) == (
        "v1.2-tiny",
        "OlmoEarth-v1_2-Tiny",
        "allenai/OlmoEarth-v1_2-Tiny",
    )
    assert (spec.embedding_size, spec.depth, spec.release) == (192, 12, "v1.2")


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ModelError, match=r"Did you mean v1\.2-tiny"):
        find_spec("v1.2-tinny")


def test_band_sets_are_three_one_two_for_v1_and_one_each_afterwards() -> None:
    assert [len(find_spec("v1-base").band_sets(m)) for m in ENCODER_INPUTS] == [3, 1, 2]
    assert [len(find_spec("v1.1-base").band_sets(m)) for m in ENCODER_INPUTS] == [1, 1, 1]
    assert find_spec("v1.2-nano").band_sets("sentinel2_l2a") == (MODALITIES["sentinel2_l2a"].bands,)


@pytest.mark.parametrize("spec", WITHOUT_POOLER, ids=lambda spec: spec.name)
def test_the_published_parameter_count_follows_from_the_architecture(spec) -> None:  # type: ignore[no-untyped-def]
    assert count_encoder_params(spec.encoder) == spec.encoder_params


def test_cost_matches_the_table_of_the_performance_study() -> None:
    # spec/performance.md section 2, v1.2 with Sentinel-2: tokens -> GMAC.
    table = {
        "v1.2-nano": (0.06, 1.29, 12.4),
        "v1.2-tiny": (0.41, 7.44, 62.4),
        "v1.2-base": (5.72, 78.6, 445.0),
    }
    for name, expected in table.items():
        found = [gmacs_per_window(find_spec(name), n) for n in (64, 768, 3072)]
        assert found == pytest.approx(expected, rel=0.03)


def test_old_class_paths_unknown_keys_and_the_old_position_key_are_read() -> None:
    config = config_of("v1.2-nano")
    section = config["model"]["encoder_config"]
    section["_CLASS_"] = "helios.nn.flexihelios.EncoderConfig"
    section["spatial_pos_encoding"] = section.pop("position_encoding")
    section["position_encoding"] = "absolute"  # the old name wins
    section["a_key_of_the_future"] = {"x": 1}
    section["tokenization_config"]["_CLASS_"] = "helios.TokenizationConfig"
    section["tokenization_config"]["overrides"]["_CLASS_"] = "dict"
    assert parse_encoder_config(config, "here") == find_spec("v1.2-nano").encoder


def test_missing_keys_take_the_formats_defaults() -> None:
    config = {"model": {"encoder_config": {"embedding_size": 16, "num_heads": 2}}}
    parsed = parse_encoder_config(config, "here")
    assert (parsed.linear_patch_embed, parsed.pixel_hidden, parsed.mlp_ratio) == (False, (), 1.0)
    assert parsed.position_encoding is PositionEncoding.ABSOLUTE
    assert parsed.input_modalities == ENCODER_INPUTS


def test_decode_only_modalities_are_not_encoder_inputs_and_train_module_is_asked_first() -> None:
    config = config_of("v1.2-nano")
    maps = [m for m in MODALITIES if m not in ENCODER_INPUTS]
    for section, names in (("data_loader", ["sentinel1"]), ("train_module", [*maps, "landsat"])):
        config[section] = {"masking_config": {"strategy_config": {"only_decode_modalities": names}}}
    assert parse_encoder_config(config, "here").input_modalities == ("sentinel2_l2a", "sentinel1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_encoding": "spiral"}, "spiral"),
        ({"num_register_tokens": 4}, "num_register_tokens"),
        ({"supported_modality_names": ["sentinel2_l2a", "lidar"]}, "lidar"),
        ({"embedding_size": "128"}, "embedding_size"),
        ({"num_heads": 7}, "num_heads 7"),
        ({"tokenization_config": {"overrides": {"landsat": {"band_groups": [["B77"]]}}}}, "B77"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused_by_name(change: dict, message: str) -> None:
    config = copy.deepcopy(config_of("v1.2-nano"))
    config["model"]["encoder_config"].update(change)
    with pytest.raises(ModelError, match=message):
        parse_encoder_config(config, "here")


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"model": 3}])
def test_a_configuration_of_something_else_is_refused(content: dict) -> None:
    with pytest.raises(ModelError, match="encoder_config"):
        parse_encoder_config(content, "here")


@pytest.mark.parametrize("spec", WITHOUT_POOLER, ids=lambda spec: spec.name)
def test_a_folder_with_a_released_architecture_keeps_its_name(spec) -> None:  # type: ignore[no-untyped-def]
    found = spec_of_config(config_of(spec.name), origin="here", folder_name="mine")
    assert (found.name, found.release, found.repo) == (spec.name, spec.release, "")


def test_an_architecture_of_ones_own_is_named_after_its_folder(tmp_path: Path) -> None:
    config = config_of("v1.2-nano")
    config["model"]["encoder_config"]["depth"] = 2
    folder = tmp_path / "shallow"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    spec = find_spec(folder)
    assert (spec.name, spec.depth, spec.release) == ("shallow", 2, "v1.2")
    assert spec.encoder_params == count_encoder_params(spec.encoder)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_broken_config_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        find_spec(tmp_path)


def test_published_configurations_give_the_released_architectures(spec_folder: Path) -> None:
    examples = json.loads((spec_folder / "config_examples.json").read_text())
    assert set(examples) == {spec.id for spec in RELEASED}
    for model_id, config in examples.items():
        found = spec_of_config(config, origin=model_id, folder_name="x")
        assert found.id == model_id
        assert found.encoder.head_dim == found.embedding_size // found.encoder.num_heads


def test_published_state_dicts_have_our_keys_and_shapes(spec_folder: Path) -> None:
    published = json.loads((spec_folder / "state_dict_keys.json").read_text())
    import torch

    for spec in RELEASED:
        with torch.device("meta"):
            ours = {f"encoder.{k}": list(v.shape) for k, v in Encoder(spec.encoder).state_dict().items()}
        theirs = {k: v for k, v in published[spec.id].items() if k.startswith("encoder.")}
        theirs = {k: v for k, v in theirs.items() if not k.startswith("encoder.attention_pooler.")}
        assert ours == theirs, spec.name
