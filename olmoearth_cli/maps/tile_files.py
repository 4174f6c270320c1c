"""Tiles on disk: written once and whole, or not there.

A tile is done when its item exists and the two files it names have the sizes it states. The item is
written last, so whatever the moment of a kill, a half-made tile has no item and is made again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.cog import Raster, cog_bytes
from olmoearth_cli.maps.files import read_json, remove, sha256, write_bytes, write_json
from olmoearth_cli.maps.map_spec import MapSpec, TileResult
from olmoearth_cli.maps.quantize import NO_DATA
from olmoearth_cli.maps.stac_items import BOX, FACTS, REASON, SPEC, Described, FileFacts, gap_item, tile_item

TILES, QUALITY, ITEMS, GAPS = "tiles", "quality", "items", "gaps"
PROBABILITIES = "probabilities"
FOLDERS = {"embeddings": TILES, "quality": QUALITY, "prediction": TILES, "probabilities": PROBABILITIES}
"""Asset of an Item -> folder of its files. No path is ever taken from an Item."""
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class TileEntry:
    """One tile of a map as it lies on disk."""

    id: str
    box: PixelBox
    """The square that the file covers, in 10 m pixels."""
    path: Path | None
    """The COG; None for a gap."""
    status: str
    """`done` or `gap`."""
    reason: str | None
    """Why a gap has no map."""
    facts: Mapping[str, Any]
    """What the worker measured; empty for a gap."""
    item: Mapping[str, Any]
    """The STAC Item."""


def write_tile(folder: Path, spec: MapSpec, result: TileResult) -> dict[str, Any]:
    """Write a tile's COG and quality COG, then the item that makes it done.

    Args:
        folder: the map.
        spec: what all tiles share.
        result: the vectors [Y, X, D] and what is known of them.

    Returns:
        `bytes` of both files, `sha256` of the COG, `percent_valid`, and `loss`: the quantisation loss as
        in `QuantisationLoss`, None for float32.

    Raises:
        OutputError: the folder cannot be written. Earlier files stay; no `.part` is left behind.
    """
    folder = Path(folder)
    _check_fit(spec, result)
    remove(item_path(folder, ITEMS, result.tile_id))
    embeddings = cog_bytes(_embedding_raster(spec, result))
    quality = cog_bytes(_quality_raster(spec, result))
    loss = asdict(spec.quantizer.loss(result.vectors)) if spec.quantizer else None
    valid = np.isfinite(result.vectors).all(axis=-1)
    measured = {
        "bytes": len(embeddings) + len(quality),
        "sha256": sha256(embeddings),
        "percent_valid": round(100.0 * float(valid.mean()), 3),
        "loss": loss,
    }
    item = tile_item(
        spec,
        result,
        embeddings=store_tile(folder, TILES, result.tile_id, embeddings),
        quality=store_tile(folder, QUALITY, result.tile_id, quality),
        measured=measured,
    )
    write_json(item_path(folder, ITEMS, result.tile_id), item)
    remove(item_path(folder, GAPS, result.tile_id))
    return measured


def write_gap(folder: Path, spec: Described, tile_id: str, box: PixelBox, reason: str) -> None:
    """Record that a tile has no map and why. A later run tries the tile again."""
    write_json(item_path(Path(folder), GAPS, tile_id), gap_item(spec, tile_id, box, reason))


def tile_states(folder: Path) -> dict[str, str]:
    """Tile id -> `done` or `gap`; a tile that is neither is not listed."""
    return {entry.id: entry.status for entry in read_tiles(folder)}


def tile_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Tile id -> `status` with the figures of a finished tile, or the `reason` of a gap."""
    facts = {}
    for entry in read_tiles(folder):
        reason = {"reason": entry.reason} if entry.status == "gap" else {}
        facts[entry.id] = {"status": entry.status, **reason, **entry.facts}
    return facts


def read_tiles(folder: Path) -> list[TileEntry]:
    """Finished tiles and gaps, by id. What is half written or damaged in size is left out."""
    folder = Path(folder)
    done = {entry.id: entry for entry in _entries(folder, ITEMS) if _whole(folder, entry)}
    gaps = {entry.id: entry for entry in _entries(folder, GAPS) if entry.id not in done}
    return [entry for _, entry in sorted({**gaps, **done}.items())]


def is_embedding(entry: TileEntry) -> bool:
    """True for a finished tile of an embedding map, False for one of a prediction."""
    return "embeddings" in entry.item["assets"]


def spec_of(entry: TileEntry) -> MapSpec:
    """The map's specification as a finished tile recorded it."""
    properties = entry.item["properties"]
    rule = properties["emb:quantization"]
    return MapSpec.from_json({**properties[SPEC], "scale": rule.get("scale"), "offset": rule.get("offset")})


def _entries(folder: Path, kind: str) -> Iterator[TileEntry]:
    for path in sorted((folder / kind).glob("*.json")):
        try:
            yield _entry(folder, kind, read_json(path))
        except (InputError, KeyError, TypeError, ValueError):
            continue  # a damaged or foreign record is no record: the tile is made again


def _entry(folder: Path, kind: str, item: Mapping[str, Any]) -> TileEntry:
    properties, done = item["properties"], kind == ITEMS
    return TileEntry(
        id=item["id"],
        box=PixelBox(int(properties["proj:code"].removeprefix("EPSG:")), *properties[BOX]),
        path=folder / TILES / f"{item['id']}.tif" if done else None,
        status="done" if done else "gap",
        reason=None if done else properties[REASON],
        facts=properties[FACTS] if done else {},
        item=item,
    )


def _whole(folder: Path, entry: TileEntry) -> bool:
    """True where every file of the tile is there in the size that the item states."""
    named = {kind: entry.item["assets"][name] for name, kind in FOLDERS.items() if name in entry.item["assets"]}
    for kind, asset in named.items():
        path = folder / kind / f"{entry.id}.tif"
        if not path.is_file() or path.stat().st_size != asset["file:size"]:
            return False
    return bool(named)


def item_path(folder: Path, kind: str, tile_id: str) -> Path:
    """Where the record of a tile lies; `kind` is `ITEMS` or `GAPS`.

    Raises:
        ValueError: an id that is no file name.
    """
    if not _SAFE_ID.fullmatch(tile_id):
        raise ValueError(f"tile id {tile_id!r} is not safe as a file name")
    return folder / kind / f"{tile_id}.json"


def store_tile(folder: Path, kind: str, tile_id: str, content: bytes) -> FileFacts:
    """Write a tile's file of one kind, one of the values of `FOLDERS`."""
    write_bytes(folder / kind / f"{tile_id}.tif", content)
    return FileFacts(href=f"../{kind}/{tile_id}.tif", bytes=len(content), sha256=sha256(content))


def _check_fit(spec: MapSpec, result: TileResult) -> None:
    shape = spec.shape(result.box)
    if result.vectors.shape != (*shape, spec.dimensions):
        raise ValueError(f"{result.tile_id}: vectors {result.vectors.shape}, wanted {(*shape, spec.dimensions)}")
    if not result.quality:
        raise ValueError(f"{result.tile_id}: a tile needs at least one quality band")
    for name, band in result.quality.items():
        if band.shape != shape:
            raise ValueError(f"{result.tile_id}: quality band {name} {band.shape}, wanted {shape}")


def _embedding_raster(spec: MapSpec, result: TileResult) -> Raster:
    values, nodata = _stored_values(spec, result.vectors)
    # Only what the vectors depend on: no title, date or version, so that equal cells give equal bytes.
    tags = {
        "EMB_MODEL": spec.model_id,
        "EMB_WEIGHTS_SHA256": spec.weights_sha256,
        "EMB_DEMO_WEIGHTS": str(spec.demo).lower(),
        "EMB_PERIOD": f"{spec.start:%Y-%m-%d}/{spec.end:%Y-%m-%d}",
        "EMB_QUANT_METHOD": "linear" if spec.quantizer else "none",
    }
    return Raster(
        values=np.ascontiguousarray(np.moveaxis(values, -1, 0)),  # C H W
        epsg=result.box.epsg,
        transform=result.box.transform(spec.cell_m),
        nodata=nodata,
        names=spec.band_names,
        scale=spec.scale,
        offset=spec.offset,
        tags=tags,
    )


def _stored_values(spec: MapSpec, vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], float]:
    """[Y, X, D] as the file holds it, and its no-data value."""
    if spec.quantizer:
        return spec.quantizer.encode(vectors), float(NO_DATA)
    valid = np.isfinite(vectors).all(axis=-1, keepdims=True)
    return np.where(valid, vectors, np.float32(np.nan)).astype(np.float32, copy=False), float("nan")


def _quality_raster(spec: MapSpec, result: TileResult) -> Raster:
    return Raster(
        values=np.stack([np.asarray(band, dtype=np.float32) for band in result.quality.values()]),
        epsg=result.box.epsg,
        transform=result.box.transform(spec.cell_m),
        nodata=float("nan"),
        names=tuple(result.quality),
    )
