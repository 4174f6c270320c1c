"""A prediction in STAC: an Item per tile and the Collection over them, with the classes and their colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from olmoearth_cli.maps.footprint import overall_bbox
from olmoearth_cli.maps.map_spec import utc_text
from olmoearth_cli.maps.stac_collection import PARQUET_TYPE, SOURCES, source_collections
from olmoearth_cli.maps.stac_items import (
    COG_TYPE,
    FACTS,
    FILE,
    GEOJSON_TYPE,
    JSON_TYPE,
    PROCESSING,
    PROJECTION,
    RASTER,
    STAC_VERSION,
    FileFacts,
    derived_from,
    file_asset,
    place_of,
    plain_item,
)
from olmoearth_cli.maps.tile_files import TileEntry
from olmoearth_pipelines.predicting.prediction import PredictedTile, PredictionSpec
from olmoearth_pipelines.probing.class_layout import Layout, stac_classes

CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
PROBABILITY = "probability in percent; times the scale it lies between 0 and 1"


def predicted_item(
    spec: PredictionSpec, tile: PredictedTile, files: Mapping[str, FileFacts], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """The Item of a finished tile.

    Args:
        spec: what all tiles share.
        tile: the tile.
        files: asset -> file; one for each of the specification's layouts, in their order.
        measured: figures that only writing shows; kept with the worker's own.
    """
    item = plain_item(spec, tile.tile_id, tile.box, "done")
    item["stac_extensions"] = _extensions(spec, FILE)
    item["properties"] |= {
        "processing:datetime": utc_text(datetime.now(UTC)),
        "processing:level": "L4",
        "processing:lineage": lineage(spec),
        "processing:software": dict(spec.software),
        FACTS: {**tile.facts, **measured},
    }
    item["links"] += derived_from(tile.sources)
    place = place_of(tile.box, spec.gsd_m)
    item["assets"] = {
        name: {**file_asset(files[name]), **_raster(layout), "gsd": spec.gsd_m, **place}
        for name, layout in zip(files, spec.layouts, strict=True)
    }
    return item


def predicted_collection(
    spec: PredictionSpec, tiles: Sequence[TileEntry], merged: Mapping[str, Layout]
) -> dict[str, Any]:
    """The Collection over a prediction's finished tiles.

    Args:
        spec: what all tiles share.
        tiles: finished tiles, at least one.
        merged: file names of the merged rasters with their forms.
    """
    links = [{"rel": "root", "href": "./collection.json", "type": JSON_TYPE}]
    links += [{"rel": "via", "href": href, "type": JSON_TYPE} for href in source_collections(tiles)]
    links += [
        {"rel": "item", "href": f"./items/{tile.id}.json", "type": GEOJSON_TYPE, "title": tile.id} for tile in tiles
    ]
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": _extensions(spec),
        "id": spec.collection_id,
        "title": spec.title,
        "description": f"{lineage(spec)} Software: olmoearth {spec.software.get('olmoearth', 'unknown')}.",
        "license": "other",
        "keywords": ["OlmoEarth", spec.layout.kind, *spec.modalities],
        "providers": _providers(spec),
        "extent": {
            "spatial": {"bbox": [overall_bbox([list(tile.item["bbox"]) for tile in tiles])]},
            "temporal": {"interval": [[utc_text(spec.start), utc_text(spec.end)]]},
        },
        "summaries": {
            "gsd": [spec.gsd_m],
            "proj:code": sorted({tile.item["properties"]["proj:code"] for tile in tiles}),
        },
        "links": links,
        "assets": _assets(merged),
    }


def lineage(spec: PredictionSpec) -> str:
    """One sentence on how the answers came to be."""
    what = {"regression": "values", "multilabel": "probabilities of labels"}.get(spec.layout.kind, "classes")
    blend = ", windows that overlap blended with Hann weights" if spec.blend == "hann" else ""
    demo = " The encoder began with random weights (demo)." if spec.demo else ""
    return (
        f"Periods of 30 days from {', '.join(spec.modalities)}, first valid pixel of each; {what} of pixels of "
        f"{spec.gsd_m} m by {spec.model_name}, fine-tuned from {spec.base_id}{blend}.{demo}"
    )


def _extensions(spec: PredictionSpec, *more: str) -> list[str]:
    classes = [CLASSIFICATION] if spec.layout.has_classes else []
    scaled = [RASTER] if any(scale != 1 for layout in spec.layouts for scale in layout.scales) else []
    return [PROJECTION, PROCESSING, *more, *classes, *scaled]


def _raster(layout: Layout) -> dict[str, Any]:
    """Title, role, type and bands of an asset."""
    titles = {"regression": "Predicted values", "multilabel": "Probability of each class"}
    return {
        "title": titles.get(layout.kind, "Predicted class and its confidence"),
        "roles": ["data"],
        "data_type": layout.dtype,
        "nodata": "nan" if layout.kind == "regression" else int(layout.nodata),
        "bands": [_band(layout, number) for number in range(len(layout.bands))],
    }


def _band(layout: Layout, number: int) -> dict[str, Any]:
    band: dict[str, Any] = {"name": layout.bands[number]}
    if layout.scales[number] != 1:
        band |= {"raster:scale": layout.scales[number], "description": PROBABILITY}
    elif layout.has_classes:
        band["classification:classes"] = stac_classes(layout)
    return band


def _providers(spec: PredictionSpec) -> list[dict[str, Any]]:
    made = {
        "name": "olmoearth",
        "description": "The program that made this map; the person who ran it is not recorded.",
        "roles": ["processor"],
        "processing:software": dict(spec.software),
    }
    known = [SOURCES[m] for m in spec.modalities if m in SOURCES]
    return [made, *({"name": name, "roles": ["licensor"], "url": url} for name, url in known)]


def _assets(merged: Mapping[str, Layout]) -> dict[str, Any]:
    fixed = {
        "index": ("index.parquet", PARQUET_TYPE, "Items and gaps as STAC GeoParquet", ["metadata"]),
        "thumbnail": ("preview.png", "image/png", "The map as a picture", ["thumbnail"]),
        "run": ("run.json", JSON_TYPE, "Settings, scenes, figures of the run", ["metadata"]),
        "scenes": ("scenes.json", JSON_TYPE, "Scenes chosen for every period", ["metadata"]),
    }
    rasters = {
        name.removesuffix(".tif"): {"href": f"./{name}", "type": COG_TYPE, **_raster(layout)}
        for name, layout in merged.items()
    }
    plain = {
        key: {"href": f"./{name}", "type": kind, "title": title, "roles": roles}
        for key, (name, kind, title, roles) in fixed.items()
    }
    return rasters | plain
