"""AWF and Nandi: rslearn datasets, one folder per window (spec/evaluation.md 10.1 and 10.2).

`config.json` and `windows/<group>/<window>/` with `metadata.json` (bounds, split among its options),
`layers/<layer>[.<n>]/<bands>/geotiff.tif` for month n and the class in `layers/label/data.geojson`. Sentinel-2 is
digital numbers, Landsat counts, Sentinel-1 linear power, which becomes dB here; coarser rasters are repeated to 10 m.

The label sets and splits of the published tables are not public (the sets on Hugging Face differ): groups, classes
and layer names are those of the reference's configuration and could not be checked on the data. A product without a
layer in `config.json` is left out of the samples; a month without its folder, or without values, is flagged missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.common import (
    L8,
    S1,
    S2,
    find_home,
    month_starts,
    read_object,
    refuse_fraction,
    require_split,
    safe_name,
)
from olmoearth_pipelines.tasks.task import SPLITS, BandTable, Task, TaskSample

Float = npt.NDArray[np.float32]
_MONTHS = 12
_SPLIT_KEYS = ("olmoearth_evals_split", "helios_split", "split", "eval_split")
"""Options that hold a window's split; the first that a window has counts."""
_LAYERS = {S2: ("sentinel2",), S1: ("sentinel1", "sentinel1_ascending", "sentinel1_descending"), L8: ("landsat",)}
"""Modality -> names of its layer; the first that the dataset has is read."""


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """What is particular to one of the sets."""

    group: str
    """Window group of the labelled windows."""
    field: str
    """Property of the label feature that holds the class."""
    classes: tuple[str, ...]
    """Class names by class id."""
    start: tuple[int, int]
    """Year and month (from 0) of the first layer."""


_SETS = {
    "awf": _Labels(
        group="20250822",
        field="lulc",
        classes=(
            "Agriculture/Settlement",
            "Grassland/barren",
            "Herbaceous wetland",
            "Lava forest",
            "Montane forest",
            "Open water",
            "Shrubland/Savanna",
            "Urban/dense development",
            "Woodland forest (>40% canopy)",
        ),
        start=(2023, 0),
    ),
    "nandi": _Labels(
        group="groundtruth_polygon_split_window_32",
        field="category",
        classes=("Coffee", "Trees", "Grassland", "Maize", "Sugarcane", "Tea"),
        start=(2022, 8),
    ),
}


class WindowReader:
    """Reads one window at a time."""

    def __init__(self, task: Task, folder: Path, *, reference: bool = False) -> None:
        """Find the dataset at or below `folder`; `reference` changes nothing here.

        Raises:
            InputError: the dataset or its labelled group is not there.
        """
        del reference
        self._task, self._set = task, _SETS[task.name]
        group = f"windows/{self._set.group}"
        self._home = find_home(
            folder,
            (task.name, f"{task.name}_2023", f"kenya_{task.name}"),
            ("config.json", group),
            task=task.name,
            layout=f"an rslearn dataset: <folder>/config.json and <folder>/{group}/<window>/metadata.json and layers/",
        )
        layers = read_object(self._home / "config.json").get("layers") or {}
        named = {modality: [name for name in _LAYERS[modality] if name in layers] for modality in task.modalities}
        self._layers = {modality: names[0] for modality, names in named.items() if names}

    def splits(self) -> Mapping[str, int]:
        """Split -> number of windows."""
        return {split: len(windows) for split, windows in self._windows.items() if windows}

    def read(self, split: str, partition: str | None = None) -> Iterator[TaskSample]:
        """Windows by name; see `Reader.read`."""
        require_split(split, self.splits(), task=self._task.name, home=self._home)
        refuse_fraction(partition, task=self._task.name)
        for window, side in self._windows[split]:
            yield self._sample(window, side)

    def statistics(self, modality: str) -> BandTable | None:
        """None: the set publishes no statistics."""
        return None

    @cached_property
    def _windows(self) -> Mapping[str, list[tuple[Path, int]]]:
        """Folder and side in pixels of the windows of each split."""
        found: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
        for path in sorted((self._home / "windows" / self._set.group).glob("*/metadata.json")):
            about = read_object(path)
            options = about.get("options") or {}
            split = next((options[key] for key in _SPLIT_KEYS if key in options), None)
            if split in found:
                found[split].append((path.parent, _side(about, path, at_least=self._task.side_px)))
        if not any(found.values()):
            raise InputError(
                f"{self._home / 'windows' / self._set.group}: no window says train, val or test in one of the options "
                f"{', '.join(_SPLIT_KEYS)} of its metadata.json."
            )
        return found

    def _sample(self, window: Path, side: int) -> TaskSample:
        inputs, missing = {}, {}
        for modality, layer in self._layers.items():
            months = [self._month(window, layer, month, modality, side) for month in range(_MONTHS)]
            inputs[modality] = np.stack([values for values, _ in months], axis=2)  # H W T C
            missing[modality] = np.array([gap for _, gap in months])
        year, month = self._set.start
        return TaskSample(
            id=window.name,
            inputs=inputs,
            missing={modality: gaps for modality, gaps in missing.items() if gaps.any()},
            timestamps=month_starts(year, month, _MONTHS),
            target=np.array(self._class_id(window), dtype=np.int64),
        )

    def _class_id(self, window: Path) -> int:
        path = window / "layers" / "label" / "data.geojson"
        features = read_object(path).get("features") or []
        named = [feature.get("properties", {}).get(self._set.field) for feature in features]
        names = [name for name in named if name is not None]
        if not names or names[0] not in self._set.classes:
            raise InputError(
                f"{path}: {self._set.field} is {names[0] if names else 'absent'}; {self._task.name} has the classes "
                f"{', '.join(self._set.classes)}. Is this the label set of the published tables?"
            )
        return self._set.classes.index(names[0])

    def _month(self, window: Path, layer: str, month: int, modality: str, side: int) -> tuple[Float, bool]:
        """Values [H, W, C] of the middle of a window, and True where they are no data."""
        keep = self._task.side_px
        bands = MODALITIES[modality].bands
        folder = window / "layers" / (layer if month == 0 else f"{layer}.{month}")
        if not folder.is_dir():
            return np.zeros((keep, keep, len(bands)), dtype=np.float32), True
        stored = _read_bands(folder, side)
        lacking = [band for band in bands if band not in stored]
        if lacking:
            raise InputError(f"{folder}: has no band {', '.join(lacking)}. Materialize the layer again.")
        first = (side - keep) // 2
        middle = slice(first, first + keep)
        values = np.stack([stored[band][middle, middle] for band in bands], axis=-1)  # H W C
        gap = not values.any()
        if modality == S1:
            gap = gap or bool(((values == MODALITIES[S1].missing_raw) | ~np.isfinite(values)).any())
            values = (10 * np.log10(np.maximum(values, 1e-10))).astype(np.float32)
        return (np.zeros_like(values) if gap else values), gap


def _side(about: Mapping[str, Any], path: Path, *, at_least: int) -> int:
    """Side of a square window in pixels, from its bounds."""
    try:
        left, top, right, bottom = (int(value) for value in about["bounds"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: holds no bounds of four pixel numbers ({error}).") from error
    if right - left != bottom - top or right - left < at_least:
        raise InputError(f"{path}: bounds {about['bounds']} are no square of at least {at_least} pixels.")
    return right - left


def _read_bands(folder: Path, side: int) -> dict[str, Float]:
    """Band -> [side, side] of every raster of a layer; coarser rasters are repeated."""
    stored: dict[str, Float] = {}
    for path in sorted(folder.glob("*/geotiff.tif")):
        bands = safe_name(path.parent.name, folder).split("_")
        try:
            with rasterio.open(path) as file:
                values = file.read().astype(np.float32)  # C H W
        except RasterioError as error:
            raise InputError(f"{path}: cannot be read ({error}). Materialize the layer again.") from error
        height, width = values.shape[1:]
        if len(values) != len(bands) or height != width or side % height:
            raise InputError(f"{path}: is {values.shape}, not {len(bands)} bands of a window of {side} pixels.")
        factor = side // height
        stored |= dict(zip(bands, values.repeat(factor, axis=1).repeat(factor, axis=2), strict=True))
    return stored
