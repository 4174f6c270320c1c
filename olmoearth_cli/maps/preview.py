"""A picture of the map: three principal components as red, green and blue, one stretch for all of it.

Components and stretch come from a bounded sample of the finished tiles, taken the same way whatever
the order in which the tiles were made, so an interrupted map gets the same picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.warp import Resampling, reproject, transform_bounds

from olmoearth_cli.maps.cog import Raster, cog_bytes
from olmoearth_cli.maps.files import write_bytes
from olmoearth_cli.maps.map_spec import MapSpec
from olmoearth_cli.maps.mosaic import extent, zones
from olmoearth_cli.maps.tile_files import TileEntry

SAMPLE_CELLS = 20_000
"""Vectors that the components are computed from; plenty for the covariance of 768 dimensions."""
SAMPLE_TILES = 400
"""Tiles that are sampled, evenly spread, where a map has more."""
STRETCH = (2.0, 98.0)
"""Percentiles of the sample that become the darkest and the brightest value."""
TIF_SIDE = 8192
PNG_SIDE = 2048
"""Largest sides in pixels; larger maps are drawn from the tiles' overviews."""
PNG_LEAST_SIDE = 768
"""Smaller pictures are enlarged by whole factors, so that single cells can be seen."""
NO_DATA = 0
"""Value of cells without data; colours run from 1 to 255."""
NEIGHBOUR_ZONES = 2
"""Zones this near the main one are drawn in its CRS; maps that reach farther are drawn in EPSG:4326."""

Rgb = npt.NDArray[np.uint8]
"""[3, H, W], 0 in all bands where there is no data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Palette:
    """How a vector becomes a colour."""

    mean: npt.NDArray[np.float64]
    """[D]."""
    axes: npt.NDArray[np.float64]
    """[D, 3] principal axes, largest variance first."""
    low: npt.NDArray[np.float64]
    """[3] score that becomes the darkest value."""
    high: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, vectors: npt.NDArray[np.floating[Any]]) -> Palette:
        """Principal axes of [N, D] vectors; each axis points where its largest entry is positive."""
        wide = np.asarray(vectors, dtype=np.float64)
        mean = wide.mean(axis=0)
        centred = wide - mean
        _, axes = np.linalg.eigh(centred.T @ centred)
        axes = axes[:, ::-1][:, :3]
        axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
        axes = np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))  # fewer than three dimensions
        low, high = np.percentile(centred @ axes, STRETCH, axis=0)
        return cls(mean=mean, axes=axes, low=low, high=high)

    def colours(self, vectors: npt.NDArray[np.floating[Any]]) -> Rgb:
        """[3, H, W] from [H, W, D]."""
        scores = (vectors - self.mean) @ self.axes  # H W 3
        spread = self.high - self.low
        flat = spread <= 1e-12 * max(float(np.abs(self.high).max()), 1e-30)
        share = np.where(flat, 0.5, (scores - self.low) / np.where(flat, 1.0, spread))
        valid = np.isfinite(vectors).all(axis=-1, keepdims=True)
        levels = 1 + np.rint(254 * np.clip(np.where(valid, share, 0.0), 0.0, 1.0))
        return np.moveaxis(np.where(valid, levels, NO_DATA).astype(np.uint8), -1, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A georeferenced RGB image."""

    rgb: Rgb
    epsg: int
    transform: Affine


def write_preview(folder: Path, spec: MapSpec, tiles: Sequence[TileEntry]) -> Path:
    """Write `preview.tif` (COG, no data 0) and `preview.png` (transparent there); returns the PNG's path."""
    done = [tile for tile in tiles if tile.status == "done"]
    palette = Palette.fit(_sample(spec, done))
    drawn = [_draw_zone(spec, palette, [t for t in done if t.box.epsg == e]) for e in zones(done)]
    picture = _cropped(_in_one_crs(drawn))
    names = tuple(f"principal component {i}" for i in (1, 2, 3))
    raster = Raster(
        values=picture.rgb, epsg=picture.epsg, transform=picture.transform, nodata=float(NO_DATA), names=names
    )
    write_bytes(folder / "preview.tif", cog_bytes(raster))
    path = folder / "preview.png"
    write_bytes(path, _png(picture.rgb))
    return path


def _sample(spec: MapSpec, tiles: Sequence[TileEntry]) -> npt.NDArray[np.float32]:
    """[N, D] vectors with data, evenly spread over evenly spread tiles."""
    chosen = tiles[:: -(-len(tiles) // SAMPLE_TILES)]
    per_side = max(8, int((SAMPLE_CELLS / len(chosen)) ** 0.5))
    parts = []
    for tile in chosen:
        height, width = spec.shape(tile.box)
        vectors = _read_reduced(spec, tile, (min(height, per_side), min(width, per_side)))
        parts.append(vectors[np.isfinite(vectors).all(axis=-1)])
    sample = np.concatenate(parts)
    # A tile can hold data in a few cells that the sample steps over.
    return sample if len(sample) > 1 else _every_vector(spec, tiles[0])


def _every_vector(spec: MapSpec, tile: TileEntry) -> npt.NDArray[np.float32]:
    vectors = _read_reduced(spec, tile, spec.shape(tile.box))
    valid = vectors[np.isfinite(vectors).all(axis=-1)]
    return valid if len(valid) else np.zeros((1, spec.dimensions), dtype=np.float32)


def _read_reduced(spec: MapSpec, tile: TileEntry, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """[*shape, D] of a whole tile, from its overviews where that suffices."""
    with rasterio.open(tile.path) as source:
        values = np.moveaxis(source.read(out_shape=(source.count, *shape)), 0, -1)
    return spec.quantizer.decode(values) if spec.quantizer else values


def _draw_zone(spec: MapSpec, palette: Palette, tiles: Sequence[TileEntry]) -> Picture:
    """All tiles of one zone; cells are merged by a power of two where the map is larger than `TIF_SIDE`."""
    box = extent(tiles)
    height, width = spec.shape(box)
    step = 1
    while max(height, width) > TIF_SIDE * step:
        step *= 2
    rgb = np.zeros((3, -(-height // step), -(-width // step)), dtype=np.uint8)
    for tile in tiles:
        rows, cols = tile.box.slices_in(box)
        # Rounding the shared edge the same way for both neighbours leaves neither gap nor overlap.
        r0, r1, c0, c1 = (round(v / (spec.patch_px * step)) for v in (rows.start, rows.stop, cols.start, cols.stop))
        if r1 > r0 and c1 > c0:
            rgb[:, r0:r1, c0:c1] = palette.colours(_read_reduced(spec, tile, (r1 - r0, c1 - c0)))
    return Picture(rgb=rgb, epsg=box.epsg, transform=box.transform(spec.cell_m * step))


def _in_one_crs(pictures: Sequence[Picture]) -> Picture:
    """One picture of all zones, in the CRS of the first (the zone with most tiles) or in EPSG:4326."""
    main = pictures[0]
    if len(pictures) == 1:
        return main
    near = all(_zones_apart(main.epsg, other.epsg) <= NEIGHBOUR_ZONES for other in pictures)
    epsg = main.epsg if near else 4326
    bounds = np.array([_bounds(picture, epsg) for picture in pictures])
    west, south = bounds[:, :2].min(axis=0)
    east, north = bounds[:, 2:].max(axis=0)
    pixel = _pixel_size(main, epsg, (south + north) / 2)
    scale = max(1.0, (east - west) / pixel[0] / TIF_SIDE, (north - south) / pixel[1] / TIF_SIDE)
    geo = Affine(pixel[0] * scale, 0.0, west, 0.0, -pixel[1] * scale, north)
    shape = (max(1, round((north - south) / -geo.e)), max(1, round((east - west) / geo.a)))
    rgb = np.zeros((3, *shape), dtype=np.uint8)
    for picture in pictures:
        warped = np.zeros_like(rgb)
        reproject(
            picture.rgb,
            warped,
            src_transform=picture.transform,
            src_crs=rasterio.CRS.from_epsg(picture.epsg),
            src_nodata=NO_DATA,
            dst_transform=geo,
            dst_crs=rasterio.CRS.from_epsg(epsg),
            dst_nodata=NO_DATA,
            resampling=Resampling.nearest,
        )
        rgb = np.where(rgb.any(axis=0), rgb, warped)
    return Picture(rgb=rgb, epsg=epsg, transform=geo)


def _cropped(picture: Picture) -> Picture:
    """Without the empty rim: tiles are larger than the region."""
    seen = (picture.rgb != NO_DATA).max(axis=0)
    if not seen.max():
        return picture
    rows, cols = np.flatnonzero(seen.max(axis=1)), np.flatnonzero(seen.max(axis=0))
    r0, r1, c0, c1 = rows[0], rows[-1] + 1, cols[0], cols[-1] + 1
    geo = picture.transform  # north up
    moved = Affine(geo.a, 0.0, geo.c + geo.a * c0, 0.0, geo.e, geo.f + geo.e * r0)
    return Picture(rgb=picture.rgb[:, r0:r1, c0:c1], epsg=picture.epsg, transform=moved)


def _zones_apart(a: int, b: int) -> int:
    """Steps between two UTM zones, the shorter way round the Earth."""
    steps = abs(a % 100 - b % 100)
    return min(steps, 60 - steps)


def _bounds(picture: Picture, epsg: int) -> tuple[float, float, float, float]:
    _, height, width = picture.rgb.shape
    geo = picture.transform  # north up
    west, north = geo.c, geo.f
    east, south = geo.c + geo.a * width, geo.f + geo.e * height
    left, bottom, right, top = transform_bounds(
        rasterio.CRS.from_epsg(picture.epsg), rasterio.CRS.from_epsg(epsg), west, south, east, north
    )
    return (left, bottom, right, top) if left <= right else (-180.0, bottom, 180.0, top)


def _pixel_size(main: Picture, epsg: int, latitude: float) -> tuple[float, float]:
    """(width, height) of a pixel of the main zone in the target CRS, square on the ground."""
    side_m = main.transform.a
    if epsg != 4326:
        return side_m, side_m
    degrees = side_m / 111_320.0
    return degrees / max(float(np.cos(np.radians(latitude))), 0.05), degrees


def _png(rgb: Rgb) -> bytes:
    """RGBA, large pictures thinned and small ones enlarged by whole factors."""
    longest = max(rgb.shape[1:])
    thin = -(-longest // PNG_SIDE)
    grow = max(1, PNG_LEAST_SIDE // longest)
    shown = rgb[:, ::thin, ::thin].repeat(grow, axis=1).repeat(grow, axis=2)
    alpha = np.where(shown.any(axis=0), 255, 0).astype(np.uint8)
    return png_bytes(np.concatenate([shown, alpha[None]]))


def png_bytes(rgba: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of [4, H, W]."""
    _, height, width = rgba.shape
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture, not a raster
        with memory.open(driver="PNG", width=width, height=height, count=4, dtype="uint8") as target:
            target.write(rgba)
        return bytes(memory.getbuffer())
