"""From a catalogue's item to a Scene: everything that is read from foreign JSON is read here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import shapely

from olmoearth_pipelines.providers import Product, find_product
from olmoearth_pipelines.scene import Scene

OFFSET_DN = 1000
"""Added to Sentinel-2 reflectance by ESA from processing baseline 04.00."""
WEB = ("https", "http", "s3", "gs")


class Rejected(Exception):  # noqa: N818 - a countable fact about an item, not a failure
    """Why an item is not used, in a few words that can be counted."""


def to_scene(item: Mapping[str, Any], address: str, *, root: Path | None = None, base: Path | None = None) -> Scene:
    """Read one item.

    Args:
        item: the item's JSON.
        address: the catalogue that it came from.
        root: for a catalogue on disk, the folder that relative links must stay below.
        base: for a catalogue on disk, the folder of the item's own file.

    Raises:
        Rejected: the item is not usable, and why.
    """
    try:
        properties, assets = dict(item["properties"]), dict(item["assets"])
        item_id, collection = str(item["id"]), str(item.get("collection") or "")
        acquired = _time(properties)
        footprint = shapely.from_geojson(json.dumps(item["geometry"]))
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.GEOSException):
        raise Rejected("malformed item") from None
    if footprint is None or footprint.is_empty:
        raise Rejected("no footprint")
    row = find_product(address, collection, assets)
    if row is None:
        raise Rejected("unknown collection or asset names")
    if row.refused:
        raise Rejected(row.refused)
    _check_kind(row, item_id, properties)
    links, declared = _links(row, assets, root, base)
    if not any(band in row.assets and band not in ("SCL", "qa_pixel") for band in links):
        raise Rejected("none of the bands that the models read")
    cloud = properties.get("eo:cloud_cover")
    return Scene(
        id=item_id,
        modality=row.modality,
        product=row.key,
        collection=collection,
        acquired=acquired,
        footprint_wkb=shapely.to_wkb(_valid(footprint), output_dimension=2, byte_order=1),
        assets=links,
        epsg=_epsg(properties, assets),
        offset_dn=_offset(row, properties, declared),
        cloud_cover_percent=float(cloud) if isinstance(cloud, int | float) else 100.0,
        key=_key(row, item_id, acquired, properties),
        self_href=_self_link(item),
        version=_version(properties),
    )


def _time(properties: Mapping[str, Any]) -> datetime:
    text = properties.get("datetime") or properties["start_datetime"]
    moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _valid(geometry: shapely.Geometry) -> shapely.Geometry:
    return geometry if geometry.is_valid else shapely.make_valid(geometry)


def _check_kind(row: Product, item_id: str, properties: Mapping[str, Any]) -> None:
    """Filters of section 4 that a catalogue's search cannot be trusted with."""
    if row.modality == "sentinel1":
        polarizations = properties.get("sar:polarizations")
        if properties.get("sar:instrument_mode") != "IW" or sorted(polarizations or []) != ["VH", "VV"]:
            raise Rejected("not IW with VV and VH")
    if row.modality == "landsat":
        name = item_id.upper()
        if name.startswith(("LO08", "LO09")):
            raise Rejected("OLI only: no B10 and B11")
        if not name.startswith(("LC08", "LC09")):
            raise Rejected("not Landsat 8 or 9")
        if "_RT" in name or properties.get("landsat:collection_category") == "RT":
            raise Rejected("real-time tier")
        if "L2S" in name or str(properties.get("landsat:correction", "")).startswith("L2"):
            raise Rejected("Landsat Level 2")


def _links(
    row: Product, assets: Mapping[str, Any], root: Path | None, base: Path | None
) -> tuple[dict[str, str], dict[str, Any]]:
    """Band -> safe link, and the assets' own JSON by band."""
    links, declared = {}, {}
    for band, names in row.assets.items():
        name = next((n for n in names if n in assets), None)
        if name is None or not isinstance(assets[name], Mapping):
            continue
        asset = assets[name]
        other = (asset.get("alternate") or {}).get(row.alternate) if row.alternate else None
        href = (other or {}).get("href") or asset.get("href")
        if isinstance(href, str):
            links[band] = _safe(href, root, base)
            declared[band] = asset
    return links, declared


def _safe(href: str, root: Path | None, base: Path | None) -> str:
    """A link that may be opened: a web address, or a file below a catalogue that lies on disk itself."""
    parts = urlsplit(href)
    if parts.scheme in WEB and parts.netloc:
        return href
    if root is None or base is None:
        raise Rejected("asset link is not a web address")
    text = unquote(parts.path) if parts.scheme == "file" else href
    if parts.scheme not in ("", "file") or text.startswith(("/vsi", "<")):
        raise Rejected("asset link is neither a file nor a web address")
    path = (base / text).resolve()
    if not path.is_relative_to(root.resolve()):
        raise Rejected("asset link leads out of the catalogue's folder")
    return str(path)


def _epsg(properties: Mapping[str, Any], assets: Mapping[str, Any]) -> int | None:
    """The scene's CRS from `proj:epsg` or `proj:code`, on the item or an asset."""
    for place in (properties, *(a for a in assets.values() if isinstance(a, Mapping))):
        code = place.get("proj:epsg") or place.get("proj:code")
        match = re.fullmatch(r"(?:EPSG:)?(\d{4,5})", str(code or ""))
        if match:
            return int(match[1])
    return None


def _offset(row: Product, properties: Mapping[str, Any], declared: Mapping[str, Any]) -> int:
    """Digital numbers that the stored Sentinel-2 pixels carry too many (section 5.1)."""
    if row.offset == "always":
        return OFFSET_DN
    if row.offset == "baseline":
        return OFFSET_DN if _version(properties)[0] >= "04.00" else 0
    if row.offset == "declared":
        offsets = [a.get("raster:offset") for band, a in declared.items() if band != "SCL"]
        stated = [o for o in offsets if isinstance(o, int | float)]
        if stated:
            return OFFSET_DN if stated[0] < 0 else 0
        return OFFSET_DN if _version(properties)[0] >= "04.00" else 0
    return 0


def _version(properties: Mapping[str, Any]) -> tuple[str, str]:
    """(processing baseline, generation time) of an item: the larger of two is the newer processing."""
    baseline = properties.get("s2:processing_baseline") or properties.get("processing:version") or ""
    made = (
        properties.get("s2:generation_time") or properties.get("processing:datetime") or properties.get("created") or ""
    )
    return str(baseline), str(made)


def _key(row: Product, item_id: str, acquired: datetime, properties: Mapping[str, Any]) -> str:
    """What two listings of one acquisition share (section 4, de-duplication)."""
    platform = str(properties.get("platform", "")).lower().replace("_", "-")
    day = acquired.date().isoformat()
    if row.modality == "sentinel2_l2a":
        tile = str(properties.get("s2:mgrs_tile") or properties.get("grid:code") or "").removeprefix("MGRS-")
        take = properties.get("s2:datatake_id") or properties.get("eopf:datatake_id")
        pass_ = re.sub(r"_N\d\d\.\d\d$", "", str(take)) if take else str(properties.get("sat:relative_orbit", ""))
        return f"{platform}/{day}/{pass_}/{tile or item_id}"
    if row.modality == "sentinel1":
        return f"{platform}/{acquired.isoformat(timespec='seconds')}/{properties.get('sat:absolute_orbit', item_id)}"
    path, path_row = properties.get("landsat:wrs_path"), properties.get("landsat:wrs_row")
    return f"{platform}/{day}/{path}/{path_row}" if path and path_row else f"{platform}/{day}/{item_id}"


def _self_link(item: Mapping[str, Any]) -> str | None:
    links = item.get("links")
    for link in links if isinstance(links, list) else []:
        if isinstance(link, Mapping) and link.get("rel") == "self":
            href = str(link.get("href", ""))
            return href.split("?", maxsplit=1)[0] if urlsplit(href).scheme in WEB else None
    return None
