"""Checkpoints: readable as models, whole or absent, the newest sound one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_request, trainer_of

from olmoearth_cli.core import load_model
from olmoearth_cli.core.spec import find_spec
from olmoearth_cli.errors import OutputError
from olmoearth_pipelines.training import run_folder
from olmoearth_pipelines.training.checkpoint import checkpoints, rotate
from olmoearth_pipelines.training.trainer import Trainer


@pytest.fixture
def trainer(tiny_data: Path, tmp_path: Path) -> Trainer:
    return trainer_of(tiny_request(tiny_data, tmp_path / "run", modalities=None))


def saved(trainer: Trainer, *steps: int) -> list[Path]:
    paths = []
    for step in steps:
        trainer.step = step
        paths.append(trainer.save({}))
    return paths


def test_a_checkpoint_is_a_model_folder(trainer: Trainer) -> None:
    path = saved(trainer, 7)[0]
    model = load_model(path)
    assert path.name == "step-00000007" and model.spec.name == "v1.2-nano" and model.name == "v1.2-nano"
    assert model.spec.encoder == find_spec("v1.2-nano").encoder
    ours = trainer.model.encoder.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in model.encoder.state_dict().items())
    config = json.loads((path / "config.json").read_text())
    assert config["model"]["decoder_config"]["depth"] == 4 and config["olmoearth"]["pretraining"]["step"] == 7


def test_only_the_newest_are_kept(trainer: Trainer) -> None:
    saved(trainer, 1, 2, 3, 4)
    assert [p.name[-1] for p in checkpoints(trainer.setup.request.out)] == ["4", "3", "2"]
    rotate(trainer.setup.request.out, 1)
    assert [p.name for p in (trainer.setup.request.out / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_word(trainer: Trainer, name: str) -> None:
    _, newest = saved(trainer, 2, 4)
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: len(content) // 2])
    said: list[str] = []
    assert trainer.resume(said.append)["step"] == 2 and trainer.step == 2
    assert len(said) == 1 and str(newest) in said[0]
    (trainer.setup.request.out / "checkpoints" / "step-00000002" / name).unlink()
    with pytest.raises(OutputError, match="all checkpoints are damaged"):
        trainer.resume(said.append)


def test_what_a_killed_run_left_half_written_is_no_checkpoint(trainer: Trainer) -> None:
    out = trainer.setup.request.out
    path = saved(trainer, 2)[0]
    (path.parent / "step-00000009.part").mkdir()
    run_folder.write_json(
        out / "run.json", {"kind": "pretraining", "format": 1, "started": "then", "settings": {"a": 1}}
    )
    run_folder.start(out, {"a": 1}, overwrite=False)
    assert [p.name for p in path.parent.iterdir()] == ["step-00000002"] == [p.name for p in checkpoints(out)]


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(trainer, 1)
    out, trainer.step = trainer.setup.request.out, 2

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        trainer.save({})
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_state_with_code_in_it_is_not_run(trainer: Trainer) -> None:
    path = saved(trainer, 3)[0]
    torch.save({"step": 3, "optimizer": Path.home}, path / "state.pt")
    with pytest.raises(OutputError, match="all checkpoints are damaged"):
        trainer.resume(lambda _: None)
