"""Windows on disk: whole or absent, gone on with, known again, and refused where they are not what they say."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest
from window_making import S1, S2, some_task, some_window

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_pipelines.windows.folder import WindowFolder, WindowWriter, begun, write_shard, write_window

SETTINGS = {"px": 8, "months": [1, 2, 3]}


def same(a, b) -> bool:
    maps = [(getattr(a, name), getattr(b, name)) for name in ("images", "valid", "absent")]
    arrays = [(x[m], y[m]) for x, y in maps for m in y] + [(a.timestamps, b.timestamps), (a.target, b.target)]
    equal = all(x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in arrays)
    return equal and [list(x) for x, _ in maps] == [list(y) for _, y in maps] and a.lonlat == b.lonlat


def three(folder) -> WindowFolder:
    writer = WindowWriter(folder, some_task(), SETTINGS)
    for seed, (name, split) in enumerate([("b", "train"), ("a", "val"), ("c", "train")]):
        write_window(folder, some_window(name, seed=seed), split)
    return writer.finish([("b", "train"), ("a", "val"), ("c", "train")])


def test_a_window_comes_back_as_it_went(tmp_path):
    rng = np.random.default_rng(0)
    window = some_window("w-1.x_2", seed=5)
    for masks in (window.valid, window.absent):
        for mask in masks.values():
            mask[:] = rng.random(mask.shape) < 0.5
    window.images[S1][0, 0] = np.nan
    numbers = replace(some_window("n", modalities=(S2,), target=np.float32(2.5)), lonlat=None, group=-1)
    labels = some_window("m", periods=1, target=np.array([0, 1, 1], np.uint8))
    writer = WindowWriter(tmp_path, some_task(), SETTINGS)
    for one in (window, numbers, labels):
        write_window(tmp_path, one, "test")
    found = writer.finish([(one.id, "test") for one in (labels, window, numbers)])
    assert [found.read(number).id for number in range(3)] == ["m", "w-1.x_2", "n"]
    assert same(found.read(1), window)
    assert same(found.read(2), numbers)
    assert found.read(2).lonlat is None
    assert same(found.read(0), labels)
    assert (found.read(1).group, found.read(2).group) == (5, -1)


def test_splits_are_numbers_in_the_order_of_the_set(tmp_path):
    found = three(tmp_path)
    assert found.split("train").tolist() == [0, 2]
    assert found.split("val").tolist() == [1]
    assert found.split("test").dtype == np.int64
    assert len(found.split("test")) == 0
    with pytest.raises(ValueError, match="dev"):
        found.split("dev")


def test_a_set_travels_to_other_processes_and_is_opened_again_with_its_task(tmp_path):
    task = some_task(normalisation={S2: ((0.0,) * 12, (1.0,) * 12)}, facts={"labels": "x.gpkg", "years": [2022]})
    writer = WindowWriter(tmp_path, task, SETTINGS)
    write_window(tmp_path, some_window("a"), "train")
    found = writer.finish([("a", "train")])
    assert found.task == task
    assert found.settings == SETTINGS
    for other in (pickle.loads(pickle.dumps(found)), WindowFolder.open(tmp_path)):
        assert same(other.read(0), some_window("a"))
        assert (other.fingerprint, other.task) == (found.fingerprint, task)


def test_the_fingerprint_follows_pixels_labels_order_and_splits_and_nothing_else(tmp_path):
    def made(run, windows, order, **task):
        writer = WindowWriter(tmp_path / run, some_task(**task), {"run": run})
        for window, split in windows:
            write_window(tmp_path / run, window, split)
        return writer.finish(order).fingerprint

    a, b = some_window("a", seed=1), some_window("b", seed=2)
    first = made("0", [(a, "train"), (b, "val")], [("a", "train"), ("b", "val")])
    assert made("1", [(b, "val"), (a, "train")], [("a", "train"), ("b", "val")], facts={"x": 1}, name="y") == first
    dim = replace(a, valid={**a.valid, S1: np.zeros_like(a.valid[S1])})
    changed = [
        made("2", [(a, "train"), (b, "val")], [("b", "val"), ("a", "train")]),
        made("3", [(a, "val"), (b, "val")], [("a", "val"), ("b", "val")]),
        made("4", [(dim, "train"), (b, "val")], [("a", "train"), ("b", "val")]),
        made("5", [(replace(a, target=b.target), "train"), (b, "val")], [("a", "train"), ("b", "val")]),
        made("6", [(a, "train"), (b, "val")], [("a", "train"), ("b", "val")], class_names=("a", "c", "b")),
        made("7", [(a, "train"), (b, "val")], [("a", "train")]),
    ]
    assert len({first, *changed}) == 7


def test_a_broken_run_goes_on_and_leaves_no_halves(tmp_path):
    WindowWriter(tmp_path, some_task(), SETTINGS)
    write_window(tmp_path, some_window("a"), "train")
    (tmp_path / "windows" / "b.h5.7-ab.part").write_bytes(b"half")
    with pytest.raises(InputError, match="broken off"):
        WindowFolder.open(tmp_path)
    again = WindowWriter(tmp_path, some_task(), SETTINGS)
    assert again.done() == {"a"}
    assert again.finished() is None
    write_window(tmp_path, some_window("b"), "val")
    again.finish([("a", "train"), ("b", "val")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["windows", "windows.json"]
    assert sorted(path.name for path in (tmp_path / "windows").iterdir()) == ["a.h5", "b.h5"]
    assert WindowWriter(tmp_path, some_task(), SETTINGS).finished().ids == ("a", "b")


def test_windows_of_other_settings_are_not_mixed_in(tmp_path):
    assert not begun(tmp_path, SETTINGS)
    WindowWriter(tmp_path, some_task(), SETTINGS)
    assert begun(tmp_path, SETTINGS)
    with pytest.raises(OutputError, match=r"px was 8, is 16\)"):
        WindowWriter(tmp_path, some_task(), {**SETTINGS, "px": 16})


def test_several_windows_share_a_file_under_any_names(tmp_path):
    writer = WindowWriter(tmp_path, some_task(), SETTINGS)
    write_shard(tmp_path, "many", [(some_window(f"../{n}/ü", seed=n), "train") for n in range(3)])
    found = writer.finish([("../2/ü", "train"), ("../0/ü", "train")])
    assert [found.read(0).group, found.read(1).group] == [2, 0]
    assert [path.name for path in (tmp_path / "windows").iterdir()] == ["many.h5"]


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", "", "a\n", "ü", "a" * 201])
def test_an_id_never_chooses_a_path(tmp_path, name):
    WindowWriter(tmp_path / "set", some_task(), SETTINGS)
    with pytest.raises(ValueError, match="file name"):
        write_window(tmp_path / "set", some_window(name), "train")
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "windows.started.json"]


def test_arrays_that_do_not_fit_each_other_are_not_written(tmp_path):
    good = some_window("a")
    for wrong in (
        replace(good, valid={S2: good.valid[S2]}),
        replace(good, valid={**good.valid, S1: good.valid[S1][:4]}),
        replace(good, absent={**good.absent, S2: good.absent[S2][:, :4]}),
        replace(good, timestamps=good.timestamps[:2]),
        replace(good, target=good.target[:4]),
        replace(good, images={}, valid={}, absent={}),
    ):
        with pytest.raises(ValueError, match="window a"):
            write_window(tmp_path, wrong, "train")
    with pytest.raises(ValueError, match="split 'dev'"):
        write_window(tmp_path, good, "dev")
    assert list(tmp_path.iterdir()) == []


def test_a_list_names_what_was_written_for_that_split(tmp_path):
    writer = WindowWriter(tmp_path, some_task(), SETTINGS)
    write_window(tmp_path, some_window("a"), "train")
    for order, message in (
        ([("b", "train")], "b was not written"),
        ([("a", "val")], "written for 'train', not for 'val'"),
        ([("a", "train")] * 2, "listed twice"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.finish(order)
    left_out = writer.finish([("a", "")])
    assert [len(left_out.split(name)) for name in ("train", "val", "test")] == [0, 0, 0]


def test_what_is_no_finished_set_says_why(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        WindowFolder.open(tmp_path / "gone")
    with pytest.raises(InputError, match="holds no set of windows"):
        WindowFolder.open(tmp_path)
    three(tmp_path / "set")
    path = tmp_path / "set" / "windows.json"
    content = json.loads(path.read_text())
    columns = content["windows"]
    for wrong, message in (
        ({**content, "version": 2}, "version 2 of the format; this olmoearth reads up to 1"),
        ({**content, "format": "x"}, "not a list of windows"),
        ({**content, "windows": {**columns, "file": ["../../x", "a", "c"]}}, "cannot be a file name"),
        ({**content, "windows": {**columns, "split": ["train", "dev", "val"]}}, "unknown splits 'dev'"),
        ({**content, "windows": {**columns, "id": ["a", "a", "b"]}}, "an id occurs twice"),
        ({**content, "windows": {**columns, "at": [0]}}, "differ in length"),
        ({**content, "task": {}}, "not a list of windows"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=message):
            WindowFolder.open(tmp_path / "set")
    path.write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        WindowFolder.open(tmp_path / "set")


def test_missing_files_are_found_at_once_and_damage_when_it_is_read(tmp_path):
    found = three(tmp_path)
    path = tmp_path / "windows" / "a.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.h5: this file of windows is damaged"):
        found.read(1)
    pixels = bytearray(whole)
    at = whole.index(some_window("a", seed=1).timestamps.tolist().__str__().encode())
    pixels[at + 1] ^= 1
    path.write_bytes(pixels)
    with pytest.raises(InputError, match="is damaged"):
        found.read(1)
    path.write_bytes((tmp_path / "windows" / "b.h5").read_bytes())
    with pytest.raises(InputError, match="holds another window, b"):
        found.read(1)
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        found.read(1)
    with pytest.raises(InputError, match=r"1 files of windows are missing, for example .*a\.h5"):
        WindowFolder.open(tmp_path)


def test_a_file_that_points_elsewhere_is_not_followed(tmp_path):
    found = three(tmp_path)
    path, other = tmp_path / "windows" / "a.h5", tmp_path / "a.h5"
    path.rename(other)
    for link in (h5py.ExternalLink(str(other), "/0"), h5py.SoftLink("/elsewhere")):
        with h5py.File(path, "w") as file:
            file["0"] = link
        with pytest.raises(InputError, match="link to elsewhere"):
            found.read(1)
    with h5py.File(path, "w") as file:
        file["0"] = 1
    with pytest.raises(InputError, match="damaged"):
        found.read(1)


def test_a_flipped_bit_in_compressed_pixels_is_no_other_picture(tmp_path):
    writer = WindowWriter(tmp_path, some_task(window_px=32), SETTINGS)
    write_window(tmp_path, some_window("a", side=32), "train")
    found = writer.finish([("a", "train")])
    path = tmp_path / "windows" / "a.h5"
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 4, len(content), len(content) // 4):
        flipped = bytearray(content)
        flipped[at] ^= 16
        path.write_bytes(flipped)
        with pytest.raises(InputError, match="is damaged"):
            found.read(0)
