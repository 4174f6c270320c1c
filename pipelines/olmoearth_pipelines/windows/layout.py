"""Everything that is to be cut, laid out before a catalogue is asked: windows, splits, and who is read with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_cli.geo.periods import Period
from olmoearth_pipelines.stac import CELL_PX
from olmoearth_pipelines.windows.cut import PlannedWindow
from olmoearth_pipelines.windows.label_set import LabelSet
from olmoearth_pipelines.windows.plan import WindowPlan, plan_windows
from olmoearth_pipelines.windows.request import WindowRequest
from olmoearth_pipelines.windows.splits import Division, divide
from olmoearth_pipelines.windows.window import SPLITS

GROUP_PX = 256
"""Windows whose centres lie in one square of this side are read together: no scene is opened for each of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Windows that are read together."""

    name: str
    """Zone and position of the square."""
    box: PixelBox
    """Around its windows."""
    members: tuple[int, ...]
    """Their numbers in the plan."""

    @property
    def km2(self) -> float:
        """Ground that is read."""
        return self.box.height * self.box.width * PIXEL_M**2 / 1e6


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """A request with everything that needs no catalogue."""

    request: WindowRequest
    labels: LabelSet
    periods: tuple[Period, ...]
    plan: WindowPlan
    division: Division
    settings: Mapping[str, Any]
    """Everything that decides the windows, as plain JSON."""

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """[N] of the plan's windows."""
        return tuple(map(self.plan.name, range(len(self.plan))))

    @cached_property
    def lonlat(self) -> npt.NDArray[np.float64]:
        """[N, 2] the windows' centres in degrees."""
        return self.plan.lonlat()

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All windows, neighbours together, by zone, row and column."""
        plan = self.plan
        squares: dict[tuple[int, int, int], list[int]] = {}
        middle = (plan.place[:, 1:] + plan.window_px // 2) // GROUP_PX
        for number, (epsg, (i, j)) in enumerate(zip(plan.place[:, 0].tolist(), middle.tolist(), strict=True)):
            squares.setdefault((epsg, i, j), []).append(number)
        return tuple(self._group(square, members) for square, members in sorted(squares.items()))

    def cells(self) -> list[tuple[int, int, int]]:
        """Scene-selection cells that the windows touch."""
        return sorted({(group.box.epsg, i, j) for group in self.groups for i, j in group.box.squares(CELL_PX)})

    def window(self, number: int) -> PlannedWindow:
        """What a worker needs to know of a window."""
        lon, lat = self.lonlat[number].tolist()
        return PlannedWindow(
            id=self.ids[number],
            box=self.plan.box(number),
            split=self.split(number),
            target=self.plan.target(number),
            lonlat=(lon, lat),
            group=int(self.division.group[number]),
        )

    def split(self, number: int) -> str:
        """A window's split."""
        return SPLITS[self.division.split[number]]

    def _group(self, square: tuple[int, int, int], members: Sequence[int]) -> Group:
        epsg, i, j = square
        corners = self.plan.place[members, 1:]
        row0, col0 = corners.min(axis=0).tolist()
        row1, col1 = (corners.max(axis=0) + self.plan.window_px).tolist()
        return Group(name=f"{epsg}:{i}:{j}", box=PixelBox(epsg, row0, col0, row1, col1), members=tuple(members))


def lay_out(
    request: WindowRequest, labels: LabelSet, periods: tuple[Period, ...], settings: Mapping[str, Any]
) -> Layout:
    """Plan the windows and divide them.

    Raises:
        InputError: no window, or too few for the split that was asked.
    """
    plan = plan_windows(
        labels,
        window_px=request.window_px,
        patch_px=request.patch_px,
        max_windows=request.max_windows,
        seed=request.seed,
    )
    division = divide(plan, labels, how=request.split, block_km=request.block_km, seed=request.seed)
    return Layout(request=request, labels=labels, periods=periods, plan=plan, division=division, settings=settings)


def layout_notes(layout: Layout) -> list[str]:
    """What a user should know, one line each."""
    count = np.bincount(layout.division.split, minlength=len(SPLITS))
    shown = ", ".join(f"{n} {name}" for name, n in zip(SPLITS, count.tolist(), strict=True))
    counts = f"{len(layout.plan)} windows of {layout.plan.window_px} px hold labels: {shown}"
    return [*layout.plan.notes, counts, *layout.division.notes]
