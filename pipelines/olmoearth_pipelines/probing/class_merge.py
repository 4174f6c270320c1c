"""From finished tiles to one cloud-optimised GeoTIFF, window by window.

Memory is bounded by a window whatever the size of the region. Tiles of the main UTM zone keep their grid; those of
other zones are warped to it, nearest cell, and fill only what the main zone leaves empty. Windows and their order are
fixed by the map, so the file does not depend on how the tiles were made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import shapely
from rasterio._err import CPLE_BaseError  # what GDAL raises through rasterio in places, and no RasterioError
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.shutil import copy as gdal_copy
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_cli.maps.cog import ZSTD_LEVEL
from olmoearth_cli.maps.files import output_error
from olmoearth_cli.maps.mosaic import zones
from olmoearth_cli.maps.tile_files import TileEntry
from olmoearth_pipelines.probing.class_layout import Array, Layout
from olmoearth_pipelines.probing.class_tally import Tally

WINDOW = 512
"""Side of a window and of the file's blocks."""
NEIGHBOUR_ZONES = 2
"""Zones this near the main one are warped to it; farther away a pixel's area would be wrong by several percent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A finished tile's place in the merged raster."""

    path: Path
    box: PixelBox
    """In its own zone."""
    place: PixelBox
    """In the main zone; larger than what it covers where the tile is warped."""


def check_zones(tiles: Sequence[TileEntry]) -> None:
    """Refuse a map that is too wide for one UTM zone.

    Raises:
        InputError: names the zones.
    """
    main, *others = zones(tiles)
    far = [epsg for epsg in others if _apart(main, epsg) > NEIGHBOUR_ZONES]
    if far:
        raise InputError(
            f"the map reaches from UTM zone EPSG:{main} to {', '.join(f'EPSG:{e}' for e in far)}: too far for one "
            "raster in metres. Map the region in parts no wider than five zones and make a class map of each."
        )


def place(tiles: Sequence[TileEntry], files: Mapping[str, Path], patch_px: int) -> list[Piece]:
    """Where every finished tile goes: main zone first, then the others, each by id.

    Args:
        tiles: of the map.
        files: tile id -> finished tile of the class map.
        patch_px: side of the map's cells, on which all places lie.
    """
    order = {epsg: number for number, epsg in enumerate(zones(tiles))}
    main = next(iter(order))
    done = sorted((t for t in tiles if t.status == "done"), key=lambda t: (order[t.box.epsg], t.id))
    return [Piece(path=files[t.id], box=t.box, place=_in_zone(t.box, main, patch_px)) for t in done]


def merge(pieces: Sequence[Piece], layout: Layout, work: Path, tags: Mapping[str, str]) -> Path:
    """Write the merged class map into the work folder.

    Args:
        pieces: from `place`.
        layout: the form of the bands.
        work: an existing folder on the file system of the output.
        tags: dataset metadata; the figures of the pixels are added as `OLMOEARTH_FIGURES`.

    Returns:
        A whole, checked COG, to be moved to its place.

    Raises:
        OutputError: the disk refused.
    """
    plain, cog = work / "merged.tif", work / "cog.tif"
    box = extent_of(pieces)
    try:
        digest = _write_plain(plain, pieces, layout, box, tags)
        _to_cog(plain, cog, layout)
        found = hashlib.sha256()
        with rasterio.open(cog) as source:
            for window in _windows(source.height, source.width):
                _digest(found, source.read(window=window))
    except (RasterioError, CPLE_BaseError) as error:
        raise _not_written(work, str(error)) from error
    if found.digest() != digest:  # GDAL loses errors of the last writes: only reading again finds them
        raise _not_written(work, "what was written reads back as something else")
    plain.unlink()
    return cog


def _not_written(work: Path, reason: str) -> OutputError:
    return OutputError(
        f"{work.parent}: the class map cannot be written ({reason}). If the disk is full, free some space and run "
        f"again: finished tiles are kept. Otherwise delete {work} and run again."
    )


def publish(cog: Path, out: Path) -> None:
    """Move a finished file to its place in one step."""
    try:
        with cog.open("rb") as file:
            os.fsync(file.fileno())
        cog.replace(out)
    except OSError as error:
        raise output_error(out, error) from error


def extent_of(pieces: Sequence[Piece]) -> PixelBox:
    """The box that the merged raster covers."""
    boxes = [piece.place for piece in pieces]
    return PixelBox(
        boxes[0].epsg,
        min(b.row0 for b in boxes),
        min(b.col0 for b in boxes),
        max(b.row1 for b in boxes),
        max(b.col1 for b in boxes),
    )


def _write_plain(path: Path, pieces: Sequence[Piece], layout: Layout, box: PixelBox, tags: Mapping[str, str]) -> bytes:
    """A tiled GeoTIFF of all windows; returns a digest of its pixels."""
    size = layout.pixel_px
    tally, digest = Tally(layout=layout), hashlib.sha256()
    tree = shapely.STRtree([_rectangle(piece.place) for piece in pieces])
    with rasterio.open(path, "w", **_profile(layout, box)) as target:
        target.descriptions = layout.bands
        target.scales = layout.scales
        target.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * (len(layout.bands) - 1)]
        for window in _windows(target.height, target.width):
            row0, col0 = box.row0 + window.row_off * size, box.col0 + window.col_off * size
            part = PixelBox(box.epsg, row0, col0, row0 + window.height * size, col0 + window.width * size)
            values = _filled(part, [pieces[i] for i in sorted(tree.query(_rectangle(part)))], layout)
            _digest(digest, values)
            if layout.has_data(values).any():
                target.write(values, window=window)
                tally.add(values)
        target.update_tags(AREA_OR_POINT="Area", **tags, OLMOEARTH_FIGURES=tally.to_json())
    return digest.digest()


def _profile(layout: Layout, box: PixelBox) -> dict[str, object]:
    return {
        "driver": "GTiff",
        "dtype": layout.dtype,
        "count": len(layout.bands),
        "height": box.height // layout.pixel_px,
        "width": box.width // layout.pixel_px,
        "crs": rasterio.CRS.from_epsg(box.epsg),
        "transform": box.transform(layout.pixel_m),
        "nodata": layout.nodata,
        "tiled": True,
        "blockxsize": WINDOW,
        "blockysize": WINDOW,
        "interleave": "pixel",
        "compress": "ZSTD",
        "zstd_level": 1,
        "predictor": 3 if layout.dtype == "float32" else 2,
        "sparse_ok": True,  # windows without a tile take no space
        "bigtiff": "IF_SAFER",
    }


def _filled(box: PixelBox, pieces: Sequence[Piece], layout: Layout) -> Array:
    """[bands, H, W] over a box; an earlier piece wins."""
    values = layout.empty(box.height // layout.pixel_px, box.width // layout.pixel_px)
    for piece in pieces:
        common = piece.place.intersection(box)
        if common.empty:
            continue  # they only touch
        rows, cols = (slice(s.start // layout.pixel_px, s.stop // layout.pixel_px) for s in common.slices_in(box))
        found = _read(piece, common, layout)
        here = values[:, rows, cols]
        np.copyto(here, found, where=layout.has_data(found) & ~layout.has_data(here))
    return values


def _read(piece: Piece, box: PixelBox, layout: Layout) -> Array:
    """[bands, H, W] of a piece over a box of the main zone."""
    height, width = box.height // layout.pixel_px, box.width // layout.pixel_px
    with rasterio.open(piece.path) as source:
        if piece.box.epsg == box.epsg:
            rows, cols = box.slices_in(piece.box)
            size = layout.pixel_px
            return source.read(window=Window(cols.start // size, rows.start // size, width, height))
        with WarpedVRT(
            source,
            crs=rasterio.CRS.from_epsg(box.epsg),
            transform=box.transform(layout.pixel_m),
            height=height,
            width=width,
            nodata=layout.nodata,
            resampling=Resampling.nearest,
            tolerance=1e-6,  # pixels, as good as exact: what a larger one rounds would depend on the window
        ) as warped:
            return warped.read()


def _to_cog(plain: Path, cog: Path, layout: Layout) -> None:
    options = {
        "COMPRESS": "ZSTD",
        "LEVEL": str(ZSTD_LEVEL),
        "PREDICTOR": "YES",
        "BLOCKSIZE": str(WINDOW),
        "BIGTIFF": "IF_SAFER",
        "NUM_THREADS": "ALL_CPUS",
        "SPARSE_OK": "YES",
        # A class and its confidence stay together: both come from the same cell.
        "OVERVIEW_RESAMPLING": "NEAREST" if layout.has_classes else "AVERAGE",
    }
    gdal_copy(str(plain), str(cog), driver="COG", **options)


def _windows(height: int, width: int) -> Iterator[Window]:
    for row in range(0, height, WINDOW):
        for col in range(0, width, WINDOW):
            yield Window(col, row, min(WINDOW, width - col), min(WINDOW, height - row))


def _digest(digest: hashlib._Hash, values: Array) -> None:
    exact = np.nan_to_num(values, nan=-np.inf) if values.dtype.kind == "f" else values  # one NaN for all NaNs
    digest.update(np.ascontiguousarray(exact).tobytes())


def _in_zone(box: PixelBox, epsg: int, patch_px: int) -> PixelBox:
    """The box in the main zone's pixels, grown to whole cells where it lies in another zone."""
    if box.epsg == epsg:
        return box
    crs = (rasterio.CRS.from_epsg(box.epsg), rasterio.CRS.from_epsg(epsg))
    west, south, east, north = transform_bounds(*crs, *box.bounds_m)
    edges = np.array([-north, west, -south, east]) / PIXEL_M
    row0, col0, row1, col1 = (int(v) for v in (*np.floor(edges[:2]), *np.ceil(edges[2:])))
    return PixelBox(epsg, row0, col0, row1, col1).snapped(patch_px)


def _rectangle(box: PixelBox) -> shapely.Polygon:
    return shapely.box(box.col0, box.row0, box.col1, box.row1)


def _apart(a: int, b: int) -> int:
    """Steps between two UTM zones, the shorter way round the Earth."""
    steps = abs(a % 100 - b % 100)
    return min(steps, 60 - steps)
