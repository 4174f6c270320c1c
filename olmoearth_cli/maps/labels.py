"""Labels: what is known about places, read from whatever a user has (design.md section 1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.label_files import POLYGON, read_label_file
from olmoearth_cli.maps.label_raster import RASTER_ENDINGS, describe_raster
from olmoearth_cli.maps.label_targets import KINDS, targets_of


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelTable:
    """Labelled points and polygons, or a raster of labels."""

    source: str
    """What the user gave, for messages."""
    kind: str
    """`classification`, `multilabel`, `segmentation` or `regression`."""
    field: str
    """Attribute or band that holds the targets; several attributes joined by commas."""
    class_names: tuple[str, ...]
    """In the order of the class ids; empty for regression."""
    geometry: npt.NDArray[np.object_] | None
    """[N] points and polygons in WGS84; None for a raster."""
    targets: npt.NDArray[Any] | None
    """int64 [N] class ids, uint8 0/1 [N, C] (multi-label), or float64 [N]; None for a raster."""
    columns: pd.DataFrame
    """[N] attributes; the index is the number of the feature in the file, which points of a multipoint share."""
    notes: tuple[str, ...]
    """What was inferred, mended or left out."""
    raster: Path | None = None
    """The raster; None for points and polygons."""
    raster_band: int = 1
    """Counted from 1."""
    raster_values: tuple[int, ...] = ()
    """[C] pixel value of each class id; empty for a raster of numbers and without a raster."""


def read_labels(path: str | Path, *, field: str | None = None, task: str | None = None) -> LabelTable:
    """Read labels and find out what there is to learn.

    Text is taken as classes, whole numbers with few distinct values too (at most 50, and no more than half as
    many as labels), other numbers as measurements; `task` overrules. What was inferred stands in `notes`.

    Args:
        path: points or polygons (CSV with lon and lat, GeoJSON, GeoPackage, GeoParquet, shapefile;
            `file.gpkg#layer` names a layer), or a GeoTIFF.
        field: attribute or band with the target; several 0/1 attributes joined by commas; None to find it.
        task: `classification`, `multilabel`, `segmentation`, `regression`, or None to infer it.

    Raises:
        InputError: what is wrong with the labels and what to do.
    """
    if task is not None and task not in KINDS:
        raise ValueError(f"task {task!r} is none of {', '.join(KINDS)}")
    file = Path(path).expanduser()
    if file.suffix.lower() in RASTER_ENDINGS:
        return _raster_table(file, field=field, task=task)
    found = read_label_file(path)
    targets = targets_of(found.columns, source=str(path), field=field, task=task)
    geometry = found.geometry[targets.kept]
    if targets.kind == "segmentation":
        _check_polygons(geometry, str(path))
    return LabelTable(
        source=str(path),
        kind=targets.kind,
        field=targets.field,
        class_names=targets.class_names,
        geometry=geometry,
        targets=targets.values,
        columns=found.columns[targets.kept],
        notes=(*found.notes, *targets.notes),
    )


def _raster_table(path: Path, *, field: str | None, task: str | None) -> LabelTable:
    if not path.exists():
        raise InputError(f"{path}: no such file. Give a GeoTIFF of classes, or points or polygons.")
    found = describe_raster(path, field=field, task=task)
    return LabelTable(
        source=str(path),
        kind=found.kind,
        field=found.field,
        class_names=found.class_names,
        geometry=None,
        targets=None,
        columns=pd.DataFrame(),
        notes=found.notes,
        raster=path,
        raster_band=found.band,
        raster_values=tuple(found.values.tolist()),
    )


def _check_polygons(geometry: npt.NDArray[np.object_], source: str) -> None:
    points = int((shapely.get_type_id(geometry) < POLYGON).sum())
    if points:
        raise InputError(
            f"{source}: holds {points} points; --task segmentation labels every pixel of a cell, which needs polygons "
            "or a raster. Use --task classification for points."
        )
