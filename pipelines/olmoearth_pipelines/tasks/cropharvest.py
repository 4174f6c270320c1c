"""CropHarvest, crop against other land, Togo and China: package `cropharvest` 0.7.0 (spec/evaluation.md 10.1).

Layout (Zenodo 10251170): `labels.geojson`, `features/arrays/<index>_<dataset>.h5` with `array` [12, 18],
`features/normalizing_dict.h5` with `mean` and `std` [18], `test_features/<name>*.h5` with `x` [N, 12, 18] and `y` [N].
The 18 bands are VV, VH (dB), 11 Sentinel-2 bands (digital numbers, Level 1C, without B01 and B10), two of ERA5,
elevation, slope and NDVI. Months are counted from January 2017 whatever the true dates, as for the published scores.

Training samples are the labels inside the country's bounding box that are no test samples, as in the package; the
boxes are those of its country shapes (Natural Earth, 1:50m), for China the mainland's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas
import h5py
import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.common import (
    S1,
    S2,
    band_positions,
    find_home,
    month_starts,
    refuse_fraction,
    require_split,
    safe_name,
)
from olmoearth_pipelines.tasks.task import BandTable, Task, TaskSample

_BANDS = (
    *("vv", "vh", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"),
    *("temperature_2m", "total_precipitation", "elevation", "slope", "NDVI"),
)
_POSITIONS = {S2: band_positions(S2, _BANDS, {"B01": "B02"}), S1: band_positions(S1, _BANDS)}
_MONTHS_STORED = 12
_TEST_CAP = 10_000
_VAL_SHARE, _SEED = 0.2, 42


@dataclass(frozen=True, kw_only=True)
class _Country:
    """One country's part of the set."""

    test_name: str
    """Start of the test files' names."""
    months: int
    """Leading months that the task uses."""
    box: tuple[float, float, float, float]
    """West, south, east, north in degrees."""


_COUNTRIES = {
    "cropharvest-togo": _Country(
        test_name="togo-eval",
        months=12,
        box=(-0.09018554687497726, 6.089404296874989, 1.7779296875000057, 11.115624999999994),
    ),
    "cropharvest-prc": _Country(
        test_name="china-crop",
        months=6,
        box=(73.60732421875002, 20.263720703125003, 134.75234375000002, 53.555615234375),
    ),
}


class CropHarvestReader:
    """Reads one country; one training file or one block of the test file in memory at a time."""

    def __init__(self, task: Task, folder: Path, *, reference: bool = False) -> None:
        """Find the data at or below `folder`; `reference` changes nothing here.

        Raises:
            InputError: labels or features are not there.
        """
        del reference
        self._task, self._country = task, _COUNTRIES[task.name]
        self._home = find_home(
            folder,
            ("cropharvest",),
            ("labels.geojson", "features/arrays"),
            task=task.name,
            layout="<folder>/labels.geojson, <folder>/features/arrays/*.h5, <folder>/features/normalizing_dict.h5 and "
            f"<folder>/test_features/{self._country.test_name}*.h5",
        )

    def splits(self) -> Mapping[str, int]:
        """Split -> number of samples; `test` is there when its file is, and counts at most 10,000."""
        found = {split: len(files) for split, files in self._train_and_val.items()}
        test = sum(len(rows) for _, rows in self._test_rows)
        return found | ({"test": test} if test else {})

    def read(self, split: str, partition: str | None = None) -> Iterator[TaskSample]:
        """Train and val in the order of `labels.geojson`, crops first; test in the order of its files."""
        require_split(split, self.splits(), task=self._task.name, home=self._home)
        refuse_fraction(partition, task=self._task.name)
        yield from self._read_test() if split == "test" else self._read_train(split)

    def statistics(self, modality: str) -> BandTable | None:
        """Mean and deviation over all of CropHarvest, where `normalizing_dict.h5` is there."""
        path = self._home / "features" / "normalizing_dict.h5"
        if modality not in _POSITIONS or not path.is_file():
            return None
        with _open(path) as file:
            mean, std = (_dataset(file, key, path, (len(_BANDS),)).astype(np.float64) for key in ("mean", "std"))
        return BandTable(mean=mean[_POSITIONS[modality]], std=std[_POSITIONS[modality]])

    @cached_property
    def _train_and_val(self) -> Mapping[str, list[tuple[Path, int]]]:
        """Files and labels; val is a stratified fifth, drawn over crops first, then the others, as published."""
        files = self._labelled_files()
        labels = [label for _, label in files]
        if min(labels.count(0), labels.count(1)) < 2:
            raise InputError(
                f"{self._home}: {labels.count(1)} crop and {labels.count(0)} other training files for "
                f"{self._task.name}; a stratified split needs two of each. Is features/arrays complete?"
            )
        numbers = np.arange(len(files))
        train, val = train_test_split(numbers, test_size=_VAL_SHARE, random_state=_SEED, stratify=labels)
        return {"train": [files[n] for n in sorted(train)], "val": [files[n] for n in sorted(val)]}

    def _labelled_files(self) -> list[tuple[Path, int]]:
        """Training files of the country that are there, crops first."""
        path = self._home / "labels.geojson"
        columns = ["index", "dataset", "is_crop", "is_test", "lat", "lon"]
        try:
            table = geopandas.read_file(path, columns=columns, ignore_geometry=True)[columns]
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{path}: cannot be read, or lacks one of {', '.join(columns)} ({error}).") from error
        west, south, east, north = self._country.box
        inside = table["lat"].between(south, north) & table["lon"].between(west, east)
        table = table[inside & ~table["is_test"].astype(bool)]
        crop = table["is_crop"].astype(bool)
        files = []
        for label, rows in ((1, table[crop]), (0, table[~crop])):
            for index, dataset in zip(rows["index"], rows["dataset"], strict=True):
                file = self._home / "features" / "arrays" / safe_name(f"{index}_{dataset}.h5", path)
                if file.is_file():
                    files.append((file, label))
        return files

    @cached_property
    def _test_rows(self) -> list[tuple[Path, npt.NDArray[np.int64]]]:
        """Rows with a label of each test file, 10,000 in all; -1 in `y` is no label."""
        rows, left = [], _TEST_CAP
        for path in sorted((self._home / "test_features").glob(f"{self._country.test_name}*.h5")):
            with _open(path) as file:
                labels = _dataset(file, "y", path, (None,))
            kept = np.flatnonzero(labels >= 0)[:left]
            rows.append((path, kept))
            left -= len(kept)
        return rows

    def _read_train(self, split: str) -> Iterator[TaskSample]:
        for path, label in self._train_and_val[split]:
            with _open(path) as file:
                values = _dataset(file, "array", path, (_MONTHS_STORED, len(_BANDS)))
            yield self._sample(path.stem, values, label, path)

    def _read_test(self) -> Iterator[TaskSample]:
        for path, rows in self._test_rows:
            with _open(path) as file:
                labels = _dataset(file, "y", path, (None,))
                series = file.get("x")
                if not isinstance(series, h5py.Dataset) or series.shape != (len(labels), _MONTHS_STORED, len(_BANDS)):
                    raise InputError(f"{path}: `x` must be ({len(labels)}, {_MONTHS_STORED}, {len(_BANDS)}).")
                for row in rows:
                    yield self._sample(f"{path.stem}:{row}", series[row], int(labels[row]), path)

    def _sample(self, name: str, values: npt.NDArray[np.generic], label: int, path: Path) -> TaskSample:
        if label not in (0, 1):
            raise InputError(f"{path}: label {label} of {name} is neither 0 nor 1.")
        months = self._country.months
        series = values[None, None, :months].astype(np.float32)  # 1 1 T bands
        return TaskSample(
            id=name,
            inputs={modality: series[..., _POSITIONS[modality]] for modality in MODALITIES if modality in _POSITIONS},
            missing={},
            timestamps=month_starts(2017, 0, months),
            target=np.array(label, dtype=np.int64),
        )


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({error}). Download CropHarvest again.") from error


def _dataset(file: h5py.File, key: str, path: Path, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """A small dataset whole; None in `shape` is any length."""
    found = file.get(key)
    agrees = isinstance(found, h5py.Dataset) and len(found.shape) == len(shape)
    if not agrees or any(want not in (None, have) for want, have in zip(shape, found.shape, strict=True)):
        raise InputError(f"{path}: `{key}` is absent or not of shape {shape}. Download CropHarvest again.")
    return found[...]
