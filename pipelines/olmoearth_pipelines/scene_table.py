"""Which scenes a map is made of: chosen per fixed cell of the grid, period and modality.

The choice is a function of the cell and the catalogue's content alone: never of the region, the tile or
the order in which a catalogue lists its items (spec/inputs.md section 4).
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

import shapely
from pyproj import Transformer

from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.geo.periods import Period
from olmoearth_pipelines.scene import Scene, Selection

CELL_PX = 5120
"""Side of a scene-selection cell in pixels (51.2 km): much larger than a tile, so neighbours choose alike."""
ACCEPT_SHARE = 0.1
"""A scene is accepted if it adds this share of itself or of what is still open."""
COVERED_SHARE = 0.01
"""The mosaic of a period is complete when less than this share of the cell is open."""
FILL_SCENES = 4
"""Further candidates that fill pixels which the accepted ones leave without data (section 6)."""
SPLIT_OVERLAP = 0.05
"""Two listings of one acquisition that overlap less are two pieces of it, not duplicates."""
MODALITY_ORDER = ("sentinel2_l2a", "sentinel1", "landsat")


@dataclass(frozen=True)
class SceneTable:
    """The chosen scenes of a run."""

    periods: tuple[Period, ...]
    selections: tuple[Selection, ...]
    found: Mapping[str, int] = field(default_factory=dict)
    """Collection -> items that the catalogue returned."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Reason -> items that were left out."""
    remarks: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities with at least one scene, in the models' order."""
        present = {s.modality for s in self.selections if s.scenes}
        return tuple(m for m in MODALITY_ORDER if m in present)

    def scenes(self) -> tuple[Scene, ...]:
        """All chosen scenes once, by modality, time and id."""
        unique = {(s.product, s.id): s for selection in self.selections for s in selection.scenes}
        return tuple(sorted(unique.values(), key=lambda s: (MODALITY_ORDER.index(s.modality), s.acquired, s.id)))

    def for_box(self, box: PixelBox) -> tuple[Selection, ...]:
        """Selections whose cell meets a box."""
        return tuple(s for cell in box.squares(CELL_PX) for s in self._by_cell.get((box.epsg, cell), ()))

    @cached_property
    def _by_cell(self) -> dict[tuple[int, tuple[int, int]], list[Selection]]:
        cells: dict[tuple[int, tuple[int, int]], list[Selection]] = {}
        for selection in self.selections:
            cells.setdefault((selection.epsg, selection.cell), []).append(selection)
        return cells

    def notes(self) -> list[str]:
        """What a user should know about the choice, one line each."""
        counts = Counter(s.modality for s in self.scenes())
        chosen = ", ".join(f"{counts[m]} {m}" for m in self.modalities)
        left_out = "; ".join(f"{count} {reason}" for reason, count in sorted(self.rejected.items()))
        lines = [
            f"scenes: {chosen}, of {sum(self.found.values())} found" + (f" (left out: {left_out})" if left_out else "")
        ]
        return [*lines, *self.remarks]

    def to_json(self) -> str:
        """The table as JSON, links unsigned; `from_json` gives an equal one."""
        index = {(s.product, s.id): k for k, s in enumerate(self.scenes())}
        content = {
            "periods": [[p.start.isoformat(), p.end.isoformat()] for p in self.periods],
            "scenes": [_plain(s) for s in self.scenes()],
            "selections": [
                [s.epsg, *s.cell, s.period, s.modality, s.accepted, [index[(x.product, x.id)] for x in s.scenes]]
                for s in self.selections
            ],
            "found": dict(self.found),
            "rejected": dict(self.rejected),
            "remarks": list(self.remarks),
        }
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> SceneTable:
        """The table that `to_json` wrote."""
        content = json.loads(text)
        scenes = [_scene(entry) for entry in content["scenes"]]
        spans = [(datetime.fromisoformat(a), datetime.fromisoformat(b)) for a, b in content["periods"]]
        return cls(
            periods=tuple(Period(k, a, b) for k, (a, b) in enumerate(spans)),
            selections=tuple(
                Selection(epsg, (i, j), period, modality, tuple(scenes[k] for k in members), accepted)
                for epsg, i, j, period, modality, accepted, members in content["selections"]
            ),
            found=content["found"],
            rejected=content["rejected"],
            remarks=tuple(content["remarks"]),
        )


def _plain(scene: Scene) -> dict[str, Any]:
    return {
        **{name: getattr(scene, name) for name in Scene.__dataclass_fields__},
        "acquired": scene.acquired.isoformat(),
        "footprint_wkb": base64.b64encode(scene.footprint_wkb).decode(),
        "assets": dict(scene.assets),
        "version": list(scene.version),
    }


def _scene(entry: dict[str, Any]) -> Scene:
    return Scene(
        **{
            **entry,
            "acquired": datetime.fromisoformat(entry["acquired"]),
            "footprint_wkb": base64.b64decode(entry["footprint_wkb"]),
            "version": tuple(entry["version"]),
        }
    )


def choose(
    cells: Iterable[tuple[int, int, int]], periods: Sequence[Period], scenes: Iterable[Scene]
) -> tuple[Selection, ...]:
    """Choose scenes for every cell, period and modality.

    Args:
        cells: (epsg, i, j) of `CELL_PX` squares.
        periods: the time axis.
        scenes: candidates, duplicates removed, in any order.

    Returns:
        One selection per cell, period and modality that has candidates anywhere; empty ones included.
    """
    pool = list(scenes)
    tree = shapely.STRtree([shapely.from_wkb(s.footprint_wkb) for s in pool])
    modalities = [m for m in MODALITY_ORDER if any(s.modality == m for s in pool)]
    selections = []
    for epsg, i, j in sorted(set(cells)):
        outline = _outline(epsg, i, j)
        near = [pool[k] for k in sorted({int(k) for part in outline for k in tree.query(part, "intersects")})]
        for period in periods:
            inside = [s for s in near if period.start <= s.acquired < period.end]
            for modality in modalities:
                chosen, accepted = _cover(epsg, (i, j), [s for s in inside if s.modality == modality])
                selections.append(Selection(epsg, (i, j), period.index, modality, chosen, accepted))
    return tuple(selections)


def _preference(scene: Scene) -> tuple[float, float, str]:
    """Clearest first; Sentinel-1 newest first; ties by time, then id."""
    if scene.modality == "sentinel1":
        return 0.0, -scene.acquired.timestamp(), scene.id
    return scene.cloud_cover_percent, scene.acquired.timestamp(), scene.id


def _cover(epsg: int, cell: tuple[int, int], candidates: list[Scene]) -> tuple[tuple[Scene, ...], int]:
    """The walk of section 4 point 3, then the candidates that may fill what it leaves open."""
    area = shapely.box(*square(epsg, CELL_PX, *cell).bounds_m)
    rest: shapely.Geometry = area
    accepted, others = [], []
    for scene in sorted(candidates, key=_preference):
        footprint = projected(epsg, scene.footprint_wkb)
        inside = shapely.intersection(footprint, area)
        if inside.is_empty:
            continue
        gain = shapely.intersection(inside, rest).area
        open_enough = rest.area >= COVERED_SHARE * area.area
        if open_enough and (gain >= ACCEPT_SHARE * footprint.area or gain >= ACCEPT_SHARE * rest.area):
            accepted.append(scene)
            rest = shapely.difference(rest, footprint)
        else:
            others.append(scene)
    return (*accepted, *others[:FILL_SCENES]), len(accepted)


@lru_cache(maxsize=20_000)
def projected(epsg: int, wkb: bytes) -> shapely.Geometry:
    """A footprint in a zone's metres; points beyond the projection's reach are clipped away first."""
    geometry = shapely.from_wkb(wkb)
    centre = -183 + 6 * (epsg % 100)
    parts = []
    for turns in (-360.0, 0.0, 360.0):
        near = shapely.box(centre - 20 + turns, -85, centre + 20 + turns, 85.5)
        part = shapely.intersection(geometry, near)
        if not part.is_empty:
            parts.append(shapely.transform(part, lambda xy, t=turns: xy - (t, 0.0)))  # type: ignore[misc]
    if not parts:
        return shapely.Polygon()
    dense = shapely.segmentize(shapely.union_all(parts), 0.2)
    to_utm = Transformer.from_crs(4326, epsg, always_xy=True)
    moved = shapely.transform(dense, to_utm.transform, interleaved=False)
    return moved if moved.is_valid else shapely.make_valid(moved)


def lonlat_bounds(epsg: int, i: int, j: int) -> tuple[float, float, float, float]:
    """(west, south, east, north) in degrees of a cell; east may exceed 180, west may be below -180."""
    ring = shapely.segmentize(shapely.box(*square(epsg, CELL_PX, i, j).bounds_m), 5000.0)
    to_lonlat = Transformer.from_crs(epsg, 4326, always_xy=True)
    lon, lat = to_lonlat.transform(*shapely.get_coordinates(ring).T)
    centre = -183 + 6 * (epsg % 100)
    lon = (lon - centre + 180) % 360 - 180 + centre
    return float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())


def wrapped(west: float, south: float, east: float, north: float) -> list[tuple[float, float, float, float]]:
    """A box that may reach over the dateline as boxes within [-180, 180]."""
    if west < -180:
        return [(west + 360, south, 180.0, north), (-180.0, south, east, north)]
    if east > 180:
        return [(west, south, 180.0, north), (-180.0, south, east - 360, north)]
    return [(west, south, east, north)]


def _outline(epsg: int, i: int, j: int) -> list[shapely.Geometry]:
    return [shapely.box(*box) for box in wrapped(*lonlat_bounds(epsg, i, j))]


def without_duplicates(scenes: Iterable[Scene]) -> tuple[list[Scene], int]:
    """Keep the newest processing of every acquisition; pieces that hardly overlap are all kept.

    Returns:
        The kept scenes, and how many were dropped.
    """
    groups: dict[tuple[str, str], list[Scene]] = {}
    for scene in scenes:
        groups.setdefault((scene.modality, scene.key), []).append(scene)
    kept, dropped = [], 0
    for members in groups.values():
        taken: list[tuple[Scene, shapely.Geometry]] = []
        for scene in sorted(members, key=lambda s: (s.version, s.id), reverse=True):
            footprint = shapely.from_wkb(scene.footprint_wkb)
            again = any(
                shapely.intersection(footprint, other).area > SPLIT_OVERLAP * min(footprint.area, other.area)
                for _, other in taken
            )
            if again:
                dropped += 1
            else:
                taken.append((scene, footprint))
        kept += [scene for scene, _ in taken]
    return kept, dropped
