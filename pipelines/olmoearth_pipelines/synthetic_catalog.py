"""A static STAC catalogue in the layout of Planetary Computer (spec/inputs.md section 7) around given pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from olmoearth_pipelines.synthetic_square import Square, plain, write_cog, write_json

Array = np.ndarray
SENTINEL2 = "sentinel-2-l2a"
SENTINEL1 = "sentinel-1-rtc"
NATIVE_M = {"B01": 60, "B09": 60} | {b: 20 for b in ("B05", "B06", "B07", "B8A", "B11", "B12", "SCL")}
"""Native pixel size of the Sentinel-2 bands that are not 10 m."""
NO_POWER = -32768.0
"""No-data value of Sentinel-1 RTC."""
_CATALOG = "application/json"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One item to be: when, where and on which grid."""

    when: datetime
    number: int
    """Number of the pass, which stands for its orbit."""
    square: Square
    """Grid of the pixels."""
    ground: Square
    """What the pixels show; its outline is the footprint."""
    baseline: str = "05.10"
    """Sentinel-2 processing baseline; from 04.00 on the pixels carry +1000."""
    made: datetime | None = None
    """When it was processed; as acquired where None."""


def optical_item(folder: Path, listing: Listing, bands: Mapping[str, Array], classes: Array) -> dict[str, Any]:
    """Write a Sentinel-2 item.

    Args:
        folder: of the catalogue.
        listing: when and where.
        bands: uint16 [H, W] by band at native resolution, 0 without data.
        classes: uint8 [H, W] scene classes at 20 m.

    Returns:
        The item as written.
    """
    stamp, made = _compact(listing.when), listing.made or listing.when
    tile = listing.square.mgrs_tile
    name = f"S2A_MSIL2A_{stamp}_R051_T{tile}_{_compact(made)}"
    assets = {}
    for band, values in {**bands, "SCL": classes}.items():
        metres = NATIVE_M.get(band, 10)
        href = f"{name}/{band}.tif"
        write_cog(folder / SENTINEL2 / href, values, listing.square, metres, nodata=0)
        assets[band] = _asset(f"./{href}", values.shape, listing.square, metres)
    seen = classes > 0
    cloudy = np.isin(classes, (3, 8, 9, 10)) & seen
    properties = {
        "datetime": _iso(listing.when),
        "platform": "Sentinel-2A",
        "constellation": "Sentinel 2",
        "eo:cloud_cover": round(100 * float(cloudy.sum() / max(seen.sum(), 1)), 2),
        "s2:processing_baseline": listing.baseline,
        "s2:mgrs_tile": tile,
        "s2:datatake_id": f"GS2A_{stamp}_{listing.number:06d}_N{listing.baseline}",
        "s2:generation_time": _iso(made),
        "proj:epsg": listing.square.epsg,
    }
    return _write_item(folder, SENTINEL2, name, properties, assets, listing.ground)


def radar_item(folder: Path, listing: Listing, power: Array) -> dict[str, Any]:
    """Write a Sentinel-1 item of linear power, float32 [2, H, W] (VV, VH); the item as written."""
    stamp = _compact(listing.when)
    name = f"S1A_IW_GRDH_1SDV_{stamp}_{stamp}_{listing.number:06d}_rtc"
    assets = {}
    for band, values in zip(("vv", "vh"), power, strict=True):
        href = f"{name}/{band}.tif"
        write_cog(folder / SENTINEL1 / href, values, listing.square, 10, nodata=NO_POWER)
        assets[band] = _asset(f"./{href}", values.shape, listing.square, 10)
    properties = {
        "datetime": _iso(listing.when),
        "platform": "SENTINEL-1A",
        "constellation": "Sentinel-1",
        "sar:instrument_mode": "IW",
        "sar:frequency_band": "C",
        "sar:product_type": "GRD",
        "sar:polarizations": ["VV", "VH"],
        "sat:orbit_state": "ascending" if listing.when.hour > 12 else "descending",
        "sat:absolute_orbit": 50000 + listing.number,
        "proj:epsg": listing.square.epsg,
    }
    return _write_item(folder, SENTINEL1, name, properties, assets, listing.ground)


def write_catalog(
    folder: Path, items: Mapping[str, Sequence[Mapping[str, Any]]], *, description: str, bbox: list[float]
) -> Path:
    """Write `catalog.json` and a collection over items that are already there; the catalogue's path."""
    root = [{"rel": "root", "href": "./catalog.json", "type": _CATALOG}]
    children = [{"rel": "child", "href": f"./{name}/collection.json", "type": _CATALOG} for name in items]
    base = {"stac_version": "1.0.0", "description": description}
    path = folder / "catalog.json"
    write_json(path, {"type": "Catalog", "id": "synthetic", **base, "links": root + children})
    for name, members in items.items():
        times = [member["properties"]["datetime"] for member in members]
        links = [
            {"rel": "root", "href": "../catalog.json", "type": _CATALOG},
            {"rel": "parent", "href": "../catalog.json", "type": _CATALOG},
            *({"rel": "item", "href": f"./{m['id']}.json", "type": "application/geo+json"} for m in members),
        ]
        collection = {
            "type": "Collection",
            "id": name,
            **base,
            "license": "CC0-1.0",
            "extent": {
                "spatial": {"bbox": [bbox]},
                "temporal": {"interval": [[min(times, default=None), max(times, default=None)]]},
            },
            "links": links,
        }
        write_json(folder / name / "collection.json", collection)
    return path


def _write_item(
    folder: Path,
    collection: str,
    name: str,
    properties: dict[str, Any],
    assets: dict[str, Any],
    ground: Square,
) -> dict[str, Any]:
    """Write an item; its footprint is all of the ground even where a swath edge leaves part of it without data."""
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "bbox": ground.bbox,
        "geometry": plain(ground.outline),
        "properties": properties,
        "assets": assets,
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": _CATALOG},
            {"rel": "collection", "href": "./collection.json", "type": _CATALOG},
            {"rel": "parent", "href": "./collection.json", "type": _CATALOG},
        ],
    }
    write_json(folder / collection / f"{name}.json", item)
    return item


def _asset(href: str, shape: tuple[int, ...], square: Square, metres: int) -> dict[str, Any]:
    return {
        "href": href,
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "gsd": metres,
        "proj:shape": list(shape),
        "proj:transform": [float(metres), 0.0, square.origin[0], 0.0, float(-metres), square.origin[1]],
    }


def _compact(moment: datetime) -> str:
    return moment.strftime("%Y%m%dT%H%M%S")


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
