"""BreizhCrops, Level 1C of 2017: one HDF5 file and one CSV index per region (spec/evaluation.md 10.1).

Layout of the package `breizhcrops` 0.0.4.1: `classmapping.csv`, `2017/L1C/<region>.csv` and `<region>.h5`, in which
each field is a dataset [acquisitions, 17]: 13 bands, QA10, QA20, QA60 and the time in ns since 1970.

The order of the bands could not be verified on a published file: the versions of the package disagree
(alphabetical, then by number) about files of the same size. It is therefore told from the values: the cirrus band
B10 of Level 1C is far darker than the band that the other order would put in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.common import (
    ALL_S2,
    S2,
    band_positions,
    find_home,
    month_starts,
    refuse_fraction,
    require_split,
)
from olmoearth_pipelines.tasks.task import BandTable, Task, TaskSample

_REGIONS = {"train": ("frh01", "frh02"), "val": ("frh03",), "test": ("frh04",)}
_ALPHABETICAL = ("B01", "B10", "B11", "B12", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09")
_TIME = 16
"""Column of the acquisition time."""
_PROBED = 50
"""Fields looked at to tell the order of the bands."""
_YEAR, _MONTHS = 2017, 12


class BreizhCropsReader:
    """Reads fields one by one; a region's index (about 100,000 rows) is the only thing kept."""

    def __init__(self, task: Task, folder: Path, *, reference: bool = False) -> None:
        """Find the data at or below `folder`.

        Args:
            task: the BreizhCrops row.
            folder: the package's root folder.
            reference: True takes the bands in the order that package 0.0.4.1 states, whatever the values say.

        Raises:
            InputError: the training regions are not there.
        """
        files = [f"2017/L1C/{region}.{end}" for region in _REGIONS["train"] for end in ("csv", "h5")]
        self._task, self._reference = task, reference
        self._home = find_home(
            folder,
            ("breizhcrops", "breizhcrops_dataset"),
            ("classmapping.csv", *files),
            task=task.name,
            layout="<folder>/classmapping.csv and <folder>/2017/L1C/{frh01,frh02,frh03,frh04}.{csv,h5}",
        )
        self._index = cache(self._read_index)

    def splits(self) -> Mapping[str, int]:
        """Split -> number of fields of the mapped classes; a split is there when all its regions are."""
        there = {
            split: regions
            for split, regions in _REGIONS.items()
            if all(self._file(region, end).exists() for region in regions for end in ("csv", "h5"))
        }
        return {split: sum(len(self._index(region)) for region in regions) for split, regions in there.items()}

    def read(self, split: str, partition: str | None = None) -> Iterator[TaskSample]:
        """Fields in the order of the regions' indices; see `Reader.read`."""
        require_split(split, self.splits(), task=self._task.name, home=self._home)
        refuse_fraction(partition, task=self._task.name)
        for region in _REGIONS[split]:
            yield from self._read_region(region)

    def statistics(self, modality: str) -> BandTable | None:
        """None: the set publishes no statistics."""
        return None

    def _file(self, region: str, end: str) -> Path:
        return self._home / "2017" / "L1C" / f"{region}.{end}"

    def _read_index(self, region: str) -> list[tuple[str, int]]:
        """Dataset path and class id of every field that has a mapped class and an acquisition."""
        mapping_path, path = self._home / "classmapping.csv", self._file(region, "csv")
        mapping = _read_csv(mapping_path, ("code", "id"))
        index = _read_csv(path, ("CODE_CULTU", "path", "sequencelength"))
        class_of = dict(zip(mapping["code"], mapping["id"].astype(int), strict=True))
        wrong = [value for value in class_of.values() if not 0 <= value < self._task.classes]
        if wrong:
            raise InputError(f"{mapping_path}: class ids {wrong[:5]} are not among {self._task.classes} classes.")
        kept = index[index["CODE_CULTU"].isin(class_of.keys()) & (index["sequencelength"] > 0)]
        return [(str(where), class_of[code]) for where, code in zip(kept["path"], kept["CODE_CULTU"], strict=True)]

    def _read_region(self, region: str) -> Iterator[TaskSample]:
        path, fields = self._file(region, "h5"), self._index(region)
        try:
            with h5py.File(path, "r") as file:
                probed = [_series(file, where, path) for where, _ in fields[:_PROBED]]
                order = ALL_S2 if self._reference or not probed else _band_order(probed, path)
                positions = band_positions(S2, order)
                for where, class_id in fields:
                    yield _sample(where, _series(file, where, path), positions, class_id)
        except OSError as error:
            raise InputError(f"{path}: cannot be read as HDF5 ({error}). Download the region again.") from error


def _read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        return pd.read_csv(path, usecols=list(columns))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read, or lacks one of {', '.join(columns)} ({error}).") from error


def _series(file: h5py.File, where: str, path: Path) -> npt.NDArray[np.float64]:
    """One field's acquisitions [N, 17]."""
    found = file.get(where)
    if not isinstance(found, h5py.Dataset) or found.ndim != 2 or found.shape[1] != _TIME + 1 or not len(found):
        raise InputError(f"{path}: {where!r} is no series of acquisitions with {_TIME + 1} columns.")
    return found[...].astype(np.float64)


def _band_order(series: list[npt.NDArray[np.float64]], path: Path) -> tuple[str, ...]:
    """Order of the 13 bands, by where the dark cirrus band lies.

    Raises:
        InputError: neither place is clearly darker than the other.
    """
    typical = np.median(np.concatenate(series), axis=0)
    alphabetical, by_number = typical[_ALPHABETICAL.index("B10")], typical[ALL_S2.index("B10")]
    if 2 * alphabetical < by_number:
        return _ALPHABETICAL
    if 2 * by_number < alphabetical:
        return ALL_S2
    raise InputError(
        f"{path}: cannot tell the order of the bands: columns 2 and 11 have medians {alphabetical:.0f} and "
        f"{by_number:.0f}, and one of them should be the much darker cirrus band. Is this the L1C file of 2017?"
    )


def _sample(where: str, series: npt.NDArray[np.float64], positions: list[int], class_id: int) -> TaskSample:
    """Monthly means of 2017; months without an acquisition are flagged and 0."""
    times = series[:, _TIME].astype(np.int64).astype("datetime64[ns]")
    months = times.astype("datetime64[M]").astype(np.int64) % 12
    counts = np.bincount(months, minlength=_MONTHS)
    totals = np.zeros((_MONTHS, len(positions)))
    np.add.at(totals, months, series[:, positions])
    means = (totals / np.maximum(counts, 1)[:, None]).astype(np.float32)  # T C
    inputs: dict[str, Any] = {S2: means[None, None]}  # 1 1 T C
    return TaskSample(
        id=where,
        inputs=inputs,
        missing={S2: counts == 0},
        timestamps=month_starts(_YEAR, 0, _MONTHS),
        target=np.array(class_id, dtype=np.int64),
    )
