"""What stands beside an exported model: valid STAC for programs, a card that tells people the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pystac
import pytest
from model_checkpoints import LANDSAT, S1, S2, checkpoint, export
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from olmoearth_cli.core import hub
from olmoearth_cli.core.model import random_model, save_model
from olmoearth_pipelines.exporting.model_card import Exported, card, stac_item
from olmoearth_pipelines.exporting.model_graph import GraphShape
from olmoearth_pipelines.exporting.model_source import ModelSource, open_source

SCHEMAS = Path(__file__).parents[3] / "schemas"
SHAPE = GraphShape(modalities=(S2, S1), window_px=64, periods=12, patch_px=4, masks=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return open_source(str(checkpoint(tmp_path_factory.mktemp("run"), "v1.2")))


def made(file: str, shape: GraphShape | None = None) -> Exported:
    return Exported(
        file=file,
        sha256="ef" * 32,
        parameters=1234567,
        graph=shape,
        difference=None if shape is None else 2e-6,
        encoder_only=shape is not None,
    )


def validated(item: dict) -> list:
    validator = JsonSchemaSTACValidator()
    for path in SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text())
        validator.schema_cache[schema["$id"]] = schema
    assert all(uri in validator.schema_cache for uri in item["stac_extensions"]), "nothing is fetched"
    return validator.validate(item, pystac.STACObjectType.ITEM, item["stac_version"], item["stac_extensions"])


@pytest.mark.parametrize(
    ("file", "shape", "framework", "artifact"),
    [
        ("weights.pth", None, "PyTorch", "torch.save"),
        ("model.safetensors", None, "PyTorch", "safetensors"),
        ("nano.onnx", SHAPE, "ONNX", "onnx"),
        ("nano.pt2", SHAPE, "PyTorch", "torch.export.save"),
    ],
)
def test_the_item_is_valid_and_names_its_file(source, file, shape, framework, artifact) -> None:
    item = stac_item(source, made(file, shape))
    assert len(validated(item)) == 2  # the core and MLM
    asset, properties = item["assets"]["weights"], item["properties"]
    assert (asset["href"], asset["mlm:artifact_type"]) == (f"./{file}", artifact)
    assert (properties["mlm:framework"], properties["mlm:total_parameters"]) == (framework, 1234567)
    assert (properties["mlm:pretrained"], properties["mlm:pretrained_source"]) == (True, None)
    read = {entry["name"]: entry["input"]["shape"] for entry in properties["mlm:input"]}
    assert read == (
        {S2: [-1, -1, -1, -1, 12], S1: [-1, -1, -1, -1, 2], LANDSAT: [-1, -1, -1, -1, 11]}
        if shape is None
        else {S2: [-1, 64, 64, 12, 12], S1: [-1, 64, 64, 12, 2]}
    )
    assert properties["mlm:output"][0]["result"]["shape"][-1] == 32


def test_demo_weights_are_called_so_in_both(tmp_path) -> None:
    save_model(random_model("v1.2-nano", seed=1), tmp_path, {"name": "demo", "seed": 1, "statement": "Made up | here."})
    source = open_source(str(tmp_path))
    item = stac_item(source, made("weights.pth"))
    validated(item)
    assert item["properties"]["mlm:pretrained"] is False and "nothing was learned" in item["properties"]["description"]
    text = card(source, made("weights.pth"))
    assert text.startswith("# demo\n\n**Demo weights: nothing was learned") and "Made up | here." in text
    assert "| seed | 1 |" in text


def test_the_card_shows_how_a_file_is_run_and_what_it_wants(source) -> None:
    onnx = card(source, made("nano.onnx", SHAPE))
    assert 'onnxruntime.InferenceSession("nano.onnx")' in onnx and '"sentinel1_seen": sentinel1_seen' in onnx
    assert "float32 [B, 64, 64, 12, 12]" in onnx and "month 0-11" in onnx and "[B, 16, 16, 12]" in onnx
    assert "| largest difference from the plain encoder | 2e-06 |" in onnx
    plain = card(source, made("nano.pt2", replace(SHAPE, masks=False)))
    assert 'model(timestamps, {"sentinel2_l2a": sentinel2_l2a, "sentinel1": sentinel1})' in plain
    assert "no masks" in plain and "landsat" not in plain
    folder = card(source, made("weights.pth"))
    assert "load_model" in folder and "float32 [B, H, W, T, 11]" in folder and "pretraining cannot go on" not in folder


def test_weights_that_nobody_named_carry_their_checksum(tmp_path) -> None:
    save_model(random_model("v1.2-nano", seed=1), tmp_path)
    source = open_source(str(tmp_path))
    assert source.name == f"v1.2-nano-{source.model.weights_sha256[:8]}"
    assert validated(stac_item(source, made("weights.pth")))


def test_published_weights_keep_their_id_and_licence_through_two_exports(tmp_path, monkeypatch) -> None:
    folder = save_model(random_model("v1.2-nano", seed=1), tmp_path / "cache", weights="weights.pth")
    monkeypatch.setattr(hub, "fetch", lambda repo: folder / "weights.pth")  # as after a download
    export("v1.2-nano", tmp_path / "out")
    item = json.loads((tmp_path / "out" / "model.json").read_text())
    assert validated(item) and item["id"] == "OlmoEarth-v1_2-Nano"
    assert item["properties"]["mlm:pretrained_source"] == "allenai/olmoearth_pretrain_dataset"
    export(tmp_path / "out", tmp_path / "again")
    text = (tmp_path / "again" / "README.md").read_text()
    assert text.startswith("# OlmoEarth-v1_2-Nano\n") and "under the OlmoEarth Artifact License" in text
