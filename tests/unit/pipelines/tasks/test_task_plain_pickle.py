from __future__ import annotations

import datetime
import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
from affine import Affine
from task_files import foreign_class, forget_foreign_modules

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.plain_pickle import Inert, read_plain, to_numbers


def text_of(value, protocol=4) -> str:
    return str(pickle.dumps(value, protocol=protocol))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numbers_arrays_and_containers_come_back_whatever_the_protocol(protocol) -> None:
    big_endian = np.array([[1, 2, 3], [4, 5, 6]], dtype=">i2")
    value = {"a": 3, "b": [1, 0], "c": np.int64(7), "d": big_endian, "e": np.asfortranarray(big_endian.astype("f4"))}
    back = read_plain(text_of(value, protocol), "s")
    assert back["a"] == 3
    assert back["b"] == [1, 0]
    assert to_numbers(back["c"], "s").shape == ()
    assert to_numbers(back["c"], "s") == 7
    np.testing.assert_array_equal(to_numbers(back["d"], "s"), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(to_numbers(back["e"], "s"), [[1, 2, 3], [4, 5, 6]])


def test_arrays_written_by_numpy_1_are_read() -> None:
    data = pickle.dumps(np.array([5, 6], dtype=np.int64), protocol=4).replace(b"numpy._core.", b"numpy.core.")
    # The module name is one byte shorter: mend its length prefix (SHORT_BINUNICODE) and drop the frame's length.
    data = data.replace(b"\x8c\x16numpy.core.multiarray", b"\x8c\x15numpy.core.multiarray")
    data = data[:2] + data[11:]
    np.testing.assert_array_equal(to_numbers(read_plain(str(data), "s"), "s"), [5, 6])


def test_the_benchmarks_own_objects_become_inert_and_are_never_imported() -> None:
    info = foreign_class("geobench.dataset", "Sentinel2")()
    info.name = "02 - Blue"
    value = {
        "info": info,
        "date": datetime.date(2020, 1, 2),
        "transform": Affine(1, 2, 3, 4, 5, 6),
        "order": OrderedDict(x=1),
        "label": 4,
    }
    text = text_of(value)
    forget_foreign_modules()
    back = read_plain(text, "s")
    assert "geobench" not in sys.modules
    assert isinstance(back["info"], Inert)
    assert back["info"].state == {"name": "02 - Blue"}
    assert isinstance(back["date"], Inert)
    assert back["transform"].arguments[:6] == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert back["order"] == {"x": 1}
    assert to_numbers(back["label"], "s") == 4


class _Calls:
    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _hidden_in_a_scalar(path):
    from numpy._core.multiarray import scalar

    return _Calls(scalar, np.dtype("O"), pickle.dumps(_Calls(os.system, f"touch {path}")))


@pytest.mark.parametrize(
    "attack",
    [
        lambda path: _Calls(os.system, f"touch {path}"),
        lambda path: _Calls(eval, f"open({str(path)!r}, 'w')"),
        lambda path: _Calls(subprocess.run, ["touch", str(path)]),
        lambda path: [1, {"label": _Calls(open, str(path), "w")}],
        lambda path: _Calls(getattr, "text", "upper"),
    ],
)
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(attack, tmp_path) -> None:
    text = text_of(attack(tmp_path / "run"))
    with pytest.raises(InputError, match=r"sample\.hdf5: its pickled metadata is not plain data \(it names "):
        read_plain(text, "sample.hdf5")
    assert not (tmp_path / "run").exists()


def test_a_pickle_inside_an_object_scalar_is_never_opened(tmp_path) -> None:
    back = read_plain(text_of(_hidden_in_a_scalar(tmp_path / "run")), "s")
    with pytest.raises(InputError, match="not a whole number"):
        to_numbers(back, "s")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "b'", "__import__('os')", "7", "b'abc'", str(pickle.dumps({"a": 1})[:-3] + b"'")])
def test_damage_is_one_clear_message(text) -> None:
    with pytest.raises(InputError, match="Download the file again"):
        read_plain(text, "x.hdf5")


@pytest.mark.parametrize("value", [None, "three", 1.5, [[1, 2], [3]], {"a": 1}, np.array(["a"])])
def test_a_label_that_is_no_whole_number_is_refused(value) -> None:
    with pytest.raises(InputError, match="not a whole number"):
        to_numbers(read_plain(text_of(value), "s"), "s")
