"""The end of a run: the kept weights judged once on the test split, compared, and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from olmoearth_cli import __version__
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.saved import Finetuned, save_finetuned
from olmoearth_cli.core.probe.metrics import lower_is_better
from olmoearth_pipelines.finetuning.evaluate import confusion, score_of
from olmoearth_pipelines.finetuning.report import Leg, Score, TrainReport
from olmoearth_pipelines.finetuning.request import FinetuneRequest
from olmoearth_pipelines.finetuning.setup import Setup
from olmoearth_pipelines.finetuning.sweep import Sweep
from olmoearth_pipelines.finetuning.trainer import judge

NAME = "fine-tuned"


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """What the kept weights are worth."""

    val: Score
    test: Score | None
    judged_on: str
    """`test`, or `val` where there is no test split."""
    confusion: tuple[tuple[int, ...], ...] | None


def judge_all(network: FinetuneModel, setup: Setup, request: FinetuneRequest) -> Judgement:
    """Judge the validation and the test split, each once."""
    scores: dict[str, Score] = {}
    matrix = None
    for split in ("val", "test"):
        if len(setup.survey.numbers[split]):
            judged = judge(network, setup, split)
            scores[split] = score_of(
                NAME,
                judged,
                setup.plan.yardstick,
                setup.survey.groups[split],
                rounds=request.bootstrap,
                seed=setup.plan.recipe.seed,
            )
            matrix = confusion(judged, setup.plan.yardstick)
    return Judgement(
        val=scores["val"],
        test=scores.get("test"),
        judged_on="test" if "test" in scores else "val",
        confusion=matrix,
    )


def save(network: FinetuneModel, setup: Setup, request: FinetuneRequest, found: Judgement, leg: Leg) -> None:
    """Write the checkpoint.

    Raises:
        OutputError: the system refused.
    """
    plan = setup.plan
    facts = {
        "recipe": plan.recipe.words,
        "lr": leg.lr,
        "epoch": leg.best_epoch,
        "metric": plan.yardstick.metric,
        "val": found.val.value,
        "test": None if found.test is None else found.test.value,
        "data": plan.source.fingerprint,
        "software": {"olmoearth": __version__, "torch": torch.__version__},
    }
    model = plan.model
    finetuned = Finetuned(
        model=replace(model, encoder=network.encoder),
        head=network.head,
        task=setup.description(),
        base={"id": model.spec.id, "name": model.name, "sha256": model.weights_sha256},
        facts=facts,
    )
    save_finetuned(request.out, finetuned)


def compose(
    sweep: Sweep,
    setup: Setup,
    request: FinetuneRequest,
    found: Judgement,
    *,
    baselines: Sequence[Score],
    said: Mapping[str, Sequence[str]],
) -> TrainReport:
    """The report of a run.

    Args:
        sweep: of the run, done.
        setup: of the run.
        request: of the run.
        found: what the kept weights are worth.
        baselines: what they are compared with.
        said: `notes` and `warnings` of the run.
    """
    plan, task, leg = setup.plan, setup.plan.source.task, sweep.kept
    learning = [row for each in sweep.legs for row in each.epochs if row.lr_encoder > 0]
    rows = learning or [row for each in sweep.legs for row in each.epochs]
    passes = len(rows) * len(setup.survey.numbers["train"])
    return TrainReport(
        out=str(request.out),
        kind=plan.head.kind,
        class_names=() if plan.head.regresses else task.class_names,
        field=task.field,
        data=task.name,
        model=plan.model.name,
        demo=plan.model.demo,
        recipe=plan.recipe.words,
        decoder=plan.head.decoder,
        metric=plan.yardstick.metric,
        higher_is_better=not lower_is_better(plan.yardstick.metric),
        windows={split: len(numbers) for split, numbers in setup.survey.numbers.items()},
        labelled=dict(setup.survey.labelled),
        parameters=_parameters(setup),
        legs=tuple(sweep.legs),
        lr=leg.lr,
        best_epoch=leg.best_epoch,
        val=found.val,
        test=found.test,
        baselines=tuple(baselines),
        judged_on=found.judged_on,
        confusion=found.confusion,
        seconds=sweep.seconds,
        samples_per_s=passes / sum(len(setup.survey.numbers["train"]) / row.samples_per_s for row in rows),
        notes=tuple(dict.fromkeys(said["notes"])),
        warnings=tuple(dict.fromkeys(said["warnings"])),
        settings=dict(plan.settings),
        command=request.command,
    )


def _parameters(setup: Setup) -> int:
    """That learn at some time of the run."""
    network = setup.fresh()
    network.let_encoder_learn(setup.plan.recipe.kind != "head")
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
