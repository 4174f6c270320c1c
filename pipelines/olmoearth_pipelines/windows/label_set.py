"""The labels of one training: one to three files, one list of classes, and which label is for which split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.aoi import NORTH_LIMIT, SOUTH_LIMIT
from olmoearth_cli.maps.files import file_sha256
from olmoearth_cli.maps.labels import LabelTable, read_labels
from olmoearth_pipelines.probing.splits import MISSING, ROLES
from olmoearth_pipelines.windows.window import SPLITS

Ints = npt.NDArray[np.int64]
OPEN = -1
"""Role of a label that is dealt into a split later; the others are places in `SPLITS`."""
TRAIN, VAL, TEST = range(3)
PER_WINDOW = ("classification", "multilabel", "regression")
KINDS = (*PER_WINDOW, "segmentation", "pixel_regression")
READ_AS = {"segmentation": "classification", "pixel_regression": "regression"}
"""Kind -> task of `read_labels`, where they differ."""
BY_DEFAULT = {"classification": "segmentation", "regression": "pixel_regression"}
"""What is learned from labels of a kind unless the user says otherwise: a target per pixel, for maps come of it."""
FIELD = "field:"


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelSource:
    """One file of labels in the terms of the set."""

    table: LabelTable
    targets: npt.NDArray[Any] | None
    """As in the table, with the class ids of the set; None for a raster."""
    role: Ints
    """[N] place in `SPLITS`, or `OPEN`; [1] for a raster."""
    classes: Ints
    """[c] class id in the set of each of the table's own; empty for numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelSet:
    """Everything that is labelled."""

    kind: str
    """What is learned: one of `KINDS`."""
    field: str
    """Field of the labels."""
    class_names: tuple[str, ...]
    """[C] in the order of the class ids; empty for numbers."""
    sources: tuple[LabelSource, ...]
    """Training labels first."""
    notes: tuple[str, ...]
    """What was inferred, mended or left out."""

    @property
    def per_pixel(self) -> bool:
        """True where a window has a target per pixel."""
        return self.kind not in PER_WINDOW

    @property
    def sparse(self) -> bool:
        """True where the training labels are points and polygons."""
        return self.sources[0].table.raster is None

    def labels_per_class(self) -> Ints | None:
        """[C] training labels that hold each class; None for numbers and for a raster."""
        first = self.sources[0]
        if first.targets is None or not self.class_names:
            return None
        targets = first.targets[(first.role == OPEN) | (first.role == TRAIN)]
        if targets.ndim == 2:
            return targets.sum(axis=0, dtype=np.int64)
        return np.bincount(targets, minlength=len(self.class_names)).astype(np.int64)

    def digest(self) -> str:
        """SHA-256 of all that the labels say, whatever file they came in."""
        found = hashlib.sha256(repr((self.kind, self.class_names)).encode())
        for source in self.sources:
            if source.table.raster is not None:
                found.update(f"{source.table.raster_band} {file_sha256(source.table.raster)}".encode())
            else:
                for shape in shapely.to_wkb(source.table.geometry, output_dimension=2):
                    found.update(shape)
                assert source.targets is not None
                found.update(np.ascontiguousarray(source.targets).tobytes())
            found.update(source.role.tobytes())
        return found.hexdigest()


def read_label_set(
    labels: str,
    *,
    field: str | None = None,
    kind: str | None = None,
    split: str = "spatial",
    val_labels: str | None = None,
    test_labels: str | None = None,
) -> LabelSet:
    """Read labels and say what is learned from them.

    Args:
        labels: a vector file or a raster (`read_labels`).
        field: field or band with the target; None to find it.
        kind: one of `KINDS`; None takes a target per pixel, or several classes per window for 0/1 fields.
        split: `spatial`, `random`, or `field:NAME` with `train`, `val` and `test` in that field.
        val_labels: a file of validation labels of its own.
        test_labels: a file of test labels of its own.

    Raises:
        InputError: what is wrong with the labels and what to do.
        ValueError: an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    _check_split(split, separate=bool(val_labels or test_labels))
    table = _with_area(read_labels(labels, field=field, task=READ_AS.get(kind, kind) if kind else None))
    learned = kind or BY_DEFAULT.get(table.kind, table.kind)
    notes = [*table.notes, *([] if kind else [_inferred_note(learned)])]
    separate = bool(val_labels or test_labels)
    sources = [_source(table, table, TRAIN if separate else OPEN)]
    for path, role in ((val_labels, VAL), (test_labels, TEST)):
        if path:
            same = field if table.raster is not None else table.field
            other = _with_area(read_labels(path, field=same, task=table.kind))
            notes += [f"{path}: {note}" for note in other.notes]
            sources.append(_source(other, table, role))
    for source in sources:
        _check_source(source.table, learned)
    if split.startswith(FIELD):
        sources = [replace(sources[0], role=_roles(table, split.removeprefix(FIELD)))]
    return LabelSet(
        kind=learned, field=table.field, class_names=table.class_names, sources=tuple(sources), notes=tuple(notes)
    )


def _with_area(table: LabelTable) -> LabelTable:
    """A table without the polygons of which nothing was left when they were mended."""
    if table.geometry is None or not (empty := shapely.is_empty(table.geometry)).any():
        return table
    assert table.targets is not None
    return replace(
        table,
        geometry=table.geometry[~empty],
        targets=table.targets[~empty],
        columns=table.columns[~empty],
        notes=(*table.notes, f"{empty.sum()} polygons without area left out"),
    )


def _inferred_note(kind: str) -> str:
    what = {
        "segmentation": "a class for every labelled pixel; --task classification learns one for each label's place",
        "pixel_regression": "a number for every labelled pixel; --task regression learns one for each label's place",
    }
    return f"learning {kind}: {what.get(kind, 'the classes at each label')}"


def _check_split(split: str, *, separate: bool) -> None:
    if split not in ("spatial", "random") and not (split.startswith(FIELD) and split != FIELD):
        raise InputError(f"--split {split}: choose spatial, random, or field:NAME (a field with train, val and test).")
    if separate and split.startswith(FIELD):
        raise InputError(f"--split {split} and --val-labels or --test-labels both divide the labels. Give one of them.")


def _check_source(table: LabelTable, kind: str) -> None:
    if table.geometry is None:
        if kind in PER_WINDOW:
            raise InputError(
                f"{table.source}: a raster labels pixels, and --task {kind} learns one target per place. Use --task "
                f"{BY_DEFAULT.get(kind, 'segmentation')}, or give points or polygons."
            )
        return
    _, south, _, north = shapely.bounds(table.geometry).T
    beyond = np.flatnonzero((south < SOUTH_LIMIT) | (north > NORTH_LIMIT))
    if len(beyond):
        raise InputError(
            f"{table.source}: {len(beyond)} of {len(south)} labels lie outside UTM ({SOUTH_LIMIT:.0f} to "
            f"{NORTH_LIMIT:.0f} degrees latitude; first: feature {table.columns.index[beyond[0]]}). Leave them out."
        )


def _source(table: LabelTable, first: LabelTable, role: int) -> LabelSource:
    """A table with the class ids of the training labels.

    Raises:
        InputError: classes that the training labels do not have.
    """
    known = {name: number for number, name in enumerate(first.class_names)}
    strange = [name for name in table.class_names if name not in known]
    if strange:
        raise InputError(
            f"{table.source}: {', '.join(strange[:8])}: not among the classes of {first.source} "
            f"({', '.join(first.class_names[:8])}{', ...' if len(known) > 8 else ''}). What is not learned cannot be "
            "found: mend the names, leave these labels out, or label some for training."
        )
    classes = np.array([known[name] for name in table.class_names], dtype=np.int64)
    targets = table.targets
    if targets is not None and len(classes):
        if targets.ndim == 2:
            spread = np.zeros((len(targets), len(known)), dtype=targets.dtype)
            spread[:, classes] = targets
            targets = spread
        else:
            targets = classes[targets]
    count = 1 if targets is None else len(targets)
    return LabelSource(table=table, targets=targets, role=np.full(count, role, dtype=np.int64), classes=classes)


def _roles(table: LabelTable, name: str) -> Ints:
    """[N] place in `SPLITS` of each label, by a field.

    Raises:
        InputError: a raster, no such field, or values that are no split.
    """
    flag = f"{table.source}: --split {FIELD}{name}"
    if table.raster is not None:
        raise InputError(f"{flag}: a raster has no fields. Use --split spatial, or rasters in --val-labels.")
    if name not in table.columns:
        raise InputError(f"{flag}: there is no such field. Its fields: {', '.join(map(str, table.columns))}.")
    text = table.columns[name].astype(str).str.strip().str.lower()
    empty = int(text.isin(MISSING).sum())
    if empty:
        raise InputError(f"{flag}: {empty} of {len(text)} labels have no value in it. Fill it in.")
    other = sorted(set(text) - set(ROLES))
    if other:
        raise InputError(f"{flag}: holds {', '.join(other[:5])}; its values must be train, val or test.")
    return text.map(lambda value: SPLITS.index(ROLES[value])).to_numpy(dtype=np.int64)


def stem(labels: str) -> str:
    """Name of a file of labels, for folders: without layer and ending."""
    return Path(labels.partition("#")[0]).stem or "labels"
