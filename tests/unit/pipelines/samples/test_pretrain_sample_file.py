"""Reading one sample equals a plain reading of spec/pretraining.md 1.9; what does not fit the format is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pretrain_data import FULL, LANDSAT, S1, S2, SATELLITES, STAMPS, put, sample, some_presence

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_pipelines.samples.crops import Grid, draw_window
from olmoearth_pipelines.samples.sample_file import Window, open_sample, write_sample

ALL = tuple(MODALITIES)
MISSING = -99999.0


def literal(path: Path, wanted: tuple[str, ...], side: int):
    """Section 1.9 step by step, filling the whole sample; no code is shared with the reader."""
    with h5py.File(path, "r") as file:
        stamps = file["timestamps"][:]
        arrays = {name: file[name][:] for name in wanted if name in file}
        masks = {}
        if "missing_timesteps_masks" in file:
            masks = {n: m[:] for n, m in file["missing_timesteps_masks"].items() if n in wanted}
    if masks:
        any_present = [t for t in range(len(stamps)) if any(mask[t] for mask in masks.values())]
        f, last = any_present[0], any_present[-1]
        stamps = stamps[f : last + 1]
        masks = {n: m[f : last + 1] for n, m in masks.items()}
    length = len(stamps)
    stamps = np.array([*stamps, *[stamps[-1]] * (12 - length)])
    out = {}
    for name in wanted:
        bands = len(MODALITIES[name].bands)
        t = 12 if MODALITIES[name].multitemporal else 1
        if name not in arrays:
            out[name] = np.full((side, side, t, bands), MISSING, np.float32)
        elif name in masks and (not masks[name].all() or length < 12):
            out[name] = np.full((side, side, 12, bands), MISSING, np.float32)
            k = 0
            for position, seen in enumerate(masks[name]):
                if seen:
                    out[name][:, :, position] = arrays[name][:, :, k]
                    k += 1
        else:
            out[name] = arrays[name].astype(np.float32)
    return out, stamps, masks, length


def filled(crop, window: Window) -> dict[str, np.ndarray]:
    """A crop with -99999 where nothing is."""
    out = {}
    for name, present in crop.present.items():
        shape = (window.side_px, window.side_px, len(present), len(MODALITIES[name].bands))
        out[name] = np.full(shape, MISSING, np.float32)
        if name in crop.values:
            out[name][:, :, present] = crop.values[name]
    return out


@pytest.mark.parametrize("seed", range(12))
def test_cropping_before_filling_equals_filling_before_cropping(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = sample(16, some_presence(rng), ("worldcover", "openstreetmap_raster"), seed=seed)
    path = put(tmp_path / "sample_0.h5", content)
    wanted = ALL if seed % 3 else ("sentinel2_l2a", "landsat", "worldcover")
    whole, stamps, masks, length = literal(path, wanted, 16)
    for _ in range(6):
        grid, periods = Grid(patch_px=2, side=int(rng.integers(1, 9))), int(rng.integers(1, 13))
        with open_sample(path, wanted) as opened:
            assert len(opened.timestamps) == length
            window = draw_window(opened, grid, periods, rng)
            crop = opened.read(window)
        r, c, s, k = window.row, window.column, grid.side_px, window.start
        assert k + periods <= max(length, periods)
        assert any(mask[k] for mask in masks.values())
        np.testing.assert_array_equal(crop.timestamps, stamps[k : k + periods])
        for name, values in filled(crop, window).items():
            t = slice(k, k + periods) if MODALITIES[name].multitemporal else slice(0, 1)
            np.testing.assert_array_equal(values, whole[name][r : r + s, c : c + s, t])


def test_a_slice_belongs_to_its_true_row_not_to_its_number(tmp_path: Path) -> None:
    """G13: present at months 2, 5 and 6 of 12; the second slice is June, position 3 of the cut series."""
    seen = np.isin(np.arange(12), (2, 5, 6))
    content = sample(16, {S2: seen})
    content.images[S2][:] = np.array([2, 5, 6], dtype=np.uint16)[:, None]
    with open_sample(put(tmp_path / "s.h5", content), (S2,)) as opened:
        crop = opened.read(Window(row=0, column=0, side_px=4, start=1, periods=4))
    assert crop.timestamps[:, 1].tolist() == [3, 4, 5, 6]
    assert crop.present[S2].tolist() == [False, False, True, True]
    assert crop.values[S2][0, 0, :, 0].tolist() == [5, 6]


def test_padding_repeats_the_last_date_and_has_no_data(tmp_path: Path) -> None:
    content = sample(16, {S2: np.isin(np.arange(12), (3, 4))})
    with open_sample(put(tmp_path / "s.h5", content), (S2, S1)) as opened:
        crop = opened.read(Window(row=0, column=0, side_px=4, start=0, periods=5))
    assert crop.timestamps.tolist() == [[4, 3, 2020], [5, 4, 2020], [5, 4, 2020], [5, 4, 2020], [5, 4, 2020]]
    assert crop.present[S2].tolist() == [True, True, False, False, False]
    assert not crop.present[S1].any()


def test_timesteps_of_a_product_that_is_not_requested_do_not_count(tmp_path: Path) -> None:
    content = sample(16, {S2: FULL, S1: np.isin(np.arange(12), (4, 7))})
    with open_sample(put(tmp_path / "s.h5", content), (S1,)) as opened:
        assert opened.timestamps[:, 1].tolist() == [4, 5, 6, 7]


def test_a_file_without_masks_has_all_timesteps(tmp_path: Path) -> None:
    with open_sample(put(tmp_path / "s.h5", sample(16, {S2: FULL}), masks=False), (S2, S1)) as opened:
        assert opened.present[S2].all() and len(opened.timestamps) == 12
        assert not opened.present[S1].any()


@pytest.mark.parametrize("dtype", ["int16", "int64", "float64", ">u2", "float32"])
def test_any_numeric_dtype_is_read(tmp_path: Path, dtype: str) -> None:
    content = sample(16, {S2: FULL})
    stored = replace(content, images={S2: content.images[S2].astype(dtype)}, timestamps=STAMPS.astype(np.int64))
    with open_sample(put(tmp_path / "s.h5", stored), (S2,)) as opened:
        crop = opened.read(Window(row=3, column=5, side_px=8, start=0, periods=12))
    assert crop.values[S2].dtype == np.float32
    np.testing.assert_array_equal(crop.values[S2], content.images[S2][3:11, 5:13])


def test_what_is_written_is_read_and_stored_as_published(tmp_path: Path) -> None:
    content = sample(16, {S2: FULL, LANDSAT: np.arange(12) < 5}, ("srtm",))
    write_sample(tmp_path / "s.h5", content)
    write_sample(tmp_path / "again.h5", content)
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.h5", "s.h5"]
    with h5py.File(tmp_path / "s.h5") as file:
        assert sorted(file) == [LANDSAT, "latlon", "missing_timesteps_masks", S2, "srtm", "timestamps"]
        for name in (LANDSAT, "latlon", S2, "srtm", "timestamps"):
            plist = file[name].id.get_create_plist()
            assert (plist.get_nfilters(), plist.get_filter(0)[0], plist.get_filter(0)[2]) == (1, 32015, (3,))
            assert file[name].chunks == file[name].shape
        masks = file["missing_timesteps_masks"]
        assert sorted(masks) == [LANDSAT, S2] and masks[S2].chunks is None and masks[S2].dtype == bool
        assert (file["latlon"].dtype, file["timestamps"].dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(file[S2][:], content.images[S2])


def edited(tmp_path: Path, change) -> Path:
    path = put(tmp_path / "sample_7.h5", sample(16, {S2: FULL, S1: np.arange(12) < 3}, ("worldcover",)))
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def swap(name: str, values):
    def change(file: h5py.File) -> None:
        del file[name]
        if values is not None:
            file[name] = values

    return change


BROKEN = {
    "more slices than True": (swap(S1, np.zeros((16, 16, 4, 2), "f4")), "4 timesteps, but 3 are marked present"),
    "fewer slices than True": (swap(S1, np.zeros((16, 16, 2, 2), "f4")), "2 timesteps, but 3 are marked present"),
    "no mask for a product": (swap(f"missing_timesteps_masks/{S1}", None), "missing"),
    "a short mask": (swap(f"missing_timesteps_masks/{S1}", np.ones(3, bool)), "shape (3,)"),
    "a mask of counts": (swap(f"missing_timesteps_masks/{S1}", np.arange(12)), "other values than True and False"),
    "masks in place of a group": (swap("missing_timesteps_masks", np.ones(12)), "missing"),
    "bands first": (swap("worldcover", np.zeros((1, 16, 16, 1), "u1")), "shape (1, 16, 16, 1)"),
    "a static map with time": (swap("worldcover", np.zeros((16, 16, 2, 1), "u1")), "worldcover has shape"),
    "another side": (swap("worldcover", np.zeros((8, 8, 1, 1), "u1")), "[8, 16] px"),
    "text": (swap("worldcover", "water"), "not an array of numbers"),
    "a link": (swap("worldcover", h5py.ExternalLink("/etc/passwd", "/x")), "link to elsewhere"),
    "no dates": (swap("timestamps", None), "timestamps is missing"),
    "months from 1": (swap("timestamps", STAMPS + np.array([0, 1, 0])), "month 0-11"),
    "years first": (swap("timestamps", STAMPS[:, ::-1]), "day 1-31"),
    "13 periods": (swap("timestamps", np.repeat(STAMPS[:1], 13, 0)), "up to 12 rows"),
    "NaN": (swap("worldcover", np.full((16, 16, 1, 1), np.nan)), "worldcover has NaN"),
    "infinity": (swap("worldcover", np.full((16, 16, 1, 1), np.inf)), "worldcover has NaN"),
    "-99999": (swap("worldcover", np.full((16, 16, 1, 1), MISSING)), "-99999"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path: Path, case: str) -> None:
    change, words = BROKEN[case]
    path = edited(tmp_path, change)
    with pytest.raises(InputError) as caught, open_sample(path, ALL) as opened:
        opened.read(Window(row=0, column=0, side_px=8, start=0, periods=12))
    assert words in str(caught.value) and "sample_7.h5" in str(caught.value)


def test_a_file_that_is_absent_foreign_or_cut_short_is_refused(tmp_path: Path) -> None:
    whole = put(tmp_path / "s.h5", sample(64, {S2: FULL}, ("worldcover",))).read_bytes()
    window = Window(row=0, column=0, side_px=8, start=0, periods=12)
    for length in (0, 100, len(whole) // 2, len(whole) - 500):
        (tmp_path / "cut.h5").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.h5: not readable as HDF5, or cut short"):
            with open_sample(tmp_path / "cut.h5", ALL):
                pass
    (tmp_path / "text.h5").write_text("sample\n" * 1000)
    with pytest.raises(InputError, match="not readable as HDF5"), open_sample(tmp_path / "text.h5", ALL):
        pass
    with pytest.raises(InputError, match="Unpack all archives"), open_sample(tmp_path / "none.h5", ALL):
        pass
    index = whole.index(b"SNOD")  # the root's table of names
    (tmp_path / "root.h5").write_bytes(whole[:index] + b"XXXX" + whole[index + 4 :])
    with pytest.raises(InputError, match=r"root\.h5: damaged inside"), open_sample(tmp_path / "root.h5", ALL):
        pass
    start = whole.index(b"\x28\xb5\x2f\xfd")  # the first Zstandard frame
    frames = bytearray(whole)
    while start >= 0:
        frames[start : start + 40] = bytes(40)
        start = frames.find(b"\x28\xb5\x2f\xfd", start)
    (tmp_path / "rotten.h5").write_bytes(frames)
    with pytest.raises(InputError, match=r"rotten\.h5: .* is damaged|filter"):
        with open_sample(tmp_path / "rotten.h5", ALL) as opened:
            opened.read(window)


def test_a_missing_compression_filter_is_named(tmp_path: Path) -> None:
    content = sample(16, {S2: FULL})
    path = put(tmp_path / "s.h5", content)
    with h5py.File(path, "r+") as file:
        del file[S2]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((16, 16, 12, 12))
        plist.set_filter(32001 + 600, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((16, 16, 12, 12))
        made = h5py.h5d.create(file.id, S2.encode(), h5py.h5t.NATIVE_UINT16, space, plist)
        made.write_direct_chunk((0, 0, 0, 0), content.images[S2].tobytes(), filter_mask=0)
    with pytest.raises(InputError, match="pip install hdf5plugin"), open_sample(path, (S2,)) as opened:
        opened.read(Window(row=0, column=0, side_px=8, start=0, periods=12))


def test_a_sample_without_any_satellite_cannot_be_cropped(tmp_path: Path) -> None:
    path = put(tmp_path / "s.h5", sample(16, {}, ("worldcover",)))
    with pytest.raises(InputError, match=r"s\.h5: no timestep of"), open_sample(path, ALL) as opened:
        draw_window(opened, Grid(patch_px=1, side=1), 3, np.random.default_rng(0))


def test_a_folder_in_the_place_of_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "s.h5").mkdir()
    with pytest.raises(OutputError):
        write_sample(tmp_path / "s.h5", sample(16, {name: FULL for name in SATELLITES}))
