"""A run that was killed ends with the weights of one that was not; a folder keeps what is in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from memory_windows import make_request, make_source

from olmoearth_cli.core.finetune.augment import Augmentation
from olmoearth_cli.core.finetune.saved import load_finetuned
from olmoearth_cli.errors import OutputError
from olmoearth_pipelines.finetune import EpochDone, Recipe, Said, TrainReport, train_on
from olmoearth_pipelines.finetuning.report_html import write_page
from olmoearth_pipelines.finetuning.setup import make_plan

HERE = Path(__file__).parent
RECIPE = Recipe(
    epochs=4,
    lrs=(1e-3, 5e-3),
    batch_size=4,
    frozen_share=0.5,
    augmentation=Augmentation(symmetries=True, time_dropout=0.3),
)
"""With all that is drawn: heads, order, variations, stochastic depth; two legs, each half frozen."""


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found = load_finetuned(folder)
    return {**found.model.encoder.state_dict(), **found.head.state_dict(prefix="head.")}


def assert_same(folder: Path, other: Path) -> None:
    one, two = weights_of(folder), weights_of(other)
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> TrainReport:
    """The run that was never stopped."""
    request = make_request(tmp_path_factory.mktemp("whole") / "run", RECIPE)
    events = train_on(make_plan(make_source("segmentation", sparse=True), small, request), request, Said(print, print))
    return list(events)[-1]


@pytest.mark.parametrize("stop", [1, 4, 7, 8])
def test_a_run_that_is_left_after_any_epoch_ends_with_the_same_weights(
    stop, whole, source, small, train, tmp_path
) -> None:
    data = source("segmentation", sparse=True)
    broken = make_request(tmp_path / "broken", RECIPE)
    events = train_on(make_plan(data, small, broken), broken, Said(print, print))
    done = [next(events) for _ in range(stop)]
    assert all(isinstance(event, EpochDone) for event in done)
    events.close()
    assert not (tmp_path / "broken" / "finetuned.json").exists()
    resumed, seen = train(data, small, RECIPE, out=tmp_path / "broken")
    assert sum(isinstance(item, EpochDone) for item in seen) == 8 - stop
    assert_same(Path(whole.out), tmp_path / "broken")
    assert [[row.value for row in leg.epochs] for leg in resumed.legs] == [
        [row.value for row in leg.epochs] for leg in whole.legs
    ]
    assert resumed.test == whole.test and not (tmp_path / "broken" / "resume.pt").exists()


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from memory_windows import SMALL, make_request, make_source
from test_finetuning_resume import RECIPE
from olmoearth_cli.core.model import random_model
from olmoearth_pipelines.finetune import EpochDone, Said, train_on
from olmoearth_pipelines.finetuning.setup import make_plan

model = random_model(SMALL, 0)
request = make_request(Path(sys.argv[2]), RECIPE)
source = make_source("segmentation", sparse=True)
for event in train_on(make_plan(source, model, request), request, Said(print, print)):
    print("epoch" if isinstance(event, EpochDone) else "other", flush=True)
"""


def test_a_run_that_was_killed_ends_with_the_same_weights(whole, source, small, train, tmp_path) -> None:
    data = source("segmentation", sparse=True)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(HERE), str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for _ in range(3):
        assert child.stdout.readline().strip() == "epoch"
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert (tmp_path / "killed" / "resume.pt").exists()
    _, seen = train(data, small, RECIPE, out=tmp_path / "killed")
    left = sum(isinstance(item, EpochDone) for item in seen)
    assert 0 < left <= 5
    assert_same(Path(whole.out), tmp_path / "killed")


QUICK = Recipe(name="head", epochs=1, lrs=(1e-3,), batch_size=8)


def test_a_finished_run_is_reported_again_and_nothing_is_read_or_written(source, small, train, tmp_path) -> None:
    data = source("classification")
    first, _ = train(data, small, QUICK)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    data.reads.clear()
    again, seen = train(data, small, QUICK)
    assert again.unchanged and seen == [again] and not data.reads
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    assert again.legs == first.legs and again.test == first.test and again.confusion == first.confusion


def test_other_settings_in_the_same_folder_are_refused_unless_overwritten(source, small, train, tmp_path) -> None:
    data, other = source("classification"), Recipe(name="head", epochs=2, lrs=(1e-3,), batch_size=8)
    train(data, small, QUICK)
    weights = (tmp_path / "run" / "head.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"recipe\.epochs is 1 there and 2 here"):
        train(data, small, other)
    with pytest.raises(OutputError, match="data is"):
        train(source("classification", seed=1), small, QUICK)
    assert (tmp_path / "run" / "head.safetensors").read_bytes() == weights
    report, _ = train(data, small, other, overwrite=True)
    assert not report.unchanged and len(report.legs[0].epochs) == 2


@pytest.mark.parametrize("mine", [True, False])
def test_a_run_that_is_replaced_leaves_no_page_beside_the_new_settings(mine, source, small, train, tmp_path) -> None:
    data, run = source("classification"), tmp_path / "run"
    report, _ = train(data, small, QUICK)
    if mine:
        (run / "report.html").write_text("my own notes")
    else:
        write_page(run / "report.html", report)
    request = make_request(run, Recipe(name="head", epochs=2, lrs=(1e-3,), batch_size=8), overwrite=True)
    events = train_on(make_plan(data, small, request), request, Said(print, print))
    assert isinstance(next(events), EpochDone)
    events.close()  # as if it had been killed
    left = {path.name for path in run.iterdir()}
    assert not left & {"report.json", "samples.npz", "finetuned.json"} and {"run.json", "resume.pt"} <= left
    assert ("report.html" in left) is mine


def test_the_report_has_what_was_said_before_the_run_was_stopped(source, small, tmp_path) -> None:
    data, request = source("classification"), make_request(tmp_path / "run", RECIPE)
    first, second = Said(print, print), Said(print, print)
    first.note("learning classification")
    first.warn("3 windows have no imagery")
    events = train_on(make_plan(data, small, request), request, first)
    next(events)
    events.close()
    second.note("24 windows as cut before")
    second.warn("3 windows have no imagery")
    report = list(train_on(make_plan(data, small, request), request, second))[-1]
    assert report.notes == (
        "learning classification",
        "24 windows as cut before",
        "going on after epoch 1 of training 1",
    )
    assert report.warnings == ("3 windows have no imagery",)


def test_a_finished_run_that_was_moved_is_where_it_lies(source, small, train, tmp_path) -> None:
    data = source("classification")
    train(data, small, QUICK)
    (tmp_path / "run").rename(tmp_path / "moved")
    again, _ = train(data, small, QUICK, out=tmp_path / "moved")
    assert again.unchanged and again.out == str(tmp_path / "moved")


def test_a_folder_of_somebody_else_is_left_alone(source, small, train, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"holds no fine-tuning run \(thesis.tex\)"):
        train(source("classification"), small, QUICK)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_damaged_resume_file_is_an_error_not_a_new_run(source, small, train, tmp_path) -> None:
    data, request = source("classification"), make_request(tmp_path / "run", RECIPE)
    events = train_on(make_plan(data, small, request), request, Said(print, print))
    next(events)
    events.close()
    path = tmp_path / "run" / "resume.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OutputError, match=r"resume\.pt: cannot be gone on from .*Delete it and run again"):
        train(data, small, RECIPE)
    path.unlink()
    assert isinstance(next(train_on(make_plan(data, small, request), request, Said(print, print))), EpochDone)
