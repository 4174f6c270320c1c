"""Jobs over a real local cluster, with workers that really die."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_pipelines.cluster import connect
from olmoearth_pipelines.fanout import Lost, fan_out


def mark_and_square(folder, number):
    Path(folder, f"{number}-{os.getpid()}").touch()
    return number * number


def die_once(folder, number):
    """SIGKILL the worker the first time that it meets number 3."""
    flag = Path(folder, "died")
    if number == 3 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die_always(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def full_disk(number):
    if number == 4:
        raise OutputError("/data: no space left on device. Free some and run again.")
    return number


def test_results_come_back_once_each_and_two_processes_work(tmp_path):
    with connect(workers=2, scheduler=None, scratch=tmp_path / "scratch") as client:
        marks = tmp_path / "marks"
        marks.mkdir()
        results = dict(fan_out(client, partial(mark_and_square, str(marks)), range(20), slots=4))
    assert results == {n: n * n for n in range(20)}
    assert len({path.name.split("-")[1] for path in marks.iterdir()}) == 2


def test_a_killed_worker_costs_nothing_but_time(tmp_path):
    with connect(workers=1, scheduler=None, scratch=tmp_path / "scratch") as client:
        results = dict(fan_out(client, partial(die_once, str(tmp_path)), range(8), slots=2))
    assert (tmp_path / "died").exists()
    assert results == {n: n * n for n in range(8)}


def test_a_job_that_always_kills_its_worker_is_lost_and_the_others_are_not(tmp_path):
    with connect(workers=1, scheduler=None, scratch=tmp_path / "scratch") as client:
        results = dict(fan_out(client, die_always, range(6), slots=1))
    assert isinstance(results[2], Lost)
    assert "died" in str(results[2])
    assert [results[n] for n in (0, 1, 3, 4, 5)] == [0, 1, 3, 4, 5]


def test_an_error_that_ends_the_run_is_raised_as_it_was(tmp_path):
    with (
        connect(workers=1, scheduler=None, scratch=tmp_path / "scratch") as client,
        pytest.raises(OutputError, match="no space left"),
    ):
        list(fan_out(client, full_disk, range(10), slots=2))


def test_a_scheduler_that_is_not_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("olmoearth_pipelines.cluster.CONNECT_TIMEOUT", "1s")
    with (
        pytest.raises(InputError, match="no Dask scheduler answers"),
        connect(workers=1, scheduler="tcp://127.0.0.1:9", scratch=tmp_path),
    ):
        pass
