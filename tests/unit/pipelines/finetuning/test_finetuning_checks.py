"""What is refused, in one clear message; what is left out; order, variation and memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from olmoearth_cli.core.finetune.augment import Augmentation
from olmoearth_cli.core.finetune.batch import FeatureBatch
from olmoearth_cli.core.finetune.heads import HeadSpec
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.finetune import FinetuneRequest, Recipe
from olmoearth_pipelines.finetuning import memory
from olmoearth_pipelines.finetuning.data import WindowReader, in_order, seen_patches, updates, vary
from olmoearth_pipelines.finetuning.features import FeatureStore
from olmoearth_pipelines.finetuning.setup import make_setup
from olmoearth_pipelines.finetuning.trainer import Trainer
from olmoearth_pipelines.windows.arrays import collate

S2 = "sentinel2_l2a"
QUICK = Recipe(name="head", epochs=1, lrs=(1e-3,))


def retarget(source, number, target) -> None:
    source.windows[number] = replace(source.windows[number], target=target)


def test_targets_that_cannot_be_learned_are_refused_by_name(source, small, train) -> None:
    data = source("regression")
    retarget(data, 4, np.array(np.nan, np.float32))
    with pytest.raises(InputError, match="window w004: the target of `cover` is NaN"):
        train(data, small, QUICK)
    data = source("pixel_regression")
    data.windows[5].target[0, 0] = np.inf
    with pytest.raises(InputError, match="window w005: the target of `cover` is infinite"):
        train(data, small, QUICK)
    data = source("segmentation")
    data.windows[2].target[3, 3] = 7
    with pytest.raises(InputError, match="w002: the target has the class ids 7; `cover` has the 3 classes 0 to 2"):
        train(data, small, QUICK)


def test_a_class_without_training_labels_is_refused_where_the_labels_are_the_users(source, small, train) -> None:
    data = source("classification", facts={"labels": ["points.gpkg"]})
    for number in data.split("train"):
        if data.windows[number].target == 2:
            retarget(data, number, np.array(1))
    with pytest.raises(InputError, match="no training label of `town`, which other splits have"):
        train(data, small, QUICK)
    data.task = replace(data.task, facts={})  # a benchmark is as it is
    report, _ = train(data, small, QUICK)
    assert any("no training label of `town`" in line for line in report.warnings)


def test_a_class_that_is_not_judged_is_a_warning(source, small, train) -> None:
    data = source("classification")
    for number in data.split("val"):
        if data.windows[number].target == 2:
            retarget(data, number, np.array(0))
    report, _ = train(data, small, QUICK)
    assert "no val label of `town`: not judged there" in report.warnings


def test_windows_without_imagery_or_labels_are_left_out_and_counted(source, small, train) -> None:
    data = source("segmentation", sparse=True)
    data.windows[0].valid[S2][:] = False
    retarget(data, 1, np.full((16, 16), -1))
    data.windows[5].valid[S2][:4, :4] = False  # one of its two labels
    report, _ = train(data, small, QUICK)
    assert report.windows["train"] == 10 and report.labelled["train"] == 19
    assert "2 of 12 train windows have no imagery under a label: `w000`, `w001` left out" in report.notes


def test_no_window_to_choose_by_is_refused(source, small, train) -> None:
    data = source("classification")
    data.splits = ["train"] * len(data.splits)
    with pytest.raises(InputError, match=r"no labelled window with imagery to choose the epoch by \(24 train, 0 val"):
        train(data, small, QUICK)


def test_a_model_that_does_not_fit_the_windows_is_refused(source, small, train, tmp_path) -> None:
    with pytest.raises(InputError, match="--patch-size 3 does not divide"):
        train(source("classification"), small, QUICK, patch_px=3)
    with pytest.raises(InputError, match=r"does not read worldcover of made; it reads sentinel2_l2a"):
        train(source("classification", modalities=(S2, "worldcover")), small, QUICK)
    with pytest.raises(InputError, match="--modalities sentinel1: made has sentinel2_l2a"):
        train(source("classification"), small, QUICK, modalities=("sentinel1",))
    report, _ = train(source("classification"), small, QUICK, out=tmp_path / "first")
    with pytest.raises(InputError, match="was fine-tuned with 4 px patches, these windows are to be read with 8 px"):
        train(source("classification"), small, QUICK, patch_px=8, start=report.out)
    with pytest.raises(InputError, match="was fine-tuned on sentinel2_l2a, not on sentinel1"):
        both = source("classification", modalities=(S2, "sentinel1"))
        train(both, small, QUICK, start=report.out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "fast"}, "--recipe fast: known are frozen-start, full, head"),
        ({"name": "head", "llrd": 0.65}, "--recipe head: the encoder does not learn"),
        ({"lora": 4, "llrd": 0.65}, "Give one of them"),
        ({"llrd": 1.5}, "--llrd 1.5"),
        ({"llrd": 0.65, "name": "frozen-start", "unfreeze_factor": 0.1}, "--unfreeze-factor 0.1 with --llrd"),
        ({"epochs": 0}, "--epochs 0: must be above 0"),
        ({"lrs": (1e-3, 1e-3)}, "names a rate twice"),
        ({"lrs": (0.0,)}, "--lr 0: must be above 0"),
        ({"drop_path": 1.0}, "--drop-path 1"),
        ({"error": "cubic"}, "--loss cubic: known are squared, absolute, huber"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(settings, message) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**settings)


def test_heads_and_losses_that_a_task_does_not_have_are_refused(source, small, train) -> None:
    with pytest.raises(InputError, match="--decoder unet: decoder 'unet': classification has linear, mlp, pooling"):
        train(source("classification"), small, Recipe(decoder="unet"))
    with pytest.raises(InputError, match="--dice is for segmentation"):
        train(source("classification"), small, Recipe(dice=True))
    for kind in ("classification", "segmentation", "multilabel"):
        with pytest.raises(InputError, match=f"--loss huber is for regression; made asks for {kind}"):
            train(source(kind), small, Recipe(error="huber"))
    with pytest.raises(InputError, match="--class-weights balanced: made has values, no classes"):
        train(source("regression"), small, Recipe(class_weights="balanced"))


def test_one_source_of_windows_is_needed(tmp_path) -> None:
    with pytest.raises(InputError, match="0 sources of training data"):
        FinetuneRequest(out=tmp_path)
    with pytest.raises(InputError, match="2 sources of training data"):
        FinetuneRequest(out=tmp_path, dataset=tmp_path, samples=tmp_path)
    with pytest.raises(InputError, match="--task NAME --data FOLDER"):
        FinetuneRequest(out=tmp_path, task="m-eurosat")


def test_an_epoch_has_every_window_once_in_an_order_of_its_own() -> None:
    numbers = np.arange(10, 20)
    first, again, second = (updates(numbers, seed=1, epoch=epoch, batch_size=4, accumulate=3) for epoch in (0, 0, 1))
    flat = [np.concatenate([np.concatenate(parts) for parts in found]) for found in (first, again, second)]
    assert sorted(flat[0]) == sorted(numbers) and (flat[0] == flat[1]).all() and (flat[0] != flat[2]).any()
    assert [[len(part) for part in parts] for parts in first] == [[2, 1, 1], [2, 1, 1], [1, 1]]
    assert [len(part) for part in in_order(numbers, 4)] == [4, 4, 2]


def test_windows_that_fit_are_read_once_and_others_again(source, small) -> None:
    for kept, wanted in ((2**30, 1), (0, 2)):
        data = source("classification", count=6)
        reader = WindowReader(data, small.spec, patch_px=4, modalities=(S2,), kept_bytes=kept)
        for _ in range(2):
            sizes = [len(batch) for batch in reader.batches(in_order(np.arange(6), 4))]
            assert sizes == [4, 2]
        assert sorted(data.reads) == sorted(list(range(6)) * wanted)


def test_a_varied_batch_keeps_every_label_on_its_ground(source, small) -> None:
    data = source("segmentation")
    batch = collate(data.windows, small.spec, patch_px=4)
    head = HeadSpec(kind="segmentation", classes=3, width=32, patch_px=4)
    before = batch.inputs[S2].mean(dim=3)  # B H W C
    spectra = torch.stack([before[batch.targets == c].mean(dim=0) for c in range(3)])
    varied = vary(batch, Augmentation(symmetries=True), head, torch.Generator().manual_seed(0))
    nearest = torch.cdist(varied.inputs[S2].mean(dim=3), spectra).argmin(dim=-1)
    assert torch.equal(nearest, varied.targets) and not torch.equal(varied.targets, batch.targets)


def test_what_dropout_hides_is_not_asked_for(source, small) -> None:
    data = source("segmentation", count=8)
    for window in data.windows:
        window.valid[S2][:, :8, 0] = False  # the west is seen in the second period only, the east in the first
        window.valid[S2][:, 8:, 1] = False
    batch = collate(data.windows, small.spec, patch_px=4)
    head = HeadSpec(kind="segmentation", classes=3, width=32, patch_px=4)
    varied = vary(batch, Augmentation(symmetries=False, time_dropout=0.9), head, torch.Generator().manual_seed(0))
    seen = seen_patches(varied).repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert 0.4 < seen.float().mean() < 0.6
    assert torch.equal(varied.targets, torch.where(seen, batch.targets, -1))
    windows = replace(batch, targets=torch.zeros(8, dtype=torch.long))
    middle = HeadSpec(kind="classification", classes=3, width=32, patch_px=4, centre=True)
    kept = vary(windows, Augmentation(symmetries=False, time_dropout=0.9), middle, torch.Generator().manual_seed(0))
    assert bool(seen_patches(kept)[:, 2, 2].all()) and torch.equal(kept.targets, windows.targets)


def trainer_of(source, model, plan_of, tmp_path, recipe) -> Trainer:
    request = FinetuneRequest(out=tmp_path / "run", dataset=tmp_path)
    setup = make_setup(plan_of(source("classification"), model, recipe), request, print, print)
    return Trainer(setup, 1e-3, FeatureStore(setup.reader, batch_size=4, note=print))


def test_a_shortage_of_memory_says_how_many_windows_fit(source, small, plan_of, tmp_path, monkeypatch) -> None:
    trainer = trainer_of(source, small, plan_of, tmp_path, Recipe(name="full", batch_size=8, drop_path=0.0))
    setup = trainer.setup
    one = setup.reader.batch(setup.survey.numbers["train"][:1])
    each = memory.bytes_per_window(trainer.network, one)
    four = memory.bytes_per_window(trainer.network, setup.reader.batch(setup.survey.numbers["train"][:4]))
    assert each == pytest.approx(four, rel=0.1)  # a sample's share does not depend on the batch
    # At least the inputs of the MLPs' second layers (32 tokens x 64 x 2 blocks) are kept in float32.
    assert 32 * 64 * 2 * 4 < each < 2**22
    monkeypatch.setattr(memory, "available_bytes", lambda: 5 * each)
    with pytest.raises(InputError, match=r"8 windows at a time do not fit .*; 4 would. Give --accumulate 2"):
        trainer.take_epoch()
    monkeypatch.setattr(memory, "available_bytes", lambda: each // 2)
    with pytest.raises(InputError, match="not even one window fits"):
        trainer_of(source, small, plan_of, tmp_path, Recipe(name="full", batch_size=8)).take_epoch()
    monkeypatch.setattr(memory, "available_bytes", lambda: 9 * each)
    assert trainer_of(source, small, plan_of, tmp_path, Recipe(name="full", batch_size=8)).take_epoch().loss


def test_a_device_that_refuses_is_tried_with_fewer_windows(source, small, plan_of, tmp_path, monkeypatch) -> None:
    trainer = trainer_of(source, small, plan_of, tmp_path, Recipe(name="full", batch_size=8))
    forward = trainer.network.forward

    def narrow(batch, generator=None):
        if not isinstance(batch, FeatureBatch) and len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch, generator)

    monkeypatch.setattr(trainer.network, "forward", narrow)
    with pytest.raises(InputError, match=r"8 windows at a time do not fit .* of cpu; 2 would.*--accumulate 4"):
        trainer.take_epoch()


def test_other_runtime_errors_are_not_taken_for_a_shortage(source, small, plan_of, tmp_path, monkeypatch) -> None:
    trainer = trainer_of(source, small, plan_of, tmp_path, Recipe(name="full", batch_size=8))

    def broken(batch, generator=None):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainer.network, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        trainer.take_epoch()
