"""Extracted features on disk, so that another probe over the same features encodes nothing.

One folder per split and settings: `<pooling>.npy`, `targets.npy` and `about.json`. It is written beside and renamed
when complete. Maps of features can be far larger than memory, so arrays are files that are read as they are used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.probe.pooling import POOLINGS
from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.files import PART, output_error, read_json, write_json

Array = npt.NDArray[Any]
ABOUT = "about.json"
TARGETS = "targets"


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """One split of a task as a probe reads it. Arrays may lie on disk; they are private copies when written to."""

    vectors: Mapping[str, npt.NDArray[np.float32]]
    """{pooling: [N, D], or [N, Y, X, D] for segmentation}, `mean` and `max`."""
    targets: Array
    """int64 [N], uint8 [N, C] or int64 [N, H, W], as in `TaskSample`."""
    ids: tuple[str, ...]
    """[N], in file order."""

    def __len__(self) -> int:
        return len(self.ids)


def cache_folder(cache: Path, key: Mapping[str, Any]) -> Path:
    """Where features with exactly these settings lie."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache / digest[:24]


def load_features(folder: Path) -> Features | None:
    """Features that an earlier run left; None where there are none.

    Raises:
        InputError: the folder is damaged.
    """
    if not (folder / ABOUT).is_file():
        return None
    about = read_json(folder / ABOUT)
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in (*POOLINGS, TARGETS)}
        ids = tuple(map(str, about["ids"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: damaged cached features ({error}). Delete the folder and run again.") from None
    if any(len(array) != len(ids) for array in arrays.values()):
        raise InputError(f"{folder}: cached arrays of unequal length. Delete the folder and run again.")
    targets = arrays.pop(TARGETS)
    return Features(vectors=arrays, targets=targets, ids=ids)


class FeatureWriter:
    """Arrays to fill, in memory or in a cache folder that appears when `finish` is called.

    A context manager: leaving it without `finish` removes what was written.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any]) -> None:
        """Prepare.

        Args:
            folder: from `cache_folder`; None keeps the arrays in memory.
            key: written into `about.json`, for people.
        """
        self._folder, self._key = folder, key
        self._part = None if folder is None else folder.with_name(f"{folder.name}.{secrets.token_hex(4)}{PART}")
        self._arrays: dict[str, Array] = {}
        self._bytes = 0

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            shutil.rmtree(self._part, ignore_errors=True)

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """The array of that name, made on the first call.

        Raises:
            OutputError: no room or no permission.
        """
        if name in self._arrays:
            return self._arrays[name]
        if self._part is None:
            self._arrays[name] = np.empty(shape, dtype)
            return self._arrays[name]
        path = self._part / f"{name}.npy"
        try:
            self._part.mkdir(parents=True, exist_ok=True)
            self._bytes += math.prod(shape) * np.dtype(dtype).itemsize
            if self._bytes > shutil.disk_usage(self._part).free:  # a sparse file would end in a bus error, midway
                raise OSError(errno.ENOSPC, "disk full")
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
        except OSError as error:
            raise output_error(path, error) from error
        self._arrays[name] = array
        return array

    def finish(self, ids: tuple[str, ...]) -> Features:
        """The filled arrays, and the cache folder in its place."""
        if self._folder is None or self._part is None:
            vectors = {name: array for name, array in self._arrays.items() if name != TARGETS}
            return Features(vectors=vectors, targets=self._arrays[TARGETS], ids=ids)
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]
        write_json(self._part / ABOUT, {"ids": list(ids), "settings": dict(self._key)})
        try:
            self._part.rename(self._folder)
        except OSError as error:
            if not (self._folder / ABOUT).is_file():  # otherwise another run was first, with equal features
                raise output_error(self._folder, error) from error
        features = load_features(self._folder)
        assert features is not None
        return features
