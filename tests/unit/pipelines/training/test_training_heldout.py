"""The split by tiles and the kNN probe on it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tiny_runs import put_samples, tiny_request

from olmoearth_cli.core.pretrain_step import fresh_model
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.training.heldout import HeldOutProbe, choose_probe
from olmoearth_pipelines.training.setup import Setup, prepare


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    # 128 px: four samples per tile, as published; 20 tiles, of which two are held out.
    data = put_samples(tmp_path_factory.mktemp("wide") / "80", 80, side=128, periods=1)
    return prepare(tiny_request(data, data / "out", probe_every=1))


def chosen(setup: Setup, label_map: str = "worldcover") -> HeldOutProbe:
    return choose_probe(
        setup.folder, setup.samples, setup.held_out, setup.config, label_map=label_map, side_px=128, seed=1
    )


def test_whole_tiles_are_held_out(setup: Setup) -> None:
    kept, held = set((setup.samples // 4).tolist()), set((setup.held_out // 4).tolist())
    assert len(setup.samples) == 72 and len(setup.held_out) == 8 and len(held) == 2
    assert not kept & held and kept | held == set(range(20))


def test_separable_classes_are_told_apart_and_labels_come_from_the_map(setup: Setup) -> None:
    probe = chosen(setup)
    assert probe.labels.tolist() == [10 * (i % 2 + 1) for i in probe.labelled.tolist()]
    encoder = fresh_model(setup.config, 1).encoder.train()
    assert probe.accuracy(encoder) == 1.0 and encoder.training
    assert probe.majority == pytest.approx(np.mean(probe.truth == np.bincount(probe.labels).argmax()))


def test_an_encoder_that_says_the_same_of_everything_is_no_better_than_a_guess(setup: Setup) -> None:
    encoder = fresh_model(setup.config, 1).encoder
    with torch.no_grad():
        encoder.norm.weight.zero_()
        encoder.norm.bias.fill_(1.0)
    assert chosen(setup).accuracy(encoder) == pytest.approx(0.5, abs=0.01)


def test_a_map_that_is_not_there_or_has_one_class_is_refused(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--probe-map cdl"):
        chosen(setup, "cdl")
    data = put_samples(tmp_path / "40", 40, side=128, periods=1, classes=1)
    alike = prepare(tiny_request(data, tmp_path / "out", probe_every=1))
    with pytest.raises(InputError, match=r"1 class\(es\)"):
        chosen(alike)


def test_samples_without_data_in_the_map_have_no_label(tmp_path: Path) -> None:
    data = put_samples(tmp_path / "40", 40, side=128, periods=1)
    with h5py.File(data / "sample_3.h5", "a") as file:
        file["worldcover"][...] = 0
    setup = prepare(tiny_request(data, tmp_path / "out", probe_every=1))
    probe = chosen(setup)
    assert len(probe.labelled) + len(probe.queries) == 39
    assert 3 not in {*probe.labelled.tolist(), *probe.queries.tolist()}


def test_too_few_tiles_to_hold_out_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 tiles, too few"):
        prepare(tiny_request(tiny_data, tmp_path, probe_every=1))
