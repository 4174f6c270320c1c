"""`olmoearth export model` as a user runs it: streams, exit codes, disks that refuse."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from olmoearth_cli.core.model import load_model
from olmoearth_cli.core.optimizer import adamw
from olmoearth_cli.core.pretrain_step import fresh_model
from olmoearth_cli.core.spec import find_spec
from olmoearth_pipelines.training.checkpoint import write_checkpoint

GRAPH = ("--window", "8", "--patch-size", "8", "--periods", "1", "--modalities", "s1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining run of a v1.2 model with one narrow block."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = replace(find_spec("v1.2-nano").encoder, embedding_size=32, depth=1, num_heads=2)
    model = fresh_model(config, 3)
    write_checkpoint(folder, model, adamw(model, weight_decay=0.02), {"step": 7}, about={"name": "small"})
    return folder


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file may grow beyond the limit, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_becomes_a_folder_and_stdout_holds_its_path_alone(run, tmp_path, here) -> None:
    done = here("export", "model", str(run), "--to", "published", cwd=tmp_path)
    assert (done.code, done.out) == (0, "published\n")
    assert "exporting its newest checkpoint" in done.err and "small (" in done.err
    model = load_model(tmp_path / "published")
    wanted = load_model(run / "checkpoints" / "step-00000007").encoder.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.encoder.state_dict().items())
    again = here("export", "model", str(run), "--to", "published", cwd=tmp_path)
    assert again.code == 2 and again.out == "" and "--overwrite" in again.err
    half = ("--dtype", "float16", "--encoder-only", "--weights", "safetensors", "--overwrite", "--json", "--quiet")
    done = here("export", "model", str(run), "--to", "published", *half, cwd=tmp_path)
    report = json.loads(done.out)
    assert done.code == 0 and done.err == "" and report["encoder_only"] and report["inputs"] is None
    assert set(report["files"]) == {"config.json", "model.safetensors", "README.md", "model.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_a_graph_is_checked_written_and_reported_on_one_line(run, tmp_path, here) -> None:
    done = here("export", "model", str(run), "--to", "deep/small.onnx", *GRAPH, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["format"] == "onnx" and report["difference"] <= 1e-4
    assert report["inputs"] == ["timestamps", "sentinel1"]
    names = ["small.onnx", "small.onnx.md", "small.onnx.stac.json"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == names == list(report["files"])
    assert "Warning" not in done.err and "vectors within" in done.err


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("folder", ()),
        ("folder", ("--weights", "safetensors")),
        pytest.param("small.onnx", GRAPH, marks=pytest.mark.slow),
        ("small.pt2", GRAPH),
    ],
)
def test_a_disk_that_is_full_leaves_nothing_behind(run, tmp_path, here, name, flags) -> None:
    with small_files(40_000):
        done = here("export", "model", str(run), "--to", name, *flags, cwd=tmp_path)
    assert done.code == 2 and done.out == ""
    assert "cannot be written" in done.err and "with --to" in done.err and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("nowhere", "--to", "out"), "no such model"),
        (("RUN", "--to", "out", "--window", "16"), "--window: no meaning"),
        (("RUN", "--to", "x.onnx", "--modalities", "s3"), "unknown modality 's3'"),
        (("RUN", "--to", "x.onnx", "--window", "10"), "multiple of --patch-size"),
        (("RUN", "--to", "x.pth"), "give a folder"),
    ],
)
def test_what_cannot_be_exported_is_a_message_and_exit_code_2(run, tmp_path, here, flags, text) -> None:
    done = here("export", "model", *(str(run) if word == "RUN" else word for word in flags), cwd=tmp_path)
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    assert text in " ".join(done.err.split())
    assert list(tmp_path.iterdir()) == []
