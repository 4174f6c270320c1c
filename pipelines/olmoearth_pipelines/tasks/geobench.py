"""GEO-Bench 1.0 (all `m-*` tasks): one HDF5 file per sample (spec/evaluation.md 10.1).

Every band is a dataset named like `02 - Blue`, with `_<date>` behind it where the sample has a date; segmentation
has a dataset `label`, classification keeps the label in a pickled attribute. `band_stats.json` holds statistics by
band name, `default_partition.json` and `<fraction>x_train_partition.json` the splits.

Two published sets carry wrong band names: in m-eurosat the bands after B08 are those of EuroSAT, where B8A is
the last; in m-brick-kiln the thirteen are B01-B05, B07, B8A, B08, B11, B12 and an 8-bit true-colour picture
(ServiceNow/geo-bench issues 28 and 29). They are told by the set's own statistics and read as what they are.
The published scores took the names as written: `reference=True` does so too. Samples that carry a date
(m-cashewplant, m-forestnet) are given the date of the undated ones, as for the published scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.common import (
    L8,
    S2,
    SINGLE_DATE,
    checked_labels,
    find_home,
    partition_file,
    read_object,
    require_split,
    safe_name,
)
from olmoearth_pipelines.tasks.plain_pickle import read_plain, to_numbers
from olmoearth_pipelines.tasks.task import Array, BandTable, Task, TaskSample

_SPLITS = {"train": "train", "val": "valid", "test": "test"}
"""Our split -> GEO-Bench's."""
_NAMES = {
    "B01": "01 - Coastal aerosol",
    "B02": "02 - Blue",
    "B03": "03 - Green",
    "B04": "04 - Red",
    "B05": "05 - Vegetation Red Edge",
    "B06": "06 - Vegetation Red Edge",
    "B07": "07 - Vegetation Red Edge",
    "B08": "08 - NIR",
    "B8A": "08A - Vegetation Red Edge",
    "B09": "09 - Water vapour",
    "B10": "10 - SWIR - Cirrus",
    "B11": "11 - SWIR",
    "B12": "12 - SWIR",
}
_SO2SAT = _NAMES | {"B01": _NAMES["B02"], "B09": _NAMES["B8A"]}
_EUROSAT_TRUE = _NAMES | {"B09": _NAMES["B8A"], "B11": _NAMES["B10"], "B12": _NAMES["B11"], "B8A": _NAMES["B12"]}
_BRICK_KILN_TRUE = _NAMES | {
    # B06 and B09 are not delivered: filled by their neighbours B07 and B8A (2.2).
    "B06": _NAMES["B06"],
    "B07": _NAMES["B06"],
    "B8A": _NAMES["B07"],
    "B09": _NAMES["B07"],
    "B11": _NAMES["B8A"],
    "B12": _NAMES["B09"],
}
_FORESTNET = {
    "B1": "02 - Blue",
    "B2": "02 - Blue",
    "B3": "03 - Green",
    "B4": "04 - Red",
    "B5": "05 - NIR",
    "B6": "06 - SWIR1",
    "B7": "07 - SWIR2",
    "B8": "03 - Green",
    "B9": "07 - SWIR2",
    "B10": "07 - SWIR2",
    "B11": "07 - SWIR2",
}


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What is particular to one of the sets."""

    folder: str
    """Where it lies below GEOBENCH_DIR."""
    names: Mapping[str, str] = field(default_factory=lambda: _NAMES)
    """Band of the modality -> name in the file. A filled band has its source's name (2.2)."""
    modality: str = S2
    """Of its only product."""
    scale: float = 1.0
    """File values to the model's units."""


_FORMS = {
    "m-bigearthnet": _Form(folder="classification_v1.0/m-bigearthnet"),
    "m-so2sat": _Form(folder="classification_v1.0/m-so2sat", names=_SO2SAT, scale=10_000.0),
    "m-brick-kiln": _Form(folder="classification_v1.0/m-brick-kiln"),
    "m-forestnet": _Form(folder="classification_v1.0/m-forestnet", names=_FORESTNET, modality=L8),
    "m-eurosat": _Form(folder="classification_v1.0/m-eurosat"),
    "m-cashewplant": _Form(folder="segmentation_v1.0/m-cashew-plant"),
    "m-SA-crop-type": _Form(folder="segmentation_v1.0/m-SA-crop-type"),
}


class GeoBenchReader:
    """Reads one GEO-Bench set; one sample in memory at a time."""

    def __init__(self, task: Task, folder: Path, *, reference: bool = False) -> None:
        """Find the set at or below `folder`.

        Args:
            task: one of the `m-*` rows.
            folder: the set itself, or GEOBENCH_DIR.
            reference: True takes the band names as written, although two sets have them wrong.

        Raises:
            InputError: the set is not there.
        """
        self._task = task
        self._form = _FORMS[task.name]
        short = self._form.folder.rpartition("/")[2]
        self._home = find_home(
            folder,
            (self._form.folder, short),
            ("default_partition.json", "band_stats.json"),
            task=task.name,
            layout=f"GEOBENCH_DIR/{self._form.folder}/ with *.hdf5, default_partition.json and band_stats.json",
        )
        self._stats = read_object(self._home / "band_stats.json")
        self._names = self._form.names if reference else _true_names(task.name, self._form.names, self._stats)

    def splits(self) -> Mapping[str, int]:
        """Split -> number of samples in the default partition."""
        listed = self._partition("default_partition.json")
        return {split: len(listed[name]) for split, name in _SPLITS.items() if listed.get(name)}

    def read(self, split: str, partition: str | None = None) -> Iterator[TaskSample]:
        """Samples in the order of the partition file; see `Reader.read`."""
        require_split(split, self.splits(), task=self._task.name, home=self._home)
        name = "default_partition.json"
        if partition is not None and split == "train":
            known = self._task.partitions
            name = partition_file([self._home], partition, task=self._task.name, known=known).name
        for sample in self._partition(name).get(_SPLITS[split], []):
            yield self._sample(safe_name(sample, self._home / name))

    def statistics(self, modality: str) -> BandTable | None:
        """The set's own statistics in the units of the samples; None for a product that it lacks.

        Raises:
            InputError: `band_stats.json` lacks a band.
        """
        if modality != self._form.modality:
            return None
        names = [self._names[band] for band in MODALITIES[modality].bands]
        columns = {key: np.array([self._stat(name, key) for name in names]) for key in ("mean", "std", "min", "max")}
        copied = _copied_positions(names) if modality == L8 else {}
        mean, std, low, high = (columns[key] * self._form.scale for key in ("mean", "std", "min", "max"))
        return BandTable(mean=mean, std=std, minimum=low, maximum=high, copied=copied)

    def _stat(self, name: str, key: str) -> float:
        try:
            return float(self._stats[name][key])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self._home / 'band_stats.json'}: no {key} of band {name!r}. Download it again."
            ) from error

    def _partition(self, name: str) -> Mapping[str, Any]:
        path = self._home / name
        listed = read_object(path)
        if not all(isinstance(value, list) for value in listed.values()):
            raise InputError(f"{path}: must map train, valid and test to lists of sample names. Download it again.")
        return listed

    def _sample(self, name: str) -> TaskSample:
        path, form = self._home / f"{name}.hdf5", self._form
        try:
            with h5py.File(path, "r") as file:
                stored = _by_band(file, path)
                planes = [self._plane(stored, self._names[band], path) for band in MODALITIES[form.modality].bands]
                target = self._target(file, stored, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read as HDF5 ({error}). Download {self._task.name} again.") from error
        values = (np.stack(planes, axis=-1) * np.float32(form.scale))[:, :, None, :]  # H W 1 C
        return TaskSample(id=name, inputs={form.modality: values}, missing={}, timestamps=SINGLE_DATE, target=target)

    def _plane(self, stored: Mapping[str, h5py.Dataset], name: str, path: Path) -> npt.NDArray[np.float32]:
        """One band or the label, [H, W]."""
        side, found = self._task.side_px, stored.get(name)
        if not isinstance(found, h5py.Dataset):
            raise InputError(f"{path}: has no {name!r}, only {', '.join(sorted(stored))}.")
        if found.dtype.kind not in "biuf" or found.shape != (side, side):
            raise InputError(
                f"{path}: {name!r} is {found.dtype} of shape {found.shape}; {self._task.name} has numbers of "
                f"{side} x {side} pixels."
            )
        return found[...].astype(np.float32)

    def _target(self, file: h5py.File, stored: Mapping[str, h5py.Dataset], path: Path) -> Array:
        """The label in the form that the task's kind asks for."""
        task = self._task
        if task.kind == "segmentation":
            return checked_labels(self._plane(stored, "label", path).astype(np.int64), task.classes, path)
        about = read_plain(file.attrs.get("pickle", "b''"), path)
        label = to_numbers(about.get("label") if isinstance(about, dict) else None, path)
        expected = (task.classes,) if task.kind == "multilabel" else ()
        if label.shape != expected or label.min() < 0:
            raise InputError(f"{path}: the label is {label.tolist()}, not one of {task.classes} classes.")
        if task.kind == "multilabel":
            return checked_labels(label, 2, path).astype(np.uint8)
        return checked_labels(label, task.classes, path)


def _by_band(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    """Band name without its date -> dataset."""
    stored: dict[str, h5py.Dataset] = {}
    for key in file:
        name = key.partition("_")[0]
        if name in stored:
            raise InputError(f"{path}: holds {name!r} for several dates; GEO-Bench 1.0 samples have one.")
        stored[name] = file[key]
    return stored


def _true_names(task: str, names: Mapping[str, str], stats: Mapping[str, Any]) -> Mapping[str, str]:
    """Band -> the name under which the file really keeps it, by the set's own statistics.

    The cirrus band of Level 1C is near 0 (about 12 where the others are about 1000), so the name that holds it
    shows whether the bands after B08 were shifted. A true-colour picture shows by its maximum of 255.
    """

    def value(band: str, key: str) -> float:
        entry = stats.get(_NAMES[band])
        return float(entry[key]) if isinstance(entry, dict) and key in entry else np.nan

    if task == "m-eurosat" and value("B09", "mean") < 0.1 * value("B10", "mean"):
        return _EUROSAT_TRUE
    if task == "m-brick-kiln" and all(value(band, "max") <= 255 for band in ("B10", "B11", "B12")):
        return _BRICK_KILN_TRUE
    return names


def _copied_positions(names: list[str]) -> dict[int, int]:
    """Position of each copied band -> position of its source, in canonical order (m-forestnet)."""
    bands = MODALITIES[L8].bands
    sources = {name: position for position, name in enumerate(names) if f"B{int(name[:2])}" == bands[position]}
    return {position: sources[name] for position, name in enumerate(names) if sources[name] != position}
