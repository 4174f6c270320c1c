"""The finetune road: windows of labelled land -> an encoder and a head that learn them -> a checkpoint and figures.

What can be refused is refused before the output folder is touched. A run that was stopped goes on after its last whole
epoch and ends with the weights of one that was not; the test split is looked at once, by the weights that were best on
validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from olmoearth_pipelines.finetuning import run_folder
from olmoearth_pipelines.finetuning.baselines import compare
from olmoearth_pipelines.finetuning.finish import compose, judge_all, save
from olmoearth_pipelines.finetuning.pictures import shown
from olmoearth_pipelines.finetuning.recipe import Recipe
from olmoearth_pipelines.finetuning.report import EpochDone, Shown, TrainReport
from olmoearth_pipelines.finetuning.request import FinetuneRequest
from olmoearth_pipelines.finetuning.setup import Plan, make_plan, make_setup
from olmoearth_pipelines.finetuning.sources import Progress, open_source
from olmoearth_pipelines.finetuning.sweep import Sweep
from olmoearth_pipelines.models import local_device, open_model

__all__ = ["EpochDone", "FinetuneRequest", "Recipe", "Said", "Shown", "TrainReport", "run", "train_on"]

Say = Callable[[str], None]


def run(request: FinetuneRequest, note: Say, warn: Say) -> Iterator[Progress | EpochDone | Shown | TrainReport]:
    """Fine-tune.

    Args:
        request: what the user asked for.
        note: told what happens.
        warn: told what the user should look at.

    Yields:
        `CutTile` while windows are cut, `TaskProgress` while a benchmark is converted, `EpochDone` after each epoch,
        `Shown` for windows to look at, and the `TrainReport` at the end; without epochs and windows where the folder
        holds this very run, finished (`finetuning.samples` reads the windows again).

    Raises:
        OlmoEarthError: what cannot go on; what is done is kept, and the same command goes on.
    """
    run_folder.settings_of(request.out)
    device = local_device(request.device)
    said = Said(note, warn)
    source = yield from open_source(request, said.note, said.warn)
    model = open_model(request.model, said.note, device=device)
    yield from train_on(make_plan(source, model, request), request, said)


class Said:
    """Passes on what is said, and keeps it for the report: what an earlier process of the run heard comes first."""

    def __init__(self, note: Say, warn: Say) -> None:
        self.lines: dict[str, list[str]] = {"notes": [], "warnings": []}
        self._note, self._warn = note, warn

    def recall(self, before: Mapping[str, Sequence[str]]) -> None:
        """What was said when the run began, which may have been before this process."""
        self.lines = {key: list(dict.fromkeys([*before[key], *lines])) for key, lines in self.lines.items()}

    def note(self, text: str) -> None:
        """What happens."""
        self.lines["notes"].append(text)
        self._note(text)

    def warn(self, text: str) -> None:
        """What the user should look at."""
        self.lines["warnings"].append(text)
        self._warn(text)


def train_on(plan: Plan, request: FinetuneRequest, said: Said) -> Iterator[EpochDone | Shown | TrainReport]:
    """Train by a plan; `run` after its windows and its model are there.

    Args:
        plan: from `make_plan`.
        request: of the run.
        said: told what happens, and what was said before.

    Yields, Raises: as `run`.
    """
    out = request.out
    known = run_folder.check(out, plan.settings, overwrite=request.overwrite)
    if known and (report := run_folder.finished(out)) is not None:
        yield report
        return
    setup = make_setup(plan, request, said.note, said.warn)
    said.recall(run_folder.start(out, plan.settings, said.lines, overwrite=request.overwrite))
    sweep = Sweep(setup, out, said.note)
    yield from sweep.epochs()
    network = sweep.network()
    found = judge_all(network, setup, request)
    baselines = compare(setup, found.judged_on, said.note, rounds=request.bootstrap) if request.baselines else ()
    samples = shown(network, setup, found.judged_on)
    yield from samples
    report = compose(sweep, setup, request, found, baselines=baselines, said=said.lines)
    save(network, setup, request, found, sweep.kept)
    run_folder.finish(out, report, samples)
    yield report
