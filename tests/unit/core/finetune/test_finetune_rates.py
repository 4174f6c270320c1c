"""Layer-wise rates, frozen start, plateau, cosine and early stopping against the specification's values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
from olmoearth_cli.core.finetune.layers import adamw, parameter_groups
from olmoearth_cli.core.finetune.lora import add_lora
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.schedule import BestEpoch, FrozenStart, LearningRates, PlateauRule, RatePlan
from olmoearth_cli.core.model import OlmoEarthModel, random_model
from olmoearth_cli.core.nn.encoder import Encoder
from olmoearth_cli.core.spec import find_spec


@pytest.fixture(scope="module")
def golden(spec_folder: Path) -> dict[str, list]:
    return json.loads((spec_folder / "golden_knn.json").read_text())


def weightless(name: str) -> FinetuneModel:
    """A released architecture without memory for its weights; a head of two outputs."""
    spec = find_spec(name)
    with torch.device("meta"):
        encoder = Encoder(spec.encoder)
    model = OlmoEarthModel(spec=spec, encoder=encoder, weights_sha256="", name=name)
    head = HeadSpec(kind="classification", classes=2, width=spec.embedding_size, patch_px=4)
    return FinetuneModel(model, build_head(head))


@pytest.mark.parametrize("case", [0, 1])
def test_layerwise_rates_equal_the_reference(golden: dict[str, list], case: int) -> None:
    wanted = golden["layerwise_lr_decay"][case]
    model = weightless(wanted["model"])
    groups = parameter_groups(model, wanted["base_lr"], wanted["decay"])
    assert len(groups) == wanted["depth"] + 1 == model.config.depth + 1
    place = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
    parameters = dict(model.encoder.named_parameters())
    for name, group, lr in wanted["rows_encoder_parameter_group_lr"]:
        parameter = model.head.body[0].weight if name.startswith("<") else parameters[name]
        assert place[id(parameter)] == group
        assert groups[group]["lr"] == pytest.approx(lr, rel=1e-6)
    assert all(place[id(p)] == wanted["depth"] for p in model.encoder.project_and_aggregate.parameters())


@pytest.mark.parametrize("name", ["v1-tiny", "v1-large", "v1.1-base", "v1.2-tiny", "v1.2-small", "v1.2-base"])
def test_every_size_has_one_group_per_depth_and_every_parameter_once(name: str) -> None:
    model = weightless(name)
    depth = model.config.depth
    groups = parameter_groups(model, 1e-4, 0.65)
    assert [group["lr"] for group in groups] == pytest.approx([1e-4 * 0.65 ** (depth - i) for i in range(depth + 1)])
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    assert all(len(group["params"]) == (16 + (name[:4] == "v1.2") * 1) for group in groups[1:depth])
    if depth == 24:
        assert groups[0]["lr"] == pytest.approx(1e-4 * 3.24e-5, rel=2e-3)


def test_a_parameter_outside_all_groups_is_refused() -> None:
    model = weightless("v1.2-nano")
    model.extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="extra"):
        parameter_groups(model, 1e-4, 0.65)
    with pytest.raises(ValueError, match="decay"):
        parameter_groups(weightless("v1.2-nano"), 1e-4, 1.5)


def test_lora_layers_have_the_rate_of_their_block() -> None:
    model = random_model("v1.2-nano", seed=0)
    add_lora(model.encoder, 2)
    head = build_head(HeadSpec(kind="regression", classes=1, width=128, patch_px=4))
    groups = parameter_groups(FinetuneModel(model, head), 1.0, 0.5)
    learning = [[p.shape for p in group["params"] if p.requires_grad] for group in groups]
    assert [len(shapes) for shapes in learning] == [8, 8, 8, 8, 2]
    assert [group["lr"] for group in groups] == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]


def test_frozen_epochs_equal_the_reference(golden: dict[str, list]) -> None:
    for total, frozen in golden["freeze_epochs"]:
        assert FrozenStart().epochs(total) == frozen
    assert FrozenStart(share=0.07).epochs(100) == 7


def plain_optimizer(*base_lrs: float) -> torch.optim.Optimizer:
    parts = ["encoder"] * (len(base_lrs) - 1) + ["head"]
    groups = [
        {"params": [torch.zeros(1, requires_grad=True)], "lr": lr, "base_lr": lr, "part": part}
        for lr, part in zip(base_lrs, parts, strict=True)
    ]
    return adamw(groups)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("resume_at", [None, 3, 6, 13])
def test_the_course_of_the_rates_equals_the_reference(
    golden: dict[str, list], case: int, resume_at: int | None
) -> None:
    wanted = golden["finetune_lr_trace"][case]
    optimizer = plain_optimizer(wanted["lr"], wanted["lr"])

    def fresh() -> tuple[LearningRates, BestEpoch]:
        plan = RatePlan(frozen=FrozenStart())
        course = LearningRates(plan, epochs=wanted["epochs"], steps_per_epoch=5, higher_is_better=True)
        return course, BestEpoch(higher_is_better=wanted["mode"] == "max")

    course, best = fresh()
    assert course.frozen_epochs == wanted["freeze_epochs"]
    for (epoch, learns, lr), value in zip(
        wanted["expected_epoch_backbone_trainable_lr_used"], wanted["val_metric_per_epoch"], strict=True
    ):
        if epoch == resume_at:
            states = json.loads(json.dumps([course.state(), best.state()]))
            course, best = fresh()
            course.load(states[0])
            best.load(states[1])
        assert course.encoder_learns is learns
        course.set_rates(optimizer)
        assert rates(optimizer) == pytest.approx([lr, lr], rel=1e-9)
        best.update(epoch, value)
        course.end_epoch(value)
    assert best.epoch == wanted["best_epoch_zero_based"]


@pytest.mark.parametrize("higher", [True, False])
def test_the_plateau_equals_that_of_pytorch_on_positive_values(higher: bool) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        rule = PlateauRule(patience=int(generator.integers(4)), cooldown=int(generator.integers(4)))
        reference, ours = plain_optimizer(1.0), plain_optimizer(1.0)
        torch_plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            reference, "max" if higher else "min", 0.2, rule.patience, 1e-4, cooldown=rule.cooldown, eps=0.0
        )
        course = LearningRates(RatePlan(plateau=rule), epochs=40, steps_per_epoch=1, higher_is_better=higher)
        for drift in 0.01 * generator.integers(-3, 4, size=40).cumsum() * (1 if higher else -1):
            value = math.nan if generator.random() < 0.05 else abs(0.5 + float(drift)) + 0.01
            torch_plateau.step(value)
            course.end_epoch(value)
            course.set_rates(ours)
            assert rates(ours) == pytest.approx(rates(reference))


def test_a_worse_negative_value_is_no_improvement() -> None:
    course = LearningRates(RatePlan(), epochs=9, steps_per_epoch=1, higher_is_better=True)
    optimizer = plain_optimizer(1.0)
    for value in (-1.0, -1.00005, -1.00005, -1.00005):
        course.end_epoch(value)
    course.set_rates(optimizer)
    assert rates(optimizer) == [0.2]


def test_the_plateau_keeps_the_ratios_of_layerwise_rates_however_small() -> None:
    course = LearningRates(RatePlan(), epochs=9, steps_per_epoch=1, higher_is_better=True)
    optimizer = plain_optimizer(3.24e-9, 1e-4)
    for value in (1.0, 0.5, 0.5, 0.5):
        course.end_epoch(value)
    course.set_rates(optimizer)
    assert rates(optimizer) == pytest.approx([6.48e-10, 2e-5])


def test_the_partners_encoder_starts_at_the_head_s_current_rate() -> None:
    plan = RatePlan(frozen=FrozenStart(factor=1.0, scope="encoder"))
    course = LearningRates(plan, epochs=25, steps_per_epoch=1, higher_is_better=True)
    optimizer = plain_optimizer(1e-4, 1e-4)
    for value in (1.0, 0.5, 0.5, 0.5, 0.5):
        course.end_epoch(value)
    course.set_rates(optimizer)
    assert course.encoder_learns and rates(optimizer) == pytest.approx([2e-5, 2e-5])
    tenth = LearningRates(
        RatePlan(frozen=FrozenStart(scope="encoder")), epochs=5, steps_per_epoch=1, higher_is_better=True
    )
    tenth.end_epoch(1.0)
    tenth.set_rates(optimizer)
    assert rates(optimizer) == pytest.approx([1e-5, 1e-4])


def test_without_frozen_epochs_nothing_is_unfrozen_and_the_rate_stays() -> None:
    plan = RatePlan(frozen=FrozenStart(share=0.0))
    course = LearningRates(plan, epochs=5, steps_per_epoch=1, higher_is_better=True)
    optimizer = plain_optimizer(0.5, 0.5)
    course.set_rates(optimizer)
    assert course.encoder_learns and rates(optimizer) == [0.5, 0.5]


def test_a_frozen_start_does_not_edit_layerwise_rates() -> None:
    for frozen in (FrozenStart(), FrozenStart(factor=1.0)):
        course = LearningRates(RatePlan(frozen=frozen), epochs=5, steps_per_epoch=1, higher_is_better=True)
        with pytest.raises(ValueError, match="factor 1 and scope encoder"):
            course.set_rates(plain_optimizer(0.1, 0.2))


def test_the_cosine_rises_then_falls_to_its_floor() -> None:
    plan = RatePlan(decay="cosine", warmup=0.25, final_share=0.0)
    course = LearningRates(plan, epochs=2, steps_per_epoch=4, higher_is_better=True)
    optimizer, found = plain_optimizer(2.0), []
    for _ in range(2):
        for step in range(4):
            course.set_rates(optimizer, step)
            found.append(rates(optimizer)[0])
        course.end_epoch(0.0)
    wanted = [1.0, 2.0, *(1 + math.cos(math.pi * i / 6) for i in range(1, 7))]
    assert found == pytest.approx(wanted, abs=1e-12)


def test_training_stops_when_patience_ends_and_ties_do_not_count() -> None:
    best = BestEpoch(higher_is_better=False, patience=2)
    values = [math.nan, 3.0, 2.0, 2.0, math.nan]
    assert [best.update(i, value) for i, value in enumerate(values)] == [False, True, True, False, False]
    assert (best.epoch, best.value, best.stops) == (2, 2.0, True)
    again = BestEpoch(higher_is_better=False, patience=3)
    again.load(json.loads(json.dumps(best.state())))
    assert not again.stops
    assert not again.update(5, 2.5) and again.stops
