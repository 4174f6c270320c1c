"""The map's STAC Collection (spec/outputs.md 1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from olmoearth_cli.maps.footprint import overall_bbox
from olmoearth_cli.maps.map_spec import MapSpec, utc_text
from olmoearth_cli.maps.stac_items import (
    COG_TYPE,
    EMBEDDINGS,
    GEOJSON_TYPE,
    JSON_TYPE,
    PROCESSING,
    PROJECTION,
    RASTER,
    STAC_VERSION,
    embedding_bands,
    lineage,
)
from olmoearth_cli.maps.tile_files import TileEntry

PARQUET_TYPE = "application/vnd.apache.parquet"

USES = ["classification", "segmentation", "retrieval", "similarity_search"]
"""What the vectors of a trained model serve; demo weights serve nothing."""

SOURCES = {
    "sentinel2_l2a": (
        "Copernicus Sentinel-2",
        "https://sentinels.copernicus.eu/web/sentinel/missions/sentinel-2",
    ),
    "sentinel1": (
        "Copernicus Sentinel-1",
        "https://sentinels.copernicus.eu/web/sentinel/missions/sentinel-1",
    ),
    "landsat": ("USGS Landsat Collection 2", "https://www.usgs.gov/landsat-missions/landsat-collection-2"),
}
"""Modality -> (provider's product, its page)."""


def collection(spec: MapSpec, tiles: Sequence[TileEntry], *, mosaics: Sequence[str]) -> dict[str, Any]:
    """The Collection over a map's finished tiles; gaps are rows of `index.parquet`.

    Args:
        spec: what all tiles share.
        tiles: finished tiles, at least one.
        mosaics: file names of the VRTs.
    """
    boxes = [list(tile.item["bbox"]) for tile in tiles]
    whole = overall_bbox(boxes)
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": [EMBEDDINGS, PROJECTION, PROCESSING, *([RASTER] if spec.quantizer else [])],
        "id": spec.collection_id,
        "title": spec.title,
        "description": _description(spec),
        "license": "other",
        "keywords": ["embeddings", "OlmoEarth", *spec.modalities],
        "providers": _providers(spec),
        "extent": {
            "spatial": {"bbox": [whole]},
            "temporal": {"interval": [[utc_text(spec.start), utc_text(spec.end)]]},
        },
        "emb:type": "pixel",
        "emb:dimensions": spec.dimensions,
        "emb:temporal_resolution": "multi_temporal",
        **({} if spec.demo else {"emb:fit_for_use": USES}),
        "data_type": spec.dtype,
        "gsd": spec.cell_m,
        "summaries": {
            "gsd": [spec.cell_m],
            "proj:code": sorted({tile.item["properties"]["proj:code"] for tile in tiles}),
        },
        "links": _links(spec, tiles),
        "item_assets": {
            "embeddings": {
                "title": f"{spec.dimensions}-dimensional embeddings",
                "type": COG_TYPE,
                "roles": ["data"],
                "data_type": spec.dtype,
                "bands": embedding_bands(spec),
            },
            "quality": {"title": "How well each cell was seen", "type": COG_TYPE, "roles": ["metadata"]},
        },
        "assets": _assets(mosaics),
    }


def _description(spec: MapSpec) -> str:
    decode = (
        "Codes are int8; a value is offset + scale * code of its band, -128 is no data."
        if spec.dtype == "int8"
        else "Values are float32, NaN is no data."
    )
    return f"{lineage(spec)} {decode} Software: olmoearth {spec.software.get('olmoearth', 'unknown')}."


def _providers(spec: MapSpec) -> list[dict[str, Any]]:
    made = {
        "name": "olmoearth",
        "description": "The program that made this map; the person who ran it is not recorded.",
        "roles": ["processor"],
        "processing:software": dict(spec.software),
    }
    model = {
        "name": "Ai2",
        "description": "The OlmoEarth models",
        "roles": ["producer"],
        "url": "https://allenai.org/olmoearth",
    }
    known = [SOURCES[m] for m in spec.modalities if m in SOURCES]
    return [made, model, *({"name": name, "roles": ["licensor"], "url": url} for name, url in known)]


def _links(spec: MapSpec, tiles: Sequence[TileEntry]) -> list[dict[str, Any]]:
    items = [
        {"rel": "item", "href": f"./items/{tile.id}.json", "type": GEOJSON_TYPE, "title": tile.id} for tile in tiles
    ]
    return [
        {"rel": "root", "href": "./collection.json", "type": JSON_TYPE},
        {"rel": "emb:model", "href": "./model.json", "type": GEOJSON_TYPE, "title": spec.model_id},
        *({"rel": "emb:source-data", "href": href, "type": JSON_TYPE} for href in source_collections(tiles)),
        {
            "rel": "license",
            "href": f"https://huggingface.co/{spec.model_id}",
            "title": "Terms of the model; the imagery's own terms apply as well",
        },
        *items,
    ]


def source_collections(tiles: Sequence[TileEntry]) -> list[str]:
    """Links to the collections that the scenes came from; the run's own scene list where items name none.

    A STAC API's item link is `<collection>/items/<id>`. Items of static catalogues tell no more than their
    own place, so the scene list stands for them.
    """
    hrefs = [link["href"] for tile in tiles for link in tile.item["links"] if link["rel"] == "derived_from"]
    named = {href.rsplit("/items/", 1)[0] for href in hrefs if href.startswith("http") and "/items/" in href}
    own = [] if named and all("/items/" in href for href in hrefs) else ["./scenes.json"]
    return sorted(named) + own


def _assets(mosaics: Sequence[str]) -> dict[str, Any]:
    fixed = {
        "index": (
            "index.parquet",
            "application/vnd.apache.parquet",
            "Items and gaps as STAC GeoParquet",
            ["metadata"],
        ),
        "preview": ("preview.tif", COG_TYPE, "Principal components as colours", ["overview", "visual"]),
        "thumbnail": ("preview.png", "image/png", "Principal components as colours", ["thumbnail"]),
        "run": ("run.json", JSON_TYPE, "Settings, scenes, figures of the run", ["metadata"]),
        "scenes": ("scenes.json", JSON_TYPE, "Scenes chosen for every period", ["metadata"]),
    }
    for name in mosaics:
        key = name.removesuffix(".vrt")
        fixed[key] = (
            name,
            "application/x-gdal-vrt",
            f"All tiles of EPSG:{key.split('_')[-1]}",
            ["data", "virtual"],
        )
    return {
        key: {"href": f"./{name}", "type": kind, "title": title, "roles": roles}
        for key, (name, kind, title, roles) in fixed.items()
    }
