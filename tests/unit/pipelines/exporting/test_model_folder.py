"""A training checkpoint in the published layout: loaded by us, by the reference, and by training again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from model_checkpoints import LANDSAT, S1, S2, checkpoint, export, pooled, trained, window
from safetensors.torch import load_file, save_file

from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
from olmoearth_cli.core.finetune.saved import Finetuned, save_finetuned
from olmoearth_cli.core.finetune.task import TaskDescription
from olmoearth_cli.core.model import load_model, random_model
from olmoearth_cli.core.pretrain_step import PretrainModel
from olmoearth_cli.core.pretrain_weights import load_published
from olmoearth_cli.errors import InputError, ModelError, OutputError
from tests.parity import oracle

RELEASES = ("v1", "v1.2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    return {release: checkpoint(home / release, release) for release in RELEASES}


def reference_of(folder: Path) -> torch.nn.Module:
    from olmoearth_pretrain_minimal.model_loader import load_model_from_path

    oracle.require_hash_seed()
    return load_model_from_path(folder).eval()


def distance_to_reference(folder: Path, reference: torch.nn.Module) -> float:
    images, stamps = window((S2, S1, LANDSAT), samples=2, side=16, periods=3)
    return oracle.largest_difference(
        load_model(folder).encode(images, stamps, None, 8), oracle.encode(reference, images, stamps, None, 8)
    )


def edit(folder: Path, change) -> None:
    """Change a checkpoint's tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("release", RELEASES)
def test_a_checkpoint_becomes_a_folder_that_loads_with_the_same_vectors(runs, tmp_path, release) -> None:
    report = export(runs[release], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "weights.pth",
        "README.md",
        "model.json",
    }
    assert (report.format, report.encoder_only, report.notes) == ("folder", False, ())
    images, stamps = window((S2, S1), samples=2, side=16, periods=2)
    wanted = pooled(load_model(runs[release]), images, stamps, 4)
    assert torch.equal(pooled(load_model(tmp_path / "out"), images, stamps, 4), wanted)
    assert report.parameters == sum(value.numel() for value in trained(release).state_dict().values())


@pytest.mark.parametrize("release", RELEASES)
def test_the_reference_loads_it_strictly_and_encodes_the_same(runs, tmp_path, release) -> None:
    export(runs[release], tmp_path / "out")
    reference = reference_of(tmp_path / "out")
    assert distance_to_reference(tmp_path / "out", reference) <= 1e-5
    ours = trained(release).state_dict()
    theirs = reference.state_dict()
    assert set(ours) <= set(theirs) and any(key.startswith("decoder.blocks.3") for key in ours)
    assert all(torch.equal(theirs[key], value) for key, value in ours.items())


def test_safetensors_holds_the_same_and_says_that_the_reference_does_not_read_it(runs, tmp_path) -> None:
    report = export(runs["v1.2"], tmp_path / "out", weights="safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    ours = trained("v1.2").state_dict()
    assert found.keys() == ours.keys() and all(torch.equal(found[key], ours[key]) for key in ours)
    assert "reference package reads weights.pth only" in report.notes[0]


@pytest.mark.parametrize("release", RELEASES)
def test_half_precision_is_rounded_storage_of_the_same_model(runs, tmp_path, release) -> None:
    report = export(runs[release], tmp_path / "out", dtype="float16")
    stored = torch.load(tmp_path / "out" / "weights.pth", weights_only=True)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert report.files["weights.pth"] < 0.6 * (runs[release] / "model.safetensors").stat().st_size
    loaded = load_model(tmp_path / "out").encoder.state_dict()
    ours = trained(release).encoder.state_dict()
    assert all(torch.equal(loaded[key], ours[key].half().float()) for key in ours)
    assert distance_to_reference(tmp_path / "out", reference_of(tmp_path / "out")) <= 1e-5


def test_values_beyond_half_precision_are_refused_not_made_infinite(tmp_path) -> None:
    folder = checkpoint(tmp_path / "run", "v1.2")
    edit(folder, lambda tensors: tensors["encoder.norm.bias"].fill_(1e6))
    with pytest.raises(InputError, match=r"--dtype float16: too small for the values of encoder\.norm\.bias"):
        export(folder, tmp_path / "out", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    export(folder, tmp_path / "out")


@pytest.mark.parametrize("release", RELEASES)
def test_the_encoder_alone_is_all_that_the_references_encoder_needs(runs, tmp_path, release) -> None:
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.config import Config

    report = export(runs[release], tmp_path / "out", encoder_only=True)
    stored = torch.load(tmp_path / "out" / "weights.pth", weights_only=True)
    assert report.encoder_only and all(key.startswith("encoder.") for key in stored)
    oracle.require_hash_seed()
    section = json.loads((tmp_path / "out" / "config.json").read_text())["model"]["encoder_config"]
    wrapper = torch.nn.Module()
    wrapper.encoder = Config.from_dict(section).build().eval()
    wrapper.load_state_dict(stored)
    assert distance_to_reference(tmp_path / "out", wrapper) <= 1e-5
    with pytest.raises(ModelError, match="not the encoder, decoder and target"):
        load_published(PretrainModel(trained(release).config), tmp_path / "out" / "weights.pth")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_training_goes_on_from_it(runs, tmp_path, dtype) -> None:
    export(runs["v1.2"], tmp_path / "out", dtype=dtype)
    model = PretrainModel(load_model(tmp_path / "out").spec.encoder)
    load_published(model, tmp_path / "out" / "weights.pth")
    ours = trained("v1.2").state_dict()
    assert all(
        torch.equal(value, ours[key].to(getattr(torch, dtype)).float()) for key, value in model.state_dict().items()
    )


def test_a_published_folder_with_a_whole_target_stays_one(tmp_path) -> None:
    theirs = oracle.build("v1.1-nano")
    legacy = {f"{part}.composite_encodings.pos_embed": torch.zeros(12, 32) for part in ("encoder", "decoder")}
    oracle.save_published(theirs, "v1.1-nano", tmp_path / "in", {**legacy, "supervision_head.weight": torch.ones(2)})
    report = export(tmp_path / "in", tmp_path / "out")
    assert "supervision_head.weight" in report.notes[0]
    reference = reference_of(tmp_path / "out")
    assert distance_to_reference(tmp_path / "out", reference) <= 1e-5
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in reference.state_dict().items())
    assert any(key.startswith("target_encoder.blocks.") for key in reference.state_dict())


def test_a_run_gives_its_newest_checkpoint(tmp_path) -> None:
    checkpoint(tmp_path / "run", "v1.2", step=5)
    newest = checkpoint(tmp_path / "run", "v1.2", step=12)
    report = export(tmp_path / "run", tmp_path / "out")
    assert str(newest) in report.notes[0]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["olmoearth"]["pretraining"]["step"] == 12


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("decoder.blocks.1.attn.q.weight"), "decoder or target do not belong"),
        (lambda t: t.update({"decoder.mask_token": t["decoder.mask_token"][:-1]}), "decoder or target do not belong"),
        (lambda t: [t.pop(key) for key in list(t) if key.startswith("decoder.blocks.3")], "have 3 blocks"),
        (lambda t: t["decoder.mask_token"].fill_(float("nan")), "no finite numbers in decoder.mask_token"),
    ],
)
def test_a_foreign_or_damaged_decoder_is_refused_unless_the_encoder_alone_is_asked_for(tmp_path, change, text) -> None:
    folder = checkpoint(tmp_path / "run", "v1.2")
    edit(folder, change)
    with pytest.raises(ModelError, match=text) as caught:
        export(folder, tmp_path / "out")
    assert "--encoder-only" in str(caught.value) and not (tmp_path / "out").exists()
    assert export(folder, tmp_path / "out", encoder_only=True).encoder_only


def test_an_encoder_of_another_architecture_is_refused(runs, tmp_path) -> None:
    folder = checkpoint(tmp_path / "run", "v1.2")
    (folder / "config.json").write_bytes((runs["v1"] / "config.json").read_bytes())
    with pytest.raises(ModelError, match="weights do not belong to the config"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors"])
def test_damaged_weights_are_refused(runs, tmp_path, name) -> None:
    export(runs["v1.2"], tmp_path / "in", weights="pth" if name.endswith("pth") else "safetensors")
    content = (tmp_path / "in" / name).read_bytes()
    (tmp_path / "in" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=name):
        export(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_there_stays_unless_it_is_an_export_that_may_be_replaced(runs, tmp_path) -> None:
    out = tmp_path / "out"
    export(runs["v1"], out)
    with pytest.raises(OutputError, match="--overwrite"):
        export(runs["v1.2"], out)
    export(runs["v1.2"], out, overwrite=True)
    assert load_model(out).spec.release == "v1.2"
    with pytest.raises(OutputError, match=r"holds files that no export of a model wrote \(state\.pt\)"):
        export(out, runs["v1"], overwrite=True)
    with pytest.raises(OutputError, match="is the model itself"):
        export(out, tmp_path / "x" / ".." / "out", overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="holds other files"):
        export(out, tmp_path / "notes", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "out"]


def test_a_place_that_cannot_be_written_is_named(runs, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"a file is in the place of a folder.*--to"):
        export(runs["v1"], tmp_path / "file" / "out")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(OutputError, match="no permission"):
            export(runs["v1"], tmp_path / "closed" / "out")


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    model = random_model("v1.2-nano", seed=0)
    task = TaskDescription(
        head=HeadSpec(kind="classification", classes=2, width=128, patch_px=4),
        class_names=("a", "b"),
        field="crop",
        modalities=(S1,),
        window_px=8,
        periods=2,
        real_dates=False,
        normalisation={S1: ((-30.0, -35.5), (5.0, 0.25))},
    )
    base = {"id": "allenai/OlmoEarth-v1_2-Nano", "name": "v1.2-nano", "sha256": "ab" * 32}
    return save_finetuned(tmp_path / "tuned", Finetuned(model=model, head=build_head(task.head), task=task, base=base))


def test_a_fine_tuned_folder_gives_its_encoder_and_says_how_it_was_taught(tuned, tmp_path) -> None:
    report = export(tuned, tmp_path / "out")
    assert report.encoder_only and "its encoder is exported, and its head is left out" in report.notes[0]
    images, stamps = window((S1,), samples=1, side=8, periods=2)
    wanted = pooled(load_model(tuned), images, stamps, 4)
    assert torch.equal(pooled(load_model(tmp_path / "out"), images, stamps, 4), wanted)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Fine-tuned for `crop`" in card and "made-up dates" in card and "  - zero: -30, -35.5\n" in card
    assert "Fine-tuned from v1.2-nano (allenai/OlmoEarth-v1_2-Nano), whose licence holds here too" in card
    inputs = json.loads((tmp_path / "out" / "model.json").read_text())["properties"]["mlm:input"]
    scaling = {entry["name"]: entry["value_scaling"] for entry in inputs}
    assert scaling[S1][1] == {"type": "min-max", "minimum": -35.5, "maximum": 0.25}
    assert scaling[S2][0]["minimum"] == pytest.approx(-2529.44, abs=0.01), "not taught otherwise"


def test_the_licence_is_not_lost_by_exporting_an_export(tuned, tmp_path) -> None:
    export(tuned, tmp_path / "once")
    export(tmp_path / "once", tmp_path / "twice")
    assert "whose licence holds here too" in (tmp_path / "twice" / "README.md").read_text()


def test_a_configuration_without_the_references_class_names_gets_them(tmp_path) -> None:
    folder = checkpoint(tmp_path / "run", "v1.2")

    def plain(value):
        return {k: plain(v) for k, v in value.items() if k != "_CLASS_"} if isinstance(value, dict) else value

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(plain(config)))
    export(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"] == config["model"]
    assert distance_to_reference(tmp_path / "out", reference_of(tmp_path / "out")) <= 1e-5
