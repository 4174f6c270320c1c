"""Batches: what they hold, that they repeat, that they fit the training step."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from pretrain_data import BAND_SETS, FULL, LANDSAT, S1, S2, put_dataset, sample, some_presence

from olmoearth_cli.core.architecture import EncoderConfig
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.normalize import band_range
from olmoearth_cli.core.objective import Objective
from olmoearth_cli.core.pretrain_step import PretrainBatch, fresh_model
from olmoearth_cli.errors import InputError, RunError
from olmoearth_pipelines.samples import assemble as assembling
from olmoearth_pipelines.samples.assemble import BatchPlan, Key, assemble, draw_layout, draw_symmetries
from olmoearth_pipelines.samples.crops import turned
from olmoearth_pipelines.samples.layout import SampleFolder, open_folder
from olmoearth_pipelines.samples.loader import SampleLoader, _watched
from olmoearth_pipelines.samples.order import epoch_order, usable_samples

PLAN = BatchPlan(band_sets=BAND_SETS, global_batch=6, microbatch=3, seed=11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SampleFolder:
    rng = np.random.default_rng(5)
    maps = ("worldcover", "cdl", "openstreetmap_raster")
    samples = [sample(32, some_presence(rng), maps[: i % 4], seed=i) for i in range(20)]
    return open_folder(put_dataset(tmp_path_factory.mktemp("data") / "20", samples))


@pytest.fixture(scope="module")
def used(folder: SampleFolder) -> np.ndarray:
    return usable_samples(folder, tuple(MODALITIES))


def flat(batch: PretrainBatch) -> list[torch.Tensor]:
    mappings = (*batch.inputs, *batch.codes)
    return [batch.timestamps, torch.tensor(batch.patch_px), *(each[m] for each in mappings for m in each)]


def assert_same(one: Iterable[PretrainBatch], other: Iterable[PretrainBatch]) -> None:
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def test_batches_do_not_depend_on_workers_or_on_where_a_run_was_resumed(folder, used) -> None:
    plain = SampleLoader(folder, used, PLAN)
    assert plain.steps_per_epoch == 3 and plain.plan.parts == 2
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    batches = list(plain.microbatches(0, 7))  # two epochs and a step
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(batches) == 14
    assert_same(batches, SampleLoader(folder, used, PLAN, workers=2).microbatches(0, 7))
    for first in (2, 4):
        state = plain.state(first)
        resumed = SampleLoader(folder, used, PLAN)
        assert resumed.resumed(state) == first
        assert_same(batches[2 * first :], resumed.microbatches(first, 7))
    assert not torch.equal(batches[0].timestamps, batches[6].timestamps)


def test_a_resume_on_other_data_is_refused(folder, used) -> None:
    state = SampleLoader(folder, used, PLAN).state(4)
    assert (state["step"], state["epoch"], state["batch"]) == (4, 2, 1)
    with pytest.raises(InputError, match="used_samples was 20, is 19"):
        SampleLoader(folder, used[1:], PLAN).resumed(state)
    with pytest.raises(InputError, match="seed was 11, is 12"):
        SampleLoader(folder, used, replace(PLAN, seed=12)).resumed(state)
    with pytest.raises(InputError, match="csv_sha256"):
        SampleLoader(replace(folder, csv_sha256="0"), used, PLAN).resumed(state)


def test_an_epoch_holds_every_sample_once_over_all_ranks(folder, used, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        "olmoearth_pipelines.samples.loader.assemble",
        lambda path, indices, plan, key, side: seen.append((key, indices)),
    )
    for rank in range(2):
        plan = replace(PLAN, global_batch=8, microbatch=2, rank=rank, world_size=2)
        list(SampleLoader(folder, used, plan).microbatches(2, 4))  # epoch 2: two steps of 8
    order = epoch_order(used, epoch=2, seed=11, global_batch=8)
    assert [key for key, _ in seen[:4]] == [(2, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1)]
    assert [indices.tolist() for _, indices in seen[:2]] == [order[0, [0, 2]].tolist(), order[0, [4, 6]].tolist()]
    assert sorted(np.concatenate([indices for _, indices in seen])) == sorted(order.ravel())


def test_inputs_are_normalised_where_present_and_codes_say_what_is_missing(folder, used) -> None:
    key = Key(1, 0, 0)
    batch = assemble(folder.path, used[:6], PLAN, key, 32)
    grid, periods = draw_layout(PLAN, key, 32)
    assert batch.patch_px == grid.patch_px and len(batch) == 6 and len(batch.inputs) == 1
    assert batch.timestamps.shape == (6, periods, 3) and batch.timestamps.dtype == torch.int64
    for name, modality in MODALITIES.items():
        t = periods if modality.multitemporal else 1
        values = batch.inputs[0][name]
        assert values.shape == (6, grid.side_px, grid.side_px, t, len(modality.bands)) and values.dtype == torch.float32
        empty = values == -99999
        per_period = empty.all(dim=(1, 2, 4))
        assert torch.equal(per_period, empty.any(dim=(1, 2, 4)))  # a timestep is there or not
        assert values[~empty].abs().max() < 10 if not empty.all() else True
        for codes in batch.codes:
            assert codes[name].shape == (6, grid.side, grid.side, t, 1) and codes[name].dtype == torch.uint8
            assert torch.equal(codes[name] == 3, per_period[:, None, None, :, None].expand_as(codes[name]))
    shown = [any((codes[m][i] == 0).any() for m in MODALITIES) for codes in batch.codes for i in range(6)]
    assert all(shown)
    assert any(not torch.equal(batch.codes[0][m], batch.codes[1][m]) for m in MODALITIES)


def test_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    """One pixel by hand: a sample whose Sentinel-2 values name row, column and timestep."""
    content = sample(32, {S2: FULL})
    rows, columns, months = np.ogrid[:32, :32, :12]
    content.images[S2][:] = (rows * 1000 + columns * 20 + months)[..., None]
    folder = open_folder(put_dataset(tmp_path / "1", [content]))
    plan = replace(PLAN, global_batch=1, microbatch=1, band_sets={S2: 1, S1: 1})
    for batch in range(12):
        made = assemble(folder.path, np.array([0]), plan, Key(1, batch, 0), 32)
        limits = band_range(S2)
        raw = made.inputs[0][S2][0].double().numpy() * (limits.hi - limits.lo) + limits.lo
        h, w, t, _ = raw.shape
        first = round(raw[0, 0, 0, 0])
        expected = first + np.arange(h)[:, None, None] * 1000 + np.arange(w)[:, None] * 20 + np.arange(t)
        np.testing.assert_allclose(raw, np.broadcast_to(expected[..., None], raw.shape), atol=0.02)
        assert made.timestamps[0, :, 1].tolist() == list(range(first % 20, first % 20 + t))


def test_one_grid_per_rank_and_batch_or_per_microbatch() -> None:
    keys = [Key(1, batch, part) for batch in range(40) for part in range(2)]
    shared = [draw_layout(PLAN, key, 128) for key in keys]
    assert all(a == b for a, b in zip(shared[::2], shared[1::2], strict=True))
    assert len({grid for grid, _ in shared}) > 25
    own = [draw_layout(replace(PLAN, grid_per="microbatch"), key, 128) for key in keys]
    assert sum(a != b for a, b in zip(own[::2], own[1::2], strict=True)) > 30
    assert own[::2] == shared[::2]
    other = [draw_layout(replace(PLAN, world_size=2, microbatch=1, rank=1), key, 128) for key in keys]
    assert other != shared
    later = [draw_layout(PLAN, key._replace(epoch=2), 128) for key in keys]
    assert later != shared


def test_the_model_budget_lengthens_series() -> None:
    keys = [Key(1, batch, 0) for batch in range(300)]
    v1 = dict({g.side: t for g, t in (draw_layout(PLAN, key, 128) for key in keys)})
    own = dict({g.side: t for g, t in (draw_layout(replace(PLAN, budget_groups="model"), k, 128) for k in keys)})
    assert (v1[8], v1[12], own[8], own[12]) == (4, 1, 9, 3)


def test_symmetries_follow_the_setting(folder, used, monkeypatch) -> None:
    keys = [Key(1, batch, part) for batch in range(400) for part in range(2)]
    assert draw_symmetries(PLAN, keys[0]) == (0,)
    shared = [draw_symmetries(replace(PLAN, augment="shared"), key) for key in keys]
    assert shared[::2] == shared[1::2] and {len(s) for s in shared} == {1}
    both = np.array([draw_symmetries(replace(PLAN, augment="per_view"), key) for key in keys])
    table = np.zeros((8, 8))
    np.add.at(table, tuple(both.T), 1)
    assert ((table - 12.5) ** 2 / 12.5).sum() < 110  # 99.98 % quantile for 63 degrees of freedom
    assert 20 < sum((a == b).all() for a, b in zip(both[::2], both[1::2], strict=True)) + 20 < 50  # chance: 400 / 64

    monkeypatch.setattr(assembling, "draw_symmetries", lambda plan, key: (0,))
    plain = assemble(folder.path, used[:2], PLAN, Key(1, 1, 0), 32)
    monkeypatch.setattr(assembling, "draw_symmetries", lambda plan, key: (3, 6))
    moved = assemble(folder.path, used[:2], replace(PLAN, augment="per_view"), Key(1, 1, 0), 32)
    assert len(moved.inputs) == 2 and torch.equal(moved.timestamps, plain.timestamps)
    for symmetry, inputs in zip((3, 6), moved.inputs, strict=True):
        for name, values in inputs.items():
            for i in range(2):
                expected = turned(plain.inputs[0][name][i].numpy(), symmetry)
                np.testing.assert_array_equal(values[i].numpy(), expected)
    assert all(torch.equal(a, b) for a, b in zip(flat(moved)[-18:], flat(plain)[-18:], strict=True))


def test_a_subset_of_modalities_is_all_that_is_read(folder) -> None:
    plan = replace(PLAN, band_sets={LANDSAT: 2, "cdl": 1}, microbatch=1, global_batch=1)
    with_landsat = usable_samples(folder, (LANDSAT, "cdl"))
    assert len(with_landsat) < 20
    for batch in SampleLoader(folder, with_landsat, plan).microbatches(0, 5):
        assert set(batch.inputs[0]) == {LANDSAT, "cdl"} == set(batch.codes[1])
        assert batch.codes[0][LANDSAT].shape[-1] == 2
        assert (batch.codes[0][LANDSAT] == 0).any()


def test_a_bad_sample_is_one_clear_error_here_and_from_a_worker(tmp_path: Path) -> None:
    leaf = put_dataset(tmp_path / "2", [sample(32, {S2: FULL}) for _ in range(2)])
    loader = SampleLoader(open_folder(leaf), np.arange(2), replace(PLAN, global_batch=2, microbatch=1))
    with h5py.File(leaf / "sample_1.h5", "r+") as file:
        file[f"missing_timesteps_masks/{S2}"][3] = False
    with pytest.raises(InputError, match=r"sample_1\.h5: sentinel2_l2a holds 12 timesteps"):
        list(loader.microbatches(0, 1))
    items = [loader._microbatches[Key(1, 0, part)] for part in range(2)]  # what a worker would send
    (error,) = (item for item in pickle.loads(pickle.dumps(items)) if not isinstance(item, PretrainBatch))
    assert isinstance(error, InputError) and "sample_1.h5" in str(error)


def test_samples_of_another_size_and_lying_tables_are_refused(tmp_path: Path) -> None:
    leaf = put_dataset(tmp_path / "2", [sample(32, {S2: FULL}), sample(16, {S2: FULL})])
    loader = SampleLoader(open_folder(leaf), np.arange(2), replace(PLAN, global_batch=2, microbatch=2))
    with pytest.raises(InputError, match=r"sample_1\.h5: rasters of 16 px, but the dataset's samples have 32"):
        list(loader.microbatches(0, 1))
    with pytest.raises(InputError, match="2 samples can be used, fewer than one batch of 3"):
        SampleLoader(open_folder(leaf), np.arange(2), replace(PLAN, global_batch=3, microbatch=3))
    with h5py.File(leaf / "sample_0.h5", "r+") as file:
        del file[S2], file["missing_timesteps_masks"]
        file["worldcover"] = np.ones((32, 32, 1, 1), "u1")
    with pytest.raises(InputError, match=r"sample_0\.h5: no timestep of"):
        assemble(leaf, np.array([0]), PLAN, Key(1, 0, 0), 32)


@pytest.mark.parametrize("error", [RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), EOFError()])
def test_a_dead_worker_is_told_in_our_words(error: Exception) -> None:
    def batches():
        yield 1
        raise error

    watched = _watched(batches(), 3)
    assert next(watched) == 1
    with pytest.raises(RunError, match="one of 3 data workers died"):
        next(watched)


def test_plans_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="not a multiple of 4 samples per forward"):
        replace(PLAN, microbatch=4)
    with pytest.raises(InputError, match="augment 'all'"):
        replace(PLAN, augment="all")
    with pytest.raises(ValueError, match="rank 1 of 1"):
        replace(PLAN, rank=1)


def test_the_training_step_takes_the_batches(folder, used) -> None:
    config = EncoderConfig(embedding_size=16, depth=1, num_heads=2, mlp_ratio=1.0)
    sets = {m: len(config.band_sets(m)) for m in config.modalities}
    model = fresh_model(config, 0, 1)
    for augment in ("none", "per_view"):
        plan = replace(PLAN, band_sets=sets, augment=augment)
        for batch in SampleLoader(folder, used, plan).microbatches(0, 2):
            loss = model.loss(batch, Objective())
            assert torch.isfinite(loss.total) and set(loss.per_modality) == set(batch.inputs[0])
