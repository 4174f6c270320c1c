"""The decoder and the frozen target: size, names, and what they can see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from olmoearth_cli.core.architecture import parse_encoder_config
from olmoearth_cli.core.nn.decoder import Decoder
from olmoearth_cli.core.nn.packed import Frame, choose
from olmoearth_cli.core.pretrain_step import PretrainModel, fresh_model
from olmoearth_cli.core.pretrain_weights import load_published, model_section
from olmoearth_cli.core.spec import RELEASED, find_spec
from olmoearth_cli.errors import ModelError

BUILDABLE = [spec for spec in RELEASED if spec.supported]
S2, MAP = "sentinel2_l2a", "worldcover"


@pytest.mark.parametrize("spec", BUILDABLE, ids=lambda spec: spec.name)
def test_decoders_have_the_published_size(spec) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        decoder = Decoder(spec.encoder)
    assert sum(p.numel() for p in decoder.parameters()) == spec.decoder_params


@pytest.mark.parametrize(("name", "trainable"), [("v1.2-nano", 2_525_520), ("v1.2-tiny", 14_320_288)])
def test_trainable_parameters_are_as_many_as_published(name: str, trainable: int) -> None:
    model = PretrainModel(find_spec(name).encoder)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


def test_entries_are_the_published_ones_with_a_target_of_projections(spec_folder: Path) -> None:
    published = json.loads((spec_folder / "state_dict_keys.json").read_text())
    for spec in BUILDABLE:
        if spec.size not in ("nano", "tiny"):
            continue
        entries = {key: list(value.shape) for key, value in PretrainModel(spec.encoder).state_dict().items()}
        wanted = {
            key: shape
            for key, shape in published[spec.id].items()
            if not key.startswith("target_encoder.") or ".patch_embeddings." in key
        }
        assert entries == wanted


def test_the_decoder_of_location_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="attention pooler"):
        Decoder(find_spec("v1.3-base").encoder)


@pytest.mark.parametrize("name", ["v1.2-nano", "v1-nano"])
def test_a_query_reads_its_own_sample_and_its_own_place(name: str) -> None:
    config = find_spec(name).encoder
    torch.manual_seed(0)
    decoder = Decoder(config)
    frame = Frame(timestamps=torch.tensor([[[1, 3, 2020], [1, 4, 2020]]] * 2), rows=2, columns=2, patch_px=4)
    sets = len(config.band_sets(S2))
    shown = {S2: torch.zeros(2, 2, 2, 2, sets, dtype=torch.bool), MAP: torch.zeros(2, 2, 2, 1, 1, dtype=torch.bool)}
    asked = {m: flag.clone() for m, flag in shown.items()}
    shown[S2][0, 0] = True  # 2 patches of 2 periods
    shown[S2][1, :, :, 0] = True  # 4 patches of 1 period
    shown[S2][1, 0, 0, 1] = True  # and one more: the samples are padded
    asked[MAP][:] = True
    visible, queries = choose(shown, frame, config), choose(asked, frame, config)
    assert visible.counts.tolist() == [4 * sets, 5 * sets] and queries.counts.tolist() == [4, 4]
    encoded = torch.randn(9 * sets, config.embedding_size)
    found = decoder(encoded, visible, queries, frame)
    other = encoded.clone()
    other[visible.sample == 1] += torch.randn(5 * sets, config.embedding_size)
    changed = (decoder(other, visible, queries, frame) - found).abs().amax(dim=1)
    assert (changed[:4] == 0).all() and (changed[4:] > 1e-3).all()
    first: Tensor = found[:4]
    assert torch.pdist(first).min() > 1e-4, "queries differ by their place alone"


def test_a_published_file_with_a_whole_target_copy_loads(tmp_path: Path) -> None:
    source, model = fresh_model(find_spec("v1.2-nano").encoder, 1), fresh_model(find_spec("v1.2-nano").encoder, 2)
    state = source.state_dict()
    state |= {f"target_encoder.{key}": value for key, value in source.encoder.state_dict().items()}
    state["decoder.composite_encodings.pos_embed"] = torch.zeros(12, 32)
    torch.save(state, tmp_path / "weights.pth")
    load_published(model, tmp_path / "weights.pth")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_weights_without_a_target_are_refused(tmp_path: Path) -> None:
    model = fresh_model(find_spec("v1.2-nano").encoder, 1)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("target_encoder.")}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"target_encoder\.patch_embeddings.* and 33 more"):
        load_published(model, tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["v1-nano", "v1.2-tiny"])
def test_the_written_configuration_reads_back_and_describes_the_decoder(spec_folder: Path, name: str) -> None:
    spec = find_spec(name)
    section = model_section(spec.encoder, 4)
    decode_only = [m for m in spec.encoder.modalities if m not in spec.encoder.input_modalities]
    masking = {"masking_config": {"strategy_config": {"only_decode_modalities": decode_only}}}
    assert parse_encoder_config({"model": section, "train_module": masking}, "here") == spec.encoder
    published = json.loads((spec_folder / "config_examples.json").read_text())[spec.id]["model"]["decoder_config"]
    written = section["decoder_config"]
    same = ("encoder_embedding_size", "decoder_embedding_size", "depth", "num_heads", "mlp_ratio", "drop_path")
    assert {key: written[key] for key in same} == {key: published[key] for key in same}
    assert written["position_encoding"] == published["position_encoding"]
