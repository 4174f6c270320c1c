"""The pretrain road: samples on disk -> steps -> checkpoints, a log, and a probe on held-out tiles.

What can be refused is refused before the output folder is touched. A run goes on from its newest checkpoint with the
losses and weights of one that never stopped: every draw comes from seed, step and sample, and no state is kept in
between but weights and moments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from olmoearth_cli import __version__
from olmoearth_cli.core.pretrain_step import fresh_model
from olmoearth_pipelines.models import local_device
from olmoearth_pipelines.training import checkpoint, run_folder
from olmoearth_pipelines.training.devices import join, place
from olmoearth_pipelines.training.energy import Meter, memory_bytes
from olmoearth_pipelines.training.flops import peak_flops
from olmoearth_pipelines.training.heldout import HeldOutProbe, choose_probe
from olmoearth_pipelines.training.request import PretrainRequest
from olmoearth_pipelines.training.setup import Setup, prepare
from olmoearth_pipelines.training.trackers import Trackers, check_installed
from olmoearth_pipelines.training.trainer import Step, StepError, Trainer

__all__ = [
    "PretrainRequest",
    "ProbeReport",
    "Setup",
    "StepReport",
    "TrainSummary",
    "prepare_here",
    "prepare_team",
    "run",
]

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step is taken."""

    step: int
    steps: int
    """Of the whole run."""
    epoch: int
    loss: float
    lr: float
    batch_size: int
    """Samples of a step."""
    samples_per_s: float
    """Mean of this process's steps so far, over all devices."""


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """kNN accuracy on held-out tiles."""

    step: int
    accuracy: float
    random: float
    """Of the encoder with random weights, as fresh training starts."""
    majority: float
    """Of answering the most frequent class."""
    labelled: int
    """Labelled samples, of training tiles."""
    queries: int
    """Samples of held-out tiles."""


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """The whole run in numbers; what `--json` prints."""

    folder: str
    checkpoint: str
    """The last one: a model folder."""
    steps: int
    resumed_from: int
    """Step that an earlier process had reached; 0 for none."""
    samples: int
    """Seen, each epoch counted again."""
    tokens: int
    """Of their crops."""
    seconds: float
    """Of training, earlier processes included."""
    loss: float
    samples_per_s: float
    """Over the whole run."""
    kwh: float
    energy_source: str
    """Measured, or estimated and how."""
    co2_g: float | None = None
    water_l: float | None = None
    probe: dict[str, Any] | None = None
    """The last probe."""
    unchanged: bool = False
    """True where the run had finished before."""


def prepare_here(request: PretrainRequest) -> tuple[Setup, str]:
    """Check a request for this process; also the device that it runs on.

    Raises:
        InputError, ModelError: whatever cannot be used as asked.
        OutputError: the output folder holds something else.
    """
    return _prepare(request, *place())


def prepare_team(request: PretrainRequest) -> tuple[Setup, str]:
    """The same for all `request.devices` processes, before they are started.

    Raises:
        InputError, ModelError, OutputError: as `prepare_here`.
    """
    return _prepare(request, 0, request.devices)


def _prepare(request: PretrainRequest, rank: int, size: int) -> tuple[Setup, str]:
    setup = prepare(request, rank=rank, world_size=size)
    run_folder.check(request.out, setup.settings, overwrite=request.overwrite)
    return setup, local_device(request.device)


def run(setup: Setup, device: str, note: Say, warn: Say) -> Iterator[StepReport | ProbeReport | TrainSummary]:
    """Train; only the first of several processes reports.

    Args:
        setup: from `prepare_here`.
        device: as it says.
        note: told what happens.
        warn: told what the user should look at.

    Raises:
        OlmoEarthError: what cannot go on; checkpoints stay and a later run continues.
    """
    request = setup.request
    record = run_folder.check(request.out, setup.settings, overwrite=request.overwrite)
    if record and record["status"] == "finished" and checkpoint.checkpoints(request.out):
        yield TrainSummary(**{**record["summary"], "unchanged": True})
        return
    team = join(device)
    try:
        check_installed(tensorboard=request.tensorboard, wandb=request.wandb is not None)
        trainer = Trainer(setup, team)
        probe = _probe(setup) if request.probe_every and team.rank == 0 else None
        # From here on the folder is the run's.
        if team.rank == 0:
            run_folder.start(request.out, setup.settings, overwrite=request.overwrite)
        team.wait()
        yield from _Run(trainer, probe, note, warn).reports()
    except StepError:
        if team.rank == 0:  # all processes agreed on it; one says so
            raise
    finally:
        team.leave()


def _probe(setup: Setup) -> HeldOutProbe:
    return choose_probe(
        setup.folder,
        setup.samples,
        setup.held_out,
        setup.config,
        label_map=setup.request.probe_map,
        side_px=setup.loader.side_px,
        seed=setup.request.seeds[1],
    )


class _Run:
    """The state of a running training."""

    def __init__(self, trainer: Trainer, probe: HeldOutProbe | None, note: Say, warn: Say) -> None:
        self._trainer, self._probe, self._note = trainer, probe, note
        self._setup, self._team = trainer.setup, trainer.team
        before = trainer.resume(warn if self._team.rank == 0 else lambda _: None)
        self._first = trainer.step
        self._seconds, self._kwh = before.get("seconds", 0.0), before.get("kwh", 0.0)
        self._tokens = before.get("tokens", 0)
        self._last_probe: dict[str, Any] | None = before.get("probe")
        self._loss = before.get("loss", float("nan"))
        self._meter = Meter(self._team.device, first=self._team.rank == 0)
        self._began = time.monotonic()
        self._interval = _Interval()

    def reports(self) -> Iterator[StepReport | ProbeReport | TrainSummary]:
        """Take the steps that are left."""
        setup, trainer, request, team = self._setup, self._trainer, self._setup.request, self._team
        if trainer.step and team.rank == 0:
            self._note(f"going on after step {trainer.step} of {setup.schedule.steps}")
        if team.rank == 0:
            run_folder.cut_log(request.out, trainer.step)
        yield from self._probed(at_start=True)
        with closing(self._trackers()) as trackers:
            microbatches = setup.loader.microbatches(trainer.step, setup.schedule.steps)
            for _ in range(trainer.step, setup.schedule.steps):
                step = self._take(islice(microbatches, setup.loader.plan.parts))
                yield from self._after(step, trackers)
                yield from self._probed()
                due = trainer.step % request.save_every == 0 and trainer.watch.calm
                if due or trainer.step == setup.schedule.steps:
                    self._save()
        yield from self._finish()

    def _take(self, parts: Any) -> Step:
        try:
            step = self._trainer.take(parts)
        except StepError as failed:
            if self._team.rank == 0:
                row = {"step": failed.step, "failed": failed.what, "samples": failed.samples}
                run_folder.log(self._setup.request.out, row)
                run_folder.close(self._setup.request.out, "failed", {"reason": str(failed)})
            raise
        self._tokens += step.tokens
        self._loss = step.losses["loss"]
        self._interval.add(step)
        return step

    def _after(self, step: Step, trackers: Trackers) -> Iterator[StepReport]:
        """Log and report a step."""
        setup, number = self._setup, self._trainer.step
        last = setup.schedule.steps
        if number % setup.request.log_every == 0 or number in (1, last):
            kwh = sum(self._team.gather(self._meter.kwh())) + self._kwh
            if self._team.rank == 0:
                row = self._row(step, kwh)
                run_folder.log(setup.request.out, row)
                trackers.log(number, row)
            self._interval = _Interval()
        if self._team.rank == 0:
            taken = number - self._first
            rate = taken * setup.request.batch_size / max(time.monotonic() - self._began, 1e-9)
            yield StepReport(
                step=number,
                steps=last,
                epoch=setup.loader.position(number - 1)[0],
                loss=self._loss,
                lr=step.lr,
                batch_size=setup.request.batch_size,
                samples_per_s=rate,
            )

    def _row(self, step: Step, kwh: float) -> dict[str, Any]:
        """A line of the log: losses of this step alone, rates since the line before."""
        number, setup = self._trainer.step, self._setup
        rates = self._interval.rates(setup.request.batch_size, self._peak())
        return {
            "step": number,
            "epoch": setup.loader.position(number - 1)[0],
            "lr": step.lr,
            **step.losses,
            "grad_norm": step.norm,
            **rates,
            "memory_bytes": memory_bytes(self._team.device),
            "kwh": kwh,
            **self._footprint(kwh),
        }

    def _peak(self) -> float | None:
        if self._team.device.type != "cuda":
            return None
        return peak_flops(torch.cuda.get_device_name(self._team.device), self._setup.request.precision)

    def _footprint(self, kwh: float) -> dict[str, Any]:
        request = self._setup.request
        given = {"co2_g": request.grid_intensity, "water_l": request.water_intensity}
        return {name: kwh * factor for name, factor in given.items() if factor is not None}

    def _probed(self, *, at_start: bool = False) -> Iterator[ProbeReport]:
        """Judge the encoder where it is due; the others wait for the first process."""
        request, number = self._setup.request, self._trainer.step
        due = (
            number == 0
            if at_start
            else number % max(request.probe_every, 1) == 0 or number == self._setup.schedule.steps
        )
        if not request.probe_every or not due:
            return
        probe = self._probe
        if probe is not None:
            random = self._last_probe["random"] if self._last_probe else probe.accuracy(self._random_encoder())
            report = ProbeReport(
                step=number,
                accuracy=probe.accuracy(self._trainer.model.encoder),
                random=random,
                majority=probe.majority,
                labelled=len(probe.labelled),
                queries=len(probe.queries),
            )
            self._last_probe = asdict(report)
            run_folder.log(request.out, {"step": number, "probe": self._last_probe})
            yield report
        self._team.wait()

    def _random_encoder(self) -> Any:
        return fresh_model(self._setup.config, self._setup.request.seeds[0]).encoder.to(self._team.device)

    def _trackers(self) -> Trackers:
        request = self._setup.request
        first = self._team.rank == 0
        return Trackers(
            request.out,
            self._setup.settings,
            tensorboard=request.tensorboard and first,
            wandb=request.wandb if first else None,
        )

    def _save(self) -> None:
        kwh = sum(self._team.gather(self._meter.kwh())) + self._kwh
        if self._team.rank == 0:
            self._trainer.save(
                {
                    "seconds": self._elapsed(),
                    "kwh": kwh,
                    "tokens": self._tokens,
                    "loss": self._loss,
                    "probe": self._last_probe,
                }
            )
        self._team.wait()

    def _elapsed(self) -> float:
        return float(self._seconds + time.monotonic() - self._began)

    def _finish(self) -> Iterator[TrainSummary]:
        kwh = sum(self._team.gather(self._meter.kwh())) + self._kwh
        if self._team.rank:
            return
        setup, request = self._setup, self._setup.request
        seconds, samples = self._elapsed(), setup.schedule.steps * request.batch_size
        summary = TrainSummary(
            folder=str(request.out),
            checkpoint=str(checkpoint.checkpoints(request.out)[0]),
            steps=setup.schedule.steps,
            resumed_from=self._first,
            samples=samples,
            tokens=self._tokens,
            seconds=seconds,
            loss=self._loss,
            samples_per_s=samples / max(seconds, 1e-9),
            kwh=kwh,
            energy_source=self._meter.source,
            probe=self._last_probe,
            **self._footprint(kwh),
        )
        software = {"olmoearth": __version__, "torch": torch.__version__}
        facts = {"summary": asdict(summary), "software": software, "device": str(self._team.device)}
        run_folder.close(request.out, "finished", facts)
        yield summary


class _Interval:
    """What was done since the log's last line."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._steps, self._tokens, self._flops, self._waited = 0, 0, 0.0, 0.0

    def add(self, step: Step) -> None:
        """One more step."""
        self._steps += 1
        self._tokens += step.tokens
        self._flops += step.flops
        self._waited += step.waited_s

    def rates(self, batch_size: int, peak: float | None) -> dict[str, float]:
        """Per second; `mfu` is the share of what this process's GPU could do at best."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        rates = {
            "samples_per_s": self._steps * batch_size / seconds,
            "tokens_per_s": self._tokens / seconds,
            "flops_per_s": self._flops / seconds,
            "data_wait_s": self._waited,
        }
        return {**rates, "mfu": self._flops / seconds / peak} if peak else rates
