"""Talking to catalogues: STAC APIs and static catalogues on disk. Links are signed late and never shown signed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import shapely

from olmoearth_cli.errors import CatalogError
from olmoearth_cli.geo.periods import Period
from olmoearth_pipelines.items import Rejected, to_scene
from olmoearth_pipelines.providers import CATALOGS, Product, default_catalogs, wanted_rows
from olmoearth_pipelines.scene import Scene
from olmoearth_pipelines.scene_table import CELL_PX, SceneTable, choose, lonlat_bounds, without_duplicates, wrapped

__all__ = ["CELL_PX", "SceneTable", "redact", "search", "sign"]

logger = logging.getLogger(__name__)
TIMEOUT_S = 60
RETRIES = 4
PAGE = 250
DEFAULT_MODALITIES = ("sentinel2_l2a", "sentinel1")

Box = tuple[float, float, float, float]
Cell = tuple[int, int, int]


@dataclass
class _Harvest:
    """What the catalogues returned."""

    scenes: list[Scene] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    collections: set[str] = field(default_factory=set)

    def take(self, item: Any, address: str, **place: Path) -> None:
        """Read one item; what cannot be used is counted with its reason."""
        collection = item.get("collection") if isinstance(item, dict) else None
        self.found[str(collection)] += 1
        try:
            self.scenes.append(to_scene(item, address, **place))
        except Rejected as reason:
            self.rejected[str(reason)] += 1


def search(
    cells: Sequence[Cell],
    periods: Sequence[Period],
    catalogs: Sequence[str] | None,
    modalities: tuple[str, ...] | None,
) -> SceneTable:
    """Find and choose the scenes of a run.

    Args:
        cells: (epsg, i, j) of the `CELL_PX` squares that the map touches; each is searched whole.
        periods: the time axis.
        catalogs: short names, URLs or paths; the providers' defaults where None.
        modalities: what the user asked for; Sentinel-2 and Sentinel-1 where the catalogue has them, if None.

    Raises:
        CatalogError: a catalogue is down, answers garbage, lacks what was asked for, or holds no scene.
    """
    harvest = _Harvest()
    addresses = tuple(catalogs) if catalogs else default_catalogs(modalities)
    asked = modalities or DEFAULT_MODALITIES
    for address in addresses:
        before = len(harvest.scenes)
        if _is_web(address):
            _search_api(address, cells, periods, asked, harvest)
        else:
            _search_disk(Path(address).expanduser(), cells, periods, asked, harvest)
        logger.info("%s: %d scenes", redact(address), len(harvest.scenes) - before)
    inside = [s for s in harvest.scenes if s.modality in asked]
    harvest.rejected["of a modality not asked for"] += len(harvest.scenes) - len(inside)
    scenes, duplicates = without_duplicates(inside)
    harvest.rejected["listed twice"] += duplicates
    selections = choose(cells, periods, scenes)
    missing = [m for m in asked if not any(s.modality == m and s.scenes for s in selections)]
    if len(missing) == len(asked) or (modalities and missing):
        raise CatalogError(_nothing(addresses, periods, missing, harvest))
    for modality in missing:
        harvest.remarks.append(f"{modality}: none in {', '.join(map(redact, addresses))}; the map goes without it")
    rejected = {reason: count for reason, count in harvest.rejected.items() if count}
    return SceneTable(tuple(periods), selections, dict(harvest.found), rejected, tuple(harvest.remarks))


def _nothing(addresses: Sequence[str], periods: Sequence[Period], missing: Sequence[str], harvest: _Harvest) -> str:
    where = ", ".join(map(redact, addresses))
    dates = f"{periods[0].start.date()} to {periods[-1].end.date()}"
    collections = ", ".join(sorted(harvest.collections)) or "no collection that fits"
    reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(harvest.rejected.items()) if count)
    return (
        f"{where}: no usable {' or '.join(missing)} scene over the region, {dates} (searched: {collections}; "
        f"{sum(harvest.found.values())} items found{', left out: ' + reasons if reasons else ''}). "
        "Check the dates and the region, or choose another --catalog or --modalities."
    )


def _is_web(address: str) -> bool:
    return address in CATALOGS or urlsplit(address).scheme in ("http", "https")


def _boxes(cells: Iterable[Cell]) -> list[Box]:
    """Search boxes in degrees; each cell is searched whole, cells side by side in one query."""
    merged: dict[tuple[int, int], list[Box]] = {}
    for epsg, i, j in sorted(set(cells)):
        merged.setdefault((epsg, i // 4 * 1000 + j // 4), []).append(lonlat_bounds(epsg, i, j))
    boxes = []
    for group in merged.values():
        west, south, east, north = zip(*group, strict=True)
        boxes += wrapped(min(west), min(south), max(east), max(north))
    return boxes


# --- APIs ---------------------------------------------------------------------------------------------------


def _search_api(
    address: str, cells: Sequence[Cell], periods: Sequence[Period], asked: Sequence[str], harvest: _Harvest
) -> None:
    import requests
    from pystac_client.exceptions import APIError

    url = CATALOGS.get(address, address)
    try:
        client = _open(url)
        offered = {c.id for c in client.get_collections()}
        for row in _rows(address, asked, offered):
            harvest.collections.add(row.collection)
            for item in _items(client, row, cells, periods):
                harvest.take(item, address)
    except (APIError, requests.RequestException, OSError) as error:
        raise CatalogError(
            f"{redact(url)}: the catalogue does not answer ({_reason(error)}). "
            "Check the address and the network, or try again later."
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise CatalogError(
            f"{redact(url)}: does not answer as a STAC API ({type(error).__name__}). Check the address: it should be "
            "the root of an API with item search."
        ) from None


def _open(url: str) -> Any:
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO
    from urllib3 import Retry

    retry = Retry(
        total=RETRIES,
        connect=1,
        backoff_factor=0.5,
        status_forcelist=[429, 500, 502, 503, 504],
        allowed_methods=None,
        respect_retry_after_header=True,
    )
    return Client.open(url, stac_io=StacApiIO(max_retries=retry, timeout=TIMEOUT_S))


def _rows(address: str, asked: Sequence[str], offered: set[str]) -> list[Product]:
    """The first offered product of every modality; a catalogue of one's own may hold any provider's layout."""
    rows, seen = [], set()
    for modality in asked:
        for row in wanted_rows(address, modality):
            if row.collection in offered and row.collection not in seen:
                seen.add(row.collection)
                rows.append(row)
                break
    return rows


def _items(client: Any, row: Product, cells: Sequence[Cell], periods: Sequence[Period]) -> Iterator[dict[str, Any]]:
    """Every item once; several boxes may return the same."""
    seen: set[str] = set()
    span = f"{_stamp(periods[0].start)}/{_stamp(periods[-1].end)}"
    for box in _boxes(cells):
        # Filters of one product (mode, platform) are applied to the items: servers differ in what they can query.
        found = client.search(collections=[row.collection], bbox=box, datetime=span, limit=PAGE, max_items=None)
        for item in found.items_as_dicts():
            name = str(item.get("id"))
            if name not in seen:
                seen.add(name)
                yield item


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _reason(error: Exception) -> str:
    """The kind of failure in a few words: messages of the HTTP stack carry whole URLs with their tokens."""
    text = str(error)
    for words in ("Connection refused", "timed out", "Name or service not known", "Max retries exceeded", "SSL"):
        if words.lower() in text.lower():
            return words
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return f"HTTP {status}" if status else type(error).__name__


# --- on disk ------------------------------------------------------------------------------------------------


def _search_disk(
    path: Path, cells: Sequence[Cell], periods: Sequence[Period], asked: Sequence[str], harvest: _Harvest
) -> None:
    """Read a static catalogue; only what lies in the cells and periods counts as found."""
    start = _entry(path)
    root = start.parent
    boxes = [shapely.box(*box) for box in _boxes(cells)]
    area = shapely.union_all(boxes)
    known = {row.collection for m in asked for row in wanted_rows(str(path), m)}
    for item, base in _walk(start, root, set()):
        if not _inside(item, area, periods):
            continue
        collection = item.get("collection") if isinstance(item, dict) else None
        if collection in known:
            harvest.collections.add(str(collection))
        harvest.take(item, str(path), root=root, base=base)


def _entry(path: Path) -> Path:
    if path.is_dir():
        for name in ("catalog.json", "collection.json"):
            if (path / name).is_file():
                return path / name
        raise CatalogError(f"{path}: no catalog.json or collection.json in this folder. Point --catalog at the file.")
    if not path.is_file():
        known = ", ".join(CATALOGS)
        raise CatalogError(f"{path}: no such catalogue. Give one of {known}, the URL of a STAC API, or a file on disk.")
    return path


def _walk(path: Path, root: Path, seen: set[Path]) -> Iterator[tuple[Any, Path]]:
    """Items of a catalogue, a collection, an item collection or an item, with the folder of their file."""
    if path in seen:
        return
    seen.add(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["type"]
        links = content.get("links") or []
        children = [link["href"] for link in links if link.get("rel") in ("child", "item")]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CatalogError(
            f"{path}: is not STAC JSON ({type(error).__name__}). Check --catalog, or fetch the file again."
        ) from None
    if kind == "Feature":
        yield content, path.parent
    elif kind == "FeatureCollection":
        for item in content.get("features") or []:
            yield item, path.parent
    elif kind in ("Catalog", "Collection"):
        for href in children:
            child = (path.parent / str(href)).resolve()
            if urlsplit(str(href)).scheme or not child.is_relative_to(root.resolve()):
                raise CatalogError(
                    f"{path}: links to {redact(str(href))}, outside the catalogue's folder. Copy the catalogue whole."
                )
            yield from _walk(child, root, seen)
    else:
        raise CatalogError(f"{path}: type {str(kind)[:40]!r} is no STAC catalogue, collection or item.")


def _inside(item: Any, area: shapely.Geometry, periods: Sequence[Period]) -> bool:
    """True where an item may matter; malformed ones pass, so that they are counted."""
    try:
        properties = item["properties"]
        moment = datetime.fromisoformat(
            str(properties.get("datetime") or properties["start_datetime"]).replace("Z", "+00:00")
        )
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        footprint = shapely.from_geojson(json.dumps(item["geometry"]))
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.GEOSException):
        return True
    if footprint is None:
        return True
    return periods[0].start <= moment < periods[-1].end and bool(shapely.intersects(footprint, area))


# --- links --------------------------------------------------------------------------------------------------


def sign(href: str, row: Product) -> str:
    """A link that can be opened now. Signed links are short-lived: sign just before reading, never store."""
    if row.signing != "planetary-computer" or not urlsplit(href).netloc.endswith(".blob.core.windows.net"):
        return href
    import planetary_computer

    return str(planetary_computer.sign_url(href))


def redact(url: str) -> str:
    """A URL without user, query and fragment: what may stand in a message."""
    parts = urlsplit(url)
    if not parts.scheme or not parts.netloc:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rsplit("@", 1)[-1], parts.path, "", ""))
