"""The folder of a run and its log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from olmoearth_cli.errors import OutputError
from olmoearth_pipelines.training import run_folder

SETTINGS = {"steps": 10, "masking": {"strategy": "v1"}, "seeds": (1, 2)}


def test_another_setting_is_refused_by_name_and_overwrite_clears_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_folder.start(folder, SETTINGS, overwrite=False)
    run_folder.log(folder, {"step": 1})
    (folder / "checkpoints" / "step-00000001").mkdir()
    assert run_folder.check(folder, {**SETTINGS, "seeds": [1, 2]}, overwrite=False) is not None
    other = {**SETTINGS, "masking": {"strategy": "updated"}}
    with pytest.raises(OutputError, match=r'masking is \{"strategy": "v1"\} there and \{"strategy": "updated"\} here'):
        run_folder.start(folder, other, overwrite=False)
    assert (folder / "log.jsonl").exists()
    run_folder.start(folder, other, overwrite=True)
    assert not (folder / "log.jsonl").exists() and not list((folder / "checkpoints").iterdir())


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(OutputError, match=r"holds no pretraining run \(thesis.doc\)"):
        run_folder.start(tmp_path, SETTINGS, overwrite=True)
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "settings": {}}))
    with pytest.raises(OutputError, match="not the record of a pretraining run"):
        run_folder.start(tmp_path, SETTINGS, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json", "thesis.doc"]


def test_the_log_is_cut_to_the_step_that_the_run_goes_on_from(tmp_path: Path) -> None:
    for step in (1, 2, 2, 3):
        run_folder.log(tmp_path, {"step": step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run_folder.cut_log(tmp_path, 2)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2}\n'
    run_folder.cut_log(tmp_path, 0)
    assert not (tmp_path / "log.jsonl").exists()
