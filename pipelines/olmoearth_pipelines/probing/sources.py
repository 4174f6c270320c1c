"""Which map and which labels a bare `olmoearth probe` means: the only ones in the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.files import read_json

MAP_PARENTS = (".", "embeddings", "maps")
"""Folders that are searched for maps, and whose direct subfolders are."""
VECTOR_ENDINGS = (".geojson", ".gpkg", ".parquet", ".geoparquet", ".shp", ".csv")
RASTER_ENDINGS = (".tif", ".tiff")


SUGGESTIONS = "where-to-label.geojson"
"""What `--where-to-label` writes: places that have no label yet."""


def find_map(folder: Path) -> Path:
    """The only embedding map in a folder, its `embeddings/` or its `maps/`.

    Raises:
        InputError: none, or several.
    """
    return _only(
        _maps(folder),
        folder,
        what="embedding map",
        flag="--map",
        hint="Make one: olmoearth embed --aoi region.geojson.",
    )


def find_labels(folder: Path, emap: Path | None = None) -> Path:
    """The only labels in a folder: files called so, else the only vector file or table beside a map's region.

    Args:
        folder: where they lie.
        emap: map whose region is no labels; None for all maps in the folder.

    Raises:
        InputError: none, or several.
    """
    regions = {_region(place) for place in ([emap] if emap else _maps(folder))}
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUGGESTIONS)
    named = [p for p in files if "label" in p.stem.lower() and p.suffix.lower() in VECTOR_ENDINGS + RASTER_ENDINGS]
    others = [p for p in files if p.suffix.lower() in VECTOR_ENDINGS and p.name not in regions]
    return _only(named or others, folder, what="file of labels", flag="--labels", hint="Points with a class will do.")


def _maps(folder: Path) -> list[Path]:
    parents = [folder / name for name in MAP_PARENTS]
    places = [*parents, *(child for parent in parents if parent.is_dir() for child in sorted(parent.iterdir()))]
    return [place for place in dict.fromkeys(places) if _is_map(place)]


def _is_map(place: Path) -> bool:
    return (place / "items").is_dir() and ((place / "run.json").is_file() or (place / "collection.json").is_file())


def _region(emap: Path) -> str:
    """Name of the file that the map's region was read from; empty where the record does not say."""
    path = emap / "run.json"
    record = read_json(path) if path.is_file() else {}
    return Path(str(record.get("settings", {}).get("aoi", ""))).name if isinstance(record, dict) else ""


def _only(found: Sequence[Path], folder: Path, *, what: str, flag: str, hint: str) -> Path:
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{folder.resolve()}: holds no {what}. Name one with {flag}. {hint}")
    names = ", ".join(str(path.relative_to(folder)) for path in found[:5]) + (", ..." if len(found) > 5 else "")
    raise InputError(
        f"{folder.resolve()}: holds {len(found)} of what could be the {what} ({names}). Choose with {flag}."
    )
