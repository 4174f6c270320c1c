"""Model folders: written and read back, and everything that must be refused."""

from __future__ import annotations

import gc
import hashlib
import json
import pickle
import resource
from pathlib import Path

import pytest
import torch

from olmoearth_cli.core.model import OlmoEarthModel, load_model, random_model, save_model
from olmoearth_cli.errors import ModelError, OutputError

KINDS = ("model.safetensors", "weights.pth")


@pytest.mark.parametrize("weights", KINDS)
def test_a_saved_model_loads_with_the_same_values(nano: OlmoEarthModel, tmp_path: Path, weights: str) -> None:
    loaded = load_model(save_model(nano, tmp_path / "m", weights=weights))
    assert loaded.spec.encoder == nano.spec.encoder
    assert not loaded.demo
    for key, value in nano.encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[key], value), key
    digest = hashlib.sha256((tmp_path / "m" / weights).read_bytes()).hexdigest()
    assert loaded.weights_sha256 == digest
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"config.json", weights}


@pytest.mark.parametrize("weights", KINDS)
def test_half_precision_weights_load_as_float32(nano: OlmoEarthModel, tmp_path: Path, weights: str) -> None:
    loaded = load_model(save_model(nano, tmp_path, weights=weights, dtype=torch.float16))
    assert (tmp_path / weights).stat().st_size < 2.1 * nano.spec.encoder_params
    for key, value in loaded.encoder.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, nano.encoder.state_dict()[key].half().float()), key


def test_demo_weights_say_so(nano: OlmoEarthModel, tmp_path: Path) -> None:
    loaded = load_model(save_model(nano, tmp_path, demo={"made": "random"}))
    assert loaded.demo
    assert loaded.name == "v1.2-nano"
    assert json.loads((tmp_path / "config.json").read_text())["olmoearth"] == {"demo": True, "made": "random"}


def test_the_same_seed_gives_the_same_random_model() -> None:
    first, again, other = (random_model("v1.2-nano", seed) for seed in (1, 1, 2))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256


def test_the_final_layernorm_is_handed_out(nano: OlmoEarthModel) -> None:
    weight, bias = nano.output_affine()
    assert weight.tolist() == nano.encoder.norm.weight.tolist()
    assert bias.tolist() == nano.encoder.norm.bias.tolist()


def test_release_v1_3_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(ModelError, match=r"attention pooler.*v1\.2-base"):
        load_model("v1.3-base")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def pth(nano: OlmoEarthModel, folder: Path) -> Path:
    save_model(nano, folder, weights="weights.pth")
    return folder / "weights.pth"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(nano: OlmoEarthModel, tmp_path: Path, zipped: bool) -> None:
    path, mark = pth(nano, tmp_path), tmp_path / "exploded"
    if zipped:
        torch.save({"encoder.x": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"encoder.x": Bomb(mark)}))
    with pytest.raises(ModelError, match=r"holds Python code.*not run"):
        load_model(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(nano: OlmoEarthModel, tmp_path: Path, kind: str, share: float) -> None:
    save_model(nano, tmp_path, weights=kind)
    data = (tmp_path / kind).read_bytes()
    (tmp_path / kind).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="Fetch the file again"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", [b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_web_page_or_a_pointer_in_place_of_weights_is_refused(
    nano: OlmoEarthModel, tmp_path: Path, text: bytes
) -> None:
    pth(nano, tmp_path).write_bytes(text)
    with pytest.raises(ModelError, match="Fetch the file again"):
        load_model(tmp_path)


def test_weights_of_another_architecture_are_refused_with_the_difference(nano: OlmoEarthModel, tmp_path: Path) -> None:
    save_model(nano, tmp_path)
    save_model(random_model("v1-nano", 0), tmp_path / "v1")
    (tmp_path / "v1" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing: .*pixel_proj.*unexpected: .*landsat__1"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layer.weight": torch.zeros(2)}, "no weights of an OlmoEarth encoder"),
        ({"model": {"encoder.x": torch.zeros(2)}}, "flat mapping"),
        ({"encoder.x": 3}, "flat mapping"),
        ({}, "flat mapping"),
        (torch.zeros(3), "flat mapping"),
    ],
)
def test_weights_of_something_else_are_refused(
    nano: OlmoEarthModel, tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, pth(nano, tmp_path))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


def test_weights_that_are_not_numbers_are_refused(nano: OlmoEarthModel, tmp_path: Path) -> None:
    path = pth(nano, tmp_path)
    state = torch.load(path, weights_only=True)
    state["encoder.norm.bias"][3] = float("nan")
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"not-a-number.*norm\.bias"):
        load_model(tmp_path)


def test_a_folder_without_weights_is_refused(nano: OlmoEarthModel, tmp_path: Path) -> None:
    pth(nano, tmp_path).unlink()
    with pytest.raises(ModelError, match=r"no weights; one of model\.safetensors"):
        load_model(tmp_path)


def test_weights_saved_through_a_wrapper_load(nano: OlmoEarthModel, tmp_path: Path) -> None:
    path = pth(nano, tmp_path)
    state = torch.load(path, weights_only=True)
    torch.save({f"model.{key}": value for key, value in state.items()}, path)
    assert torch.equal(load_model(tmp_path).encoder.norm.weight, nano.encoder.norm.weight)


def test_entries_that_no_model_has_are_named_and_ignored(
    nano: OlmoEarthModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pth(nano, tmp_path)
    torch.save({**torch.load(path, weights_only=True), "optimizer.step": torch.zeros(1)}, path)
    load_model(tmp_path)
    assert "optimizer.step" in caplog.text


def test_a_device_that_is_not_there_is_refused(nano: OlmoEarthModel, tmp_path: Path) -> None:
    save_model(nano, tmp_path)
    with pytest.raises(ModelError, match="device nonsense"):
        load_model(tmp_path, device="nonsense")


def test_a_folder_that_cannot_be_written_is_an_output_error(nano: OlmoEarthModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        save_model(nano, tmp_path / "file" / "below")


@pytest.mark.parametrize("weights", ["model.safetensors", "weights.pth"])
def test_a_full_disk_is_a_message_and_not_the_end_of_the_process(
    nano: OlmoEarthModel, tmp_path: Path, weights: str
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match="could not be written"):
            save_model(nano, tmp_path, weights=weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()  # torch's writer failed when it was cleared away
    assert list(tmp_path.iterdir()) == []
