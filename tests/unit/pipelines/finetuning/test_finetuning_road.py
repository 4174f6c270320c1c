"""The road from a folder of windows and a folder of a model to a checkpoint that can be fine-tuned again."""

from __future__ import annotations

import pytest
from memory_windows import make_request, make_source

from olmoearth_cli.core.model import save_model
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_pipelines.finetune import EpochDone, Recipe, Shown, TrainReport, run
from olmoearth_pipelines.windows.folder import WindowWriter, write_window

QUICK = Recipe(name="head", epochs=2, lrs=(1e-3,))


def put_windows(folder, kind="segmentation"):
    """The windows in memory as a folder."""
    made = make_source(kind, sparse=True)
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
    onwards = {**start, "model": str(tmp_path / "run"), "baselines": False}
    second = list(run(make_request(tmp_path / "second", QUICK, **onwards), print, print))[-1]
    assert isinstance(second, TrainReport) and second.windows == report.windows


def test_nothing_is_read_for_a_folder_that_belongs_to_somebody_else(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        next(run(make_request(tmp_path / "run", QUICK, dataset=tmp_path / "nowhere"), print, print))
    with pytest.raises(InputError, match="nowhere: no such folder"):
        next(run(make_request(tmp_path / "new", QUICK, dataset=tmp_path / "nowhere"), print, print))
    assert not (tmp_path / "new").exists()
