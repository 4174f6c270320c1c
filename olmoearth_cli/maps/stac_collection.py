"""The map's STAC Collection, and the model described as an MLM Item (spec/outputs.md 1.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.normalize import band_range
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
MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"

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


def model_item(spec: MapSpec) -> dict[str, Any]:
    """The encoder as an Item of the Machine Learning Model extension."""
    # MLM looks for bands in the properties; STAC 1.1 allows them there only where an asset has them too.
    named = [{"name": band_id(m, band)} for m in spec.modalities for band in MODALITIES[m].bands]
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [MLM],
        "id": re.sub(r"[^A-Za-z0-9._-]+", "-", spec.model_id).strip("-"),
        "geometry": None,
        "properties": {
            "datetime": None,
            "start_datetime": utc_text(spec.start),
            "end_datetime": utc_text(spec.end),
            "description": _model_text(spec),
            "mlm:name": _mlm_name(spec.model_id),
            "mlm:architecture": "Vision Transformer",
            "mlm:tasks": ["similarity-search"],
            "mlm:framework": "PyTorch",
            **_framework_version(spec),
            "mlm:pretrained": not spec.demo,
            "mlm:pretrained_source": None if spec.demo else "allenai/olmoearth_pretrain_dataset",
            "mlm:input": [_model_input(modality) for modality in spec.modalities],
            "mlm:output": [_model_output(spec)],
            "mlm:hyperparameters": {"patch_size": spec.patch_px},
            "bands": named,
        },
        "links": [{"rel": "related", "href": "./collection.json", "type": JSON_TYPE}],
        "assets": {"weights": {**_weights(spec), "bands": named}},
    }


def band_id(modality: str, band: str) -> str:
    """Band name that is unique over modalities: Sentinel-2 and Landsat share names."""
    return f"{modality}:{band}"


def _model_text(spec: MapSpec) -> str:
    demo = " Demo weights: random, without learned meaning." if spec.demo else ""
    return (
        f"OlmoEarth encoder {spec.model_id}, used as {spec.model_name}.{demo} "
        f"SHA-256 of the weights: {spec.weights_sha256}."
    )


def _mlm_name(model_id: str) -> str:
    """The extension wants letters, digits, dots, dashes, spaces and underscores, a letter first."""
    name = re.sub(r"[^A-Za-z0-9_. -]+", "-", model_id.rsplit("/", 1)[-1]).strip("-_. ")
    return name if re.match(r"[A-Za-z].+", name) else f"OlmoEarth-{name or 'model'}"


def _framework_version(spec: MapSpec) -> dict[str, str]:
    version = re.match(r"\d+\.\d+\.\d+", spec.software.get("torch", ""))
    return {"mlm:framework_version": version.group()} if version else {}


def _model_input(modality: str) -> dict[str, Any]:
    bands, limits = MODALITIES[modality].bands, band_range(modality)
    return {
        "name": modality,
        "description": "10 m pixels, one image per 30-day period; missing periods are left out",
        "bands": [band_id(modality, band) for band in bands],
        "input": {
            "shape": [-1, -1, -1, -1, len(bands)],
            "dim_order": ["batch", "height", "width", "time", "bands"],
            "data_type": "float32",
        },
        # mean - 2 std becomes 0, mean + 2 std becomes 1; nothing is clipped.
        "value_scaling": [
            {"type": "min-max", "minimum": float(low), "maximum": float(high)}
            for low, high in zip(limits.lo, limits.hi, strict=True)
        ],
    }


def _model_output(spec: MapSpec) -> dict[str, Any]:
    return {
        "name": "embeddings",
        "description": "One vector per map cell",
        "tasks": ["similarity-search"],
        "result": {
            "shape": [-1, -1, -1, spec.dimensions],
            "dim_order": ["batch", "height", "width", "embedding"],
            "data_type": "float32",
        },
    }


def _weights(spec: MapSpec) -> dict[str, Any]:
    published = not spec.demo and spec.model_id.count("/") == 1
    remote = f"https://huggingface.co/{spec.model_id}/resolve/main/weights.pth"
    return {
        "href": remote if published else spec.model_name,
        "title": "Published weights" if published else "Weights, on the machine that made the map",
        "type": "application/octet-stream; application=pytorch",
        "roles": ["mlm:model"],
        "mlm:artifact_type": "torch.save",
    }
