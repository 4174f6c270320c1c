"""`run.json`: with which settings a map was made, and what came out.

The record is the map's title deed. A folder without one that holds anything is somebody else's and is
never written into; a folder with one is continued under the same settings, or replaced on request.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.files import PART, output_error, read_json, remove, write_json, write_text
from olmoearth_cli.maps.map_spec import utc_text
from olmoearth_cli.maps.tile_files import GAPS, ITEMS, PROBABILITIES, QUALITY, TILES, tile_facts, tile_states

__all__ = [
    "check",
    "finish",
    "finished",
    "matches",
    "start",
    "tile_facts",
    "write_json",
    "write_text",
]

RECORD = "run.json"
FORMAT = 1
"""Version of the folder's layout."""
_SHOWN_DIFFERENCES = 3

MAP_FILES = ("collection.json", "model.json", "index.parquet", "mosaic_*.vrt", "preview.tif", "preview.png")
"""What describes a whole embedding map."""
_OWNED_FOLDERS = {ITEMS: "*.json", GAPS: "*.json", TILES: "*.tif", QUALITY: "*.tif", PROBABILITIES: "*.tif"}
_OWNED_FILES = (*MAP_FILES, "scenes.json")
PRODUCT, PREDICTION = "product", "prediction"
"""Key and value of the settings by which a prediction's folder is told from an embedding map's."""
_PREDICTION_FILES = ("classes.tif", "classes.tif.aux.xml", "values.tif", "probabilities.tif", "vectors.json")
"""What a prediction owns beside; anybody may have put such a name into the folder of an embedding map."""


def check(folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Refuse a folder that the run must not write into; nothing is changed.

    Raises:
        OutputError: not a folder, somebody else's files, or a map made with other settings.
    """
    folder = Path(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file, not a folder. Choose another folder with --out.")
        if not folder.exists():
            return
        record = _read(folder)
        if record is None:
            _refuse_foreign(folder)
            return
    except OSError as error:
        raise output_error(folder, error) from error
    differences = _differences(record["settings"], settings)
    if differences and not overwrite:
        hidden = len(differences) - _SHOWN_DIFFERENCES
        shown = "; ".join(differences[:_SHOWN_DIFFERENCES]) + (f"; {hidden} more" if hidden > 0 else "")
        raise OutputError(
            f"{folder}: holds a map made with other settings: {shown}. "
            "Choose another folder with --out, or --overwrite to replace the map."
        )


def start(folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Take the folder for a run: `check`, clear what is to be replaced, and say that the run goes on.

    Raises:
        OutputError: as `check`, or the folder cannot be written.
    """
    folder = Path(folder)
    check(folder, settings, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    if overwrite and (folder / RECORD).exists():
        _clear(folder)
    _clear_parts(folder)
    record = {"format": FORMAT, "status": "running", "started": _now(), "settings": _plain(settings)}
    write_json(folder / RECORD, record)


def finish(folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Close the record with the run's figures; `facts` says under `complete` whether there are gaps."""
    folder = Path(folder)
    before = _read(folder) or {}
    record = {
        "format": FORMAT,
        "status": "finished",
        "started": before.get("started", _now()),
        "finished": _now(),
        "settings": _plain(settings),
        **_plain(facts),
    }
    write_json(folder / RECORD, record)


def finished(
    folder: Path, settings: Mapping[str, Any], *, described: Sequence[str] = MAP_FILES
) -> dict[str, Any] | None:
    """The record of a map that is complete with these settings, else None.

    A map with gaps is not complete: its gaps are tried again. Nor is one whose files went missing: a tile's, or one of
    `described`, what describes the whole.
    """
    folder = Path(folder)
    record = _read_quietly(folder)
    if record is None or _differences(record["settings"], settings):
        return None
    if record.get("status") != "finished" or not record.get("complete"):
        return None
    states = tile_states(folder)
    if any(states.get(tile) != "done" for tile in record.get("tiles", {})):
        return None
    whole = all(any(folder.glob(pattern)) for pattern in described)
    return record if whole else None


def matches(folder: Path, settings: Mapping[str, Any]) -> bool:
    """True where the folder's record has exactly these settings."""
    record = _read_quietly(Path(folder))
    return record is not None and not _differences(record["settings"], settings)


def _read(folder: Path) -> dict[str, Any] | None:
    """The folder's record; None where there is none.

    Raises:
        OutputError: a `run.json` that is not ours.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except InputError as error:
        raise OutputError(str(error)) from error
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict) or "format" not in record:
        raise OutputError(f"{path}: is not a record of this program. Choose another folder with --out.")
    if record["format"] != FORMAT:
        raise OutputError(
            f"{path}: map format {record['format']}, this program writes {FORMAT}. Choose another folder with --out."
        )
    return record


def _read_quietly(folder: Path) -> dict[str, Any] | None:
    try:
        return _read(folder)
    except (OutputError, OSError):
        return None


def _refuse_foreign(folder: Path) -> None:
    """Hidden files (desktop litter) do not count."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise OutputError(
            f"{folder}: is not empty and holds no map ({shown}). Nothing was changed. "
            "Choose a new or empty folder with --out."
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """`key is X there, Y here` for every differing key, in the order of the new settings."""
    here = _plain(here)
    keys = [*here, *(key for key in there if key not in here)]
    missing = object()
    return [
        f"{key} is {_text(there, key)} there and {_text(here, key)} here"
        for key in keys
        if there.get(key, missing) != here.get(key, missing)
    ]


def _text(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "not set"


def _clear(folder: Path) -> None:
    """Remove what a map owns and nothing else; items first, so that no tile looks done without its files."""
    for name, pattern in _OWNED_FOLDERS.items():
        _remove_all(folder / name, pattern)
        with contextlib.suppress(OSError):  # not there, or somebody else's files are in it: they stay
            (folder / name).rmdir()
    record = _read(folder)
    of_prediction = record is not None and record["settings"].get(PRODUCT) == PREDICTION
    for pattern in (*_OWNED_FILES, *(_PREDICTION_FILES if of_prediction else ())):
        _remove_all(folder, pattern)


def _clear_parts(folder: Path) -> None:
    """Remove what a killed run was writing."""
    for place in (folder, *(folder / name for name in _OWNED_FOLDERS)):
        _remove_all(place, f"*{PART}")


def _remove_all(folder: Path, pattern: str) -> None:
    for path in sorted(folder.glob(pattern)):
        if path.is_file() or path.is_symlink():
            remove(path)


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """As it reads back from JSON, so that tuples equal lists."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def _now() -> str:
    return utc_text(datetime.now(UTC))
