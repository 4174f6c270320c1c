"""Static STAC catalogues over the real imagery in ../shared/data, in the layouts of the public providers.

Every function writes one catalogue with its small files below a folder and returns (catalogue, region). Units are
converted to those of the provider whose layout it is; nothing else about the pixels changes. Provenance and licences
stand in the README of each data folder.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from pyproj import Transformer

DATA = Path(__file__).parents[2] / "shared" / "data"
"""Beside the project; tests skip where it is not."""
SENTINEL2 = "sentinel-2-l2a"
SENTINEL1 = "sentinel-1-rtc"
HASPENGOUW = DATA / "s2-s1-monthly-haspengouw"
HASPENGOUW_LABELS = HASPENGOUW / "labels" / "worldcereal_cropland_v2.tif"
"""Band 1: 1 = temporary crops, 0 = other, 255 = none (a classifier's output, not ground truth)."""
HASPENGOUW_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
TERRAMESH = DATA / "s2-s1-lulc-terramesh"
TERRAMESH_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
TERRAMESH_TILES = {"433D_629L_3_1": "18HYB", "637U_59R_1_3": "32VNJ", "38D_378R_2_3": "36MXB"}
"""Chip -> MGRS tile of its middle."""
LEIPZIG = DATA / "s2-leipzig-landcover-points"
LEIPZIG_BANDS = ("B02", "B03", "B04", "B06", "B07", "B08", "B11")
LEIPZIG_DAY = "2018-07-15"
"""The source states no date; some midsummer day has to stand for it."""

Item = dict[str, Any]


def haspengouw(folder: Path) -> tuple[Path, Path]:
    """Twelve months of Sentinel-2 (nine bands) and Sentinel-1 of 1 km2 in Belgium, dated mid-month.

    Composites without an offset, so baseline 02.14; sigma-nought in dB becomes linear power. December and January have
    no Sentinel-2 pixels.
    """
    items = []
    for path in sorted((HASPENGOUW / "s2").glob("*.tif")):
        month = path.stem[-7:]
        name = f"S2A_MSIL2A_{month.replace('-', '')}15"
        with rasterio.open(path) as source:
            bands = dict(zip(HASPENGOUW_BANDS, source.read(), strict=True))
            hrefs = _write_bands(folder / SENTINEL2 / name, bands, source, dtype="uint16", nodata=0)
            geometry = _lonlat(source)
        properties = _optical("31UFS", "02.14")
        items.append(_item(SENTINEL2, name, f"{month}-15T10:40:00Z", geometry, hrefs, properties, epsg=32631))
    for path in sorted((HASPENGOUW / "s1").glob("*.tif")):
        month = path.stem[-7:]
        name = f"S1A_IW_{month.replace('-', '')}15_rtc"
        with rasterio.open(path) as source:
            hrefs = _write_power(folder / SENTINEL1 / name, source)
            geometry = _lonlat(source)
        properties = _radar(int(month[-2:]))
        items.append(_item(SENTINEL1, name, f"{month}-15T17:40:00Z", geometry, hrefs, properties, epsg=32631))
    return _catalog(folder, items), _region(folder, geometry)


def majortom(folder: Path, *, inset_m: float = 4000.0) -> tuple[Path, Path]:
    """One date of a 10.7 km cell in the Congo basin at native resolution, the offset still in the pixels."""
    source_folder = DATA / "s2-l2a-majortom-0u-199r"
    name = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419"
    files = {path.stem: path for path in sorted(source_folder.glob("B*.tif"))}
    with rasterio.open(files["B02"]) as source:
        geometry, region = _lonlat(source), _lonlat(source, inset_m)
    hrefs = _copy(folder / SENTINEL2 / name, files)
    properties = {**_optical("33NZA", "04.00"), "eo:cloud_cover": 1}
    item = _item(SENTINEL2, name, "2022-07-06T08:56:11Z", geometry, hrefs, properties, epsg=32633)
    return _catalog(folder, [item]), _region(folder, region)


def scene_29rkh(folder: Path) -> tuple[Path, Path]:
    """A desert scene with all bands as Earth Search lists it; 100, 200 and 600 m pixels."""
    return published_items(folder, "s2-l2a-scene-29rkh")


def cloudy_33twl(folder: Path) -> tuple[Path, Path]:
    """Five dates in ten days with clouds and swath edges as Earth Search lists them; four bands, 120 m pixels."""
    return published_items(folder, "s2-l2a-cloudy-series-33twl")


def published_items(folder: Path, data: str, *, centre_m: float = 800.0) -> tuple[Path, Path]:
    """The items of a data folder as Earth Search publishes them; the region is a square around their middle."""
    items = []
    for path in sorted((DATA / data).rglob("item-local.json")):
        item = json.loads(path.read_text(encoding="utf-8"))
        files = {key: path.parent / asset["href"] for key, asset in item["assets"].items()}
        for key, href in _copy(folder / SENTINEL2 / item["id"], files).items():
            item["assets"][key]["href"] = href
        items.append({**item, "collection": SENTINEL2})
        first = files["blue"]
    with rasterio.open(first) as source:
        half = (source.bounds.right - source.bounds.left) / 2
        region = _lonlat(source, half - centre_m)
    return _catalog(folder, items), _region(folder, region)


def terramesh(folder: Path, chip: str) -> tuple[Path, Path]:
    """One chip of 2.24 km with all twelve bands and Sentinel-1 a few days apart; the region is its middle.

    The baseline says whether this chip's pixels carry the offset, which does not follow from its date. All bands come
    on the 10 m grid.
    """
    facts = json.loads((TERRAMESH / "metadata.json").read_text(encoding="utf-8"))["chips"][chip]
    baseline = "05.00" if facts["l2a_dn_offset_present"] else "02.14"
    epsg = int(facts["crs"].removeprefix("EPSG:"))
    when, name = facts["s2_datetime"], f"S2A_MSIL2A_{chip}"
    with rasterio.open(TERRAMESH / chip / "S2L2A.tif") as source:
        bands = dict(zip(TERRAMESH_BANDS, source.read(), strict=True))
        hrefs = _write_bands(folder / SENTINEL2 / name, bands, source, dtype="uint16", nodata=0)
        geometry, region = _lonlat(source), _lonlat(source, 500.0)
    items = [_item(SENTINEL2, name, when, geometry, hrefs, _optical(TERRAMESH_TILES[chip], baseline), epsg=epsg)]
    name = f"S1A_IW_{chip}_rtc"
    with rasterio.open(TERRAMESH / chip / "S1RTC.tif") as source:
        hrefs = _write_power(folder / SENTINEL1 / name, source)
    items.append(_item(SENTINEL1, name, facts["s1_datetime"], geometry, hrefs, _radar(1), epsg=epsg))
    return _catalog(folder, items), _region(folder, region)


def leipzig(folder: Path) -> tuple[Path, Path]:
    """One scene of 1.5 x 2.1 km with seven bands; `LEIPZIG_DAY` and the baseline 02.14 (no offset) are assumed."""
    name = f"S2A_MSIL2A_{LEIPZIG_DAY.replace('-', '')}_leipzig"
    with rasterio.open(LEIPZIG / "leipzig_s2.tif") as source:
        bands = dict(zip(LEIPZIG_BANDS, source.read(), strict=True))
        hrefs = _write_bands(folder / SENTINEL2 / name, bands, source, dtype="uint16", nodata=0)
        geometry = _lonlat(source)
    when, properties = f"{LEIPZIG_DAY}T10:20:00Z", _optical("32UQC", "02.14")
    item = _item(SENTINEL2, name, when, geometry, hrefs, properties, epsg=32632)
    return _catalog(folder, [item]), _region(folder, geometry)


# --- pixels -------------------------------------------------------------------------------------------------


def _write_bands(
    folder: Path,
    bands: Mapping[str, np.ndarray],
    source: rasterio.DatasetReader,
    *,
    dtype: str,
    nodata: float,
) -> dict[str, str]:
    """One COG per band [H, W] on the grid of the source; links from the item beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for band, values in bands.items():
        profile = {
            **{"driver": "COG", "count": 1, "height": values.shape[0], "width": values.shape[1], "dtype": dtype},
            **{"crs": source.crs, "transform": source.transform, "nodata": nodata, "compress": "DEFLATE"},
        }
        with rasterio.open(folder / f"{band}.tif", "w", **profile) as target:
            target.write(values.astype(dtype), 1)
    return {band: f"./{folder.name}/{band}.tif" for band in bands}


def _write_power(folder: Path, source: rasterio.DatasetReader) -> dict[str, str]:
    """VV and VH in dB as linear power; what is not finite becomes no-data."""
    decibel = source.read().astype(np.float64)
    power = np.where(np.isfinite(decibel), 10 ** (decibel / 10), -32768)
    return _write_bands(folder, dict(zip(("vv", "vh"), power, strict=True)), source, dtype="float32", nodata=-32768)


def _copy(folder: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """Files beside their item (links may not lead out of a catalogue); links by key."""
    folder.mkdir(parents=True, exist_ok=True)
    return {key: f"./{folder.name}/{Path(shutil.copy(path, folder)).name}" for key, path in files.items()}


def _lonlat(source: rasterio.DatasetReader, inset_m: float = 0.0) -> shapely.Geometry:
    """The raster's outline, or a square inset on all sides, in lon/lat."""
    square = shapely.box(*source.bounds).buffer(-inset_m, join_style="mitre")
    to_lonlat = Transformer.from_crs(source.crs, 4326, always_xy=True)
    return shapely.transform(square, to_lonlat.transform, interleaved=False)


# --- catalogue ----------------------------------------------------------------------------------------------


def _optical(tile: str, baseline: str) -> Item:
    return {
        "platform": "sentinel-2a",
        "s2:processing_baseline": baseline,
        "eo:cloud_cover": 0,
        "s2:mgrs_tile": tile,
    }


def _radar(orbit: int) -> Item:
    return {"sar:instrument_mode": "IW", "sar:polarizations": ["VV", "VH"], "sat:absolute_orbit": orbit}


def _item(
    collection: str,
    name: str,
    when: str,
    geometry: shapely.Geometry,
    hrefs: Mapping[str, str],
    properties: Item,
    *,
    epsg: int,
) -> Item:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": json.loads(shapely.to_geojson(geometry)),
        "bbox": list(geometry.bounds),
        "properties": {"datetime": when, **properties, "proj:epsg": epsg},
        "assets": {key: {"href": href, "roles": ["data"]} for key, href in hrefs.items()},
        "links": [],
    }


def _catalog(folder: Path, items: Iterable[Item]) -> Path:
    """Items beside their collections, below one catalogue; all links relative."""
    members: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        members[item["collection"]].append(item)
        links = [
            _link("root", "../catalog.json"),
            *(_link(rel, "./collection.json") for rel in ("parent", "collection")),
        ]
        _write_json(folder / item["collection"] / f"{item['id']}.json", {**item, "links": links})
    for name, group in members.items():
        _write_json(folder / name / "collection.json", _collection(name, group))
    children = [_link("child", f"./{name}/collection.json") for name in members]
    path = folder / "catalog.json"
    base = {"type": "Catalog", "stac_version": "1.0.0", "id": "real", "description": "Real imagery of ../shared/data."}
    _write_json(path, {**base, "links": [_link("root", "./catalog.json"), *children]})
    return path


def _collection(name: str, items: list[Item]) -> Item:
    times = sorted(item["properties"]["datetime"] for item in items)
    boxes = np.array([item["bbox"] for item in items])
    bbox = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": "Real imagery; licence and source in the data folder's README.",
        "license": "various",
        "extent": {"spatial": {"bbox": [bbox]}, "temporal": {"interval": [[times[0], times[-1]]]}},
        "links": [
            *(_link(rel, "../catalog.json") for rel in ("root", "parent")),
            *(_link("item", f"./{item['id']}.json", "application/geo+json") for item in items),
        ],
    }


def _link(rel: str, href: str, kind: str = "application/json") -> dict[str, str]:
    return {"rel": rel, "href": href, "type": kind}


def _write_json(path: Path, content: Item) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _region(folder: Path, geometry: shapely.Geometry) -> Path:
    path = folder / "region.geojson"
    path.write_text(shapely.to_geojson(geometry), encoding="utf-8")
    return path
