"""The figures of `--plan`, and requests that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import put_samples, tiny_request

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.training.estimate import estimate
from olmoearth_pipelines.training.setup import prepare


def test_steps_and_tokens_are_those_of_the_specification(tmp_path: Path) -> None:
    data = put_samples(tmp_path / "10", 10, side=128, periods=1)
    request = tiny_request(data, tmp_path / "out", modalities=None, steps=None, epochs=3, precision="float32")
    figures = estimate(prepare(request), "cpu")
    assert figures["steps"] == 6 and figures["steps_per_epoch"] == 2  # 10 samples make 2 batches of 4
    # The table of spec/pretraining.md 2.3: mean 916, at most 1452; nano has 2,525,520 trained parameters.
    assert round(figures["tokens_per_sample"]) == 916 and figures["tokens_largest"] == 1452
    assert figures["tokens"] == pytest.approx(figures["tokens_per_sample"] * 24)
    assert figures["parameters"] == 2_525_520 and figures["memory_bytes"] > 16 * 2_525_520
    assert figures["device_hours"] == pytest.approx(figures["step_s"] * 6 / 3600)
    assert not (tmp_path / "out").exists()


def test_the_learning_rate_warms_up_for_a_tenth_of_a_short_run(tiny_data: Path, tmp_path: Path) -> None:
    assert prepare(tiny_request(tiny_data, tmp_path, steps=500)).schedule.warmup == 50
    assert prepare(tiny_request(tiny_data, tmp_path, steps=667_200)).schedule.warmup == 8000
    assert prepare(tiny_request(tiny_data, tmp_path, steps=None)).schedule.steps == 300 * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 2}, "--steps and --epochs"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"workers": -1}, "--workers -1"),
        ({"warmup": 6}, "--warmup 6"),
        ({"batch_size": 16}, "Choose a smaller batch"),
        ({"microbatch": 3}, "not a multiple of 3"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_the_flag(
    tiny_data: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        prepare(tiny_request(tiny_data, tmp_path, **changes))
