"""A labelled window, and what a set of them teaches: the form that all training data takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from olmoearth_cli.core.finetune.task import Limits


Array = npt.NDArray[Any]
SPLITS = ("train", "val", "test")
UNUSED = ""
"""Split of a window that is in none: for lack of imagery or of labels, or by the user's wish."""


@dataclass(frozen=True, kw_only=True)
class WindowTask:
    """What all windows of a set share."""

    name: str
    """Of the set, for people: a file's stem, a benchmark."""
    kind: str
    """As in `HeadSpec`: `classification`, `multilabel`, `regression` (one target per window), `segmentation`,
    `pixel_regression` (one per pixel)."""
    class_names: tuple[str, ...]
    """[C] in the order of the class ids; empty for regression."""
    field: str
    """Field of the labels."""
    modalities: tuple[str, ...]
    """Modalities that windows may hold, in canonical order; a window can lack some."""
    window_px: int
    """Side of the windows."""
    periods: int
    """T of the longest series."""
    centre: bool = False
    """True where a window's target is that of its middle cell (a window cut around a label)."""
    sparse: bool = False
    """True where few pixels of a window are labelled (points, polygons); False for label rasters."""
    real_dates: bool = True
    """False where dates stand for unknown ones."""
    normalisation: Mapping[str, Limits] | None = None
    """The data set's own limits; None for those of pretraining."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Where it comes from: labels, catalogue, dates, split; plain JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """One window in the units of the stacks: Sentinel-2 and Landsat digital numbers, Sentinel-1 decibels."""

    id: str
    """Name, unique in the set."""
    images: Mapping[str, Array]
    """{modality: [H, W, T, C]}; all modalities share T, maps have T = 1. Anything where not `valid`."""
    valid: Mapping[str, npt.NDArray[np.bool_]]
    """{modality: [H, W, T]} True where the pixel has data in the period."""
    absent: Mapping[str, npt.NDArray[np.bool_]]
    """{modality: [T, C]} True where the period's scenes lack the band."""
    timestamps: npt.NDArray[np.int64]
    """[T, 3] day 1-31, month 0-11, year."""
    target: Array
    """int64 [] or [H, W] class ids (-1 unlabelled), uint8 0/1 [C] (multi-label), float32 [] or [H, W] (NaN: none)."""
    lonlat: tuple[float, float] | None = None
    """Centre in degrees; None where it is not known."""
    group: int = -1
    """Number of the block of land, or of whatever else must not be divided between splits; -1 for none."""


class WindowSource(Protocol):
    """Windows with random access; nothing is read before it is asked for, and processes may share one (picklable)."""

    @property
    def task(self) -> WindowTask:
        """What all windows share."""

    def split(self, name: str) -> npt.NDArray[np.int64]:
        """Numbers of the windows of a split (one of `SPLITS`), in the order of the set; empty where there is none."""

    def read(self, number: int) -> Window:
        """A window.

        Raises:
            InputError: the file is gone or damaged; names it.
        """

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides content, order and splits: a run goes on only over the same data."""
