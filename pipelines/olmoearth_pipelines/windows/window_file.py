"""A file of labelled windows: HDF5 with one group per window, Zstandard, masks as bits.

A group holds `head` (JSON: names, shapes, dates), `image_<modality>`, `target` and `masks`. Windows cut from the
archive lie one to a file, so that any process can write one; a benchmark's small ones share files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.files import write_bytes
from olmoearth_pipelines.samples.sample_file import read_array
from olmoearth_pipelines.windows.window import SPLITS, UNUSED, Array, Window

ZSTD_LEVEL = 3
SMALL_BYTES = 4096
"""Arrays below are not compressed: a chunk's own index would be larger."""
AGAIN = "Delete the folder of windows and make them again."
_DAMAGE = (OSError, RuntimeError, LookupError, TypeError, ValueError, InputError)
"""What reading a damaged file raises."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What can be known of a window without reading its pixels."""

    id: str
    split: str
    """One of `SPLITS`, or `UNUSED`."""
    sha256: str
    """Of everything that the window holds, but not of its split."""


def write_windows(path: Path, windows: Sequence[tuple[Window, str]]) -> None:
    """Write a file of windows, whole or not at all.

    Args:
        path: replaced if there.
        windows: the windows with their splits.

    Raises:
        ValueError: arrays that do not fit each other, or an unknown split.
        OutputError: the system refused.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        for at, (window, split) in enumerate(windows):
            if split not in (*SPLITS, UNUSED):
                raise ValueError(f"window {window.id}: split {split!r} is none of {', '.join(SPLITS)}")
            _check_window(window)
            _write_group(file.create_group(str(at)), window, split)
        file.flush()
        image = file.id.get_file_image()
    write_bytes(path, image)


def read_window(path: Path, at: int, sha256: str) -> Window:
    """Read one window of a file.

    Args:
        path: the file.
        at: position of the window in it.
        sha256: of the window that is expected there.

    Raises:
        InputError: the file is missing, damaged, or holds another window.
    """
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            group = _group(file, at)
            head = _head(group, path)
            if head["sha256"] != sha256:
                raise ValueError(f"it holds another window, {head['id']}")
            return _window(group, head, path)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def read_heads(path: Path) -> list[Head]:
    """What a file's windows are, in their order.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            heads = [_head(_group(file, at), path) for at in range(len(file))]
        return [Head(id=head["id"], split=head["split"], sha256=head["sha256"]) for head in heads]
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: this file of windows is missing. {AGAIN}")
    # The advice of `read_array` is for files of another kind.
    reason = "" if isinstance(error, InputError) else f" ({error})"
    return InputError(f"{path}: this file of windows is damaged{reason}. {AGAIN}")


def _check_window(window: Window) -> None:
    """Refuse a window whose arrays do not fit each other (`ValueError`)."""
    wrong = _misfits(window)
    if wrong:
        raise ValueError(f"window {window.id}: {'; '.join(wrong)}")


def _misfits(window: Window) -> list[str]:
    names = list(window.images)
    if not names or set(names) != set(window.valid) or set(names) != set(window.absent):
        return [f"images of {names}, valid of {list(window.valid)}, absent of {list(window.absent)}"]
    periods, wrong = len(window.timestamps), []
    if window.timestamps.shape != (periods, 3):
        wrong.append(f"timestamps {window.timestamps.shape}")
    side = next(iter(window.images.values())).shape[:2]
    for name, image in window.images.items():
        product = MODALITIES[name]
        t, c = periods if product.multitemporal else 1, len(product.bands)
        shapes = (image.shape, window.valid[name].shape, window.absent[name].shape)
        if shapes != ((*side, t, c), (*side, t), (t, c)):
            wrong.append(f"{name}: image, valid, absent of {shapes} for {side} px, {t} periods and {c} bands")
    if window.target.ndim == 2 and window.target.shape != side:
        wrong.append(f"target {window.target.shape} for {side} px")
    return wrong


def _write_group(group: h5py.Group, window: Window, split: str) -> None:
    masks = np.packbits(np.concatenate([mask.ravel() for mask in _masks(window)]))
    head = {
        "id": window.id,
        "split": split,
        "images": [[name, list(image.shape)] for name, image in window.images.items()],
        "timestamps": window.timestamps.tolist(),
        "lonlat": window.lonlat,
        "group": int(window.group),
    }
    head["sha256"] = _digest(window, head, masks)
    _store(group, "head", np.frombuffer(json.dumps(head).encode(), np.uint8))
    for name, image in window.images.items():
        _store(group, f"image_{name}", image)
    _store(group, "masks", masks)
    _store(group, "target", window.target)


def _masks(window: Window) -> list[Array]:
    """`valid` and `absent`, modality after modality."""
    return [mask for name in window.images for mask in (window.valid[name], window.absent[name])]


def _digest(window: Window, head: Mapping[str, Any], masks: Array) -> str:
    content = {key: value for key, value in head.items() if key != "split"}
    digest = hashlib.sha256(json.dumps(content).encode())
    for values in (*window.images.values(), masks, window.target):
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _store(group: h5py.Group, name: str, values: Array) -> None:
    if values.nbytes < SMALL_BYTES:
        group.create_dataset(name, data=values)
        return
    group.create_dataset(
        name, data=values, chunks=values.shape, shuffle=True, fletcher32=True, **hdf5plugin.Zstd(clevel=ZSTD_LEVEL)
    )


def _group(file: h5py.File, at: int) -> h5py.Group:
    # A link could lead to any file of the user's.
    own = isinstance(file.get(str(at), getlink=True), h5py.HardLink)
    if not own or not isinstance(found := file[str(at)], h5py.Group):
        raise ValueError(f"window {at} is missing, or a link to elsewhere")
    return found


def _head(group: h5py.Group, path: Path) -> dict[str, Any]:
    head: dict[str, Any] = json.loads(read_array(group, "head", path).tobytes())
    return head


def _window(group: h5py.Group, head: Mapping[str, Any], path: Path) -> Window:
    bits = np.unpackbits(read_array(group, "masks", path)).view(np.bool_)
    images, valid, absent, start = {}, {}, {}, 0
    for name, (h, w, t, c) in head["images"]:
        images[name] = read_array(group, f"image_{name}", path, (h, w, t, c))
        valid[name] = bits[start : start + h * w * t].reshape(h, w, t)
        start += h * w * t
        absent[name] = bits[start : start + t * c].reshape(t, c)
        start += t * c
    window = Window(
        id=head["id"],
        images=images,
        valid=valid,
        absent=absent,
        timestamps=np.array(head["timestamps"], np.int64),
        target=read_array(group, "target", path),
        lonlat=None if head["lonlat"] is None else (float(head["lonlat"][0]), float(head["lonlat"][1])),
        group=int(head["group"]),
    )
    _check_window(window)
    return window
