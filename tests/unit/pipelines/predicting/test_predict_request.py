"""What a fine-tuned model refuses, in one message, before anything is read."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from predict_models import encoder_model, finetuned

from olmoearth_cli.core.finetune.saved import save_finetuned
from olmoearth_cli.core.model import save_model
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.predicting import request
from olmoearth_pipelines.predicting.request import PredictRequest, prepare_prediction

AOI = "4.7,50.9,4.72,50.91"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_finetuned(tmp_path_factory.mktemp("runs") / "cover", finetuned(window_px=32))


def prepared(folder, warn=lambda text: None, **flags):
    plain = PredictRequest(model=str(folder), aoi=AOI, year=2024, device="cpu")
    return prepare_prediction(replace(plain, **flags), lambda text: None, warn)


def test_patch_window_periods_and_modalities_are_those_that_were_learned(folder):
    found = prepared(folder)
    windowing = found.prepared.grid.windowing
    assert (windowing.patch_px, windowing.window_px, windowing.overlap_px) == (4, 32, 16)
    assert found.prepared.request.modalities == ("sentinel2_l2a", "sentinel1")
    assert [p.start.date() for p in found.prepared.periods] == [date(2024, 1, 1), date(2024, 1, 31), date(2024, 3, 1)]
    assert found.prepared.folder.parts[0] == "predictions"
    assert found.spec.layout.pixel_m == 10


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"patch_size": 8}, r"--patch-size 8 \(it learned with 4\)"),
        ({"window": 64}, r"--window 64 \(it learned with 32\)"),
        ({"periods": 2}, r"--periods 2 \(it learned with 3\)"),
        ({"patch_size": 8, "periods": 12}, "--patch-size 8 .* --periods 12"),
        ({"year": None, "start": date(2024, 1, 1), "end": date(2024, 3, 1)}, "2 periods of 30 days.*learned from 3"),
        ({"modalities": ("landsat",)}, "learned from sentinel2_l2a, sentinel1, not from landsat"),
        ({"vector": Path("polygons.shp")}, "ending"),
    ],
)
def test_flags_that_contradict_what_was_learned_are_refused(folder, flags, words):
    with pytest.raises(InputError, match=words):
        prepared(folder, **flags)


def test_equal_flags_are_no_contradiction(folder):
    assert prepared(folder, patch_size=4, window=32, periods=3).task.periods == 3


def test_fewer_modalities_are_taken_with_a_warning(folder):
    said = []
    found = prepared(folder, said.append, modalities=("sentinel2_l2a",))
    assert found.spec.modalities == ("sentinel2_l2a",)
    assert len(said) == 1 and "sentinel1" in said[0]


@pytest.mark.parametrize(
    ("learned", "warned"), [(None, False), (1, False), (12, False), (3, True), (7, True), (11, True)]
)
def test_another_season_than_the_learned_one_is_warned_of(tmp_path, learned, warned):
    model = finetuned(window_px=32)
    model = replace(model, task=replace(model.task, first_month=learned))
    said: list[str] = []
    prepared(save_finetuned(tmp_path / "run", model), said.append)  # begins in January
    assert bool(said) == warned
    assert not warned or "begin in January" in said[0]


def test_a_plain_encoder_is_told_what_it_lacks(tmp_path):
    save_model(encoder_model(), tmp_path / "plain", demo={"seed": 2})
    for name in ("v1.2-nano", str(tmp_path / "plain")):
        with pytest.raises(InputError, match=r"learned no labels.*finetune.*probe"):
            prepared(name)
    with pytest.raises(InputError, match="no finished fine-tuned model"):
        prepared(tmp_path / "nowhere")


def test_maps_that_no_catalogue_holds_are_named(tmp_path):
    folder = save_finetuned(tmp_path / "run", finetuned(modalities=("sentinel2_l2a", "srtm")))
    with pytest.raises(InputError, match="srtm"):
        prepared(folder)


def test_probabilities_are_of_classes(tmp_path):
    folder = save_finetuned(tmp_path / "run", finetuned("pixel_regression"))
    with pytest.raises(InputError, match="holds values"):
        prepared(folder, probabilities=True)


def test_many_classes_get_small_tiles(tmp_path, monkeypatch, folder):
    wide = "4.0,50.5,4.6,50.9"
    large = prepared(folder, aoi=wide).prepared.grid.tile_px
    monkeypatch.setattr(request, "MANY_CLASSES", 2)
    assert prepared(folder, aoi=wide).prepared.grid.tile_px < large
