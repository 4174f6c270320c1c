"""The region to map: read from anything a user has, checked, and divided over UTM zones."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import antimeridian
import shapely
from pyproj import Geod, Transformer
from shapely import MultiPolygon, Polygon

from olmoearth_cli.errors import InputError

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

NORTH_LIMIT, SOUTH_LIMIT = 84.0, -80.0
"""UTM ends here."""
ZONE_DEG = 6.0
DENSE_DEG = 0.02
"""Longest edge in degrees before projecting: a straight line in lon/lat is a curve in UTM."""
_GEOD = Geod(ellps="WGS84")


@dataclass(frozen=True)
class Aoi:
    """A checked region."""

    geometry: MultiPolygon
    """Valid polygons in WGS84, within [-180, 180], divided at the dateline."""
    source: str
    """What the user gave, for messages."""
    name: str
    """Safe as a folder name."""

    @property
    def area_km2(self) -> float:
        """Area on the ellipsoid."""
        return float(sum(abs(_GEOD.geometry_area_perimeter(part)[0]) for part in self.geometry.geoms) / 1e6)

    def by_zone(self) -> dict[int, shapely.Geometry]:
        """EPSG code of a UTM zone -> the part of the region inside it, in metres of that zone."""
        west, south, east, north = self.geometry.bounds
        parts: dict[int, shapely.Geometry] = {}
        for zone in range(_zone(west), _zone(east) + 1):
            for base, low, high in ((32600, 0.0, NORTH_LIMIT), (32700, SOUTH_LIMIT, 0.0)):
                if high < south or low > north:
                    continue
                strip = shapely.box(-180 + (zone - 1) * ZONE_DEG, low, -180 + zone * ZONE_DEG, high)
                part = _polygons([shapely.intersection(self.geometry, strip)])
                if part.is_empty:
                    continue
                to_utm = Transformer.from_crs(4326, base + zone, always_xy=True)
                dense = shapely.segmentize(part, DENSE_DEG)
                moved = shapely.transform(dense, to_utm.transform, interleaved=False)
                parts[base + zone] = moved if moved.is_valid else shapely.make_valid(moved)
        return parts


def read_aoi(value: str | Path) -> Aoi:
    """Read a region.

    Args:
        value: a vector file with polygons, or `minx,miny,maxx,maxy` in lon/lat (minx > maxx crosses the dateline).

    Raises:
        InputError: what is wrong with it and what to do.
    """
    text = str(value).strip()
    bbox = _bbox(text)
    if bbox is not None:
        return _checked(bbox, text, "bbox_" + re.sub(r"[^0-9A-Za-z]+", "_", text.replace("-", "m")).strip("_"))
    path = Path(text).expanduser()
    frame = _read(path)
    polygons = _only_polygons(frame, path)
    return _checked(polygons, text, re.sub(r"[^0-9A-Za-z._-]+", "_", path.stem).strip("._") or "region")


def _bbox(text: str) -> list[shapely.Geometry] | None:
    """Polygons of a bounding box; None where the text is none."""
    words = text.split(",")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise InputError(f"--aoi {text}: a box has four numbers, minx,miny,maxx,maxy in lon/lat; {len(numbers)} given.")
    west, south, east, north = numbers
    if south >= north or west == east:
        raise InputError(f"--aoi {text}: the box is empty. The order is minx,miny,maxx,maxy in lon/lat.")
    if west > east:
        return [shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)]
    return [shapely.box(west, south, east, north)]


def _read(path: Path) -> GeoDataFrame:
    """The file as a table in WGS84."""
    if not path.exists():
        raise InputError(f"--aoi {path}: no such file. Give a vector file with polygons, or minx,miny,maxx,maxy.")
    import geopandas

    try:
        parquet = path.suffix.lower() in (".parquet", ".geoparquet")
        frame = geopandas.read_parquet(path) if parquet else geopandas.read_file(path)
    except Exception as error:  # pyogrio, pyarrow and shapely each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--aoi {path}: cannot be read as a vector file ({reason}).") from None
    if not isinstance(frame, geopandas.GeoDataFrame) or not len(frame):
        raise InputError(f"--aoi {path}: holds no geometry. Draw a polygon and save it again.")
    if frame.crs is None:
        raise InputError(
            f"--aoi {path}: has no coordinate reference system. Set it (for example EPSG:4326) and save it again."
        )
    if frame.crs.to_epsg() != 4326:
        frame = frame.to_crs(4326)
    return frame


def _only_polygons(frame: GeoDataFrame, path: Path) -> list[shapely.Geometry]:
    geometries = [g for g in frame.geometry if g is not None and not g.is_empty]
    if not geometries:
        raise InputError(f"--aoi {path}: every geometry is empty. Draw a polygon and save it again.")
    polygons = [g for g in geometries if not _polygons([g], mend=False).is_empty]
    if not polygons:
        kinds: dict[str, int] = {}
        for g in geometries:
            kinds[g.geom_type] = kinds.get(g.geom_type, 0) + 1
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise InputError(
            f"--aoi {path}: no polygon to map (found {found}). Draw a polygon around them, or buffer them in a GIS."
        )
    return polygons


def _checked(geometries: list[shapely.Geometry], source: str, name: str) -> Aoi:
    """Mend, divide at the dateline, unite, and refuse what UTM cannot hold."""
    coordinates = shapely.get_coordinates(geometries)
    west, south = coordinates.min(axis=0)
    east, north = coordinates.max(axis=0)
    if not all(map(math.isfinite, (west, south, east, north))):
        raise InputError(f"--aoi {source}: has coordinates that are no numbers. Save it again in EPSG:4326.")
    if south < -90 or north > 90:
        hint = " Are latitude and longitude swapped?" if west >= -90 and east <= 90 else ""
        raise InputError(f"--aoi {source}: latitudes from {south:.6g} to {north:.6g} are beyond 90 degrees.{hint}")
    if west < -360 or east > 360:
        raise InputError(f"--aoi {source}: longitudes from {west:.6g} to {east:.6g}. Save it in EPSG:4326 (lon/lat).")
    if south < SOUTH_LIMIT or north > NORTH_LIMIT:
        raise InputError(
            f"--aoi {source}: reaches from {south:.6g} to {north:.6g} degrees latitude; maps are made in UTM, "
            f"from {SOUTH_LIMIT:.0f} to {NORTH_LIMIT:.0f}. Cut the region there."
        )
    united = shapely.union_all([_polygons([_within_180(g, source)]) for g in geometries])
    result = _polygons([united])
    if result.is_empty or result.area == 0:
        raise InputError(
            f"--aoi {source}: its geometry is invalid and nothing is left of it once mended. Draw it again."
        )
    return Aoi(geometry=result, source=source, name=name)


def _within_180(geometry: shapely.Geometry, source: str) -> shapely.Geometry:
    """A geometry cut at the dateline, if it crosses it."""
    longitudes = shapely.get_coordinates(geometry)[:, 0]
    mended = geometry if geometry.is_valid else shapely.make_valid(geometry)
    if longitudes.min() >= -180 and longitudes.max() <= 180 and not _jumps(geometry):
        return mended
    try:
        if not _jumps(geometry):  # continuous beyond +-180: cut and move
            return shapely.union_all([_shifted(mended, k) for k in (-1, 0, 1)])
        return shapely.union_all([_fixed(p) for p in _parts(geometry)])
    except (ValueError, shapely.errors.GEOSException) as error:
        raise InputError(
            f"--aoi {source}: cannot be divided at the dateline ({error}). Divide it there yourself."
        ) from None


def _fixed(polygon: Polygon) -> shapely.Geometry:
    return antimeridian.fix_polygon(polygon) if _jumps(polygon) else polygon


def _shifted(geometry: shapely.Geometry, turns: int) -> shapely.Geometry:
    """The part of a geometry that lies `turns` turns around the globe, moved into [-180, 180]."""
    part = shapely.intersection(geometry, shapely.box(-180 + 360 * turns, -90, 180 + 360 * turns, 90))
    return shapely.transform(part, lambda xy: xy - (360.0 * turns, 0.0))


def _jumps(geometry: shapely.Geometry) -> bool:
    """True where neighbouring vertices lie more than half a turn apart: drawn across the dateline."""
    for polygon in _parts(geometry):
        for ring in (polygon.exterior, *polygon.interiors):
            x = shapely.get_coordinates(ring)[:, 0]
            if (abs(x[1:] - x[:-1]) > 180).any():
                return True
    return False


def _parts(geometry: shapely.Geometry) -> list[Polygon]:
    return [part for part in shapely.get_parts(geometry) if isinstance(part, Polygon)]


def _polygons(geometries: Iterable[shapely.Geometry], *, mend: bool = True) -> MultiPolygon:
    """Only the polygons of anything, mended."""
    found: list[Polygon] = []
    for geometry in geometries:
        whole = shapely.make_valid(geometry) if mend and not geometry.is_valid else geometry
        for part in shapely.get_parts(whole):
            if isinstance(part, Polygon):
                found.append(part)
            elif hasattr(part, "geoms"):
                found.extend(_polygons(part.geoms, mend=mend).geoms)
    return MultiPolygon([part for part in found if not part.is_empty])


def _zone(lon: float) -> int:
    return min(60, max(1, math.floor((lon + 180) / ZONE_DEG) + 1))
