"""Benchmarks as windows: the samples as published, normalised by the protocol's statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from olmoearth_cli.core.probe.statistics import normalize_by_dataset
from olmoearth_cli.core.spec import find_spec
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_pipelines.tasks.features import TaskProgress
from olmoearth_pipelines.tasks.registry import TASKS, open_task
from olmoearth_pipelines.tasks.task import BandTable
from olmoearth_pipelines.windows import from_task
from olmoearth_pipelines.windows.arrays import collate, window_arrays
from olmoearth_pipelines.windows.folder import WindowFolder
from olmoearth_pipelines.windows.from_task import task_windows
from tests.unit.pipelines.tasks.task_fakes import (
    FakeReader,
    bands,
    map_reader,
    map_task,
    sample,
    scene_reader,
    scene_task,
    series_reader,
    series_task,
)
from tests.unit.pipelines.tasks.task_files import L8_NAMES, geobench_sample, geobench_tables

S2, S1, L8 = "sentinel2_l2a", "sentinel1", "landsat"
SPEC = find_spec("v1.2-nano")


def converted(task, reader, folder, **more) -> WindowFolder:
    *progress, found = task_windows(task, reader, folder, **more)
    assert all(isinstance(step, TaskProgress) for step in progress)
    return found


def test_every_sample_becomes_a_window_of_its_split(tmp_path, monkeypatch):
    monkeypatch.setattr(from_task, "SHARD_WINDOWS", 5)
    reader = map_reader((16, 8, 4))
    *progress, found = task_windows(map_task(), reader, tmp_path)
    assert [(step.step, step.done, step.total) for step in progress[:4]] == [
        ("write train windows", 5, 16),
        ("write train windows", 10, 16),
        ("write train windows", 15, 16),
        ("write train windows", 16, 16),
    ]
    assert [len(found.split(split)) for split in ("train", "val", "test")] == [16, 8, 4]
    for split in ("train", "val", "test"):
        for number, one in zip(found.split(split), reader.read(split), strict=True):
            window = found.read(number)
            assert window.id == f"{split}/{one.id}"
            assert np.array_equal(window.images[S2], one.inputs[S2])
            assert np.array_equal(window.target, one.target)
            assert np.array_equal(window.timestamps, one.timestamps)
    assert (found.task.kind, len(found.task.class_names), found.task.window_px) == ("segmentation", 2, 8)
    assert found.task.normalisation is None
    assert not found.task.real_dates
    assert found.task.facts["patch_px"] == 4


def test_series_keep_their_lengths_dates_and_gaps(tmp_path):
    found = converted(series_task(), series_reader(), tmp_path)
    assert (found.task.periods, found.task.real_dates, found.task.modalities) == (6, True, (S2, S1))
    window = found.read(int(found.split("train")[1]))
    assert len(window.timestamps) == 4
    assert window.valid[S2][0, 0].tolist() == [True, False, True, True]
    assert window.valid[S1].all()
    assert (window.images[S2][:, :, 1] == 0).all()
    batch = collate([found.read(int(n)) for n in found.split("train")], SPEC, patch_px=1)
    assert batch.visible[S1][:, 0, 0, :, 0].sum(dim=1).tolist() == [3, 4, 5, 6, 3, 4, 5]


def test_a_second_call_reads_the_first_samples_alone(tmp_path):
    reader = scene_reader()
    first = converted(scene_task(), reader, tmp_path)
    read_once = dict(reader.reads)
    again = converted(scene_task(), reader, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert dict(reader.reads) == read_once
    with pytest.raises(OutputError, match="other settings"):
        converted(scene_task(), scene_reader(seed=1), tmp_path)


def test_a_label_fraction_thins_the_training_split_alone(tmp_path):
    found = converted(scene_task(partitions=("0.50",)), scene_reader(), tmp_path, partition="0.50")
    assert [len(found.split(split)) for split in ("train", "val", "test")] == [12, 12, 12]


def test_the_protocols_own_statistics_are_measured_on_the_training_split(tmp_path):
    task = replace(TASKS["mados"], side_px=8, classes=2)
    reader = map_reader()
    found = converted(task, reader, tmp_path)
    pixels = np.concatenate([one.inputs[S2].reshape(-1, 12) for one in reader.read("train")]).astype(np.float64)
    mean, std = pixels.mean(axis=0), pixels.std(axis=0)
    low, high = found.task.normalisation[S2]
    assert np.allclose(low, mean - 2 * std, rtol=1e-6)
    assert np.allclose(high, mean + 2 * std, rtol=1e-6)
    window = found.read(0)
    images, _ = window_arrays(window, SPEC, patch_px=4, normalisation=found.task.normalisation)
    expected = normalize_by_dataset(window.images[S2], "norm_no_clip_2_std", mean=mean, std=std)
    assert np.allclose(images[S2], expected, atol=1e-5)


def test_copied_bands_carry_the_normalised_value_of_their_source(tmp_path):
    task = replace(TASKS["m-forestnet"], side_px=8, classes=2)
    reader = scene_reader()
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        made = [sample(f"{n}", {L8: bands(L8, 8, 1, rng)}, np.int64(n % 2)) for n in range(4)]
        reader._splits[split] = made
    table = BandTable(mean=np.arange(11.0) + 500, std=np.arange(11.0) + 50, copied={0: 3, 9: 7})
    reader._tables[L8] = table
    low, high = converted(task, reader, tmp_path).task.normalisation[L8]
    assert (low[0], high[0], low[9], high[9]) == (503 - 2 * 53, 503 + 2 * 53, 507 - 2 * 57, 507 + 2 * 57)
    assert (low[1], high[1]) == (501 - 2 * 51, 501 + 2 * 51)


def test_samples_that_cannot_be_read_by_a_model_are_named(tmp_path):
    rng = np.random.default_rng(0)
    good, small, broken = (bands(S2, side, 1, rng) for side in (8, 4, 8))
    broken[0, 0, 0, 0] = np.nan
    for name, values in (("small", small), ("broken", broken)):
        made = [sample("first", {S2: good}, np.int64(0)), sample(name, {S2: values}, np.int64(1))]
        with pytest.raises(InputError, match=f"fake-scenes train, sample {name}, {S2}"):
            converted(scene_task(), FakeReader({"train": made}), tmp_path / name)
    flat = [sample("a", {S2: np.ones((8, 8, 1, 12), np.float32)}, np.zeros((8, 8), np.int64))]
    with pytest.raises(InputError, match=r"mados, sentinel2_l2a: B02, .* do not vary"):
        converted(replace(TASKS["mados"], side_px=8), FakeReader({"train": flat}), tmp_path / "flat")


def test_a_geobench_folder_is_fine_tuned_with_its_published_statistics(tmp_path):
    task = TASKS["m-forestnet"]
    rng = np.random.default_rng(1)
    home = tmp_path / "geobench" / "classification_v1.0" / "m-forestnet"
    home.mkdir(parents=True)
    for name in ("a", "b", "c"):
        planes = {band: rng.integers(0, 255, (332, 332)).astype(np.uint8) for band in L8_NAMES}
        geobench_sample(home, name, planes, label=3)
    geobench_tables(home, dict.fromkeys(L8_NAMES, 100.0), {"train": ["a"], "valid": ["b"], "test": ["c"]}, {})
    reader = open_task("m-forestnet", tmp_path / "geobench")
    found = converted(task, reader, tmp_path / "windows")
    published = reader.statistics(L8)
    low, high = found.task.normalisation[L8]
    assert np.allclose((np.array(low) + high) / 2, published.mean)
    assert np.allclose((np.array(high) - low) / 4, published.std)
    assert found.read(0).target == 3
    assert found.read(1).images[L8].shape == (332, 332, 1, 11)
