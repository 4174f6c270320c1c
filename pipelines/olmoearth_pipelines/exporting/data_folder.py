"""The folder of an export of samples: its record, the chosen scenes, and the work folder while it runs.

`export.json` says how the dataset is made and, at the end, what came out; `scenes.json` which scenes it is made of. The
dataset itself lies beside them in the published folders (`samples.layout`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.files import PART, output_error, read_json, remove, write_json, write_text
from olmoearth_pipelines.exporting.data_tile import DONE, facts_file, tile_file
from olmoearth_pipelines.samples.dataset_writer import JOURNAL, UNFINISHED

RECORD, SCENES = "export.json", "scenes.json"
WORK = f"work{PART}"
KIND = "samples"


def check(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Refuse a folder that the export must not write into; nothing is changed.

    Returns:
        The record of an earlier run with the same settings; None where there is none.

    Raises:
        OutputError: somebody else's files, or samples made with other settings.
    """
    other = "Choose another folder with --out."
    try:
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise OutputError(f"{folder}: is a file, not a folder. {other}")
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise output_error(folder, error) from error
    if RECORD not in names:
        if any(not name.endswith(PART) for name in names):
            raise OutputError(f"{folder}: is not empty and holds no samples of this program ({names[0]}). {other}")
        return None
    record = _read(folder / RECORD)
    there, here = record["settings"], json.loads(json.dumps(settings))
    changed = [key for key in here if there.get(key) != here[key]]
    if changed:
        listed = "; ".join(f"{key} is {there.get(key)} there and {here[key]} here" for key in changed)
        raise OutputError(f"{folder}: holds samples made with other settings: {listed}. {other}")
    return record


def begin(folder: Path, settings: Mapping[str, Any], scenes: str) -> None:
    """Take the folder and say that the export goes on.

    Raises:
        OutputError: the system refused.
    """
    try:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        for path in (*folder.glob(f"*{PART}"), *(folder / WORK).glob(f"*{PART}")):
            if path.is_file():
                path.unlink()
    except OSError as error:
        raise output_error(folder, error) from error
    write_json(folder / RECORD, {"kind": KIND, "status": "running", "settings": settings})
    write_text(folder / SCENES, scenes)


def close(folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Record what came out, and clear the work folder away.

    Raises:
        OutputError: the system refused.
    """
    write_json(folder / RECORD, {"kind": KIND, "status": "finished", "settings": settings, **facts})
    shutil.rmtree(folder / WORK, ignore_errors=True)


def clear(folder: Path, home: Path) -> None:
    """Take back an export that wrote no sample, so that another may use the folder.

    Args:
        folder: of the export.
        home: the parent of the dataset's leaf folder.
    """
    for path in (home / JOURNAL, folder / SCENES, folder / RECORD):
        remove(path)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    for path in (home / UNFINISHED, home, home.parent, folder):
        with contextlib.suppress(OSError):  # not there, or not empty: then it is not ours to take away
            path.rmdir()


def recorded(folder: Path, names: Iterable[str], added: Container[object]) -> dict[str, dict[str, Any]]:
    """What became of tiles in earlier runs.

    Args:
        folder: of the export.
        names: of its tiles.
        added: tiles that are in the dataset.

    Returns:
        {tile: facts}; a tile that is neither in the dataset nor waiting for it is not among them.
    """
    known = {}
    for name in names:
        path = facts_file(folder / WORK, name)
        if not path.exists():
            continue
        facts = read_json(path)
        if facts["status"] != DONE or name in added or tile_file(folder / WORK, name).exists():
            known[name] = facts
    return known


def _read(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except InputError as error:
        raise OutputError(str(error)) from error
    if not isinstance(record, dict) or record.get("kind") != KIND or not isinstance(record.get("settings"), dict):
        raise OutputError(f"{path}: is not a record of exported samples. Choose another folder with --out.")
    return record
