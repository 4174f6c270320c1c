from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from task_fakes import (
    S1,
    S2,
    FakeReader,
    map_reader,
    map_task,
    scene_reader,
    scene_task,
    series_reader,
    series_task,
)

from olmoearth_cli.core.model import OlmoEarthModel, random_model
from olmoearth_cli.core.probe.knn import fit_knn
from olmoearth_cli.core.probe.linear import LinearFit, LinearRecipe
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.judging import Judged, judge
from olmoearth_pipelines.tasks.protocol import TaskResult, run_task
from olmoearth_pipelines.tasks.request import TaskRequest, plan_task

QUICK = TaskRequest(k=3, rounds=20)
FEW = {"epochs": 6, "eval_interval": 2, "lrs": (0.01, 0.1)}


@pytest.fixture(scope="module")
def nano() -> OlmoEarthModel:
    return random_model("v1.2-nano", seed=1)


def result_of(model, task, reader, request) -> dict:
    *_, last = run_task(model, task, reader, request)
    assert isinstance(last, TaskResult)
    json.dumps(last.content, allow_nan=False)
    return last.content


def test_classes_that_shift_the_bands_are_told_apart_and_everything_is_on_record(nano) -> None:
    reader = scene_reader()
    content = result_of(nano, scene_task(), reader, QUICK)
    assert content["test"]["accuracy"] == content["val"]["accuracy"] == 1.0
    assert content["class_f1"] == {"0": 1.0, "1": 1.0}
    assert content["split_sizes"] == {"train": 24, "val": 12, "test": 12}
    assert content["model"]["weights_sha256"] == nano.weights_sha256
    assert content["chosen"] == {"normalisation": "pre_trained", "pooling": "mean", "k": 3}
    assert [(point["normalisation"], point["pooling"]) for point in content["sweep"]] == [
        ("pre_trained", "mean"),
        ("pre_trained", "max"),
        ("dataset", "mean"),
        ("dataset", "max"),
    ]
    assert content["bootstrap"]["metric"] == "accuracy" and content["bootstrap"]["rounds"] == 20
    assert content["settings"]["k"] == 3 and content["seed"] == 42 and content["device"] == "cpu"
    assert content["diagnostics"]["num_samples"] == 24
    assert content["samples_per_second"] > 0 and content["seconds"] > 0
    # 4 patches: blocks 12 D^2 L N + norms 4 D N (2 L + 1) + embedding N (64 * 12 * 12 + 64 * 12 D) + head D^2
    linear = 3_145_728 + 18_432 + 430_080 + 16_384
    assert content["macs"] == {"linear_and_norm_only": linear, "with_attention": linear + 2 * 4 * 4**2 * 128}


def test_the_run_is_chosen_on_validation_even_where_another_is_better_on_test(nano, tmp_path: Path) -> None:
    """Labels that say nothing: the four runs differ by chance, and differently on val and test."""
    reader, request = scene_reader((24, 40, 40), seed=7, shift=0.0), replace(QUICK, cache=tmp_path, rounds=0)
    legs = [(n, p) for n in ("pre_trained", "dataset") for p in ("mean", "max")]
    single = [
        result_of(nano, scene_task(), reader, replace(request, normalisations=(n,), poolings=(p,))) for n, p in legs
    ]
    val, test = ([one[split]["accuracy"] for one in single] for split in ("val", "test"))
    chosen = int(np.argmax(val))
    assert val.count(max(val)) == 1 and test[chosen] < max(test)
    *_, progress, last = run_task(nano, scene_task(), reader, replace(request, cache=None))
    content = last.content
    assert progress.step == f"encode test, {legs[chosen][0]} statistics" and legs[chosen][0] == "dataset"
    assert (content["chosen"]["normalisation"], content["chosen"]["pooling"]) == legs[chosen]
    assert content["test"] == single[chosen]["test"]  # with the scores' own metrics, AUROC and PR-AUC
    assert [point["val"] for point in content["sweep"]] == val


def test_the_test_split_is_read_once_and_the_others_once_per_normalisation(nano) -> None:
    reader = scene_reader()
    steps = [
        report.step for report in run_task(nano, scene_task(), reader, QUICK) if not isinstance(report, TaskResult)
    ]
    assert reader.reads["test"] == 1 and reader.reads["val"] == 2
    assert reader.reads["train"] == 3  # once more for the statistics that the benchmark does not publish
    assert [step for step in steps if step.startswith("fit")][-1] == "fit knn, dataset statistics, max pooling"
    assert "test" in steps[-1] and not any("test" in step for step in steps[:-1])


def test_defaults_only_runs_one_leg_at_the_tasks_own_rate(nano) -> None:
    content = result_of(nano, scene_task(method="linear", lr=0.05), scene_reader(), replace(QUICK, sweep=False))
    assert [point["lr"] for point in content["sweep"]] == [0.05]
    assert content["chosen"] == {"normalisation": "pre_trained", "pooling": "mean", "lr": 0.05}


def test_a_linear_probe_sweeps_rates_and_says_which_epoch_it_kept(nano) -> None:
    content = result_of(nano, scene_task(method="linear"), scene_reader(), replace(QUICK, recipe=FEW))
    assert content["test"]["accuracy"] == 1.0
    assert content["chosen"]["lr"] in FEW["lrs"] and content["epoch"] in (2, 4, 6)
    assert content["settings"]["lrs"] == [0.01, 0.1] and content["settings"]["batch_size"] == 32


def test_segmentation_is_scored_over_all_labelled_pixels_of_the_split(nano) -> None:
    content = result_of(nano, map_task(), map_reader(), replace(QUICK, recipe=FEW | {"epochs": 20}))
    assert content["test"]["miou"] > 0.9 and content["regime"] == "linear"
    assert content["bootstrap"]["metric"] == "miou"


def test_a_series_of_two_satellites_runs_through(nano) -> None:
    request = replace(QUICK, modalities=(S2, S1), recipe=FEW)
    content = result_of(nano, series_task(), series_reader(12), request)
    assert content["column"] == "fake-series S1+S2" and content["settings"]["patch_px"] == 1
    linear = 4_718_592 + 27_648 + 3 * (107_520 + 99_840) + 16_384  # 3 months of both: 6 tokens, one head
    assert content["macs"] == {"linear_and_norm_only": linear, "with_attention": linear + 2 * 4 * 6**2 * 128}


def test_several_labels_are_judged_by_micro_f1_and_resampled_by_micro_map_in_parity_only(nano) -> None:
    single = scene_reader()
    splits = {
        split: [replace(it, target=np.array([1, it.target, 1 - it.target], np.uint8)) for it in single.read(split)]
        for split in ("train", "val", "test")
    }
    task = scene_task(kind="multilabel", classes=3, metric="f1")
    product = result_of(nano, task, FakeReader(splits), QUICK)
    parity = result_of(nano, task, FakeReader(splits), replace(QUICK, parity=True))
    assert product["test"]["f1"] == parity["test"]["f1"] == 1.0
    assert (product["bootstrap"]["metric"], parity["bootstrap"]["metric"]) == ("f1", "micro_map")


def test_more_neighbours_than_training_rows_are_clamped_and_refused_in_parity(nano) -> None:
    request = replace(QUICK, k=20, max_train=7)
    content = result_of(nano, scene_task(), scene_reader(), request)
    assert content["chosen"]["k"] == content["train_rows"] == 7 and content["split_sizes"]["train"] == 24
    with pytest.raises(InputError, match="k = 20 neighbours of 7 training rows"):
        list(run_task(nano, scene_task(), scene_reader(), replace(request, parity=True)))


def test_parity_numbers_the_classes_by_position_and_validates_once(nano) -> None:
    """Class 1 of 3 never occurs: its figure is absent by position and null by class id."""
    reader = scene_reader()
    splits = {
        s: [replace(it, target=np.int64(2 * it.target)) for it in reader.read(s)] for s in ("train", "val", "test")
    }
    task = scene_task(classes=3)
    product = result_of(nano, task, FakeReader(splits), QUICK)
    parity = result_of(nano, task, FakeReader(splits), replace(QUICK, parity=True))
    assert product["class_f1"] == {"0": 1.0, "1": None, "2": 1.0}
    assert parity["class_f1"] == {"0": 1.0, "1": 1.0} and parity["class_f1_by_position"]
    assert plan_task(map_task(), TaskRequest(parity=True)).recipe.eval_interval == 50
    assert plan_task(map_task(), TaskRequest(parity=True, recipe={"eval_interval": 5})).recipe.eval_interval == 5
    assert plan_task(map_task(), TaskRequest()).recipe == LinearRecipe(batch_size=8, metric="miou")


def test_vectors_sent_through_int8_and_principal_components_are_still_told_apart(nano) -> None:
    content = result_of(nano, scene_task(), scene_reader(), replace(QUICK, quantise=True, pca=4))
    assert content["test"]["accuracy"] == 1.0
    assert 0 <= content["saturation"] < 1 and 0 < content["pca_kept_variance"] <= 1


def test_an_absent_split_and_unsuitable_requests_are_refused(nano) -> None:
    whole = scene_reader()
    short = FakeReader({split: list(whole.read(split)) for split in ("train", "test")})
    with pytest.raises(InputError, match="no val samples"):
        list(run_task(nano, scene_task(), short, QUICK))
    for task, request, message in (
        (map_task(), TaskRequest(method="knn"), "kNN does not judge"),
        (scene_task(), TaskRequest(metric="miou"), "metric 'miou' is none of accuracy"),
        (scene_task(), TaskRequest(metric="f1_class_2"), "f1_class_2"),
        (scene_task(), TaskRequest(partition="0.01"), "no label fraction 0.01"),
        (scene_task(), TaskRequest(poolings=("median",)), "pooling median"),
        (series_task(), TaskRequest(), "name the modality"),
        (map_task(), TaskRequest(recipe={"lrs": (-1.0,)}), "learning rates must be above 0"),
        (scene_task(kind="multilabel", metric="f1"), TaskRequest(method="linear", parity=True), "no multi-label"),
    ):
        with pytest.raises(InputError, match=message):
            plan_task(task, request)


def test_images_are_resampled_whole() -> None:
    """Two images of 4 pixels: one all right, one all wrong. mIoU is 1, 0 or (2/6 + 2/6) / 2 for both together."""
    confusions = np.array([[[2, 0], [0, 2]], [[0, 2], [2, 0]]])
    judged = Judged(kind="segmentation", classes=2, by_position=False, truth=confusions)
    spread = judged.resampled("miou", rounds=50, seed=42)
    assert {round(value, 6) for value in spread.values} == {0.0, 0.333333, 1.0}


def test_a_judged_split_agrees_with_scikit_learn_over_all_pixels(nano) -> None:
    from olmoearth_cli.core.probe.linear import fit_linear

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 2, 2, 5)).astype(np.float32), rng.integers(-1, 3, (20, 4, 4))
    recipe = LinearRecipe(epochs=3, lrs=(0.1,), metric="miou")
    fit: LinearFit = fit_linear(x, y, kind="segmentation", classes=3, recipe=recipe)
    judged = judge(fit.probe, x, y, by_position=False)
    predicted = fit.probe.predict(fit.probe.scores_images(x, 4))
    valid = y >= 0
    assert judged.truth.shape == (20, 3, 3) and judged.truth.sum() == valid.sum()
    expected = jaccard_score(y[valid], predicted[valid], average="macro")
    assert judged.metrics()["miou"] == pytest.approx(expected, abs=1e-6)


def test_knn_in_a_task_is_the_cores_own(nano) -> None:
    """The whole road, against features made here and scikit-learn-free kNN on them."""
    reader = scene_reader((20, 10, 10), seed=5, shift=0.05)
    content = result_of(nano, scene_task(), reader, replace(QUICK, sweep=False, rounds=0))

    def vectors(split: str) -> tuple[np.ndarray, np.ndarray]:
        from olmoearth_cli.core.normalize import normalize

        made, targets = [], []
        for it in reader.read(split):
            scaled = torch.from_numpy(normalize(S2, it.inputs[S2], release="v1.2"))[None]
            tokens = nano.encode({S2: scaled}, torch.from_numpy(it.timestamps)[None], None, 4)[S2]
            made.append(tokens.flatten(0, -2).mean(dim=0).numpy())
            targets.append(int(it.target))
        return np.stack(made), np.array(targets)

    probe = fit_knn(*vectors("train"), kind="classification", classes=2, k=3)
    queries, truth = vectors("test")
    assert content["test"]["accuracy"] == (probe.predict(probe.scores(queries)) == truth).mean()
