"""Pretraining samples as windows: cut on a fixed grid, learned from their own map, divided by land."""

from __future__ import annotations

import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest

from olmoearth_cli.core.spec import find_spec
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.windows.arrays import collate
from olmoearth_pipelines.windows.from_samples import WORLDCOVER, sample_windows
from olmoearth_pipelines.windows.window import SPLITS
from tests.unit.pipelines.samples.pretrain_data import FULL, S1, S2, put_dataset, sample

SIDE = 32


def tile(seed: int, *, maps=("worldcover", "srtm"), latlon=None, gap=()):
    """A sample with a map of WorldCover codes; Sentinel-1 lacks the months of `gap`."""
    present = {S2: FULL, S1: ~np.isin(np.arange(12), gap)}
    made = sample(SIDE, present, maps, seed=seed)
    codes = np.random.default_rng(seed).choice([0, *WORLDCOVER], (SIDE, SIDE, 1, 1)).astype(np.uint8)
    images = dict(made.images) | ({"worldcover": codes} if "worldcover" in maps else {})
    place = made.latlon if latlon is None else np.array(latlon, np.float32)
    return replace(made, images=images, latlon=place)


@pytest.fixture(scope="module")
def leaf(tmp_path_factory):
    return put_dataset(tmp_path_factory.mktemp("samples") / "10", [tile(n, latlon=(10 + n, 20)) for n in range(10)])


def test_a_window_is_cut_out_of_its_sample_with_its_map_as_target(leaf):
    source = sample_windows(leaf, window_px=16, block_km=50)
    assert len(source) == 40
    window = source.read(4 * 7 + 2)  # the third of four: below, left
    assert window.id == "sample_7_r16_c0"
    with h5py.File(leaf / "sample_7.h5") as file:
        for name in (S2, S1):
            assert np.array_equal(window.images[name], file[name][16:, :16])
        codes = file["worldcover"][16:, :16, 0, 0]
        assert window.timestamps.tolist() == file["timestamps"][:].tolist()
    expected = {0: -1, **{code: number for number, code in enumerate(WORLDCOVER)}}
    assert np.array_equal(window.target, np.vectorize(expected.get)(codes))
    assert source.task.class_names[expected[95]] == "mangroves"
    assert all(valid.all() for valid in window.valid.values())
    assert (source.task.kind, source.task.modalities, source.task.periods) == ("segmentation", (S2, S1), 12)


def test_timesteps_without_data_are_gaps_at_their_place(tmp_path):
    samples = [tile(0, gap=(0, 5)), tile(1, latlon=(10, 0)), tile(2, latlon=(20, 0))]
    samples[0].images[S2][:4, :, 3] = 0  # a swath's edge
    samples[0].images[S1][0, 0, 0] = -100  # no power: in February, the first month with data
    window = sample_windows(put_dataset(tmp_path / "3", samples), window_px=32, block_km=50).read(0)
    assert window.valid[S1][9, 9].tolist() == [month not in (0, 5) for month in range(12)]
    assert np.array_equal(window.images[S1][:, :, 1], samples[0].images[S1][:, :, 0])
    assert np.array_equal(window.images[S1][:, :, 6], samples[0].images[S1][:, :, 4])
    assert np.flatnonzero(~window.valid[S2][0, 0]).tolist() == [3]
    assert window.valid[S2][4:].all()
    assert np.flatnonzero(~window.valid[S1][0, 0]).tolist() == [0, 1, 5]
    batch = collate([window], find_spec("v1.2-nano"), patch_px=4)
    assert batch.visible[S1][0, 1, 1, :, 0].tolist() == [month not in (0, 5) for month in range(12)]


def test_metres_are_learned_with_voids_left_out(tmp_path):
    samples = [tile(n, latlon=(10 * n, 0)) for n in range(3)]
    samples[0].images["srtm"][:2] = -32768
    source = sample_windows(put_dataset(tmp_path / "3", samples), field="srtm", window_px=32, block_km=50)
    target = source.read(0).target
    assert source.task.kind == "pixel_regression"
    assert source.task.class_names == ()
    assert target.dtype == np.float32
    assert np.isnan(target[:2]).all()
    assert np.array_equal(target[2:], samples[0].images["srtm"][2:, :, 0, 0])


def test_blocks_of_land_are_never_divided_and_shares_are_60_20_20(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.uniform(-50, 50, (50, 2))
    samples = [tile(n % 4, latlon=centres[n // 2]) for n in range(100)]
    source = sample_windows(put_dataset(tmp_path / "100", samples), window_px=32, block_km=20)
    numbers = {split: source.split(split) for split in SPLITS}
    assert [len(numbers[split]) for split in SPLITS] == [60, 20, 20]
    assert sorted(np.concatenate(list(numbers.values()))) == list(range(100))
    blocks = {split: set(source.blocks[found].tolist()) for split, found in numbers.items()}
    assert sum(map(len, blocks.values())) == len(set.union(*blocks.values())) == 50
    assert all(source.read(int(n)).group in blocks["val"] for n in numbers["val"][:3])
    other = sample_windows(source.folder.path, window_px=32, block_km=20, seed=7)
    assert not np.array_equal(other.split("test"), numbers["test"])
    assert other.fingerprint != source.fingerprint
    again = pickle.loads(pickle.dumps(sample_windows(source.folder.path, window_px=32, block_km=20)))
    assert again.fingerprint == source.fingerprint
    assert np.array_equal(again.split("test"), numbers["test"])


def test_blocks_are_squares_in_kilometres_wherever_they_lie(tmp_path):
    # At 60 degrees north a degree of longitude is half as long as one of latitude.
    places = [(60.0, 0.05), (60.0, 0.17), (60.0, 0.19), (60.09, 0.05), (0.0, 0.05), (0.0, 0.088), (0.0, 0.095)]
    samples = [tile(0, latlon=place) for place in places]
    source = sample_windows(put_dataset(tmp_path / "7", samples), window_px=32, block_km=10)
    blocks = source.blocks
    assert blocks[0] == blocks[1] != blocks[2]
    assert blocks[3] not in blocks[:3]
    assert blocks[4] == blocks[5] != blocks[6]


def test_the_largest_blocks_that_are_enough_are_chosen(tmp_path):
    samples = [tile(0, latlon=(0.0, 12 * n / 111.195)) for n in range(40)]
    source = sample_windows(put_dataset(tmp_path / "40", samples), window_px=32)
    assert source.task.facts["block_km"] == 20  # 468 km are 10 squares of 50 km, but 24 of 20 km
    assert len(np.unique(source.blocks)) == 24


def test_where_land_is_too_small_for_blocks_tiles_are_not_divided(tmp_path):
    samples = [tile(0, latlon=(0.0, n // 64 * 2.56 / 111.195)) for n in range(4 * 64)]
    source = sample_windows(put_dataset(tmp_path / "256", samples), window_px=32)
    assert source.task.facts["block_km"] is None
    assert source.blocks.tolist() == [n // 64 for n in range(4 * 64)]
    assert sorted(len(source.split(split)) for split in SPLITS) == [64, 64, 128]


def test_two_blocks_still_fill_no_three_splits(tmp_path):
    two = put_dataset(tmp_path / "2", [tile(0, latlon=(0, 0)), tile(1, latlon=(10, 10))])
    with pytest.raises(InputError, match="2 blocks of land"):
        sample_windows(two, window_px=32, block_km=10)
    heavy = [tile(0, latlon=(0, 0))] * 18 + [tile(1, latlon=(10, 10)), tile(2, latlon=(20, 20))]
    source = sample_windows(put_dataset(tmp_path / "20", heavy), window_px=32, block_km=10)
    assert min(len(source.split(split)) for split in SPLITS) >= 1


def test_a_windows_place_follows_from_its_tiles_middle(tmp_path):
    # 64 samples of 32 px make a tile; the first lies in the north-west corner.
    samples = [tile(0, latlon=(60.0, 10.0))] * 64 + [tile(1, latlon=(0, n)) for n in range(1, 3)]
    source = sample_windows(put_dataset(tmp_path / "66", samples), window_px=32, block_km=10)
    west, north = source.read(0).lonlat
    assert (north - 60) * 111.195 == pytest.approx(1.12, abs=1e-3)  # 112 px of 10 m
    assert (west - 10) * 111.195 / 2 == pytest.approx(-1.12, abs=1e-3)
    east, south = source.read(63).lonlat
    assert (east - 10, south - 60) == pytest.approx((10 - west, 60 - north))


def test_what_cannot_be_learned_is_refused_at_once(leaf, tmp_path):
    for more, message in (
        ({"field": "cdl"}, "cdl: cannot be learned"),
        ({"window_px": 24}, "choose a divisor of the samples' 32 px"),
        ({"block_km": 0}, "--block-km 0"),
        ({"modalities": ("landsat",)}, "no sample has landsat; they have sentinel2_l2a, sentinel1"),
        ({"field": "wri_canopy_height_map"}, "no sample with imagery has the map wri_canopy_height_map"),
    ):
        with pytest.raises(InputError, match=message):
            sample_windows(leaf, **{"window_px": 32, "block_km": 50, **more})
    odd = [tile(n, latlon=(10 * n, 0)) for n in range(3)]
    odd[0].images["worldcover"][0, 0] = 15
    odd[1].images["worldcover"][0, 0] = 200
    source = sample_windows(put_dataset(tmp_path / "3", odd), window_px=32, block_km=50)
    for number, code in ((0, 15), (1, 200)):
        with pytest.raises(InputError, match=rf"sample_{number}\.h5: worldcover has the codes \[{code}"):
            source.read(number)
    (tmp_path / "3" / "latlon_distribution.npy").unlink()
    with pytest.raises(InputError, match=r"latlon_distribution\.npy: not readable"):
        sample_windows(tmp_path / "3", window_px=32)
