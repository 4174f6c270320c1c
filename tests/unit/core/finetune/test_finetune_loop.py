"""Training on tiny sets: every kind of target is learned, and a resumed run is the same run."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from olmoearth_cli.core.finetune.augment import Augmentation, augment
from olmoearth_cli.core.finetune.batch import FeatureBatch, FinetuneBatch, make_batch
from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
from olmoearth_cli.core.finetune.layers import adamw, parameter_groups
from olmoearth_cli.core.finetune.loop import Step, scores_of, train_step
from olmoearth_cli.core.finetune.lora import add_lora
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.finetune.objective import Objective
from olmoearth_cli.core.finetune.schedule import FrozenStart, LearningRates, RatePlan
from olmoearth_cli.core.model import random_model
from olmoearth_cli.errors import RunError

S2, S1 = "sentinel2_l2a", "sentinel1"
SIDE = 8


def head_of(kind: str, decoder: str = "linear", patch_px: int = 4) -> HeadSpec:
    classes = 1 if "regression" in kind else 3
    return HeadSpec(kind=kind, classes=classes, width=128, patch_px=patch_px, decoder=decoder)


def targets_for(kind: str, b: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    if kind == "classification":
        return torch.arange(b) % 3
    if kind == "multilabel":
        return torch.randint(0, 2, (b, 3), generator=generator)
    if kind == "regression":
        return torch.linspace(20, 60, b)
    quarters = torch.randint(-1, 3, (b, 2, 2), generator=generator)
    labels = quarters.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[:, 1, 1] = 2  # not the same for all pixels of a patch
    if kind == "segmentation":
        return labels
    return torch.where(labels < 0, torch.nan, labels * 10.0)


def windows(kind: str, b: int = 4, patch_px: int = 4) -> FinetuneBatch:
    generator = torch.Generator().manual_seed(0)
    inputs = {S2: torch.rand(b, SIDE, SIDE, 2, 12, generator=generator)}
    inputs[S1] = torch.rand(b, SIDE, SIDE, 2, 2, generator=generator)
    masks = {S1: torch.zeros(b, SIDE, SIDE, 2, 1)}
    masks[S1][0] = masks[S1][1, :, :, 1] = 3
    stamps = torch.tensor([[(1, 3, 2020), (1, 7, 2020)]]).repeat(b, 1, 1)
    config = random_model("v1.2-nano", seed=0).spec.encoder
    return make_batch(config, inputs, stamps, masks, patch_px=patch_px, targets=targets_for(kind, b))


def network(spec: HeadSpec, *, lora: int | None = None, drop_path: float = 0.0) -> FinetuneModel:
    model = random_model("v1.2-nano", seed=1)
    if lora is not None:
        add_lora(model.encoder, lora)
    return FinetuneModel(model, build_head(spec), drop_path=drop_path).train()


def objective_of(spec: HeadSpec, **options: object) -> Objective:
    return Objective(kind=spec.kind, classes=spec.classes, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "decoder", "options", "limit"),
    [
        ("classification", "linear", {}, 0.02),
        ("classification", "pooling", {"class_weights": (1.0, 2.0, 3.0)}, 0.02),
        ("multilabel", "mlp", {}, 0.02),
        ("segmentation", "linear", {"dice": True}, 0.1),
        ("segmentation", "unet_tapered", {}, 0.1),
        ("regression", "linear", {"target": (40.0, 15.0)}, 0.01),
        ("pixel_regression", "reshape", {"target": (12.0, 8.0), "error": "huber"}, 0.01),
    ],
)
def test_a_tiny_set_is_learned_by_heart(kind: str, decoder: str, options: dict[str, object], limit: float) -> None:
    spec = head_of(kind, decoder)
    model, batch, objective = network(spec), windows(kind), objective_of(spec, **options)
    optimizer = adamw(parameter_groups(model, 3e-3, 0.65))
    course = LearningRates(RatePlan(decay="cosine"), epochs=1, steps_per_epoch=40, higher_is_better=False)
    losses = []
    for i in range(40):
        course.set_rates(optimizer, i)
        step = train_step(model, optimizer, [batch], objective, clip_norm=1.0)
        assert step.loss is not None and step.weight > 0
        losses.append(step.loss)
    assert losses[-1] < limit < losses[0] / 4
    scores = scores_of(model, batch, objective.target)
    assert model.training and batch.targets is not None
    if kind in {"classification", "segmentation"}:
        labelled = batch.targets >= 0
        assert (scores.argmax(1) == batch.targets)[labelled].float().mean() >= 0.99
    elif kind == "multilabel":
        assert torch.equal((scores > 0.5).long(), batch.targets)
    else:
        finite = torch.isfinite(batch.targets)
        error = (scores - batch.targets)[finite].square().mean().sqrt()
        assert error < 0.15 * objective.target[1]


def test_lora_and_a_frozen_encoder_learn_too_and_leave_the_rest_alone() -> None:
    batch = windows("classification")
    for lora in (4, None):
        model = network(head_of("classification"), lora=lora)
        model.let_encoder_learn(lora is not None)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = adamw(parameter_groups(model, 0.02))
        losses = [train_step(model, optimizer, [batch], objective_of(model.head.spec)).loss for _ in range(25)]
        assert losses[-1] is not None and losses[0] is not None and losses[-1] < losses[0] / 3
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert {"head.body.0.weight", "head.body.0.bias"} <= changed
        assert all("lora" in name for name in changed if name.startswith("encoder"))
        assert any("lora" in name for name in changed) is (lora is not None)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "segmentation", "pixel_regression"])
def test_accumulated_parts_make_the_step_of_the_whole_batch(kind: str) -> None:
    whole = windows(kind)
    rows = [slice(0, 1), slice(1, 4)]
    parts = [
        replace(
            whole,
            inputs={m: v[r] for m, v in whole.inputs.items()},
            visible={m: v[r] for m, v in whole.visible.items()},
            timestamps=whole.timestamps[r],
            targets=whole.targets[r],  # type: ignore[index]
        )
        for r in rows
    ]
    weights = (1.0, 2.0, 4.0) if kind != "pixel_regression" else None
    found = []
    for batches in ([whole], parts):
        model = network(head_of(kind))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        step = train_step(model, optimizer, batches, objective_of(model.head.spec, class_weights=weights))
        found.append((step, model.head.body.state_dict(), model.encoder.layers()[0].attn.q.weight))
    (one, head, layer), (many, head_of_parts, layer_of_parts) = found
    assert one.loss == pytest.approx(many.loss, rel=1e-5) and one.weight == many.weight > 0
    assert (layer - layer_of_parts).abs().max() <= 1e-6
    assert all((head[key] - head_of_parts[key]).abs().max() <= 1e-5 for key in head)


def test_a_batch_without_labels_is_left_out() -> None:
    batch = windows("segmentation")
    empty = replace(batch, targets=torch.full_like(batch.targets, -1))  # type: ignore[arg-type]
    model = network(head_of("segmentation"))
    optimizer = adamw(parameter_groups(model, 1e-3))
    before = copy.deepcopy(model.state_dict())
    assert train_step(model, optimizer, [empty], objective_of(model.head.spec)) == Step(loss=None, weight=0.0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    a = train_step(model, optimizer, [empty, batch], objective_of(model.head.spec))
    assert a.loss is not None and math.isfinite(a.loss)
    with pytest.raises(ValueError, match="without targets"):
        train_step(model, optimizer, [replace(batch, targets=None)], objective_of(model.head.spec))


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_weights() -> None:
    model, batch = network(head_of("classification")), windows("classification")
    with torch.no_grad():
        model.head.body[0].bias[0] = torch.nan
    before = model.encoder.norm.weight.clone()
    with pytest.raises(RunError, match=r"learning rate of 0\.5.*smaller --lr"):
        train_step(model, adamw(parameter_groups(model, 0.5)), [batch], objective_of(model.head.spec))
    assert torch.equal(model.encoder.norm.weight, before)


def test_features_kept_from_a_frozen_encoder_train_the_same_head() -> None:
    batch, heads = windows("classification"), []
    for cached in (False, True):
        model = network(head_of("classification"))
        model.let_encoder_learn(False)
        given = FeatureBatch(features=model.features(batch), targets=batch.targets) if cached else batch
        optimizer = adamw(parameter_groups(model, 0.01))
        for _ in range(5):
            train_step(model, optimizer, [given], objective_of(model.head.spec))
        heads.append(model.head.body[0].weight.detach())
    assert torch.allclose(*heads, atol=1e-6)


class Run:
    """A small run with everything that has a state."""

    def __init__(self, llrd: float | None) -> None:
        self.model = network(head_of("segmentation"), drop_path=0.3)
        self.optimizer = adamw(parameter_groups(self.model, 1e-3, llrd))
        frozen = FrozenStart(share=0.5) if llrd is None else FrozenStart(share=0.5, factor=1.0, scope="encoder")
        self.course = LearningRates(RatePlan(frozen=frozen), epochs=4, steps_per_epoch=2, higher_is_better=False)
        self.generator = torch.Generator().manual_seed(11)
        self.batch = windows("segmentation", b=3)
        self.losses: list[float | None] = []

    def epoch(self) -> None:
        self.model.let_encoder_learn(self.course.encoder_learns)
        for i in range(2):
            self.course.set_rates(self.optimizer, i)
            varied = augment(self.batch, Augmentation(time_dropout=0.3), self.generator)
            objective = objective_of(self.model.head.spec)
            self.losses.append(
                train_step(self.model, self.optimizer, [varied], objective, generator=self.generator).loss
            )
        self.course.end_epoch(self.losses[-1] or 0.0)


@pytest.mark.parametrize("llrd", [None, 0.65])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_has_the_weights_of_one_that_never_stopped(
    llrd: float | None, stop: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole, first, second = Run(llrd), Run(llrd), Run(llrd)
    for _ in range(4):
        whole.epoch()
    for _ in range(stop):
        first.epoch()
    path = tmp_path_factory.mktemp("resume") / "state.pt"
    torch.save([first.model.state_dict(), first.optimizer.state_dict(), first.generator.get_state()], path)
    text = json.dumps(first.course.state())
    model, optimizer, stream = torch.load(path, weights_only=True)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    second.generator.set_state(stream)
    second.course.load(json.loads(text))
    for _ in range(4 - stop):
        second.epoch()
    assert second.losses == whole.losses[2 * stop :]
    wanted = whole.model.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in second.model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_step_on_the_gpu_is_that_on_the_cpu(kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    losses, batch = [], windows(kind)
    for device in ("cpu", "cuda"):
        model = random_model("v1.2-nano", seed=1)
        model.encoder.to(device)
        trained = FinetuneModel(model, build_head(head_of(kind)), drop_path=0.2).train()
        optimizer, generator = adamw(parameter_groups(trained, 1e-3, 0.65)), torch.Generator().manual_seed(0)
        objective = objective_of(trained.head.spec, class_weights=(1.0, 2.0, 3.0))
        losses.append([train_step(trained, optimizer, [batch], objective, generator=generator).loss for _ in range(4)])
        assert scores_of(trained, batch).device.type == "cpu"
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
