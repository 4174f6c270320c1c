"""The provider table: one row per product of a public catalogue (spec/inputs.md section 7).

Whatever differs between providers stands here as data: asset names, native resolutions, whether stored
Sentinel-2 pixels carry the processing offset, how links are signed. No pixels are touched here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

CATALOGS: Mapping[str, str] = MappingProxyType(
    {
        "planetary-computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
        "earth-search": "https://earth-search.aws.element84.com/v1",
        "cdse": "https://stac.dataspace.copernicus.eu/v1",
        "usgs": "https://landsatlook.usgs.gov/stac-server",
    }
)
"""Short name -> STAC root (section 7.4)."""

_S2_NATIVE = {b: 10 for b in ("B02", "B03", "B04", "B08")}
_S2_NATIVE |= {b: 20 for b in ("B05", "B06", "B07", "B8A", "B11", "B12", "SCL")}
_S2_NATIVE |= {"B01": 60, "B09": 60}
_PC_S2 = {band: (band,) for band in _S2_NATIVE}
_ES_S2 = {
    **{"B02": ("blue",), "B03": ("green",), "B04": ("red",), "B08": ("nir",), "B05": ("rededge1",)},
    **{"B06": ("rededge2",), "B07": ("rededge3",), "B8A": ("nir08",), "B11": ("swir16",), "B12": ("swir22",)},
    **{"B01": ("coastal",), "B09": ("nir09",), "SCL": ("scl",)},
}
_CDSE_S2 = {band: (f"{band}_{metres}m",) for band, metres in _S2_NATIVE.items()}
_S1 = {"vv": ("vv",), "vh": ("vh",)}
_LANDSAT_KEYS = {
    **{"B8": "pan", "B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "nir08", "B6": "swir16"},
    **{"B7": "swir22", "B9": "cirrus", "B10": "lwir11", "B11": "lwir12", "qa_pixel": "qa_pixel"},
}
_LANDSAT = {b: (key, f"{b.upper()}.TIF") for b, key in _LANDSAT_KEYS.items()}
_LANDSAT_NATIVE = {b: 15 if b == "B8" else 30 for b in _LANDSAT}


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product of one provider."""

    key: str
    """`<catalogue>/<collection>`."""
    catalog: str
    """Short name of the catalogue."""
    collection: str
    modality: str
    assets: Mapping[str, tuple[str, ...]]
    """Band (or class layer) -> asset keys under which it may be found."""
    native_m: Mapping[str, int]
    """Band -> native pixel size in metres."""
    offset: str = "none"
    """Sentinel-2: `baseline` (pixels carry +1000 from baseline 04.00), `always`, `declared` (the asset says),
    `none` (already removed, or no offset)."""
    signing: str | None = None
    """`planetary-computer`: links need a short-lived token."""
    alternate: str | None = None
    """Name of the alternate link to read instead of the main one."""
    gdal_options: Mapping[str, str] = field(default_factory=dict)
    """GDAL configuration for reading this product's pixels."""
    max_connections: int = 16
    """Parallel reads that the provider takes."""
    refused: str | None = None
    """Why this product must not be fed to the models; None where it may."""


_CDSE_ACCESS = {
    "AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu",
    "AWS_VIRTUAL_HOSTING": "FALSE",
    "AWS_HTTPS": "YES",
}
_GRD = "uncalibrated amplitude in radar geometry; the models need Sentinel-1 RTC (planetary-computer)"
_LEVEL2 = "Landsat Level 2: no B8, B9, B11 and another scale; the models need Collection 2 Level 1 (usgs, landsat-c2l1)"


def _sentinel2(
    catalog: str, collection: str, assets: Mapping[str, tuple[str, ...]], offset: str, **more: object
) -> Product:
    return Product(
        key=f"{catalog}/{collection}",
        catalog=catalog,
        collection=collection,
        modality="sentinel2_l2a",
        assets=assets,
        native_m=_S2_NATIVE,
        offset=offset,
        **more,  # type: ignore[arg-type]
    )


def _refused(catalog: str, collection: str, modality: str, why: str) -> Product:
    return Product(
        key=f"{catalog}/{collection}",
        catalog=catalog,
        collection=collection,
        modality=modality,
        assets={},
        native_m={},
        refused=why,
    )


PRODUCTS: tuple[Product, ...] = (
    _sentinel2("planetary-computer", "sentinel-2-l2a", _PC_S2, "baseline", signing="planetary-computer"),
    Product(
        key="planetary-computer/sentinel-1-rtc",
        catalog="planetary-computer",
        collection="sentinel-1-rtc",
        modality="sentinel1",
        assets=_S1,
        native_m={"vv": 10, "vh": 10},
        signing="planetary-computer",
    ),
    _sentinel2("earth-search", "sentinel-2-l2a", _ES_S2, "none"),
    _sentinel2("earth-search", "sentinel-2-c1-l2a", _ES_S2, "always"),
    _sentinel2("cdse", "sentinel-2-l2a", _CDSE_S2, "declared", gdal_options=_CDSE_ACCESS, max_connections=4),
    Product(
        key="usgs/landsat-c2l1",
        catalog="usgs",
        collection="landsat-c2l1",
        modality="landsat",
        assets=_LANDSAT,
        native_m=_LANDSAT_NATIVE,
        alternate="s3",
        gdal_options={"AWS_REQUEST_PAYER": "requester", "AWS_REGION": "us-west-2"},
    ),
    _refused("planetary-computer", "sentinel-1-grd", "sentinel1", _GRD),
    _refused("earth-search", "sentinel-1-grd", "sentinel1", _GRD),
    _refused("cdse", "sentinel-1-grd", "sentinel1", _GRD),
    _refused("planetary-computer", "landsat-c2-l1", "landsat", "the MSS archive (Landsat 1-5), not OLI-TIRS"),
    _refused("planetary-computer", "landsat-c2-l2", "landsat", _LEVEL2),
    _refused("earth-search", "landsat-c2-l2", "landsat", _LEVEL2),
    _refused("usgs", "landsat-c2-l2", "landsat", _LEVEL2),
    _refused("usgs", "landsat-c2l2-sr", "landsat", _LEVEL2),
    _refused("usgs", "landsat-c2l2-st", "landsat", _LEVEL2),
)
"""All known products; a catalogue's first one of a modality is its default."""

_BY_KEY = {row.key: row for row in PRODUCTS}


def product(key: str) -> Product:
    """The row of a key, for example `planetary-computer/sentinel-2-l2a`."""
    return _BY_KEY[key]


def catalog_name(address: str) -> str | None:
    """Short name of a known catalogue by its short name or URL; None for any other."""
    if address in CATALOGS:
        return address
    host = urlsplit(address).netloc
    return next((name for name, url in CATALOGS.items() if host and urlsplit(url).netloc == host), None)


def find_product(address: str, collection: str, asset_keys: Iterable[str]) -> Product | None:
    """The row that fits an item.

    Args:
        address: where the catalogue lies (short name, URL or path). Known catalogues decide by themselves.
        collection: the item's collection id.
        asset_keys: the item's asset names, which tell layouts apart in catalogues of one's own.

    Returns:
        A row, possibly a refused one; None where no row fits.
    """
    known = catalog_name(address)
    rows = [row for row in PRODUCTS if row.collection == collection and known in (None, row.catalog)]
    keys = set(asset_keys)
    best = max(rows, key=lambda row: _matches(row, keys), default=None)
    if best is not None and (best.refused or _matches(best, keys)):
        return best
    return None


def _matches(row: Product, keys: set[str]) -> int:
    return sum(any(name in keys for name in names) for names in row.assets.values())


def wanted_rows(address: str, modality: str) -> list[Product]:
    """Usable rows of a modality in the order of preference; all providers' for a catalogue of one's own."""
    known = catalog_name(address)
    return [r for r in PRODUCTS if r.modality == modality and not r.refused and known in (None, r.catalog)]


def default_catalogs(modalities: tuple[str, ...] | None) -> tuple[str, ...]:
    """Catalogues for a request that names none (section 7.4); Landsat is never a default."""
    asked = modalities or ("sentinel2_l2a", "sentinel1")
    names = ["planetary-computer"] if "sentinel1" in asked else []
    if "sentinel2_l2a" in asked and not names:
        names.append("earth-search")
    if "landsat" in asked:
        names.append("usgs")
    return tuple(names)
