"""Tiles as one raster: read window by window on any grid, written as one cloud-optimised GeoTIFF.

Memory is bounded by a window whatever the size of the region. Tiles whose cells are the grid's own are copied, others
are warped to it, nearest cell, and fill only what earlier tiles leave empty. Windows and their order are fixed by the
grid, so a file does not depend on how its tiles were made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from rasterio._err import CPLE_BaseError  # what GDAL raises through rasterio in places, and no RasterioError
from rasterio.enums import ColorInterp, Resampling
from rasterio.env import GDALVersion
from rasterio.errors import RasterioError
from rasterio.shutil import copy as gdal_copy
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_cli.maps.cog import ZSTD_LEVEL
from olmoearth_cli.maps.mosaic import zones
from olmoearth_cli.maps.tile_files import TileEntry

Array = npt.NDArray[Any]
NEIGHBOUR_ZONES = 2
"""Zones this near the main one are warped to it; farther away a pixel's area would be wrong by several percent."""
BANDS_APART = 4
"""Rasters of more bands than this are stored band by band inside a block: few are read at once."""
ON_GRID = 1e-6
"""Pixels by which a tile may miss the grid and count as lying on it; the warp's tolerance as well."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The pixels of a raster."""

    crs: rasterio.CRS
    transform: Affine
    """From (column, row) to the CRS's coordinates; north up, square pixels."""
    height: int
    width: int

    @classmethod
    def over(cls, box: PixelBox, pixel_m: float) -> Grid:
        """Pixels of `pixel_m` over a box of a UTM zone; they divide its sides."""
        return cls(
            crs=rasterio.CRS.from_epsg(box.epsg),
            transform=box.transform(pixel_m),
            height=round(box.height * PIXEL_M / pixel_m),
            width=round(box.width * PIXEL_M / pixel_m),
        )

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in the CRS's coordinates."""
        geo = self.transform
        return geo.c, geo.f + geo.e * self.height, geo.c + geo.a * self.width, geo.f

    def place(self, x: float, y: float) -> tuple[float, float]:
        """(row, column) of a point in the CRS's coordinates; whole numbers on the pixels' edges."""
        geo = self.transform
        return (y - geo.f) / geo.e, (x - geo.c) / geo.a

    def part(self, window: Window) -> Grid:
        """The pixels of a window."""
        geo = self.transform
        west, north = geo.c + geo.a * window.col_off, geo.f + geo.e * window.row_off
        transform = Affine(geo.a, 0.0, west, 0.0, geo.e, north)
        return Grid(crs=self.crs, transform=transform, height=window.height, width=window.width)

    def windows(self, side: int) -> Iterator[Window]:
        """Squares of `side` pixels, row by row; smaller ones at the right and lower edge."""
        for row in range(0, self.height, side):
            for col in range(0, self.width, side):
                yield Window(col, row, min(side, self.width - col), min(side, self.height - row))


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the bands of a raster are like."""

    names: tuple[str, ...]
    """Band descriptions."""
    dtype: str
    nodata: float
    """On all bands of a pixel or on none."""
    scales: tuple[float, ...]
    """GDAL scale of each band."""
    offsets: tuple[float, ...]
    """GDAL offset of each band."""
    block: int
    """Side of the file's blocks in pixels."""
    window: int
    """Side of what is read and written at once: a multiple of `block`."""
    averaged: bool
    """True where an overview's pixel is the mean of its pixels, False where it is one of them."""

    def empty(self, height: int, width: int) -> Array:
        """[bands, height, width] without data."""
        return np.full((len(self.names), height, width), self.nodata, dtype=self.dtype)

    def has_data(self, values: Array) -> npt.NDArray[np.bool_]:
        """True where band 1 of [bands, ...] holds data."""
        return np.isfinite(values[0]) if np.isnan(self.nodata) else values[0] != self.nodata


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tile's place on a grid."""

    path: Path
    rows: tuple[int, int]
    """First and past-the-last row of the grid; wider than what the tile covers where it is warped."""
    cols: tuple[int, int]
    warped: bool
    """True where the tile's pixels are not the grid's."""


class Mosaic:
    """Tiles as one raster on a grid. Nothing is held between reads, so threads may read side by side."""

    def __init__(self, pieces: Sequence[Piece], grid: Grid, form: Form) -> None:
        """Where tiles overlap, the earlier piece wins.

        Args:
            pieces: from `piece_on`.
            grid: what windows are of.
            form: of the tiles' files.
        """
        self.grid, self.form, self._pieces = grid, form, pieces
        self._tree = shapely.STRtree([shapely.box(p.cols[0], p.rows[0], p.cols[1], p.rows[1]) for p in pieces])

    def read(self, window: Window) -> Array:
        """[bands, H, W] of a window, no data where no tile has any.

        Raises:
            InputError: a tile's file is gone or damaged.
        """
        values = self.form.empty(window.height, window.width)
        row, col = window.row_off, window.col_off
        square = shapely.box(col, row, col + window.width, row + window.height)
        for piece in (self._pieces[i] for i in sorted(self._tree.query(square))):
            rows = max(piece.rows[0], row), min(piece.rows[1], row + window.height)
            cols = max(piece.cols[0], col), min(piece.cols[1], col + window.width)
            if rows[0] >= rows[1] or cols[0] >= cols[1]:
                continue  # they only touch
            found = _read(piece, self.grid, Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0]), self.form)
            here = values[:, rows[0] - row : rows[1] - row, cols[0] - col : cols[1] - col]
            np.copyto(here, found, where=self.form.has_data(found) & ~self.form.has_data(here))
        return values


def check_zones(tiles: Sequence[TileEntry], remedy: str) -> None:
    """Refuse a map that is too wide for one UTM zone.

    Args:
        tiles: of the map.
        remedy: what to do then.

    Raises:
        InputError: names the zones.
    """
    main, *others = zones(tiles)
    far = [epsg for epsg in others if _apart(main, epsg) > NEIGHBOUR_ZONES]
    if far:
        raise InputError(
            f"the map reaches from UTM zone EPSG:{main} to {', '.join(f'EPSG:{e}' for e in far)}: too far for one "
            f"raster in metres. {remedy}"
        )


def by_zone(tiles: Sequence[TileEntry], first: int) -> list[TileEntry]:
    """Finished tiles in the order in which they fill a raster: those of zone `first`, then by zone and id."""
    order = {epsg: number for number, epsg in enumerate(zones(tiles), start=1)} | {first: 0}
    return sorted((t for t in tiles if t.status == "done"), key=lambda t: (order[t.box.epsg], t.id))


def extent_in(tiles: Sequence[TileEntry], epsg: int, patch_px: int) -> PixelBox:
    """The box around finished tiles in the cells of one UTM zone."""
    boxes = [_in_zone(tile.box, epsg, patch_px) for tile in tiles if tile.status == "done"]
    return PixelBox(
        epsg,
        min(b.row0 for b in boxes),
        min(b.col0 for b in boxes),
        max(b.row1 for b in boxes),
        max(b.col1 for b in boxes),
    )


def piece_on(grid: Grid, path: Path, box: PixelBox, pixel_m: float) -> Piece:
    """A file's place on a grid.

    Args:
        grid: where to place it.
        path: of the file.
        box: that it covers, in its own zone.
        pixel_m: side of its pixels.
    """
    west, south, east, north = box.bounds_m
    own = rasterio.CRS.from_epsg(box.epsg)
    if grid.crs == own and grid.transform.a == pixel_m:
        row, col = grid.place(west, north)
        if max(abs(col - round(col)), abs(row - round(row))) < ON_GRID:
            height, width = round((north - south) / pixel_m), round((east - west) / pixel_m)
            rows, cols = (round(row), round(row) + height), (round(col), round(col) + width)
            return Piece(path=path, rows=rows, cols=cols, warped=False)
    west, south, east, north = transform_bounds(own, grid.crs, west, south, east, north)
    row0, col0 = (math.floor(edge) for edge in grid.place(west, north))
    row1, col1 = (math.ceil(edge) for edge in grid.place(east, south))
    return Piece(path=path, rows=(row0, row1), cols=(col0, col1), warped=True)


def write_cog(
    parts: Iterable[tuple[Window, Array]],
    grid: Grid,
    form: Form,
    work: Path,
    *,
    what: str,
    tags: Callable[[], Mapping[str, str]],
) -> Path:
    """Write a raster into a work folder.

    Args:
        parts: every window of `grid.windows(form.window)` with its values, in order.
        grid: of the raster.
        form: of the raster.
        work: an existing folder on the file system of the output.
        what: names the raster in messages.
        tags: dataset metadata, asked for when all windows are written.

    Returns:
        A whole, checked COG, to be moved to its place.

    Raises:
        OutputError: the disk refused.
    """
    plain, cog = work / "merged.tif", work / "cog.tif"
    try:
        digest = _write_plain(plain, parts, grid, form, tags)
        _to_cog(plain, cog, form)
        found = hashlib.sha256()
        with rasterio.open(cog) as source:
            for window in grid.windows(form.window):
                _digest(found, source.read(window=window))
    except (RasterioError, CPLE_BaseError) as error:
        raise _not_written(work, what, str(error)) from error
    if found.digest() != digest:  # GDAL loses errors of the last writes: only reading again finds them
        raise _not_written(work, what, "what was written reads back as something else")
    plain.unlink()
    return cog


def _not_written(work: Path, what: str, reason: str) -> OutputError:
    return OutputError(
        f"{work.parent}: {what} cannot be written ({reason}). If the disk is full, free some space and run "
        f"again. Otherwise delete {work} and run again."
    )


def _write_plain(
    path: Path,
    parts: Iterable[tuple[Window, Array]],
    grid: Grid,
    form: Form,
    tags: Callable[[], Mapping[str, str]],
) -> bytes:
    """A tiled GeoTIFF of all windows; returns a digest of its pixels."""
    digest = hashlib.sha256()
    with rasterio.open(path, "w", **_profile(grid, form)) as target:
        target.descriptions = form.names
        target.scales = form.scales
        if any(form.offsets):
            target.offsets = form.offsets
        target.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * (len(form.names) - 1)]
        for window, values in parts:
            _digest(digest, values)
            if form.has_data(values).any():
                target.write(values, window=window)
        target.update_tags(AREA_OR_POINT="Area", **tags())
    return digest.digest()


def _profile(grid: Grid, form: Form) -> dict[str, object]:
    return {
        "driver": "GTiff",
        "dtype": form.dtype,
        "count": len(form.names),
        "height": grid.height,
        "width": grid.width,
        "crs": grid.crs,
        "transform": grid.transform,
        "nodata": form.nodata,
        "tiled": True,
        "blockxsize": form.block,
        "blockysize": form.block,
        "interleave": "pixel",
        "compress": "ZSTD",
        "zstd_level": 1,
        "predictor": 3 if form.dtype == "float32" else 2,
        "sparse_ok": True,  # windows without a tile take no space
        "bigtiff": "IF_SAFER",
    }


def _to_cog(plain: Path, cog: Path, form: Form) -> None:
    options = {
        "COMPRESS": "ZSTD",
        "LEVEL": str(ZSTD_LEVEL),
        "PREDICTOR": "YES",
        "BLOCKSIZE": str(form.block),
        "BIGTIFF": "IF_SAFER",
        "NUM_THREADS": "ALL_CPUS",
        "SPARSE_OK": "YES",
        "OVERVIEW_RESAMPLING": "AVERAGE" if form.averaged else "NEAREST",
    }
    if len(form.names) > BANDS_APART and GDALVersion.runtime().at_least("3.11"):
        options["INTERLEAVE"] = "TILE"  # GDAL 3.10 ignores it in silence (spec/outputs.md 1.1)
    # GDAL warns of blocks below 128 and writes them all the same.
    with rasterio.Env(GDAL_VALIDATE_CREATION_OPTIONS="NO"):
        gdal_copy(str(plain), str(cog), driver="COG", **options)


def _digest(digest: hashlib._Hash, values: Array) -> None:
    exact = np.nan_to_num(values, nan=-np.inf) if values.dtype.kind == "f" else values  # one NaN for all NaNs
    digest.update(np.ascontiguousarray(exact).tobytes())


def _read(piece: Piece, grid: Grid, window: Window, form: Form) -> Array:
    """[bands, H, W] of a piece over a window of the grid."""
    try:
        with rasterio.open(piece.path) as source:
            if not piece.warped:
                row, col = window.row_off - piece.rows[0], window.col_off - piece.cols[0]
                return source.read(window=Window(col, row, window.width, window.height))
            part = grid.part(window)
            with WarpedVRT(
                source,
                crs=part.crs,
                transform=part.transform,
                height=part.height,
                width=part.width,
                nodata=form.nodata,
                resampling=Resampling.nearest,
                tolerance=ON_GRID,  # as good as exact: what a larger one rounds would depend on the window
            ) as warped:
                return warped.read()
    except RasterioError as error:
        raise InputError(
            f"{piece.path}: cannot be read ({error}). Delete the file and run the command that made it again."
        ) from error


def _in_zone(box: PixelBox, epsg: int, patch_px: int) -> PixelBox:
    """The box in a zone's pixels, grown to whole cells where it lies in another zone."""
    if box.epsg == epsg:
        return box
    crs = (rasterio.CRS.from_epsg(box.epsg), rasterio.CRS.from_epsg(epsg))
    west, south, east, north = transform_bounds(*crs, *box.bounds_m)
    edges = np.array([-north, west, -south, east]) / PIXEL_M
    row0, col0, row1, col1 = (int(v) for v in (*np.floor(edges[:2]), *np.ceil(edges[2:])))
    return PixelBox(epsg, row0, col0, row1, col1).snapped(patch_px)


def _apart(a: int, b: int) -> int:
    """Steps between two UTM zones, the shorter way round the Earth."""
    steps = abs(a % 100 - b % 100)
    return min(steps, 60 - steps)
