"""Windows to model inputs: by the rules of maps, and in batches that change no sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from window_making import S1, S2, some_window

from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
from olmoearth_cli.core.finetune.model import FinetuneModel
from olmoearth_cli.core.model import random_model
from olmoearth_cli.core.normalize import band_range
from olmoearth_cli.core.spec import find_spec
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.geo.tiles import Windowing
from olmoearth_pipelines.cube import Cube
from olmoearth_pipelines.encode import BlockEncoder
from olmoearth_pipelines.windows.arrays import collate, usable, window_arrays

L8 = "landsat"
SPEC = find_spec("v1.2-nano")
V1 = find_spec("v1-nano")


@pytest.fixture(scope="module")
def network() -> FinetuneModel:
    head = build_head(HeadSpec(kind="segmentation", classes=3, width=128, patch_px=4), 0)
    return FinetuneModel(random_model("v1.2-nano", seed=1), head).eval()


def holed(seed: int, **more):
    """A window with gaps, periods without some bands, and no number where radar has no data."""
    rng = np.random.default_rng(seed)
    window = some_window("w", seed=seed, modalities=(S2, S1, L8), **more)
    for name in window.images:
        window.valid[name][:] = rng.random(window.valid[name].shape) < (0.98 if name == S1 else 0.6)
        window.absent[name][:] = rng.random(window.absent[name].shape) < 0.3
    window.images[S1][~window.valid[S1]] = np.nan
    return window


@pytest.mark.parametrize("spec", [V1, find_spec("v1.1-nano"), SPEC], ids=lambda spec: spec.release)
def test_training_reads_a_window_exactly_as_the_map_does(spec):
    window = holed(3, side=16)
    cube = Cube(
        box=PixelBox(32631, 0, 0, 16, 16),
        values={name: image.transpose(2, 3, 0, 1) for name, image in window.images.items()},
        valid={name: valid.transpose(2, 0, 1) for name, valid in window.valid.items()},
        absent_bands=dict(window.absent),
        clear=None,
        used=(),
        bytes_read=0,
    )
    encoder = BlockEncoder(cube, spec, None, Windowing(window_px=16, overlap_px=0, patch_px=4))
    images, visible = window_arrays(window, spec, patch_px=4)
    assert list(images) == [S2, S1, L8]
    for name in images:
        values, seen = encoder._window(name, 0, 0)
        assert images[name].dtype == np.float32
        assert images[name].tobytes() == values.tobytes()
        assert np.array_equal(visible[name], seen)


def test_radar_needs_whole_patches_and_optical_data_half_of_them():
    window = some_window("w", periods=2)
    for valid in window.valid.values():
        valid[:2, :4, 0] = False  # half of the first patch
        valid[:3, :4, 1] = False  # three quarters
    images, visible = window_arrays(window, SPEC, patch_px=4)
    assert visible[S2].shape == (2, 2, 2, 1)
    assert visible[S2][0, 0, :, 0].tolist() == [True, False]
    assert visible[S1][0, 0, :, 0].tolist() == [False, False]
    assert visible[S2][0, 1].all()
    assert visible[S1][1].all()
    assert (images[S1][:2, :4, 0] == 0.5).all()
    low, high = (np.float64(side[0]) for side in (band_range(S1).lo, band_range(S1).hi))
    assert images[S1][7, 7, 0, 0] == pytest.approx((window.images[S1][7, 7, 0, 0] - low) / (high - low), abs=1e-6)


def test_a_band_set_without_bands_has_no_token_and_a_single_missing_band_is_filled():
    window = some_window("w", periods=2)
    window.absent[S2][0, 10:] = True  # B01 and B09: the third band set of v1
    window.absent[S2][1, 4] = True  # B05
    images, visible = window_arrays(window, V1, patch_px=4)
    assert visible[S2][0, 0].tolist() == [[True, True, False], [True, True, True]]
    low, high = band_range(S2).lo, band_range(S2).hi
    nearest = (window.images[S2][0, 0, 1, 5] - low[4]) / (high[4] - low[4])  # v1 takes B06's value
    assert images[S2][0, 0, 1, 4] == pytest.approx(nearest, abs=1e-6)
    assert (window_arrays(window, SPEC, patch_px=4)[0][S2][:, :, 1, 4] == 0).all()


def test_limits_of_the_data_set_take_the_place_of_those_of_pretraining():
    window = some_window("w")
    window.absent[S2][0, 3] = True
    limits = (tuple(float(band) for band in range(12)), tuple(1000.0 + band for band in range(12)))
    images, _ = window_arrays(window, V1, patch_px=4, normalisation={S2: limits})
    expected = (window.images[S2] - np.arange(12.0)) / 1000
    expected[:, :, 0, 3] = 0
    assert np.allclose(images[S2], expected, atol=1e-6)
    assert np.array_equal(images[S1], window_arrays(window, V1, patch_px=4)[0][S1])


def test_a_batch_pads_short_series_and_modalities_that_a_window_lacks(network):
    windows = [some_window("a", periods=3, seed=1), some_window("b", periods=5, seed=2, modalities=(S2,))]
    batch = collate(windows, SPEC, patch_px=4)
    assert list(batch.inputs) == [S2, S1]
    assert batch.inputs[S1].shape == (2, 8, 8, 5, 2)
    assert batch.visible[S2].flatten(3).any(dim=3).all()
    assert batch.visible[S2][:, 0, 0, :, 0].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.visible[S1][:, 0, 0, :, 0].tolist() == [[True] * 3 + [False] * 2, [False] * 5]
    assert batch.timestamps[0].tolist()[2:] == [[1, 2, 2022]] * 3
    assert batch.targets.dtype == torch.int64
    with torch.no_grad():
        together = network.features(batch)
        for row, window in zip(together, windows, strict=True):
            assert torch.allclose(row, network.features(collate([window], SPEC, patch_px=4))[0], atol=1e-5)


def test_labels_of_patches_that_show_nothing_are_taken_away():
    target = np.arange(64).reshape(8, 8) % 3
    dark = some_window("a", target=target)
    for valid in dark.valid.values():
        valid[:4, 4:] = False
    classes = collate([dark], SPEC, patch_px=4).targets[0].numpy()
    assert (classes[:4, 4:] == -1).all()
    kept = np.ones((8, 8), bool)
    kept[:4, 4:] = False
    assert np.array_equal(classes[kept], target[kept])
    values = collate([replace(dark, target=target.astype(np.float32))], SPEC, patch_px=4).targets[0].numpy()
    assert np.array_equal(np.isnan(values), ~kept)
    assert np.array_equal(target, np.arange(64).reshape(8, 8) % 3)
    # What a model does not read cannot teach it either.
    dark.valid[S2][:4, 4:] = True
    assert (collate([dark], SPEC, patch_px=4, modalities=(S1,)).targets[0, :4, 4:] == -1).all()
    assert (collate([dark], SPEC, patch_px=4).targets[0].numpy() == target).all()


@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        (np.int64(2), torch.int64),
        (np.array([0, 1, 1], np.uint8), torch.int64),
        (np.float32(0.5), torch.float32),
    ],
)
def test_targets_of_whole_windows_are_joined_as_they_are(target, dtype):
    batch = collate([some_window(name, target=target) for name in "ab"], SPEC, patch_px=4)
    assert batch.targets.dtype == dtype
    assert batch.targets.shape == (2, *np.shape(target))
    assert (batch.targets.numpy() == target).all()


def test_windows_that_show_nothing_are_named():
    dark = some_window("dark", modalities=(S1,))
    dark.valid[S1][0::4, 0::4] = False  # a pixel of every patch
    with pytest.raises(ValueError, match="windows dark show nothing"):
        collate([some_window("light"), dark], SPEC, patch_px=4)
    with pytest.raises(ValueError, match="windows light show nothing"):
        collate([some_window("light", modalities=(S2,))], SPEC, patch_px=4, modalities=(S1,))
    with pytest.raises(ValueError, match="one size"):
        collate([some_window("a"), some_window("b", side=16)], SPEC, patch_px=4)
    with pytest.raises(ValueError, match="3 px patches"):
        collate([some_window("a")], SPEC, patch_px=3)


def test_a_window_is_usable_where_a_token_is_visible_and_with_centre_where_the_middle_is():
    window = some_window("a", side=12)
    assert usable(window, SPEC, patch_px=4, centre=True)
    for valid in window.valid.values():
        valid[4:8, 4:8] = False
    assert usable(window, SPEC, patch_px=4)
    assert not usable(window, SPEC, patch_px=4, centre=True)
    assert not usable(window, SPEC, patch_px=4, modalities=(L8,))
    for valid in window.valid.values():
        valid[:] = False
    assert not usable(window, SPEC, patch_px=4)
