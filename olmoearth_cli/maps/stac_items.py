"""STAC Items of a map: one per tile, and one without assets per gap (spec/outputs.md 1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_cli.maps.footprint import footprint
from olmoearth_cli.maps.map_spec import MapSpec, TileResult, utc_text

STAC_VERSION = "1.1.0"
EMBEDDINGS = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
RASTER = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"

COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
JSON_TYPE = "application/json"
GEOJSON_TYPE = "application/geo+json"

FACTS = "olmoearth:facts"
"""Item property: what the tile cost and what its quantisation lost."""
SPEC = "olmoearth:map"
"""Item property: the map's specification, so that a half-finished map can be read from its items alone."""
BOX = "olmoearth:box"
"""Item property: [row0, col0, row1, col1] on the 10 m grid of the item's zone."""
STATUS = "olmoearth:status"
"""Item property: `done` or `gap`."""
REASON = "olmoearth:reason"
"""Item property of a gap: why there is no map."""

QUALITY_BANDS = {
    "clear_fraction": "share of clear pixels among Sentinel-2 pixels with data, over all periods",
    "disagreement": "mean cosine distance between the vectors of overlapping windows",
}


class Described(Protocol):
    """What an Item tells of the map that its tile belongs to: `MapSpec` has it, and a prediction's."""

    @property
    def collection_id(self) -> str:
        """Id of the STAC Collection."""

    @property
    def start(self) -> datetime:
        """First day of the first period."""

    @property
    def end(self) -> datetime:
        """Day after the last period."""

    @property
    def gsd_m(self) -> int:
        """Side of a pixel of the tiles in metres."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """One file of a tile."""

    href: str
    """Relative to the item."""
    bytes: int
    sha256: str


def tile_item(
    spec: MapSpec,
    result: TileResult,
    *,
    embeddings: FileFacts,
    quality: FileFacts,
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """The Item of a finished tile, valid for STAC 1.1 and the extensions it names.

    Args:
        spec: what all tiles share.
        result: the tile.
        embeddings: the COG of the vectors.
        quality: the COG of the quality bands.
        measured: figures that only writing shows; kept with the worker's own `facts`.
    """
    item = plain_item(spec, result.tile_id, result.box, "done")
    scaled = [RASTER] if spec.quantizer else []
    item["stac_extensions"] = [EMBEDDINGS, PROJECTION, PROCESSING, FILE, *scaled]
    item["properties"] |= {
        "emb:quantization": quantization(spec),
        "emb:runtime_parameters": runtime_parameters(spec),
        "processing:datetime": utc_text(datetime.now(UTC)),
        "processing:level": "L4",
        "processing:lineage": lineage(spec),
        "processing:software": dict(spec.software),
        SPEC: {k: v for k, v in spec.to_json().items() if k not in ("scale", "offset")},
        FACTS: {**result.facts, **measured},
    }
    item["links"] += derived_from(result.sources)
    place = place_of(result.box, spec.cell_m)
    item["assets"] = {
        "embeddings": {
            **file_asset(embeddings),
            "title": f"{spec.dimensions}-dimensional embeddings",
            "roles": ["data"],
            "data_type": spec.dtype,
            "nodata": -128 if spec.dtype == "int8" else "nan",
            "gsd": spec.cell_m,
            "bands": embedding_bands(spec),
            **place,
        },
        "quality": {
            **file_asset(quality),
            "title": "How well each cell was seen",
            "roles": ["metadata"],
            "data_type": "float32",
            "nodata": "nan",
            "bands": [{"name": name, "description": quality_text(name)} for name in result.quality],
            **place,
        },
    }
    return item


def derived_from(sources: Mapping[str, str | None]) -> list[dict[str, str]]:
    """Links to the scenes {id: link or None} that a tile was made of."""
    return [
        {"rel": "derived_from", "href": href, "type": GEOJSON_TYPE, "title": scene}
        for scene, href in sorted(sources.items())
        if href
    ]


def gap_item(spec: Described, tile_id: str, box: PixelBox, reason: str) -> dict[str, Any]:
    """A row of the index that says why a tile has no map: a plain Item without assets.

    It does not name the embeddings extension, which wants an `embeddings` asset.
    """
    item = plain_item(spec, tile_id, box, "gap")
    item["stac_extensions"] = [PROJECTION]
    item["properties"][REASON] = reason
    return item


def plain_item(spec: Described, tile_id: str, box: PixelBox, status: str) -> dict[str, Any]:
    """An Item without assets: where and when, and `status` (`done` or `gap`)."""
    geometry, bbox = footprint(box)
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [],
        "id": tile_id,
        "collection": spec.collection_id,
        "geometry": geometry,
        "bbox": bbox,
        "properties": {
            "datetime": None,
            "start_datetime": utc_text(spec.start),
            "end_datetime": utc_text(spec.end),
            "gsd": spec.gsd_m,
            "proj:code": f"EPSG:{box.epsg}",
            BOX: [box.row0, box.col0, box.row1, box.col1],
            STATUS: status,
        },
        "links": [
            {"rel": rel, "href": "../collection.json", "type": JSON_TYPE} for rel in ("root", "parent", "collection")
        ],
        "assets": {},
    }


def file_asset(file: FileFacts) -> dict[str, Any]:
    """The fields of an asset that name a COG and its size and checksum."""
    # file:checksum is a multihash: 0x12 = SHA-256, 0x20 = its 32 bytes.
    return {
        "href": file.href,
        "type": COG_TYPE,
        "file:size": file.bytes,
        "file:checksum": f"1220{file.sha256}",
    }


def place_of(box: PixelBox, pixel_m: int) -> dict[str, Any]:
    """The projection extension's fields of a raster of `pixel_m` pixels over a box."""
    return {
        "proj:shape": [box.height * PIXEL_M // pixel_m, box.width * PIXEL_M // pixel_m],
        "proj:transform": [float(v) for v in tuple(box.transform(pixel_m))[:6]],
        "proj:bbox": list(box.bounds_m),
    }


def embedding_bands(spec: MapSpec) -> list[dict[str, Any]]:
    """STAC 1.1 bands with the linear rule that gives the vector's values back."""
    if spec.scale is None or spec.offset is None:
        return [{"name": name} for name in spec.band_names]
    rule = zip(spec.band_names, spec.scale, spec.offset, strict=True)
    return [{"name": name, "raster:scale": scale, "raster:offset": offset} for name, scale, offset in rule]


def quantization(spec: MapSpec) -> dict[str, Any]:
    """The embeddings extension's Quantization Object."""
    if spec.scale is None or spec.offset is None:
        return {"method": "none", "original_dtype": "float32"}
    return {
        "method": "linear",
        "original_dtype": "float32",
        "quantized_dtype": spec.dtype,
        "scale": list(spec.scale),
        "offset": list(spec.offset),
    }


def runtime_parameters(spec: MapSpec) -> dict[str, Any]:
    """What the model was run with; `run.json` has every setting."""
    return {
        "model": spec.model_id,
        "weights_sha256": spec.weights_sha256,
        "demo_weights": spec.demo,
        "modalities": list(spec.modalities),
        "patch_size": spec.patch_px,
        "start": utc_text(spec.start),
        "end": utc_text(spec.end),
    }


def lineage(spec: MapSpec) -> str:
    """One sentence on how the vectors came to be."""
    stored = "int8 by a linear rule from the model's last LayerNorm" if spec.dtype == "int8" else "float32"
    demo = " The weights are random (demo): the vectors carry no learned meaning." if spec.demo else ""
    return (
        f"Periods of 30 days from {', '.join(spec.modalities)}, first valid pixel of each, encoded by "
        f"{spec.model_id}, tokens averaged over time and bands for every cell of {spec.cell_m} m, "
        f"stored as {stored}."
        f"{demo}"
    )


def quality_text(name: str) -> str:
    """What a quality band means."""
    if name.startswith("periods_"):
        return f"periods with data from {name.removeprefix('periods_')}"
    return QUALITY_BANDS.get(name, name.replace("_", " "))
