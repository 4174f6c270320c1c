"""Multiply-accumulates of figure 1 against the golden values: integers, exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.probe.macs import encoder_macs
from olmoearth_cli.core.spec import find_spec

FILE = Path(__file__).parents[5] / "shared" / "spec" / "golden_knn.json"
GOLDEN = json.loads(FILE.read_text())["macs"]["expected"] if FILE.is_file() else {}
TASKS = {
    "m-bigearthnet": (1, 120),
    "m-so2sat": (1, 32),
    "m-brick-kiln": (1, 64),
    "m-eurosat": (1, 64),
    "BreizhCrops": (12, 1),
    "CropHarvest-Togo": (12, 1),
    "CropHarvest-PRC": (6, 1),
    "m-cashewplant": (1, 256),
    "m-SA-crop-type": (1, 256),
    "PASTIS": (12, 64),
    "MADOS": (1, 80),
    "Nandi": (12, 4),
    "AWF": (12, 32),
}
"""Periods and side in pixels (spec/evaluation.md 10.1)."""


def encoder_of(name: str) -> EncoderConfig:
    """A released encoder, or the two sizes that the golden file works out without a release."""
    size, release = name.split()
    if (size, release) == ("small", "v1"):
        return replace(find_spec("v1-tiny").encoder, embedding_size=384, num_heads=6)
    if (size, release) == ("large", "v1.2"):
        return replace(find_spec("v1.2-base").encoder, embedding_size=1024, depth=24, num_heads=16)
    return find_spec(f"{release}-{size}").encoder


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("convention", ["linear_and_norm_only", "with_attention"])
def test_every_task_of_figure_1_costs_what_the_golden_file_says(name, convention) -> None:
    encoder, wanted = encoder_of(name), GOLDEN[name][convention]
    found = {
        task: getattr(encoder_macs(encoder, (side // min(side, 4)) ** 2 * periods), convention)
        for task, (periods, side) in TASKS.items()
    }
    assert found == wanted["per_task"]
    assert sum(found.values()) / 13 == pytest.approx(wanted["mean_of_13"], rel=1e-12)


def test_v1_1_costs_what_v1_2_does() -> None:
    assert encoder_macs(find_spec("v1.1-base").encoder, 64) == encoder_macs(find_spec("v1.2-base").encoder, 64)
