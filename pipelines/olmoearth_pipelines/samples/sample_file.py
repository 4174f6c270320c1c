"""One sample file: what it holds, read and written (spec/pretraining.md sections 1.4, 1.9 and 1.10).

Satellite arrays hold only the timesteps that exist; `missing_timesteps_masks` says which, with True for *present*.
Reading cuts the crop out before anything is filled in, so nothing larger than the crop is converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.modality import MISSING_VALUE, MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.files import write_bytes
from olmoearth_pipelines.samples.layout import TILE_PX, ZSTD_LEVEL

Array = npt.NDArray[Any]
MASKS = "missing_timesteps_masks"
PERIODS = 12
"""Timesteps of a sample after padding."""
AGAIN = "Unpack or write the file again, or leave the sample out."


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """A crop in space and time."""

    row: int
    """Topmost pixel row."""
    column: int
    """Leftmost pixel column."""
    side_px: int
    """Rows and columns."""
    start: int
    """First timestep."""
    periods: int
    """Timesteps T; what lies beyond the sample's last one is padding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """A window of one sample, not filled yet."""

    values: Mapping[str, npt.NDArray[np.float32]]
    """{modality: [H, W, t, C]}, t the timesteps of the window that have data; only modalities in the file."""
    present: Mapping[str, npt.NDArray[np.bool_]]
    """{modality: [T]} ([1] for maps), True where there is data; every requested modality."""
    timestamps: npt.NDArray[np.int32]
    """[T, 3] day, month 0-11, year; padding repeats the last row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenSample:
    """A sample file's table of contents, cut to the requested modalities' timesteps (section 1.9, steps 1 and 2)."""

    path: Path
    """Where it lies, for messages."""
    side_px: int
    """Rows and columns of its rasters."""
    timestamps: npt.NDArray[np.int32]
    """[L, 3]."""
    present: Mapping[str, npt.NDArray[np.bool_]]
    """{satellite modality: [L]}, True where there is data; every requested one, all False if not in the file."""
    stored: Mapping[str, h5py.Dataset]
    """Requested modalities that the file has."""
    requested: tuple[str, ...]
    """Modalities that a crop reports."""

    def read(self, window: Window) -> Crop:
        """Read a window.

        Raises:
            InputError: the file is damaged, or has no number (NaN, infinity, -99999) where it says there is data.
        """
        end = window.start + window.periods
        present = {}
        values = {}
        for name in self.requested:
            if not MODALITIES[name].multitemporal:
                present[name] = np.array([name in self.stored])
                slices = slice(0, 1)
            else:
                seen = self.present[name]
                inside = seen[window.start : end]
                present[name] = np.pad(inside, (0, window.periods - len(inside)))
                before = int(seen[: window.start].sum())
                slices = slice(before, before + int(inside.sum()))
            if name in self.stored and slices.stop > slices.start:
                values[name] = self._cut(name, window, slices)
        return Crop(values=values, present=present, timestamps=_padded(self.timestamps[window.start :], window.periods))

    def _cut(self, name: str, window: Window, slices: slice) -> npt.NDArray[np.float32]:
        """A window of one modality, [H, W, t, C]."""
        rows = slice(window.row, window.row + window.side_px)
        columns = slice(window.column, window.column + window.side_px)
        try:
            stored = self.stored[name][rows, columns, slices]
        except (OSError, RuntimeError) as error:
            raise unreadable(self.path, name, error) from error
        values = np.asarray(stored, dtype=np.float32)
        # Compared so that NaN fails too. Missing data is expressed by absence only.
        if not (values.min() > MISSING_VALUE + 1 and values.max() < np.inf):
            raise InputError(
                f"{self.path}: {name} has NaN, infinity or {MISSING_VALUE:.0f} in a timestep that is marked present. "
                f"Leave whole timesteps out of the array and mark them False in {MASKS}, or leave the sample out."
            )
        return values


@contextmanager
def open_sample(path: Path, modalities: Sequence[str]) -> Iterator[OpenSample]:
    """Open a sample for reading.

    Args:
        path: the file.
        modalities: what is wanted; need not be in the file.

    Raises:
        InputError: not an HDF5 file, other shapes than the format's, or arrays that do not match their masks.
    """
    with open_file(path) as file:
        with hdf5_errors(path):
            opened = _contents(file, path, modalities)
        yield opened


def _contents(file: h5py.File, path: Path, modalities: Sequence[str]) -> OpenSample:
    stamps = read_timestamps(file, path)
    stored = {name: dataset(file, name, path) for name in modalities if name in file}
    side_px = check_rasters(stored, path)
    seen = _presence(file, stored, len(stamps), path)
    first, stop = _extent(seen, len(stamps))
    none = np.zeros(stop - first, dtype=bool)
    satellites = [name for name in modalities if MODALITIES[name].multitemporal]
    return OpenSample(
        path=path,
        side_px=side_px,
        timestamps=stamps[first:stop],
        present={name: seen[name][first:stop] if name in seen else none for name in satellites},
        stored=stored,
        requested=tuple(modalities),
    )


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, for reading.

    Raises:
        InputError: missing, cut short, or not HDF5.
    """
    try:
        # Some network file systems know no locks; nobody writes in place anyway.
        file = h5py.File(path, "r", locking="best-effort")
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: the sample's file is missing. Unpack all archives, or leave the sample out."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: not readable as HDF5, or cut short ({error}). {AGAIN}") from error
    with file:
        yield file


@contextmanager
def hdf5_errors(path: Path) -> Iterator[None]:
    """Say in our words what HDF5 finds wrong inside a file; around nothing but calls of h5py."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: damaged inside ({error}). {AGAIN}") from error


def dataset(file: h5py.File | h5py.Group, name: str, path: Path) -> h5py.Dataset:
    """A dataset that lies in the file itself and holds numbers.

    Raises:
        InputError: a group, a link or text is in its place, or nothing.
    """
    # A link could read any file of the user's into the training data.
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{path}: {name} is missing, or a link to elsewhere. {AGAIN}")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "biuf" or found.is_virtual or found.external:
        raise InputError(f"{path}: {name} is not an array of numbers inside the file. {AGAIN}")
    return found


def read_array(file: h5py.File | h5py.Group, name: str, path: Path, shape: tuple[int, ...] | None = None) -> Array:
    """A small array, whole.

    Raises:
        InputError: missing, of another shape, or damaged.
    """
    found = dataset(file, name, path)
    if shape is not None and found.shape != shape:
        raise InputError(f"{path}: {name} has shape {found.shape} in place of {shape}. {AGAIN}")
    try:
        return np.asarray(found[()])
    except (OSError, RuntimeError) as error:
        raise unreadable(path, name, error) from error


def read_timestamps(file: h5py.File, path: Path) -> npt.NDArray[np.int32]:
    """Period starts, int32 [n, 3] with n from 1 to 12: day, month 0-11, year.

    Raises:
        InputError: another shape, or not dates in this order.
    """
    shape = dataset(file, "timestamps", path).shape
    if len(shape) != 2 or shape[1] != 3 or not 1 <= shape[0] <= PERIODS:
        raise InputError(f"{path}: timestamps have shape {shape}; up to {PERIODS} rows of 3 are read. {AGAIN}")
    stamps = read_array(file, "timestamps", path)
    day, month, year = stamps.T
    if stamps.dtype.kind not in "iu" or day.min() < 1 or day.max() > 31 or month.min() < 0 or month.max() > 11:
        raise InputError(
            f"{path}: timestamps {stamps.tolist()} are not whole (day 1-31, month 0-11, year) rows. Write January as 0."
        )
    if year.min() < 1900 or year.max() > 2200:
        raise InputError(f"{path}: timestamps have years {year.min()} to {year.max()}. The order is day, month, year.")
    return stamps.astype(np.int32)


def check_rasters(stored: Mapping[str, h5py.Dataset], path: Path) -> int:
    """The common side of the rasters in pixels; 0 if there is none.

    Raises:
        InputError: rasters that are not [side, side, t, C], or sides that differ.
    """
    sides = set()
    for name, found in stored.items():
        modality = MODALITIES[name]
        side = found.shape[0] if found.ndim == 4 else 0
        periods = found.shape[2] if found.ndim == 4 and modality.multitemporal else 1
        if not 0 < side <= TILE_PX or periods > PERIODS or found.shape != (side, side, periods, len(modality.bands)):
            raise InputError(
                f"{path}: {name} has shape {found.shape}; square [side, side, {'t' if modality.multitemporal else 1}, "
                f"{len(modality.bands)}] with up to {TILE_PX} px and {PERIODS} timesteps is read. {AGAIN}"
            )
        sides.add(side)
    if len(sides) > 1:
        raise InputError(f"{path}: rasters of {sorted(sides)} px; all must lie on one 10 m grid. {AGAIN}")
    return max(sides, default=0)


def unreadable(path: Path, name: str, error: Exception) -> InputError:
    """The message for an array that HDF5 could not decode."""
    if "filter" in str(error) or "plugin" in str(error):
        return InputError(
            f"{path}: {name} is compressed with a filter that is not installed ({error}). The published files need "
            "Zstandard, which comes with hdf5plugin: pip install hdf5plugin."
        )
    return InputError(f"{path}: {name} is damaged ({error}). {AGAIN}")


def _presence(
    file: h5py.File, stored: Mapping[str, h5py.Dataset], rows: int, path: Path
) -> dict[str, npt.NDArray[np.bool_]]:
    """{satellite modality in the file: bool [rows]}, True = present; all True where the file has no masks."""
    seen = {}
    for name, found in stored.items():
        if not MODALITIES[name].multitemporal:
            continue
        mask = read_array(file, f"{MASKS}/{name}", path, (rows,)) if MASKS in file else np.ones(rows, dtype=bool)
        if not np.isin(mask, (0, 1)).all():
            raise InputError(f"{path}: {MASKS}/{name} has other values than True and False. {AGAIN}")
        seen[name] = mask.astype(bool)
        # Upstream would keep the first slices, each at a wrong date.
        if int(seen[name].sum()) != found.shape[2]:
            raise InputError(
                f"{path}: {name} holds {found.shape[2]} timesteps, but {int(seen[name].sum())} are marked present "
                f"(True) in {MASKS}. {AGAIN}"
            )
    return seen


def _extent(seen: Mapping[str, npt.NDArray[np.bool_]], rows: int) -> tuple[int, int]:
    """First timestep with any data and the one behind the last; all where there is none."""
    present = np.flatnonzero(np.any(list(seen.values()), axis=0)) if seen else np.arange(0)
    return (int(present[0]), int(present[-1]) + 1) if len(present) else (0, rows)


def _padded(stamps: npt.NDArray[np.int32], periods: int) -> npt.NDArray[np.int32]:
    return np.pad(stamps[:periods], ((0, max(0, periods - len(stamps))), (0, 0)), mode="edge")


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleData:
    """All that a sample file, or the tile that it is cut from, holds."""

    latlon: npt.NDArray[np.float32]
    """[2] latitude and longitude in degrees of the 256 px tile's centre."""
    timestamps: npt.NDArray[np.int32]
    """[12, 3] day, month 0-11, year of each period's first day."""
    images: Mapping[str, Array]
    """{modality: [H, W, t, C]} in the format's numbers and dtypes; t = 1 for maps."""
    present: Mapping[str, npt.NDArray[np.bool_]]
    """{satellite modality: [12]}, True where there is data: t times."""


def write_sample(path: Path, sample: SampleData) -> None:
    """Write a sample file, whole or not at all.

    Args:
        path: replaced if there.
        sample: not checked here; `rules.check_sample` does.

    Raises:
        OutputError: the system refused.
    """
    zstd = hdf5plugin.Zstd(clevel=ZSTD_LEVEL)
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        for name, values in {"latlon": sample.latlon, "timestamps": sample.timestamps, **sample.images}.items():
            file.create_dataset(name, data=values, chunks=values.shape, **zstd)
        masks = file.create_group(MASKS)
        for name, mask in sample.present.items():
            masks.create_dataset(name, data=mask)
        file.flush()
        image = file.id.get_file_image()
    write_bytes(path, image)
