"""Energy: counters that start again, and estimates that say so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.training import energy
from olmoearth_pipelines.training.trackers import check_installed


def test_a_counter_that_starts_again_goes_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "energy_uj").write_text("7000000\n")
    (package / "max_energy_range_uj").write_text("10000000\n")
    monkeypatch.setattr(energy, "_RAPL", tmp_path)
    meter = energy.Meter(torch.device("cpu"), first=True)
    (package / "energy_uj").write_text("9000000\n")
    assert meter.kwh() == pytest.approx(2 / 3.6e6)
    (package / "energy_uj").write_text("1000000\n")  # 1 J to the limit, 1 J after it
    assert meter.kwh() == pytest.approx(4 / 3.6e6)
    assert meter.source == "RAPL counter (whole package)"
    assert "RAPL" not in energy.Meter(torch.device("cpu"), first=False).source


def test_without_a_counter_busy_seconds_are_counted_at_a_stated_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "_RAPL", tmp_path)
    meter = energy.Meter(torch.device("cpu"), first=True)
    began = time.process_time()
    while time.process_time() - began < 0.3:
        pass
    assert meter.source == "estimate: 6 W x busy cores"
    assert meter.kwh() * 3.6e6 == pytest.approx(6 * 0.3, rel=0.5)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olmoearth_pipelines.training.trackers.find_spec", lambda _: None)
    check_installed(tensorboard=False, wandb=False)
    with pytest.raises(InputError, match="--wandb needs the package wandb"):
        check_installed(tensorboard=False, wandb=True)
