"""Where windows' targets wait until they are written: as few bytes as the labels allow, for plans can be large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.label_raster import opened_raster, pixels_over
from olmoearth_cli.maps.labels import LabelTable
from olmoearth_pipelines.windows.window import Array

Ints = npt.NDArray[np.int64]


class TargetStore(Protocol):
    """Targets by number."""

    def read(self, number: int) -> Array:
        """A target as in `Window`, in small types: int16 ids, uint8 flags, float32 numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """N windows that labels of one file make."""

    place: Ints
    """[N, 3] EPSG code, first row, first column in pixels."""
    role: Ints
    """[N] place in `SPLITS`, or `OPEN`."""
    amount: npt.NDArray[np.float64]
    """[N, C] labelled pixels (or 0/1) of each class; [N, 1] the mean of numbers."""
    labels: Ints
    """[N] labels on the window; 0 for rasters."""
    first: Ints
    """[N] feature number of one of them; -1 for rasters."""
    targets: TargetStore


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedPixels:
    """Targets of which few pixels are labelled."""

    start: npt.NDArray[np.intp]
    """[N] where a window's pixels begin in `place`."""
    stop: npt.NDArray[np.intp]
    """[N] where they end."""
    place: npt.NDArray[np.int32]
    """[M] position in the window, row by row."""
    value: Array
    """[M] int16 class ids or float32 numbers."""
    window_px: int

    def read(self, number: int) -> Array:
        """[H, W], -1 or NaN where nothing is labelled."""
        mine = slice(int(self.start[number]), int(self.stop[number]))
        out = empty_target(self.window_px, numbers=self.value.dtype.kind == "f")
        out.reshape(-1)[self.place[mine]] = self.value[mine]
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaceTargets:
    """One target per window."""

    values: Array
    """[N] int16 class ids or float32 numbers, or [N, C] uint8 flags."""

    def read(self, number: int) -> Array:
        """[] or [C]."""
        return np.asarray(self.values[number])


@dataclass(frozen=True, kw_only=True, eq=False)
class RasterTargets:
    """Targets that are read from a raster again: it may hold more than memory does."""

    table: LabelTable
    classes: Ints
    """[c] class id of each of the raster's values; empty for numbers."""
    place: Ints
    """[N, 3] EPSG code, first row, first column in pixels."""
    window_px: int

    def read(self, number: int) -> Array:
        """[H, W], -1 or NaN where nothing is labelled."""
        epsg, row, col = self.place[number].tolist()
        return self.over(PixelBox(epsg, row, col, row + self.window_px, col + self.window_px))

    def over(self, box: PixelBox) -> Array:
        """[H, W] of any box."""
        assert self.table.raster is not None
        with opened_raster(self.table.raster) as source:
            pixels = pixels_over(source, self.table.raster_band, box)
        out = np.full((box.height, box.width), -1, np.int16) if len(self.classes) else None
        if out is None:
            out = np.full((box.height, box.width), np.nan, np.float32)
        if pixels is not None:
            seen = ~np.ma.getmaskarray(pixels)
            found = pixels.data[seen]
            known = np.asarray(self.table.raster_values)
            out[seen] = self.classes[np.searchsorted(known, found)] if len(self.classes) else found
        return out


def empty_target(side_px: int, *, numbers: bool) -> Array:
    """[H, W] without a label."""
    shape = (side_px, side_px)
    return np.full(shape, np.nan, np.float32) if numbers else np.full(shape, -1, np.int16)
