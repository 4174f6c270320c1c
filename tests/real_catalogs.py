"""Static STAC catalogues over the real imagery in ../shared/data, in the layouts of the public providers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import rasterio
import shapely
from pyproj import Transformer

DATA = Path(__file__).parents[2] / "shared" / "data"
"""Beside the project; tests skip where it is not."""


def _write(path: Path, values, source, *, dtype, nodata) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        **{"driver": "COG", "count": 1, "height": values.shape[0], "width": values.shape[1], "dtype": dtype},
        **{"crs": source.crs, "transform": source.transform, "nodata": nodata, "compress": "DEFLATE"},
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(values.astype(dtype), 1)


def _lonlat(source, inset_m: float = 0.0) -> shapely.Geometry:
    bounds = source.bounds
    square = shapely.box(bounds.left, bounds.bottom, bounds.right, bounds.top).buffer(-inset_m, join_style="mitre")
    to_lonlat = Transformer.from_crs(source.crs, 4326, always_xy=True)
    return shapely.transform(square, to_lonlat.transform, interleaved=False)


def _item(folder: Path, collection: str, name: str, when: str, geometry, assets: dict[str, str], **properties) -> None:
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": json.loads(shapely.to_geojson(geometry)),
        "bbox": list(geometry.bounds),
        "properties": {"datetime": when, **properties},
        "assets": {key: {"href": href} for key, href in assets.items()},
        "links": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(item))


def _catalog(folder: Path) -> Path:
    """A catalogue that links every item below a folder."""
    links = [{"rel": "item", "href": p.relative_to(folder).as_posix()} for p in sorted(folder.glob("items/*.json"))]
    content = {"type": "Catalog", "stac_version": "1.0.0", "id": "real", "description": "real imagery", "links": links}
    path = folder / "catalog.json"
    path.write_text(json.dumps(content))
    return path


def _region(folder: Path, geometry) -> Path:
    path = folder / "region.geojson"
    path.write_text(shapely.to_geojson(geometry))
    return path


def haspengouw(folder: Path) -> tuple[Path, Path]:
    """Twelve months of Sentinel-2 (nine bands) and Sentinel-1 of 1 km2 in Belgium; (catalogue, region)."""
    source_folder = DATA / "s2-s1-monthly-haspengouw"
    names = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
    for path in sorted((source_folder / "s2").glob("*.tif")):
        month = path.stem[-7:]
        name = f"S2A_MSIL2A_{month.replace('-', '')}15"
        with rasterio.open(path) as source:
            for band, values in zip(names, source.read(), strict=True):
                _write(folder / "items" / name / f"{band}.tif", values, source, dtype="uint16", nodata=0)
            geometry = _lonlat(source)
        properties = {
            "platform": "sentinel-2a",
            "s2:processing_baseline": "02.14",
            "eo:cloud_cover": 0,
            "s2:mgrs_tile": "31UFS",
        }
        assets = {band: f"./{name}/{band}.tif" for band in names}
        _item(folder / "items", "sentinel-2-l2a", name, f"{month}-15T10:40:00Z", geometry, assets, **properties)
    for path in sorted((source_folder / "s1").glob("*.tif")):
        month = path.stem[-7:]
        name = f"S1A_IW_{month.replace('-', '')}15_rtc"
        with rasterio.open(path) as source:
            decibel = source.read().astype(np.float64)
            for band, values in zip(("vv", "vh"), decibel, strict=True):
                power = np.where(np.isfinite(values), 10 ** (values / 10), -32768)
                _write(folder / "items" / name / f"{band}.tif", power, source, dtype="float32", nodata=-32768)
            geometry = _lonlat(source)
        properties = {
            "sar:instrument_mode": "IW",
            "sar:polarizations": ["VV", "VH"],
            "sat:absolute_orbit": int(month[-2:]),
        }
        assets = {band: f"./{name}/{band}.tif" for band in ("vv", "vh")}
        _item(folder / "items", "sentinel-1-rtc", name, f"{month}-15T17:40:00Z", geometry, assets, **properties)
    return _catalog(folder), _region(folder, geometry)


def majortom(folder: Path, *, inset_m: float = 4000.0) -> tuple[Path, Path]:
    """One date of a 10.7 km cell in the Congo basin at native resolution, offset still in the pixels."""
    source_folder = DATA / "s2-l2a-majortom-0u-199r"
    name = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419"
    assets = {}
    for path in sorted(source_folder.glob("B*.tif")):
        (folder / "items" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "items" / name / path.name)
        assets[path.stem] = f"./{name}/{path.name}"
    with rasterio.open(source_folder / "B02.tif") as source:
        geometry, region = _lonlat(source), _lonlat(source, inset_m)
    properties = {
        "platform": "Sentinel-2A",
        "s2:processing_baseline": "04.00",
        "eo:cloud_cover": 1,
        "s2:mgrs_tile": "33NZA",
    }
    _item(folder / "items", "sentinel-2-l2a", name, "2022-07-06T08:56:11Z", geometry, assets, **properties)
    return _catalog(folder), _region(folder, region)


def published_items(folder: Path, data: str, *, centre_m: float = 800.0) -> tuple[Path, Path]:
    """The items of a data folder as Earth Search publishes them; the region is a square around their middle."""
    for path in sorted((DATA / data).rglob("item-local.json")):
        item = {**json.loads(path.read_text()), "collection": "sentinel-2-l2a"}
        target = folder / "items" / item["id"]
        target.mkdir(parents=True, exist_ok=True)
        for asset in item["assets"].values():
            shutil.copy(path.parent / asset["href"], target)
            asset["href"] = f"./{item['id']}/{Path(asset['href']).name}"
        (folder / "items" / f"{item['id']}.json").write_text(json.dumps(item))
        first = target / Path(item["assets"]["blue"]["href"]).name
    with rasterio.open(first) as source:
        bounds = source.bounds
        x, y = (bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2
        square = shapely.box(x - centre_m, y - centre_m, x + centre_m, y + centre_m)
        to_lonlat = Transformer.from_crs(source.crs, 4326, always_xy=True)
        region = shapely.transform(square, to_lonlat.transform, interleaved=False)
    return _catalog(folder), _region(folder, region)
