"""A small synthetic region with a static STAC catalogue: for the demo, the tests and first steps offline.

    python -m olmoearth_pipelines.synthetic FOLDER --seed 7 --size 264

Sentinel-2 L2A and Sentinel-1 RTC in the layout of Planetary Computer (spec/inputs.md section 7): native
resolutions, the +1000 offset of recent baselines in the pixels, clouds and their shadows with scene classes, a swath
edge, one period without Sentinel-2 and one without Sentinel-1. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer
from scipy import ndimage

from olmoearth_pipelines.landscape import BANDS, CLASSES, Landscape, landscape, smooth_noise

Array = np.ndarray
OFFSET = 1000
NATIVE_M = {"B01": 60, "B09": 60} | {b: 20 for b in ("B05", "B06", "B07", "B8A", "B11", "B12")}
GRID_PX = 12
"""Sides are multiples of this, so that 10, 20 and 60 m grids end together."""
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
    """What to make."""

    seed: int = 7
    size_px: int = 252
    """Side of the imagery in 10 m pixels; a multiple of 12."""
    epsg: int = 32631
    origin: tuple[float, float] = (660_000.0, 5_613_000.0)
    """Easting and northing of the upper left corner, multiples of 60 m."""
    year: int = 2024
    periods: int = 12
    """30-day periods from 1 January."""
    without_s2: int = 1
    """Period without any Sentinel-2 scene; beyond the last for none."""
    without_s1: int = 8
    swath_edge: int = 5
    """Period whose only Sentinel-2 scenes end in a swath edge."""


@dataclass(frozen=True)
class Acquisition:
    """One satellite pass."""

    when: datetime
    number: int
    cloudiness: float = 0.0
    """Wanted share of clouds."""
    edge: bool = False
    """True where the swath ends inside the square."""


def make_region(folder: Path, scenery: Scenery) -> dict[str, Path]:
    """Write a region: `region.geojson`, `labels.geojson`, `landcover.tif` and `catalog/`.

    Args:
        folder: where; made if needed. Files of the same names are replaced.
        scenery: what.

    Returns:
        Name -> path of what was written.
    """
    if scenery.size_px % GRID_PX or scenery.size_px < 2 * RIM_PX + GRID_PX:
        raise ValueError(f"size_px {scenery.size_px} must be a multiple of {GRID_PX} above {2 * RIM_PX}")
    folder.mkdir(parents=True, exist_ok=True)
    land = landscape(scenery.seed, scenery.size_px)
    _write_catalog(folder / "catalog", scenery, land)
    region = _region(scenery)
    paths = {
        "region": folder / "region.geojson",
        "labels": folder / "labels.geojson",
        "landcover": folder / "landcover.tif",
        "catalog": folder / "catalog" / "catalog.json",
    }
    _write_json(paths["region"], _features([(region, {"name": f"synthetic region, seed {scenery.seed}"})]))
    _write_json(paths["labels"], _features(_labels(scenery, land, region)))
    _write_cog(paths["landcover"], land.classes, scenery, 10, nodata=0, colours=COLOURS)
    return paths


# --- what is acquired when ----------------------------------------------------------------------------------


def acquisitions(scenery: Scenery) -> Iterator[tuple[str, Acquisition]]:
    """(`s2` or `s1`, pass) of a year: up to two optical passes a period, one or two radar passes."""
    rng = np.random.default_rng([scenery.seed, 10])
    first = datetime(scenery.year, 1, 1, tzinfo=UTC)
    for period in range(scenery.periods):
        start = first + timedelta(days=30 * period)
        season = 0.5 + 0.35 * np.cos(2 * np.pi * (period * 30 + 15) / 365)  # cloudier winters
        passes = 1 + int(rng.random() < 0.35)
        for k in range(passes):
            when = start + timedelta(days=int(rng.integers(1, 14)) + 15 * k, hours=10, minutes=40, seconds=period)
            clouds = 0.0 if k else float(np.clip(rng.beta(1.2, 2.2) * season * 1.6, 0, 0.85))
            clouds = clouds if passes == 1 else float(rng.choice([clouds, min(1.0, clouds + 0.4)]))
            if period != scenery.without_s2:
                yield "s2", Acquisition(when, 10 * period + k, clouds, period == scenery.swath_edge)
        when = start + timedelta(days=int(rng.integers(1, 28)), hours=5 if period % 2 else 17, minutes=42)
        if period != scenery.without_s1:
            yield "s1", Acquisition(when, 10 * period)


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
    bands = {}
    for k, band in enumerate(BANDS):
        step = NATIVE_M.get(band, 10) // 10
        seen = _mean(ndimage.gaussian_filter(lit[k], 0.45), step)
        noisy = seen * rng.normal(1.0, 0.012, seen.shape) + rng.normal(0, 12, seen.shape)
        # Steps of 16: about the noise, and half the bytes.
        numbers = np.clip(np.round(noisy / 16) * 16, 16, 15000) + OFFSET
        bands[band] = np.where(outside[::step, ::step], 0, numbers).astype(np.uint16)
    return bands, np.where(outside, 0, _scene_classes(clear, cover, shadow))[::2, ::2].astype(np.uint8)


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
    return np.ldexp(np.round(mantissa * 128) / 128, exponent).astype(np.float32)


def _mean(values: Array, step: int) -> Array:
    h, w = values.shape
    return values.reshape(h // step, step, w // step, step).mean(axis=(1, 3))


# --- catalogue ----------------------------------------------------------------------------------------------


def _write_catalog(folder: Path, scenery: Scenery, land: Landscape) -> None:
    items: dict[str, list[dict[str, Any]]] = {"sentinel-2-l2a": [], "sentinel-1-rtc": []}
    for kind, pass_ in acquisitions(scenery):
        if kind == "s2":
            items["sentinel-2-l2a"].append(_optical_item(folder, scenery, land, pass_))
        else:
            items["sentinel-1-rtc"].append(_radar_item(folder, scenery, land, pass_))
    root = [{"rel": "root", "href": "./catalog.json", "type": "application/json"}]
    children = [{"rel": "child", "href": f"./{name}/collection.json", "type": "application/json"} for name in items]
    text = f"Synthetic imagery, seed {scenery.seed}: made by olmoearth_pipelines.synthetic, not observed."
    base = {"stac_version": "1.0.0", "description": text}
    _write_json(folder / "catalog.json", {"type": "Catalog", "id": "synthetic", **base, "links": root + children})
    for name, members in items.items():
        times = [member["properties"]["datetime"] for member in members]
        links = [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
            *({"rel": "item", "href": f"./{m['id']}.json", "type": "application/geo+json"} for m in members),
        ]
        collection = {
            "type": "Collection",
            "id": name,
            **base,
            "license": "CC0-1.0",
            "extent": {
                "spatial": {"bbox": [_bbox(scenery)]},
                "temporal": {"interval": [[min(times, default=None), max(times, default=None)]]},
            },
            "links": links,
        }
        _write_json(folder / name / "collection.json", collection)


def _optical_item(folder: Path, scenery: Scenery, land: Landscape, pass_: Acquisition) -> dict[str, Any]:
    bands, classes = optical(scenery, land, pass_)
    stamp = pass_.when.strftime("%Y%m%dT%H%M%S")
    name = f"S2A_MSIL2A_{stamp}_R051_T31UFS_{stamp}"
    assets = {}
    for band, values in {**bands, "SCL": classes}.items():
        metres = 20 if band == "SCL" else NATIVE_M.get(band, 10)
        href = f"{name}/{band}.tif"
        _write_cog(folder / "sentinel-2-l2a" / href, values, scenery, metres, nodata=0)
        assets[band] = _asset(f"./{href}", values.shape, scenery, metres)
    seen = classes > 0
    cloudy = np.isin(classes, (3, 8, 9, 10)) & seen
    properties = {
        "datetime": pass_.when.isoformat().replace("+00:00", "Z"),
        "platform": "Sentinel-2A",
        "constellation": "Sentinel 2",
        "eo:cloud_cover": round(100 * float(cloudy.sum() / max(seen.sum(), 1)), 2),
        "s2:processing_baseline": "05.10",
        "s2:mgrs_tile": "31UFS",
        "s2:datatake_id": f"GS2A_{stamp}_{pass_.number:06d}_N05.10",
        "s2:generation_time": pass_.when.isoformat().replace("+00:00", "Z"),
        "proj:epsg": scenery.epsg,
    }
    return _write_item(folder, "sentinel-2-l2a", name, properties, assets, scenery)


def _radar_item(folder: Path, scenery: Scenery, land: Landscape, pass_: Acquisition) -> dict[str, Any]:
    stamp = pass_.when.strftime("%Y%m%dT%H%M%S")
    name = f"S1A_IW_GRDH_1SDV_{stamp}_{stamp}_{pass_.number:06d}_rtc"
    assets = {}
    for band, values in zip(("vv", "vh"), radar(scenery, land, pass_), strict=True):
        href = f"{name}/{band}.tif"
        _write_cog(folder / "sentinel-1-rtc" / href, values, scenery, 10, nodata=-32768)
        assets[band] = _asset(f"./{href}", values.shape, scenery, 10)
    properties = {
        "datetime": pass_.when.isoformat().replace("+00:00", "Z"),
        "platform": "SENTINEL-1A",
        "constellation": "Sentinel-1",
        "sar:instrument_mode": "IW",
        "sar:frequency_band": "C",
        "sar:product_type": "GRD",
        "sar:polarizations": ["VV", "VH"],
        "sat:orbit_state": "ascending" if pass_.when.hour > 12 else "descending",
        "sat:absolute_orbit": 50000 + pass_.number,
        "proj:epsg": scenery.epsg,
    }
    return _write_item(folder, "sentinel-1-rtc", name, properties, assets, scenery)


def _write_item(
    folder: Path,
    collection: str,
    name: str,
    properties: dict[str, Any],
    assets: dict[str, Any],
    scenery: Scenery,
) -> dict[str, Any]:
    """Write an item; its footprint is the whole square even at a swath edge, as the granules' of real scenes."""
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "bbox": _bbox(scenery),
        "geometry": json.loads(shapely.to_geojson(shapely.set_precision(_outline(scenery), 1e-7))),
        "properties": properties,
        "assets": assets,
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "collection", "href": "./collection.json", "type": "application/json"},
            {"rel": "parent", "href": "./collection.json", "type": "application/json"},
        ],
    }
    _write_json(folder / collection / f"{name}.json", item)
    return item


def _asset(href: str, shape: tuple[int, ...], scenery: Scenery, metres: int) -> dict[str, Any]:
    return {
        "href": href,
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "gsd": metres,
        "proj:shape": list(shape),
        "proj:transform": [float(metres), 0.0, scenery.origin[0], 0.0, float(-metres), scenery.origin[1]],
    }


# --- places -------------------------------------------------------------------------------------------------


def _lonlat(scenery: Scenery, geometry: shapely.Geometry) -> shapely.Geometry:
    """Pixel coordinates (column, row) to lon/lat."""
    to_lonlat = Transformer.from_crs(scenery.epsg, 4326, always_xy=True)

    def moved(xy: Array) -> Array:
        east, north = scenery.origin[0] + 10 * xy[:, 0], scenery.origin[1] - 10 * xy[:, 1]
        return np.column_stack(to_lonlat.transform(east, north))

    return shapely.transform(geometry, moved)


def _outline(scenery: Scenery) -> shapely.Geometry:
    return _lonlat(scenery, shapely.box(0, 0, scenery.size_px, scenery.size_px))


def _bbox(scenery: Scenery) -> list[float]:
    return [round(float(v), 7) for v in _outline(scenery).bounds]


def _region(scenery: Scenery) -> shapely.Geometry:
    """An irregular polygon that stays `RIM_PX` inside the imagery."""
    corners = [(0.02, 0.1), (0.35, 0.0), (0.8, 0.06), (1.0, 0.38), (0.93, 0.86), (0.55, 1.0), (0.12, 0.9), (0.0, 0.5)]
    inner = scenery.size_px - 2 * RIM_PX
    polygon = shapely.Polygon([(RIM_PX + x * inner, RIM_PX + y * inner) for x, y in corners])
    return _lonlat(scenery, polygon)


def _labels(
    scenery: Scenery, land: Landscape, region: shapely.Geometry, count: int = 320
) -> list[tuple[shapely.Geometry, dict[str, Any]]]:
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
            point = _lonlat(scenery, shapely.Point(col + 0.5, row + 0.5))
            if shapely.contains(region, point):
                points.append((point, {"class": name}))
    return points


def _features(members: list[tuple[shapely.Geometry, dict[str, Any]]]) -> dict[str, Any]:
    features = [
        {"type": "Feature", "properties": p, "geometry": json.loads(shapely.to_geojson(shapely.set_precision(g, 1e-7)))}
        for g, p in members
    ]
    return {"type": "FeatureCollection", "features": features}


# --- files --------------------------------------------------------------------------------------------------


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_cog(
    path: Path,
    values: Array,
    scenery: Scenery,
    metres: int,
    *,
    nodata: float,
    colours: dict[int, tuple[int, int, int]] | None = None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "COG",
        "dtype": values.dtype,
        "count": 1,
        "height": values.shape[0],
        "width": values.shape[1],
        "crs": scenery.epsg,
        "transform": Affine(metres, 0, scenery.origin[0], 0, -metres, scenery.origin[1]),
        "nodata": nodata,
        "compress": "DEFLATE",
        "level": 9,
        "predictor": "YES",
        "blocksize": 256,
        "overviews": "NONE",
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(values, 1)
        if colours:
            target.write_colormap(1, colours)


def main() -> None:
    """Command line: make a region."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=Scenery.seed)
    parser.add_argument("--size", type=int, default=Scenery.size_px, help="side of the imagery in 10 m pixels")
    parser.add_argument("--year", type=int, default=Scenery.year)
    parser.add_argument("--periods", type=int, default=Scenery.periods)
    asked = parser.parse_args()
    make_region(asked.folder, Scenery(seed=asked.seed, size_px=asked.size, year=asked.year, periods=asked.periods))


if __name__ == "__main__":
    main()
