"""`olmoearth pretrain` end to end: train, be killed, go on, share a batch, fail with reason."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from olmoearth_cli.core.optimizer import adamw, take_step
from olmoearth_cli.core.pretrain_step import accumulate, fresh_model
from olmoearth_pipelines.samples.dataset_writer import DatasetWriter
from olmoearth_pipelines.samples.sample_file import SampleData
from olmoearth_pipelines.training.request import PretrainRequest
from olmoearth_pipelines.training.setup import prepare
from olmoearth_pipelines.training.trainer import step_generator
from tests.roads.conftest import command, environment, olmoearth

MODALITIES = ("sentinel2_l2a", "sentinel1", "worldcover")
TIMED = ("samples_per_s", "tokens_per_s", "flops_per_s", "data_wait_s", "memory_bytes", "kwh")


def tile(seed: int) -> SampleData:
    """A tile of coarse fields; each field's class decides how bright it is."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(1, 4, (16, 16, 1, 1)).repeat(16, 0).repeat(16, 1)
    stamps = np.array([(1, m, 2020) for m in range(12)], dtype=np.int32)
    season = rng.normal(0, 100, (1, 1, 12, 12)) + 100 * np.arange(12)[None, None, :, None]
    images = {
        "sentinel2_l2a": (800 * classes + np.abs(season)).astype(np.uint16),
        "sentinel1": (-20 + 3 * classes + season[..., ::3, :2] / 100).astype(np.float32),
        "worldcover": (10 * classes).astype(np.uint8),
    }
    present = {"sentinel2_l2a": np.ones(12, dtype=bool), "sentinel1": np.arange(12) % 3 == 0}
    return SampleData(latlon=np.array([45, 7], dtype=np.float32), timestamps=stamps, images=images, present=present)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """256 samples of 16 px."""
    root = tmp_path_factory.mktemp("data")
    writer = DatasetWriter(root, MODALITIES, side_px=16)
    writer.add("only", tile(1))
    return writer.finish()


def flags(data: Path, out: Path, *more: str, steps: int = 10) -> list[str]:
    """A small run."""
    return [
        *("pretrain", "--data", str(data), "--size", "nano", "--modalities", "s2,s1,worldcover", "--batch-size", "4"),
        *("--steps", str(steps), "--workers", "0", "--device", "cpu", "--log-every", "1", "-o", str(out), *more),
    ]


def rows(out: Path, key: str = "loss") -> list[dict[str, Any]]:
    """Lines of the log with such an entry, without what the clock decides."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMED} for line in lines if key in line]


def same_checkpoints(one: Path, other: Path) -> bool:
    """Weights and moments equal in every bit."""
    weights = [load_file(path / "model.safetensors") for path in (one, other)]
    states = [torch.load(path / "state.pt", weights_only=True)["optimizer"]["state"] for path in (one, other)]
    return all(torch.equal(weights[0][k], weights[1][k]) for k in weights[1]) and all(
        torch.equal(states[0][i][k], states[1][i][k]) for i in states[1] for k in states[1][i]
    )


def test_a_run_trains_logs_and_leaves_a_model_and_then_has_nothing_to_do(data: Path, tmp_path: Path, here) -> None:
    out = tmp_path / "run"
    given = flags(data, out, "--grid-intensity", "400", "--water-intensity", "2", "--save-every", "2", steps=3)
    done = here(*given, cwd=tmp_path)
    final = out / "checkpoints" / "step-00000003"
    assert (done.code, done.out) == (0, f"{final}\n"), done.err
    assert [row["step"] for row in rows(out)] == [1, 2, 3]
    first = json.loads((out / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(first["tokens"] + first["contrast"])
    assert first["co2_g"] == pytest.approx(first["kwh"] * 400) and first["water_l"] == pytest.approx(first["kwh"] * 2)
    assert {"grad_norm", "samples_per_s", "tokens_per_s", "memory_bytes", "tokens/worldcover"} <= set(first)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and record["summary"]["samples"] == 12
    assert record["summary"]["energy_source"].startswith(("estimate", "RAPL"))
    from olmoearth_cli.core import load_model

    assert load_model(final).spec.embedding_size == 128
    before = final.stat().st_mtime_ns
    again = here(*given, "--json", cwd=tmp_path)
    assert again.code == 0 and json.loads(again.out)["unchanged"] and final.stat().st_mtime_ns == before
    assert "nothing to do" in again.err


def test_a_killed_run_goes_on_with_the_losses_and_weights_of_one_that_was_not(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unharmed = _start(flags(data, whole, "--save-every", "100", steps=16))
    given = flags(data, killed, "--save-every", "3", "--workers", "1", steps=16)
    process = _start(given)
    try:
        deadline = time.monotonic() + 180
        while not ((killed / "log.jsonl").exists() and (rows_now := _count(killed)) >= 8):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    assert unharmed.wait() == 0
    assert rows_now < 16 and not (killed / "checkpoints" / "step-00000016").exists()
    again = olmoearth(*given, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["resumed_from"] in (6, 9, 12) and "going on after step" in again.err
    assert rows(killed) == rows(whole) and len(rows(whole)) == 16
    assert same_checkpoints(killed / "checkpoints" / "step-00000016", whole / "checkpoints" / "step-00000016")


def _start(given: list[str]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command(*given), env=environment(), stdout=quiet, stderr=quiet, start_new_session=True)


def _count(out: Path) -> int:
    return (out / "log.jsonl").read_bytes().count(b"\n")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate")
def test_two_processes_take_the_steps_of_one_that_does_the_work_of_both(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "pair"
    done = olmoearth(*flags(data, out, "--devices", "2", "--save-every", "2", steps=3))
    assert (done.code, done.out) == (0, f"{out / 'checkpoints' / 'step-00000003'}\n"), done.err
    request = PretrainRequest(data=data, out=out, size="nano", modalities=MODALITIES, batch_size=4, steps=3, devices=2)
    ranks = [prepare(request, rank=rank, world_size=2) for rank in range(2)]
    model = fresh_model(ranks[0].config, request.seeds[0]).train()
    optimizer = adamw(model, weight_decay=ranks[0].recipe.weight_decay)
    streams = [setup.loader.microbatches(0, 3) for setup in ranks]
    for row in rows(out):
        losses = []
        for rank, stream in enumerate(streams):
            generator = step_generator(request.seeds[1], row["step"], rank)
            for part in islice(stream, 1):
                losses.append(accumulate(model, part, ranks[rank].recipe.objective, generator, microbatch=2)["loss"])
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(2)
        norm, _ = take_step(optimizer, row["lr"])
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    trained = load_file(out / "checkpoints" / "step-00000003" / "model.safetensors")
    assert all(torch.allclose(trained[key], value, atol=1e-6) for key, value in model.state_dict().items())


def test_the_probe_judges_held_out_tiles_beside_random_weights(tmp_path: Path, here) -> None:
    writer = DatasetWriter(tmp_path / "wide", MODALITIES, side_px=256)
    for seed in range(30):
        writer.add(str(seed), tile(seed))
    writer.finish()
    out = tmp_path / "run"
    given = flags(tmp_path / "wide", out, "--probe-every", "2", "--json", steps=3)
    done = here(*given, cwd=tmp_path)
    assert done.code == 0, done.err
    found = [row["probe"] for row in rows(out, "probe")]
    assert [probe["step"] for probe in found] == [0, 2, 3]
    assert found[0]["accuracy"] == found[0]["random"] == found[2]["random"]
    assert all(probe["labelled"] == 27 and probe["queries"] == 3 for probe in found)
    assert json.loads(done.out)["probe"] == found[-1]
    assert "kNN on held-out tiles" in done.err


def test_gradients_that_end_in_no_numbers_stop_the_run_with_reasons(data: Path, tmp_path: Path, here) -> None:
    out = tmp_path / "run"
    given = flags(data, out, "--lr", "1e30", "--warmup", "0", "--save-every", "1")
    done = here(*given, cwd=tmp_path)
    assert (done.code, done.out) == (1, "") and "Traceback" not in done.err
    assert "step 2 (epoch 1)" in done.err and str(out / "checkpoints" / "step-00000001") in done.err
    failed = rows(out, "failed")[0]
    assert len(set(failed["samples"])) == 4 and str(failed["samples"][0]) in done.err
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


def test_bad_input_ends_with_one_message_and_writes_nothing(data: Path, tmp_path: Path, here) -> None:
    out = tmp_path / "run"
    started = flags(data, out, steps=1)
    assert here(*started, cwd=tmp_path).code == 0
    cases = [
        (flags(data, out, "--lr", "1e-3", steps=1), "lr is 0.0002 there and 0.001 here"),
        (flags(data, tmp_path, steps=1), "holds no pretraining run"),
        (flags(tmp_path / "nowhere", tmp_path / "new"), "no such folder"),
        (flags(data, tmp_path / "new", "--modalities", "s2,rain"), "unknown rain"),
        (flags(data, tmp_path / "new", "--init", str(out)), "no weights"),
        (
            flags(
                data, tmp_path / "new", "--init", str(out / "checkpoints" / "step-00000001"), "--projection", "linear"
            ),
            "",
        ),
        (flags(data, tmp_path / "new", "--device", "cuda:7"), "cuda:7"),
        (flags(data, tmp_path / "new", "--probe-every", "1"), "1 tiles, too few"),
        (["pretrain", "--size", "nano"], "--data is missing"),
    ]
    for given, words in cases:
        done = here(*given, cwd=tmp_path)
        assert (done.code, done.out) == (2, ""), done.err
        assert words in done.err and "Traceback" not in done.err, done.err
    assert not (tmp_path / "new").exists()


def test_training_starts_from_given_weights(data: Path, tmp_path: Path, here) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert here(*flags(data, first, steps=1), cwd=tmp_path).code == 0
    path = first / "checkpoints" / "step-00000001"
    given = flags(data, second, "--init", str(path), "--lr", "1e-12", steps=1)
    done = here(*given, cwd=tmp_path)
    assert done.code == 0, done.err
    before, after = (load_file(p / "model.safetensors") for p in (path, second / "checkpoints" / "step-00000001"))
    assert all(torch.allclose(before[key], after[key], atol=1e-9) for key in before)


def test_the_plan_says_what_a_run_takes_and_writes_nothing(data: Path, tmp_path: Path, here) -> None:
    given = flags(data, tmp_path / "run", "--plan", "--json", "--batch-size", "8", steps=40)
    done = here(*given, cwd=tmp_path)
    plan = json.loads(done.out)
    assert done.code == 0 and plan["steps"] == 40 and plan["epochs"] == 1.25 and plan["seconds"] > 0
    assert not (tmp_path / "run").exists()
