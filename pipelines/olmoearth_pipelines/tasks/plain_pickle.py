"""Reading numbers out of a pickle without running it (spec/evaluation.md 10.1 and 13.18).

GEO-Bench keeps a sample's label in a pickled HDF5 attribute, among objects of its own classes. Unpickling calls
whatever the file names, so here nothing of the file's choosing is called or imported: containers, strings and
numbers are admitted as they are, and every other name on a short list becomes an inert record of its arguments.
Arrays and numpy scalars are such records too; `to_numbers` builds them from their bytes afterwards.
"""

from __future__ import annotations

import ast
import io
import pickle
import re
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError


class Inert:
    """Stands in for an object of a class in the file: remembers what it was built from, does nothing."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **_named: Any) -> Self:
        """Remember the arguments; nothing of theirs runs."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(Inert):
    """`numpy.dtype`."""


class _Scalar(Inert):
    """`numpy.core.multiarray.scalar`."""


class _Array(Inert):
    """An array from `_reconstruct`, whose content arrives as state."""


class _BufferArray(Inert):
    """An array from `_frombuffer` (protocol 5), whose content is its arguments."""


_NAMES: Mapping[tuple[str, str], type] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): Inert,
    ("collections", "OrderedDict"): dict,
    ("affine", "Affine"): Inert,
    ("rasterio.crs", "CRS"): Inert,
    ("rasterio._crs", "CRS"): Inert,
    **{("datetime", name): Inert for name in ("date", "datetime", "time", "timedelta", "timezone")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _BufferArray for core in ("core", "_core")},
}
_OWNERS = re.compile(r"(geobench|ccb)(\.io)?(\.(dataset|label|task))?")
"""Modules whose classes GEO-Bench wrote into its files, under their names over the years."""
_NUMERIC = re.compile(r"[biuf][1248]")
_DAMAGE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What reading a damaged or hostile pickle can raise."""


class _Refused(pickle.UnpicklingError):
    """The pickle names something that no benchmark file needs."""


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if _OWNERS.fullmatch(module):
            return Inert
        raise _Refused(f"it names {module}.{name}")


def read_plain(literal: str | bytes, source: object) -> Any:
    """The content of a pickle that was stored as the text of a Python bytes literal.

    Args:
        literal: `b'...'`, as GEO-Bench writes it.
        source: where it came from, for messages.

    Returns:
        Containers, strings and numbers; `Inert` in the place of other objects.

    Raises:
        InputError: it is damaged, or names anything beyond numbers, arrays and the benchmark's own metadata.
    """
    text = literal.decode("ascii", errors="replace") if isinstance(literal, bytes) else literal
    try:
        data = ast.literal_eval(text)
        return _PlainUnpickler(io.BytesIO(data)).load()
    except _Refused as error:
        raise InputError(
            f"{source}: its pickled metadata is not plain data ({error}). Refusing to load it: "
            "unpickling would run code of the file. Download the file from its publisher again."
        ) from error
    except _DAMAGE as error:
        raise InputError(f"{source}: its pickled metadata is damaged ({error}). Download the file again.") from error


def to_numbers(value: Any, source: object) -> npt.NDArray[np.int64]:
    """A whole number, or a list or array of them, from `read_plain`; int64 of the same shape.

    Raises:
        InputError: it is something else.
    """
    try:
        array = np.asarray(_rebuilt(value))
        whole = array.astype(np.int64)
        if array.dtype.kind not in "biuf" or not np.array_equal(whole, array):
            raise TypeError(f"{array.dtype} is not a whole number")
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{source}: the label is not a whole number or an array of them ({error}).") from error
    return whole


def _rebuilt(value: Any) -> Any:
    """A number, list or array from its inert record; other values as they are."""
    if isinstance(value, _Scalar):
        dtype, raw = value.arguments
        return np.frombuffer(raw, dtype=_numeric(dtype), count=1)[0]
    if isinstance(value, _BufferArray):
        raw, dtype, shape, order = value.arguments
        return np.frombuffer(raw, dtype=_numeric(dtype)).reshape(shape, order=order)
    if isinstance(value, _Array):
        _version, shape, dtype, fortran, raw = value.state
        return np.frombuffer(raw, dtype=_numeric(dtype)).reshape(shape, order="F" if fortran else "C")
    if isinstance(value, (list, tuple)):
        return [_rebuilt(item) for item in value]
    return value


def _numeric(record: Any) -> np.dtype[Any]:
    """A real dtype from its record, numbers only."""
    code = record.arguments[0]
    if not isinstance(record, _Dtype) or _NUMERIC.fullmatch(str(code)) is None:
        raise TypeError(f"dtype {code!r} holds no plain numbers")
    order = record.state[1] if record.state is not None else "="
    return np.dtype(f"{order if order in '<>' else '='}{code}")
