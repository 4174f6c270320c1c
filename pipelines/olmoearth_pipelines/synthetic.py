"""A small synthetic region with a static STAC catalogue: for the demo, the tests and first steps offline.

    python -m olmoearth_pipelines.synthetic FOLDER --seed 7 --size 252

Sentinel-2 L2A and Sentinel-1 RTC in the layout of Planetary Computer (spec/inputs.md section 7): native
resolutions, the +1000 offset of recent baselines in the pixels, clouds and their shadows with scene classes, a swath
edge, one period without Sentinel-2 and one without Sentinel-1. The same seed gives the same bytes.

`landscape` has the ground and what grows on it, `synthetic_square` its place, `synthetic_catalog` the STAC files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from scipy import ndimage

from olmoearth_pipelines.landscape import BANDS, CLASSES, Landscape, landscape, smooth_noise
from olmoearth_pipelines.synthetic_catalog import (
    NATIVE_M,
    NO_POWER,
    SENTINEL1,
    SENTINEL2,
    Listing,
    optical_item,
    radar_item,
    write_catalog,
)
from olmoearth_pipelines.synthetic_square import GRID_M, GRID_PX, Square, feature, write_cog, write_json

Array = np.ndarray
OFFSET = 1000
OLD_BASELINE = "02.14"
"""Baseline of the older listing of a reprocessed acquisition: before the offset."""
RIM_PX = 50
"""Imagery beyond the region: windows reach up to 48 pixels over its edge."""
COLOURS = {
    1: (65, 105, 225),
    2: (34, 139, 34),
    3: (0, 85, 50),
    4: (154, 205, 50),
    5: (240, 215, 110),
    6: (230, 145, 40),
    7: (160, 130, 100),
    8: (170, 60, 70),
}
CLOUD = np.array([5200, 5300, 5400, 5600, 5450, 5500, 5550, 5600, 3900, 3000, 5000, 2500], np.float32)
"""Reflectance x 10000 of a thick cloud, in the order of BANDS."""


@dataclass(frozen=True, kw_only=True)
class Scenery:
    """What to make. Periods count from 0; one beyond the last means none."""

    seed: int = 7
    size_px: int = 252
    """Side of the imagery in 10 m pixels; a multiple of 12."""
    epsg: int = 32631
    """UTM zone on WGS84, north or south."""
    origin: tuple[float, float] = (660_000.0, 5_613_000.0)
    """Easting and northing of the upper left corner, multiples of 60 m."""
    year: int = 2024
    """Starts on 1 January of this year, unless `start` says otherwise."""
    start: date | None = None
    """First day of the first period."""
    periods: int = 12
    """Number of 30-day periods."""
    without_s2: int = 1
    """Period without any Sentinel-2 scene."""
    without_s1: int = 8
    """Period without any Sentinel-1 scene."""
    swath_edge: int = 5
    """Period whose only Sentinel-2 scenes end in a swath edge."""
    reprocessed: tuple[int, ...] = ()
    """Periods whose Sentinel-2 acquisitions are listed a second time, as an older baseline without the offset."""
    beyond: tuple[int, ...] = ()
    """Periods that are delivered on the grid of the neighbouring UTM zone, as happens along a zone border."""

    def __post_init__(self) -> None:
        if self.size_px % GRID_PX or self.size_px < 2 * RIM_PX + GRID_PX:
            raise ValueError(f"size_px {self.size_px} must be a multiple of {GRID_PX} above {2 * RIM_PX}")
        if self.epsg // 100 not in (326, 327) or not 1 <= self.epsg % 100 <= 60:
            raise ValueError(f"epsg {self.epsg} must be a UTM zone on WGS84: 32601-32660 or 32701-32760")
        if any(value % GRID_M for value in self.origin):
            raise ValueError(f"origin {self.origin} must be multiples of {GRID_M} m, so that the coarse bands fit")

    @property
    def first_day(self) -> datetime:
        """Start of the first period."""
        day = self.start or date(self.year, 1, 1)
        return datetime(day.year, day.month, day.day, tzinfo=UTC)

    @cached_property
    def square(self) -> Square:
        """The ground, on its own grid."""
        return Square(epsg=self.epsg, origin=self.origin, size_px=self.size_px)


@dataclass(frozen=True)
class Acquisition:
    """One satellite pass."""

    when: datetime
    number: int
    cloudiness: float = 0.0
    """Wanted share of clouds."""
    edge: bool = False
    """True where the swath ends inside the square."""
    beyond: bool = False
    """True where the pixels come on the grid of the neighbouring zone."""
    reprocessed: bool = False
    """True where an older processing is listed as well."""


def make_region(folder: Path, scenery: Scenery) -> dict[str, Path]:
    """Write a region: `region.geojson`, `labels.geojson`, `landcover.tif` and `catalog/`.

    Args:
        folder: where; made if needed. Files of the same names are replaced.
        scenery: what.

    Returns:
        Name -> path of what was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    land = landscape(scenery.seed, scenery.size_px)
    region = _region(scenery)
    paths = {
        "region": folder / "region.geojson",
        "labels": folder / "labels.geojson",
        "landcover": folder / "landcover.tif",
        "catalog": _fill_catalog(folder / "catalog", scenery, land),
    }
    write_json(paths["region"], _collection([feature(region, {"name": f"synthetic region, seed {scenery.seed}"})]))
    write_json(paths["labels"], _collection(_labels(scenery, land, region)))
    write_cog(paths["landcover"], land.classes, scenery.square, 10, nodata=0, colours=COLOURS)
    return paths


def _fill_catalog(folder: Path, scenery: Scenery, land: Landscape) -> Path:
    items: dict[str, list[dict[str, Any]]] = {SENTINEL2: [], SENTINEL1: []}
    for kind, pass_ in acquisitions(scenery):
        square = _grid_of(scenery, pass_)
        listing = Listing(when=pass_.when, number=pass_.number, square=square, ground=scenery.square)
        if kind == "s1":
            items[SENTINEL1].append(radar_item(folder, listing, radar(scenery, land, pass_)))
            continue
        bands, classes = optical(scenery, land, pass_)
        if pass_.reprocessed:
            # Two processings of one acquisition differ in their times too (section 4, de-duplication).
            old = replace(listing, when=pass_.when + timedelta(milliseconds=24), baseline=OLD_BASELINE)
            items[SENTINEL2].append(optical_item(folder, old, _without_offset(bands), classes))
            listing = replace(listing, made=pass_.when + timedelta(days=300))
        items[SENTINEL2].append(optical_item(folder, listing, bands, classes))
    text = f"Synthetic imagery, seed {scenery.seed}: made by olmoearth_pipelines.synthetic, not observed."
    return write_catalog(folder, items, description=text, bbox=scenery.square.bbox)


def acquisitions(scenery: Scenery) -> Iterator[tuple[str, Acquisition]]:
    """(`s2` or `s1`, pass) by period: up to two optical passes and one radar pass each."""
    rng = np.random.default_rng([scenery.seed, 10])
    first = scenery.first_day
    for period in range(scenery.periods):
        start = first + timedelta(days=30 * period)
        middle = first.timetuple().tm_yday + period * 30 + 14
        season = 0.5 + 0.35 * np.cos(2 * np.pi * middle / 365)  # cloudier winters
        beyond, twice = period in scenery.beyond, period in scenery.reprocessed
        passes = 1 + int(rng.random() < 0.35)
        for k in range(passes):
            when = start + timedelta(days=int(rng.integers(1, 14)) + 15 * k, hours=10, minutes=40, seconds=period)
            clouds = 0.0 if k else float(np.clip(rng.beta(1.2, 2.2) * season * 1.6, 0, 0.85))
            clouds = clouds if passes == 1 else float(rng.choice([clouds, min(1.0, clouds + 0.4)]))
            edge = period == scenery.swath_edge
            if period != scenery.without_s2:
                yield "s2", Acquisition(when, 10 * period + k, clouds, edge, beyond, twice)
        when = start + timedelta(days=int(rng.integers(1, 28)), hours=5 if period % 2 else 17, minutes=42)
        if period != scenery.without_s1:
            yield "s1", Acquisition(when, 10 * period, beyond=beyond)


# --- pixels -------------------------------------------------------------------------------------------------


def optical(scenery: Scenery, land: Landscape, pass_: Acquisition) -> tuple[dict[str, Array], Array]:
    """Sentinel-2 digital numbers by band at native resolution, and the scene classes at 20 m."""
    rng = np.random.default_rng([scenery.seed, 20, pass_.number])
    shape = land.classes.shape
    day = pass_.when.timetuple().tm_yday
    clear = land.reflectance(day)  # C H W
    cover, shadow = _clouds(rng, shape, pass_.cloudiness)
    lit = (
        clear * (1 - 0.55 * shadow) * (1 - cover)
        + CLOUD[:, None, None] * (0.85 + 0.3 * smooth_noise(rng, shape, 9) * 0.2) * cover
    )
    outside = _swath(shape) if pass_.edge else np.zeros(shape, bool)
    classes = _scene_classes(clear, cover, shadow)
    if pass_.beyond:
        rows, cols, away = scenery.square.rows_and_columns_of(_grid_of(scenery, pass_))
        lit, classes, outside = lit[:, rows, cols], classes[rows, cols], outside[rows, cols] | away
    bands = {}
    for k, band in enumerate(BANDS):
        step = NATIVE_M.get(band, 10) // 10
        seen = _mean(ndimage.gaussian_filter(lit[k], 0.45), step)
        noisy = seen * rng.normal(1.0, 0.012, seen.shape) + rng.normal(0, 12, seen.shape)
        # Steps of 16: about the noise, and half the bytes.
        numbers = np.clip(np.round(noisy / 16) * 16, 16, 15000) + OFFSET
        bands[band] = np.where(outside[::step, ::step], 0, numbers).astype(np.uint16)
    return bands, np.where(outside, 0, classes)[::2, ::2].astype(np.uint8)


def _without_offset(bands: dict[str, Array]) -> dict[str, Array]:
    """The same reflectance as an old baseline stored it; the lowest number made is OFFSET + 16, so no data stays 0."""
    return {band: np.where(values > 0, values - OFFSET, 0).astype(np.uint16) for band, values in bands.items()}


def _grid_of(scenery: Scenery, pass_: Acquisition) -> Square:
    return scenery.square.neighbour() if pass_.beyond else scenery.square


def _clouds(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> tuple[Array, Array]:
    """Opacity of clouds and of their shadows, float32 [H, W] from 0 to 1."""
    if share <= 0.01:
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    field = np.sum([smooth_noise(rng, shape, s) * s**0.6 for s in (3, 8, 20, 45)], axis=0)
    edge = np.quantile(field, 1 - share)
    opacity = np.clip((field - edge) / (0.35 * field.std()) + 0.3, 0, 1).astype(np.float32)
    shift = rng.integers(8, 20, 2)
    shadow = np.roll(opacity, (-int(shift[0]), int(shift[1])), (0, 1)) * (1 - opacity)
    return opacity, shadow


def _swath(shape: tuple[int, ...]) -> Array:
    """True beyond the edge of the swath: a slanting line through the right third."""
    rows, cols = np.mgrid[0 : shape[0], 0 : shape[1]]
    return cols > 0.68 * shape[1] + 0.12 * (rows - shape[0] / 2)


def _scene_classes(clear: Array, cover: Array, shadow: Array) -> Array:
    """SCL codes [H, W] from the cloud-free reflectance and the clouds (spec/inputs.md section 8)."""
    red, nir = clear[BANDS.index("B04")], clear[BANDS.index("B08")]
    greenness = (nir - red) / np.maximum(nir + red, 1)
    classes = np.where(greenness > 0.35, 4, 5)
    classes[nir < 400] = 6
    classes[(shadow > 0.35)] = 3
    classes[cover > 0.15] = 10
    classes[cover > 0.45] = 8
    classes[cover > 0.8] = 9
    return classes


def radar(scenery: Scenery, land: Landscape, pass_: Acquisition) -> Array:
    """Linear gamma-nought [2, H, W], mantissas rounded to 7 bits (0.8 %, far below speckle) to save bytes."""
    ascending = pass_.when.hour > 12
    power = land.backscatter(pass_.when.timetuple().tm_yday, ascending=ascending, seed=pass_.number)
    mantissa, exponent = np.frexp(power)
    power = np.ldexp(np.round(mantissa * 128) / 128, exponent).astype(np.float32)
    if pass_.beyond:
        rows, cols, away = scenery.square.rows_and_columns_of(_grid_of(scenery, pass_))
        power = np.where(away, np.float32(NO_POWER), power[:, rows, cols])
    return power


def _mean(values: Array, step: int) -> Array:
    h, w = values.shape
    return values.reshape(h // step, step, w // step, step).mean(axis=(1, 3))


# --- places -------------------------------------------------------------------------------------------------


def _region(scenery: Scenery) -> shapely.Geometry:
    """An irregular polygon that stays `RIM_PX` inside the imagery."""
    corners = [(0.02, 0.1), (0.35, 0.0), (0.8, 0.06), (1.0, 0.38), (0.93, 0.86), (0.55, 1.0), (0.12, 0.9), (0.0, 0.5)]
    inner = scenery.size_px - 2 * RIM_PX
    polygon = shapely.Polygon([(RIM_PX + x * inner, RIM_PX + y * inner) for x, y in corners])
    return scenery.square.lonlat(polygon)


def _labels(scenery: Scenery, land: Landscape, region: shapely.Geometry, count: int = 320) -> list[dict[str, Any]]:
    """Points inside parcels with the name of their class, spread over classes as far as the region has them."""
    rng = np.random.default_rng([scenery.seed, 30])
    inner = np.zeros_like(land.classes, bool)
    inner[RIM_PX:-RIM_PX, RIM_PX:-RIM_PX] = True
    same = ndimage.maximum_filter(land.classes, 3) == ndimage.minimum_filter(land.classes, 3)
    points = []
    for number, name in enumerate(CLASSES, 1):
        places = np.argwhere((land.classes == number) & inner & same)
        chosen = places[rng.permutation(len(places))[: count // len(CLASSES)]]
        for row, col in chosen:
            point = scenery.square.lonlat(shapely.Point(col + 0.5, row + 0.5))
            if shapely.contains(region, point):
                points.append(feature(point, {"class": name}))
    return points


def _collection(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": features}


def main() -> None:
    """Command line: make a region."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=Scenery.seed)
    parser.add_argument("--size", type=int, default=Scenery.size_px, help="side of the imagery in 10 m pixels")
    parser.add_argument("--year", type=int, default=Scenery.year)
    parser.add_argument("--start", type=date.fromisoformat, help="first day, in place of 1 January of the year")
    parser.add_argument("--periods", type=int, default=Scenery.periods)
    parser.add_argument("--epsg", type=int, default=Scenery.epsg, help="UTM zone")
    parser.add_argument("--origin", type=float, nargs=2, default=Scenery.origin, metavar=("EAST", "NORTH"))
    asked = vars(parser.parse_args())
    folder, size, origin = asked.pop("folder"), asked.pop("size"), asked.pop("origin")
    try:
        scenery = Scenery(size_px=size, origin=(origin[0], origin[1]), **asked)
    except ValueError as error:
        parser.error(str(error))
    make_region(folder, scenery)


if __name__ == "__main__":
    main()
