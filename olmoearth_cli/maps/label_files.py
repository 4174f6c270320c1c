"""Vector labels from any file that holds them: points and polygons in WGS84, with their attributes."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import antimeridian
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from olmoearth_cli.errors import InputError

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Shapes = npt.NDArray[np.object_]
COORDINATES = (("lon", "lat"), ("longitude", "latitude"), ("long", "lat"), ("lng", "lat"), ("x", "y"))
"""Column names that a table's coordinates go by, in any case; the first pair that is there is taken."""
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
"""What an empty cell of a CSV looks like. `None` is left out: it is a class (`no crop`) in some tables."""
POINT, POLYGON, MULTIPOINT, MULTIPOLYGON = 0, 3, 4, 6
"""Geometry types as shapely numbers them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelFile:
    """What a vector file holds that can be a label."""

    geometry: Shapes
    """[N] points, polygons and multipolygons in WGS84; a multipoint is one row per point."""
    columns: pd.DataFrame
    """[N] attributes; the index is the feature's number in the file, from 0, shared by the points of a multipoint."""
    notes: tuple[str, ...]
    """What was left out or mended."""


def read_label_file(path: str | Path) -> LabelFile:
    """Read points and polygons.

    Args:
        path: CSV with coordinates, GeoParquet, or anything GDAL reads; `file.gpkg#layer` names a layer.

    Raises:
        InputError: no such file or layer, unreadable, several layers, no reference system, no point or polygon,
            or coordinates that are no longitudes and latitudes.
    """
    file, layer = _file_and_layer(path)
    if not file.exists():
        raise InputError(f"{file}: no such file. Give points or polygons with a class or a number, or a GeoTIFF.")
    frame = _in_wgs84(_read(file, layer), str(path))
    geometry = np.asarray(frame.geometry.to_numpy(), dtype=object)
    columns = pd.DataFrame(frame.drop(columns=frame.geometry.name)).reset_index(drop=True)
    kept, notes = _points_and_polygons(geometry, str(path))
    if not kept.all():
        geometry, columns = geometry[kept], columns[kept]
    rows, shapes = _single_points(shapely.force_2d(geometry))
    _check_range(shapes, str(path))
    shapes, mended = _mended(shapes)
    if mended:
        notes.append(f"{mended} invalid polygons mended")
    return LabelFile(geometry=shapes, columns=columns.iloc[rows], notes=tuple(notes))


def _file_and_layer(path: str | Path) -> tuple[Path, str | None]:
    """`file.gpkg#roads` -> (file.gpkg, roads), unless a file has that very name."""
    file = Path(path).expanduser()
    if file.exists() or "#" not in file.name:
        return file, None
    name, _, layer = str(file).rpartition("#")
    return Path(name), layer


def _read(file: Path, layer: str | None) -> GeoDataFrame:
    import geopandas

    ending = file.suffix.lower()
    if ending in (".csv", ".tsv", ".txt"):
        return _read_table(file)
    if ending not in (".parquet", ".geoparquet"):
        layer = _layer(file, layer)
    try:
        if ending in (".parquet", ".geoparquet"):
            frame = geopandas.read_parquet(file)
        else:
            frame = geopandas.read_file(file, layer=layer)
    except Exception as error:  # pyogrio, pyarrow and shapely each raise their own kinds
        raise _unreadable(file, error) from None
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{file}: holds attributes but no geometry. Save it with points or polygons.")
    return frame


def _unreadable(file: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"{file}: cannot be read as labels ({reason}). "
        "Give GeoJSON, GeoPackage, GeoParquet, a shapefile, CSV with lon and lat columns, or a GeoTIFF."
    )


def _layer(file: Path, wanted: str | None) -> str | None:
    """The layer to read: the one asked for, or the only one that has a geometry."""
    import pyogrio

    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(file) if kind is not None]
    except Exception as error:  # pyogrio has several kinds of its own
        raise _unreadable(file, error) from None
    names = ", ".join(f"{file.name}#{name}" for name in layers)
    if wanted is not None and wanted not in layers:
        raise InputError(f"{file}: has no layer {wanted!r}. It has: {names or 'none with a geometry'}.")
    if wanted is None and len(layers) > 1:
        raise InputError(f"{file}: has {len(layers)} layers. Name one: {names}.")
    return wanted or (layers[0] if layers else None)


def _read_table(file: Path) -> GeoDataFrame:
    """A CSV whose rows are points; comma, semicolon or tab between the columns."""
    import geopandas

    try:
        with file.open(encoding="utf-8-sig") as source:
            header = source.readline()
        separator = max(",;\t", key=header.count)
        table = pd.read_csv(
            file, sep=separator, encoding="utf-8-sig", low_memory=False, keep_default_na=False, na_values=list(MISSING)
        )
    except UnicodeError:
        raise InputError(f"{file}: is no UTF-8 text. Save it again as CSV UTF-8 (in Excel: `CSV UTF-8`).") from None
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise _unreadable(file, error) from None
    x, y = _coordinate_columns(table, file)
    lon, lat = (_numbers(table[name], file) for name in (x, y))
    if {x.strip().lower(), y.strip().lower()} == {"x", "y"} and not _may_be_lonlat(lon, lat):
        raise InputError(
            f"{file}: columns {x} ({_span(lon)}) and {y} ({_span(lat)}) are no longitudes and latitudes. "
            "Give columns lon and lat in degrees (WGS84), or a GeoPackage that says its reference system."
        )
    there = np.isfinite(lon) & np.isfinite(lat)
    points = np.full(len(table), None, dtype=object)
    points[there] = shapely.points(lon[there], lat[there])
    return geopandas.GeoDataFrame(table, geometry=geopandas.GeoSeries(points, index=table.index, crs=4326))


def _coordinate_columns(table: pd.DataFrame, file: Path) -> tuple[str, str]:
    known = {str(name).strip().lower(): str(name) for name in reversed(table.columns)}
    for x, y in COORDINATES:
        if x in known and y in known:
            return known[x], known[y]
    names = ", ".join(map(str, table.columns))
    raise InputError(f"{file}: has no columns lon and lat (its columns: {names}). Add them, in degrees (WGS84).")


def _numbers(column: pd.Series, file: Path) -> npt.NDArray[np.float64]:
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = column[numbers.isna() & column.notna()]
    if len(wrong):
        raise InputError(
            f"{file}: column {column.name} holds {wrong.iloc[0]!r} in row {wrong.index[0] + 1}, which is no number. "
            "Coordinates are decimal degrees with a point."
        )
    values = numbers.to_numpy(dtype=np.float64)
    if np.isinf(values).any():
        raise InputError(f"{file}: column {column.name} holds an infinite value. Coordinates are decimal degrees.")
    return values


def _may_be_lonlat(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> bool:
    return not (np.nanmax(np.abs(lon), initial=0) > 180 or np.nanmax(np.abs(lat), initial=0) > 90)


def _span(values: npt.NDArray[np.float64]) -> str:
    return f"{np.nanmin(values):.6g} to {np.nanmax(values):.6g}"


def _in_wgs84(frame: GeoDataFrame, source: str) -> GeoDataFrame:
    if not len(frame):
        raise InputError(f"{source}: is empty. Give at least two labelled points or polygons.")
    if frame.crs is None:
        raise InputError(
            f"{source}: has no coordinate reference system. Set it (for example EPSG:4326) and save it again."
        )
    return frame if frame.crs.to_epsg() == 4326 else frame.to_crs(4326)


def _points_and_polygons(geometry: Shapes, source: str) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """True for features that can be labels, and notes on the others."""
    there = ~(shapely.is_missing(geometry) | shapely.is_empty(geometry))
    usable = there & np.isin(shapely.get_type_id(geometry), (POINT, POLYGON, MULTIPOINT, MULTIPOLYGON))
    others = Counter(str(shape.geom_type) for shape in geometry[there & ~usable])
    found = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
    if not usable.any():
        raise InputError(
            f"{source}: holds no point and no polygon (found {found or 'only empty geometries'}). "
            "Labels are points or polygons; buffer lines in a GIS."
        )
    notes = [f"{np.sum(~there)} of {len(geometry)} features without a geometry left out"] if not there.all() else []
    return usable, notes + ([f"{found} left out: labels are points or polygons"] if found else [])


def _single_points(geometry: Shapes) -> tuple[npt.NDArray[np.intp], Shapes]:
    """Positions and geometries with every multipoint divided into its points, in the order of the file."""
    several = shapely.get_type_id(geometry) == MULTIPOINT
    parts, owner = shapely.get_parts(geometry[several], return_index=True)
    rows = np.concatenate([np.flatnonzero(~several), np.flatnonzero(several)[owner]])
    order = np.argsort(rows, kind="stable")
    return rows[order], np.concatenate([geometry[~several], parts])[order]


def _check_range(shapes: Shapes, source: str) -> None:
    west, south, east, north = shapely.bounds(shapes).T  # N each
    low, high = np.array([west.min(), south.min()]), np.array([east.max(), north.max()])
    if not np.isfinite([low, high]).all():
        raise InputError(f"{source}: has coordinates that are no numbers. Save it again in EPSG:4326 (lon/lat).")
    if low[1] < -90 or high[1] > 90:
        hint = " Are latitude and longitude swapped?" if low[0] >= -90 and high[0] <= 90 else ""
        raise InputError(
            f"{source}: latitudes from {low[1]:.6g} to {high[1]:.6g} are beyond 90 degrees.{hint} "
            "Save it in degrees (EPSG:4326, longitude first)."
        )
    if low[0] < -180 or high[0] > 180:
        raise InputError(
            f"{source}: longitudes from {low[0]:.6g} to {high[0]:.6g} are beyond 180 degrees. "
            "Save it in EPSG:4326 (longitudes from -180 to 180)."
        )


def _mended(shapes: Shapes) -> tuple[Shapes, int]:
    """Polygons cut where they cross the dateline and made valid, and how many were invalid."""
    west, _, east, _ = shapely.bounds(shapes).T
    out = shapes.copy()
    for i in np.flatnonzero(east - west > 180):
        out[i] = _cut_at_dateline(out[i])
    invalid = np.flatnonzero(~shapely.is_valid(out))
    for i in invalid:
        parts = shapely.get_parts(shapely.make_valid(out[i]))
        out[i] = shapely.union_all(parts[shapely.get_dimensions(parts) == 2])
    return out, len(invalid)


def _cut_at_dateline(shape: shapely.Geometry) -> shapely.Geometry:
    """A polygon whose neighbouring vertices lie on both sides of the dateline, as parts within +-180 degrees."""
    with warnings.catch_warnings():
        # Which way a ring turns says nothing about labels: both ways are written by common programs.
        warnings.simplefilter("ignore", antimeridian.FixWindingWarning)
        fixed = [antimeridian.fix_polygon(part) if _jumps(part) else part for part in shapely.get_parts(shape)]
    return shapely.union_all(fixed)


def _jumps(polygon: shapely.Polygon) -> bool:
    """True where neighbouring vertices lie more than half a turn apart: drawn across the dateline."""
    return bool((np.abs(np.diff(shapely.get_coordinates(polygon.exterior)[:, 0])) > 180).any())
