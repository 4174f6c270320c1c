from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from task_fakes import (
    S1,
    S2,
    FakeReader,
    bands,
    finish,
    map_reader,
    map_task,
    sample,
    scene_reader,
    scene_task,
    series_reader,
    series_task,
)

from olmoearth_cli.core.model import OlmoEarthModel, random_model
from olmoearth_cli.core.normalize import band_statistics, normalize
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.features import Extraction, Extractor
from olmoearth_pipelines.tasks.task import BandTable

SCENES = Extraction(modalities=(S2,), patch_px=4)
SERIES = Extraction(modalities=(S2, S1), patch_px=1)


@pytest.fixture(scope="module")
def nano() -> OlmoEarthModel:
    return random_model("v1.2-nano", seed=1)


class EncodingError(Exception):
    """Raised by a model that must not be asked to encode."""


def refusing(model: OlmoEarthModel) -> OlmoEarthModel:
    other = replace(model)

    def refuse(*_: object) -> None:
        raise EncodingError

    other.encode = refuse  # type: ignore[method-assign,assignment]
    return other


def encoded_alone(model: OlmoEarthModel, it, patch: int) -> dict[str, np.ndarray]:
    """Tokens {modality: [Y, X, T, S, D]} of one sample's present periods, each modality's own, all in one pass."""
    inputs, masks = {}, {}
    for name, values in it.inputs.items():
        gone = it.missing.get(name, np.zeros(len(it.timestamps), bool))
        scaled = normalize(name, np.where(gone[:, None], 0, values), release="v1.2")
        inputs[name] = torch.from_numpy(scaled)[None]
        sets = len(model.spec.band_sets(name))
        codes = torch.from_numpy(np.where(gone, 3, 0))[None, None, None, :, None]
        masks[name] = codes.expand(*inputs[name].shape[:4], sets)
    tokens = model.encode(inputs, torch.from_numpy(it.timestamps)[None], masks, patch)
    return {
        name: values[0].numpy()[:, :, ~it.missing.get(name, np.zeros(len(it.timestamps), bool))]
        for name, values in tokens.items()
    }


@pytest.mark.parametrize("batch", [1, 3, None])
def test_a_series_vector_is_the_mean_and_maximum_over_its_own_tokens_in_any_batch(nano, batch) -> None:
    reader = series_reader()
    extractor = Extractor(nano, series_task(), reader, replace(SERIES, batch=batch))
    found = finish(extractor.features("train", "pre_trained"))
    assert found.ids == tuple(f"s{i}" for i in range(7)) and found.targets.tolist() == [0, 1, 0, 1, 0, 1, 0]
    for i, it in enumerate(reader.read("train")):
        tokens = encoded_alone(nano, it, 1)
        flat = np.concatenate([values.reshape(-1, values.shape[-1]) for values in tokens.values()])
        np.testing.assert_allclose(found.vectors["mean"][i], flat.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(found.vectors["max"][i], flat.max(axis=0), atol=1e-5)


def test_a_map_averages_within_each_modality_and_then_over_the_modalities_of_that_sample(nano) -> None:
    rng = np.random.default_rng(0)
    stamps = np.array([[1, 0, 2021], [1, 1, 2021]])
    both = {m: bands(m, 8, 2, rng) for m in (S2, S1)}
    missing = {S1: np.array([True, True])}
    made = [
        sample("both", both, np.zeros((8, 8), np.int64), stamps=stamps),
        sample("one", both, np.zeros((8, 8), np.int64), stamps=stamps, missing=missing),
    ]
    task = map_task(modalities=(S2, S1))
    extractor = Extractor(nano, task, FakeReader({"train": made}), Extraction(modalities=(S2, S1), patch_px=4))
    found = finish(extractor.features("train", "pre_trained"))
    assert found.vectors["mean"].shape == (2, 2, 2, 128)
    for row, it in enumerate(made):
        maps = [values for values in encoded_alone(nano, it, 4).values() if values.size]
        assert len(maps) == 2 - row
        mean = np.mean([values.mean(axis=(2, 3)) for values in maps], axis=0)
        highest = np.max([values.max(axis=(2, 3)) for values in maps], axis=0)
        np.testing.assert_allclose(found.vectors["mean"][row], mean, atol=1e-5)
        np.testing.assert_allclose(found.vectors["max"][row], highest, atol=1e-5)


def test_the_centre_token_is_the_patch_after_the_middle(nano) -> None:
    reader = scene_reader((2, 1, 1))
    extractor = Extractor(nano, scene_task(), reader, replace(SCENES, centre_token=True))
    found = finish(extractor.features("train", "pre_trained"))
    for i, it in enumerate(reader.read("train")):
        tokens = encoded_alone(nano, it, 4)[S2]  # 2 2 1 1 D
        np.testing.assert_allclose(found.vectors["mean"][i], tokens[1, 1, 0, 0], atol=1e-5)


def test_data_set_statistics_equal_to_those_of_pretraining_change_nothing(nano) -> None:
    facts = band_statistics(S2)
    table = BandTable(mean=facts.mean, std=facts.std)
    extractor = Extractor(nano, scene_task(), scene_reader((4, 1, 1), tables={S2: table}), SCENES)
    own = finish(extractor.features("train", "dataset")).vectors["mean"]
    np.testing.assert_allclose(own, finish(extractor.features("train", "pre_trained")).vectors["mean"], atol=1e-5)


def test_a_copied_band_takes_its_sources_value_again_after_normalising(nano) -> None:
    """B01 (11th) copied from B02 (1st): the vectors are those of a sample whose B01 normalises to the same value."""
    facts, reader = band_statistics(S2), scene_reader((3, 1, 1))
    table = BandTable(mean=facts.mean, std=facts.std, copied={10: 0})
    equal = []
    for it in reader.read("train"):
        values = it.inputs[S2].copy()
        values[..., 10] = facts.mean[10] + (values[..., 0] - facts.mean[0]) / facts.std[0] * facts.std[10]
        equal.append(replace(it, inputs={S2: values}))
    copied = Extractor(nano, scene_task(), scene_reader((3, 1, 1), tables={S2: table}), SCENES)
    plain = Extractor(nano, scene_task(), FakeReader({"train": equal}), SCENES)
    got = finish(copied.features("train", "pre_trained")).vectors["mean"]
    want = finish(plain.features("train", "pre_trained")).vectors["mean"]
    np.testing.assert_allclose(got, want, atol=1e-4)
    untouched = Extractor(nano, scene_task(), reader, SCENES)
    assert np.abs(got - finish(untouched.features("train", "pre_trained")).vectors["mean"]).max() > 1e-3


def test_statistics_that_are_not_published_are_measured_over_the_present_periods_of_train(nano) -> None:
    reader = series_reader()
    pixels = {
        m: np.concatenate([it.inputs[m][0, 0] for it in reader.read("train")]).astype(np.float64) for m in (S2, S1)
    }
    tables = {m: BandTable(mean=np.nanmean(v, axis=0), std=np.nanstd(v, axis=0)) for m, v in pixels.items()}
    told = series_reader()
    told._tables = tables
    measured = finish(Extractor(nano, series_task(), reader, SERIES).features("val", "dataset"))
    published = finish(Extractor(nano, series_task(), told, SERIES).features("val", "dataset"))
    np.testing.assert_allclose(measured.vectors["mean"], published.vectors["mean"], atol=1e-5)


def test_cached_features_are_the_same_and_cost_no_encoding(nano, tmp_path: Path) -> None:
    how = replace(SCENES, batch=5)
    first = Extractor(nano, scene_task(), scene_reader(), how, tmp_path)
    fresh = {leg: finish(first.features("train", leg)) for leg in ("pre_trained", "dataset")}
    again = Extractor(refusing(nano), scene_task(), scene_reader(), replace(how, batch=2), tmp_path)
    for leg, features in fresh.items():
        cached = finish(again.features("train", leg))
        for pooling in ("mean", "max"):
            np.testing.assert_array_equal(cached.vectors[pooling], features.vectors[pooling])
        np.testing.assert_array_equal(cached.targets, features.targets)
        assert cached.ids == features.ids
    assert (first.encoded, again.encoded) == (48, 0)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"how": replace(SCENES, patch_px=8)},
        {"how": replace(SCENES, max_samples=3)},
        {"how": replace(SCENES, centre_token=True)},
        {"reader": scene_reader(seed=1)},
        {"model": random_model("v1.2-nano", seed=2)},
        {"split": "val"},
    ],
)
def test_other_settings_data_or_weights_are_not_served_from_the_cache(nano, tmp_path: Path, change: dict) -> None:
    finish(Extractor(nano, scene_task(), scene_reader(), SCENES, tmp_path).features("train", "pre_trained"))
    model = refusing(change.get("model", nano))
    other = Extractor(model, scene_task(), change.get("reader", scene_reader()), change.get("how", SCENES), tmp_path)
    with pytest.raises(EncodingError):
        finish(other.features(change.get("split", "train"), "pre_trained"))


def test_a_run_that_breaks_off_leaves_nothing_in_the_cache(nano, tmp_path: Path) -> None:
    running = Extractor(nano, scene_task(), scene_reader(), replace(SCENES, batch=4), tmp_path).features(
        "train", "pre_trained"
    )
    next(running)
    assert len(list(tmp_path.iterdir())) == 1
    running.close()
    assert not list(tmp_path.iterdir())


def test_a_limit_takes_samples_evenly_over_the_file_order(nano) -> None:
    extractor = Extractor(nano, scene_task(), scene_reader(), replace(SCENES, max_samples=4))
    assert finish(extractor.features("train", "pre_trained")).ids == ("train-5", "train-11", "train-17", "train-23")


def test_a_label_fraction_thins_train_alone(nano) -> None:
    extractor = Extractor(nano, scene_task(), scene_reader(), replace(SCENES, partition="0.50"))
    assert len(finish(extractor.features("train", "pre_trained"))) == 12
    assert len(finish(extractor.features("val", "pre_trained"))) == 12


def test_images_that_patches_do_not_divide_are_refused_before_anything_is_read(nano) -> None:
    reader = scene_reader()
    with pytest.raises(InputError, match="8 px are not divisible by patch size 3"):
        Extractor(nano, scene_task(), reader, replace(SCENES, patch_px=3))
    with pytest.raises(InputError, match="takes 1 to 8 px"):
        Extractor(nano, scene_task(side_px=16), reader, replace(SCENES, patch_px=16))
    assert not reader.reads


def test_a_sample_without_any_data_is_named(nano) -> None:
    values = bands(S2, 8, 1, np.random.default_rng(0))
    empty = sample("void", {S2: values}, np.int64(0), missing={S2: np.array([True])})
    extractor = Extractor(nano, scene_task(), FakeReader({"train": [empty]}), SCENES)
    with pytest.raises(InputError, match="sample void: no period"):
        finish(extractor.features("train", "pre_trained"))


def test_map_features_keep_the_label_images_beside_them(nano) -> None:
    reader = map_reader((3, 1, 1))
    found = finish(Extractor(nano, map_task(), reader, SCENES).features("train", "pre_trained"))
    np.testing.assert_array_equal(found.targets, [it.target for it in reader.read("train")])


def test_bfloat16_moves_vectors_in_the_third_digit_only(nano) -> None:
    exact, rounded = (
        finish(
            Extractor(nano, scene_task(), scene_reader(), replace(SCENES, precision=p)).features("val", "pre_trained")
        )
        for p in ("float32", "bfloat16")
    )
    error = np.linalg.norm(exact.vectors["mean"] - rounded.vectors["mean"], axis=1)
    share = error / np.linalg.norm(exact.vectors["mean"], axis=1)
    assert rounded.vectors["mean"].dtype == np.float32
    assert (share > 0).all() and (share < 0.02).all()
