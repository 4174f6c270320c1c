"""Which windows labels make, before any image is read.

Labels of pixels fill windows of the zone's global grid, so that another run finds the same ones; a label of a place
has a window to itself, with the label's map cell in the middle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox, square
from olmoearth_cli.geo.tiles import tile_id
from olmoearth_cli.maps.cell_keys import cells_from, keys_of
from olmoearth_cli.maps.cell_votes import Marks, any_class, mean_value, without_overlaps
from olmoearth_cli.maps.footprint import to_lonlat
from olmoearth_pipelines.windows.label_set import OPEN, LabelSet, LabelSource
from olmoearth_pipelines.windows.raster_windows import raster_windows
from olmoearth_pipelines.windows.stores import Candidates, CodedPixels, PlaceTargets, TargetStore
from olmoearth_pipelines.windows.targets import label_cells, label_pixels
from olmoearth_pipelines.windows.window import SPLITS, Array

Ints = npt.NDArray[np.int64]
BINS = 5
"""Quantile bins of numbers, which stand for classes where windows are sampled and dealt."""
ROLE_WEIGHTS = {OPEN: 1.0, 0: 0.6, 1: 0.2, 2: 0.2}
"""Shares of a sample of windows where the labels say what is for training."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowPlan:
    """N windows with labels, by source, zone, row, column and role."""

    window_px: int
    patch_px: int
    centred: bool
    """True where windows lie around labels, False where they are squares of the grid."""
    place: Ints
    """[N, 3] EPSG code, first row, first column in pixels."""
    role: Ints
    """[N] place in `SPLITS`, or `OPEN`."""
    strata: npt.NDArray[np.float64]
    """[N, F] labelled pixels (or 0/1) of each class; 0/1 of each quantile bin of the mean for numbers."""
    labels: Ints
    """[N] labels on the window; 0 for rasters."""
    first: Ints
    """[N] feature number of one of them; -1 for rasters."""
    store: Ints
    """[N] which of `stores` has the target."""
    at: Ints
    """[N] number of the window there."""
    stores: tuple[TargetStore, ...]
    notes: tuple[str, ...]
    """What was joined or left out."""

    def __len__(self) -> int:
        return len(self.place)

    def take(self, which: npt.NDArray[np.intp]) -> WindowPlan:
        """Some of the windows."""
        names = ("place", "role", "strata", "labels", "first", "store", "at")
        return replace(self, **{name: getattr(self, name)[which] for name in names})

    def target(self, number: int) -> Array:
        """A window's target (`Window.target`), in small types: int16 ids, uint8 flags, float32 numbers."""
        return self.stores[self.store[number]].read(int(self.at[number]))

    def box(self, number: int) -> PixelBox:
        """A window's pixels."""
        epsg, row, col = self.place[number].tolist()
        return PixelBox(epsg, row, col, row + self.window_px, col + self.window_px)

    def name(self, number: int) -> str:
        """A window's id: zone and position, and the split where the labels say one other than training."""
        epsg, row, col = self.place[number].tolist()
        side = self.patch_px if self.centred else self.window_px
        shift = middle_px(self.window_px, self.patch_px) if self.centred else 0
        name = tile_id(square(epsg, side, (row + shift) // side, (col + shift) // side))
        return f"{name}-{SPLITS[self.role[number]]}" if self.role[number] > 0 else name

    def lonlat(self) -> npt.NDArray[np.float64]:
        """[N, 2] the windows' centres in degrees."""
        out = np.empty((len(self), 2), dtype=np.float64)
        for epsg in np.unique(self.place[:, 0]).tolist():
            mine = self.place[:, 0] == epsg
            row, col = ((self.place[mine, k] + self.window_px / 2) * PIXEL_M for k in (1, 2))
            out[mine] = np.column_stack(to_lonlat(epsg).transform(col, -row))
        return out


def middle_px(window_px: int, patch_px: int) -> int:
    """First row (and column) of a window's middle cell, the one that a head with `centre` looks at."""
    return window_px // patch_px // 2 * patch_px


def plan_windows(
    labels: LabelSet, *, window_px: int, patch_px: int, max_windows: int | None = None, seed: int = 42
) -> WindowPlan:
    """Lay out the windows.

    Pixels that labels of different classes cover are not labelled; numbers that meet on a pixel count with their
    mean. Around places, labels in one cell are joined: to their class, left out where classes differ, to their mean,
    or to all their classes (multi-label).

    Args:
        labels: what is labelled.
        window_px: side of a window, a multiple of the cell's.
        patch_px: side of a map cell.
        max_windows: of more windows a sample is taken, evenly over the classes.
        seed: of the sample.

    Raises:
        InputError: no window is left.
    """
    tally: Counter[str] = Counter()
    parts = [_candidates(source, labels, window_px, patch_px, tally) for source in labels.sources]
    count = [len(part.role) for part in parts]
    if not sum(count):
        why = "; ".join(_notes(tally)) or "none covers a pixel"
        raise InputError(f"{labels.sources[0].table.source}: no window holds a label ({why}). Give other labels.")
    plan = WindowPlan(
        window_px=window_px,
        patch_px=patch_px,
        centred=not labels.per_pixel,
        place=np.concatenate([part.place for part in parts]),
        role=np.concatenate([part.role for part in parts]),
        strata=_strata(np.concatenate([part.amount for part in parts]), numbers=not labels.class_names),
        labels=np.concatenate([part.labels for part in parts]),
        first=np.concatenate([part.first for part in parts]),
        store=np.repeat(np.arange(len(parts)), count),
        at=np.concatenate([np.arange(n) for n in count]),
        stores=tuple(part.targets for part in parts),
        notes=tuple(_notes(tally)),
    )
    if max_windows is None or len(plan) <= max_windows:
        return plan
    note = f"{max_windows} of {len(plan)} windows sampled, evenly over the classes (seed {seed})"
    return replace(plan.take(sampled(plan, max_windows, seed)), notes=(*plan.notes, note))


def sampled(plan: WindowPlan, size: int, seed: int) -> npt.NDArray[np.intp]:
    """Numbers of `size` windows, ascending: as many for the rarest class of a window as for the most frequent one.

    Where labels say which split they are for, training gets three times as many as validation and test.
    """
    held = (plan.strata > 0).sum(axis=0)  # F
    rarest = np.where(plan.strata > 0, held, len(plan) + 1).argmin(axis=1)
    group, stratum = np.unique(plan.role * plan.strata.shape[1] + rarest, return_inverse=True)
    weight = np.array([ROLE_WEIGHTS[role] for role in (group // plan.strata.shape[1]).tolist()])
    quota = even_quotas(np.bincount(stratum), weight, size)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(plan)), stratum))
    start = np.searchsorted(stratum[order], np.arange(len(group)))
    return np.sort(order[np.arange(len(order)) - start[stratum[order]] < quota[stratum[order]]])


def even_quotas(count: Ints, weight: npt.NDArray[np.float64], size: int) -> Ints:
    """[S] how many of `count` [S] to take, `size` together: alike by `weight` [S], small ones whole."""
    quota = np.zeros_like(count)
    while (left := min(size, int(count.sum())) - int(quota.sum())) > 0:
        room = count > quota
        share = np.floor(left * weight / weight[room].sum()).astype(np.int64)
        if not share[room].any():
            share[np.flatnonzero(room)[:left]] = 1
        quota = np.where(room, np.minimum(count, quota + share), quota)
    return quota


def _candidates(
    source: LabelSource, labels: LabelSet, window_px: int, patch_px: int, tally: Counter[str]
) -> Candidates:
    classes = len(labels.class_names)
    if source.targets is None:
        return raster_windows(source, window_px=window_px, classes=classes)
    if labels.per_pixel:
        return _filled(source, window_px, patch_px, classes, tally)
    return _centred(source, window_px, patch_px, classes, tally)


def _filled(source: LabelSource, window_px: int, patch_px: int, classes: int, tally: Counter[str]) -> Candidates:
    """Windows of the grid with a target per pixel."""
    assert source.targets is not None and source.table.geometry is not None
    pixels = label_pixels(source.table.geometry, patch_px)
    cell = cells_from(pixels.key)  # M 3
    place = cell[:, 1] % window_px * window_px + cell[:, 2] % window_px
    cell[:, 1:] //= window_px
    windows, member = _grouped(keys_of(cell), source.role[pixels.label])
    area = window_px**2
    marks = Marks(cell=member, code=source.targets[pixels.label], label=pixels.label, place=place)
    labels, first = _labels_of(source, marks, len(windows))
    value: Array
    if classes:
        covered = len(np.unique(member * area + place))
        marks, _ = without_overlaps(marks, area)
        tally["disputed"] += covered - len(marks)
        spot, value = marks.cell * area + marks.place, marks.code.astype(np.int16)
        columns = value.astype(np.int64)
    else:
        spot, _, mean = mean_value(replace(marks, cell=member * area + place), marks.code)
        value, columns = mean.astype(np.float32), np.zeros(len(spot), dtype=np.int64)
    window = spot // area
    held = np.flatnonzero(np.bincount(window, minlength=len(windows)))
    amount = _amounts(window, columns, value, (len(windows), classes))[held]
    start = np.searchsorted(window, held)
    store = CodedPixels(
        start=start,
        stop=np.searchsorted(window, held, side="right"),
        place=(spot % area).astype(np.int32),
        value=value,
        window_px=window_px,
    )
    corner = cells_from(windows[held, 0]) * (1, window_px, window_px)
    return Candidates(
        place=corner, role=windows[held, 1], amount=amount, labels=labels[held], first=first[held], targets=store
    )


def _centred(source: LabelSource, window_px: int, patch_px: int, classes: int, tally: Counter[str]) -> Candidates:
    """Windows around the cells of labels, with one target each."""
    targets = source.targets
    assert targets is not None and source.table.geometry is not None
    cell = label_cells(source.table.geometry, patch_px)
    windows, member = _grouped(keys_of(cell), source.role)
    number = np.arange(len(member))
    marks = Marks(cell=member, code=targets if targets.ndim == 1 else number, label=number, place=np.zeros_like(number))
    labels, first = _labels_of(source, marks, len(windows))
    tally["shared"] += int((labels > 1).sum())
    value: Array
    if targets.ndim == 2:
        held, _, value = any_class(marks, targets)
        amount = value.astype(np.float64)
    elif classes:
        marks, lost = without_overlaps(marks, 1)
        tally["ties"] += lost
        held, value = marks.cell, marks.code.astype(np.int16)
        amount = np.eye(classes)[value]
    else:
        held, _, mean = mean_value(marks, targets)
        value, amount = mean.astype(np.float32), mean[:, None]
    corner = cells_from(windows[held, 0]) * (1, patch_px, patch_px)
    corner[:, 1:] -= middle_px(window_px, patch_px)
    return Candidates(
        place=corner,
        role=windows[held, 1],
        amount=amount,
        labels=labels[held],
        first=first[held],
        targets=PlaceTargets(values=value),
    )


def _grouped(key: Ints, role: Ints) -> tuple[Ints, Ints]:
    """[W, 2] distinct pairs of a key and a role, sorted, and [M] which of them each entry is."""
    keys, number = np.unique(key, return_inverse=True)
    pairs, member = np.unique(number * (len(SPLITS) + 1) + role - OPEN, return_inverse=True)
    rank, part = np.divmod(pairs, len(SPLITS) + 1)
    return np.stack([keys[rank], part + OPEN], axis=1), member.astype(np.int64)


def _labels_of(source: LabelSource, marks: Marks, windows: int) -> tuple[Ints, Ints]:
    """[W] how many labels a window has, and [W] the feature number of the first."""
    count = len(source.role)
    window, label = np.divmod(np.unique(marks.cell * count + marks.label), count)
    feature = source.table.columns.index.to_numpy(dtype=np.int64)
    return np.bincount(window, minlength=windows), feature[label[np.searchsorted(window, np.arange(windows))]]


def _amounts(window: Ints, column: Ints, value: Array, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """[W, C] labelled pixels of each class; [W, 1] the mean of numbers where there are no classes."""
    windows, classes = shape
    if classes:
        return np.bincount(window * classes + column, minlength=windows * classes).reshape(shape).astype(np.float64)
    count = np.bincount(window, minlength=windows)
    return (np.bincount(window, weights=value, minlength=windows) / np.maximum(count, 1))[:, None]


def _strata(amount: npt.NDArray[np.float64], *, numbers: bool) -> npt.NDArray[np.float64]:
    if not numbers:
        return amount
    edges = np.quantile(amount[:, 0], np.arange(1, BINS) / BINS)
    return (np.searchsorted(edges, amount[:, 0])[:, None] == np.arange(BINS)).astype(np.float64)


def _notes(tally: Counter[str]) -> Sequence[str]:
    texts = {
        "disputed": "{} pixels lie where labels of different classes meet; nothing is learned there",
        "shared": "{} cells hold several labels; each is one window",
        "ties": "{} cells left out: their labels are of different classes",
    }
    return [text.format(tally[name]) for name, text in texts.items() if tally[name]]
