"""The road from a folder of windows and a folder of a model to a checkpoint that can be fine-tuned again."""

from __future__ import annotations

import numpy as np
import pytest
from made_reports import METRIC, made_report, made_shown
from memory_windows import make_request, make_source

from olmoearth_cli.core.model import save_model
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_pipelines.finetune import EpochDone, Recipe, Shown, TrainReport, run
from olmoearth_pipelines.finetuning.report_html import render
from olmoearth_pipelines.finetuning.samples import read_samples, write_samples
from olmoearth_pipelines.windows.folder import WindowWriter, write_window

QUICK = Recipe(name="head", epochs=2, lrs=(1e-3,))


def put_windows(folder, kind="segmentation", **changes):
    """The windows in memory as a folder."""
    made = make_source(kind, sparse=True, **changes)
    writer = WindowWriter(folder, made.task, {"made": True})
    for window, split in zip(made.windows, made.splits, strict=True):
        write_window(folder, window, split)
    return writer.finish([(window.id, split) for window, split in zip(made.windows, made.splits, strict=True)])


def test_a_folder_of_windows_and_a_model_make_a_checkpoint(small, tmp_path) -> None:
    put_windows(tmp_path / "windows")
    save_model(small, tmp_path / "model")
    start = {"dataset": tmp_path / "windows", "model": str(tmp_path / "model"), "baselines": True, "command": "typed"}
    events = list(run(make_request(tmp_path / "run", QUICK, **start), print, print))
    assert [type(event) for event in events] == [EpochDone] * 2 + [Shown] * 6 + [TrainReport]
    report = events[-1]
    assert (
        report.data == "made" and report.model == "model" and report.command == "typed" and len(report.baselines) == 5
    )
    again = list(run(make_request(tmp_path / "run", QUICK, **start), print, print))
    assert len(again) == 1 and again[0].unchanged and again[0].val == report.val
    assert_same_windows(read_samples(tmp_path / "run"), [event for event in events if isinstance(event, Shown)])
    onwards = {**start, "model": str(tmp_path / "run"), "baselines": False}
    second = list(run(make_request(tmp_path / "second", QUICK, **onwards), print, print))[-1]
    assert isinstance(second, TrainReport) and second.windows == report.windows


def assert_same_windows(kept, shown) -> None:
    assert [one.id for one in kept] == [one.id for one in shown]
    for one, other in zip(kept, shown, strict=True):
        for name in ("picture", "truth", "predicted"):
            before, after = getattr(other, name), getattr(one, name)
            assert before.dtype == after.dtype and np.array_equal(before, after, equal_nan=before.dtype.kind == "f")


@pytest.mark.parametrize("kind", METRIC)
def test_windows_to_look_at_are_kept_as_they_are_and_make_the_same_page(kind, tmp_path) -> None:
    shown = made_shown(kind)
    write_samples(tmp_path, shown)
    kept = read_samples(tmp_path)
    assert_same_windows(kept, shown)
    assert render(made_report(kind), kept) == render(made_report(kind), shown)


def test_a_damaged_file_of_windows_is_an_error_and_an_absent_one_is_none(tmp_path) -> None:
    assert read_samples(tmp_path) == []
    write_samples(tmp_path, made_shown("classification"))
    path = tmp_path / "samples.npz"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(broken)
        with pytest.raises(OutputError, match=r"samples\.npz: damaged .*Delete it"):
            read_samples(tmp_path)
    np.savez(path, id=np.array([object()]), picture=np.zeros(1), truth=np.zeros(1), predicted=np.zeros(1))
    with pytest.raises(OutputError, match="allow_pickle=False"):
        read_samples(tmp_path)


def test_what_cutting_windows_warned_of_is_in_the_report_of_a_run_on_them(small, tmp_path) -> None:
    put_windows(tmp_path / "windows", facts={"warnings": ["2 windows have no imagery"]})
    save_model(small, tmp_path / "model")
    start = {"dataset": tmp_path / "windows", "model": str(tmp_path / "model")}
    heard: list[str] = []
    report = list(run(make_request(tmp_path / "run", QUICK, **start), print, heard.append))[-1]
    assert "2 windows have no imagery" in report.warnings and heard[0] == "2 windows have no imagery"


def test_nothing_is_read_for_a_folder_that_belongs_to_somebody_else(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        next(run(make_request(tmp_path / "run", QUICK, dataset=tmp_path / "nowhere"), print, print))
    with pytest.raises(InputError, match="nowhere: no such folder"):
        next(run(make_request(tmp_path / "new", QUICK, dataset=tmp_path / "nowhere"), print, print))
    assert not (tmp_path / "new").exists()
