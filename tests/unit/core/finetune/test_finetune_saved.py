"""Checkpoint folders: there and back, whole or absent, and nothing of a stranger's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from olmoearth_cli.core.finetune.batch import make_batch
from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
from olmoearth_cli.core.finetune.loop import scores_of
from olmoearth_cli.core.finetune.lora import add_lora
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.saved import Finetuned, load_finetuned, save_finetuned
from olmoearth_cli.core.finetune.task import TaskDescription
from olmoearth_cli.core.model import load_model, random_model
from olmoearth_cli.errors import InputError, ModelError, OutputError

S1 = "sentinel1"
TASK = TaskDescription(
    head=HeadSpec(kind="segmentation", classes=2, width=128, patch_px=2, decoder="unet_tapered", batch_norm=True),
    class_names=("Wald", "Wasser"),
    field="cover",
    modalities=(S1,),
    window_px=8,
    periods=2,
    real_dates=False,
    normalisation={S1: ((-30.0, -35.5), (5.0, 0.25))},
)


@pytest.fixture
def trained() -> Finetuned:
    model = random_model("v1.2-nano", seed=0)
    add_lora(model.encoder, 2)
    head = build_head(TASK.head)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        head.body.body[0][1].running_mean.fill_(0.2)
    base = {"id": model.spec.id, "name": "v1.2-nano", "sha256": model.weights_sha256}
    return Finetuned(model=model, head=head, task=TASK, base=base, facts={"value": 0.5, "ok": [None, "é"]})


def test_a_saved_model_answers_as_before_and_its_encoder_is_in_the_published_layout(
    trained: Finetuned, tmp_path: Path
) -> None:
    stamps = torch.tensor([[(1, 3, 2020), (1, 7, 2020)]])
    inputs = {S1: torch.rand(1, 8, 8, 2, 2, generator=torch.Generator().manual_seed(0))}
    batch = make_batch(trained.model.spec.encoder, inputs, stamps, patch_px=2)
    wanted = scores_of(FinetuneModel(trained.model, trained.head), batch)
    (tmp_path / "report.html").write_text("kept")
    assert save_finetuned(tmp_path, trained) == tmp_path
    loaded = load_finetuned(tmp_path)
    assert (scores_of(loaded.network(), batch) - wanted).abs().max() <= 1e-5
    assert (loaded.task, loaded.base, loaded.facts) == (trained.task, trained.base, trained.facts)
    assert not any(p.requires_grad for p in loaded.network().parameters())
    encoder = load_model(tmp_path)
    assert encoder.name == "v1.2-nano" and encoder.weights_sha256 == loaded.model.weights_sha256
    tokens = encoder.encode(inputs, stamps, None, 2)
    assert (loaded.network().features(batch) - encoder.pool(tokens)).abs().max() <= 1e-5
    files = {"report.html", "config.json", "model.safetensors", "head.safetensors", "finetuned.json"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_demo_weights_stay_demo_weights(trained: Finetuned, tmp_path: Path) -> None:
    save_finetuned(tmp_path, replace(trained, model=replace(trained.model, demo=True, name="demo")))
    assert load_finetuned(tmp_path).model.demo and load_finetuned(tmp_path).model.name == "demo"


def test_an_interrupted_write_leaves_no_checkpoint(
    trained: Finetuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_finetuned(tmp_path, trained)

    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("olmoearth_cli.core.finetune.saved.write_whole", full)
    with pytest.raises(OutputError):
        save_finetuned(tmp_path, trained)
    with pytest.raises(InputError, match=r"no finetuned\.json.*run it again"):
        load_finetuned(tmp_path)
    monkeypatch.undo()
    save_finetuned(tmp_path, trained)
    assert load_finetuned(tmp_path).task == TASK


def edit(folder: Path, change: dict[str, object]) -> None:
    path = folder / "finetuned.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_damaged_mixed_and_newer_folders_are_refused(trained: Finetuned, tmp_path: Path) -> None:
    save_finetuned(tmp_path, trained)
    content = json.loads((tmp_path / "finetuned.json").read_text())
    task = content["task"]
    for change, message in (
        ({"format": 9}, "newer olmoearth"),
        ({"sha256": {"../../etc/passwd": "0"}}, "other files"),
        ({"sha256": list(content["sha256"])}, "cannot be read"),
        ({"sha256": {**content["sha256"], "model.safetensors": "0" * 64}}, "not the file"),
        ({"task": {**task, "class_names": ["one"]}}, "1 class names for 2"),
        ({"task": {**task, "head": {**task["head"], "classes": 3}, "class_names": ["a", "b", "c"]}}, "size mismatch"),
        ({"task": {k: v for k, v in task.items() if k != "field"}}, "'field' is missing"),
        ({"task": {**task, "head": {**task["head"], "width": 64}}}, "64 dimensions"),
    ):
        edit(tmp_path, change)
        with pytest.raises(ModelError, match=message):
            load_finetuned(tmp_path)
        edit(tmp_path, content)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"rope_base": 10000.0', '"rope_base": 100.0'))
    with pytest.raises(ModelError, match=r"config\.json: not the file"):
        load_finetuned(tmp_path)
    (tmp_path / "config.json").write_text(config)
    load_finetuned(tmp_path)
    (tmp_path / "finetuned.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_finetuned(tmp_path)


def test_weights_that_are_not_finite_are_refused(trained: Finetuned, tmp_path: Path) -> None:
    save_finetuned(tmp_path, trained)
    state = load_file(tmp_path / "head.safetensors")
    state["body.body.0.0.weight"][0] = torch.nan
    save_file(state, tmp_path / "head.safetensors")
    from olmoearth_cli.core.checkpoint import sha256_of_file

    names = ("config.json", "model.safetensors", "head.safetensors")
    sums = {name: sha256_of_file(tmp_path / name) for name in names}
    edit(tmp_path, {"sha256": sums})
    with pytest.raises(ModelError, match="not finite"):
        load_finetuned(tmp_path)


def test_tasks_that_make_no_sense_are_refused(trained: Finetuned, tmp_path: Path) -> None:
    for change, message in (
        ({"class_names": ()}, "0 class names"),
        ({"modalities": ("lidar",)}, "lidar"),
        ({"window_px": 7}, "7 px"),
        ({"target": (0.0, float("nan"))}, "standard deviation"),
        ({"normalisation": {S1: ((0.0,), (1.0,))}}, "2 pairs"),
        ({"normalisation": {S1: ((0.0, 1.0), (1.0, 1.0))}}, "rising"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TASK, **change)  # type: ignore[arg-type]
    other = replace(TASK, head=replace(TASK.head, batch_norm=False))
    with pytest.raises(ValueError, match="the head is"):
        save_finetuned(tmp_path, replace(trained, task=other))
    with pytest.raises(InputError):
        load_finetuned(tmp_path / "nothing")
