"""The folder of a run: `run.json` with its settings and outcome, and `log.jsonl` with a line every few steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.files import PART, output_error, read_json, remove, write_bytes, write_json

RECORD, LOG, CHECKPOINTS = "run.json", "log.jsonl", "checkpoints"
KIND = "pretraining"
FORMAT = 1
SHOWN = 3
"""Differences named in a message."""


def check(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Refuse a folder that the run must not write into; nothing is changed.

    Returns:
        The record of a run with the same settings; None where there is none.

    Raises:
        OutputError: somebody else's files, or a run with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, not a folder. Choose another folder with --out.")
    if not folder.exists():
        return None
    record = _read(folder)
    if record is None:
        return None
    differences = _differences(record["settings"], settings)
    if not differences:
        return record
    if not overwrite:
        hidden = len(differences) - SHOWN
        shown = "; ".join(differences[:SHOWN]) + (f"; {hidden} more" if hidden > 0 else "")
        raise OutputError(
            f"{folder}: holds a run with other settings: {shown}. Choose another folder with --out, or --overwrite "
            "to replace the run."
        )
    return None


def start(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Take the folder: `check`, clear what is to be replaced or was half written, and say that the run goes on.

    Raises:
        OutputError: as `check`, or the folder cannot be written.
    """
    same = check(folder, settings, overwrite=overwrite)
    try:
        if same is None and (folder / RECORD).exists():
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            remove(folder / LOG)
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        for path in (*folder.glob(f"*{PART}"), *(folder / CHECKPOINTS).glob(f"*{PART}")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise output_error(folder, error) from error
    begun = same["started"] if same else _now()
    _write(folder, {"status": "running", "started": begun, "settings": _plain(settings)})


def close(folder: Path, status: str, facts: Mapping[str, Any]) -> None:
    """Say how the run ended: `finished` or `failed`, with its figures."""
    before = _read(folder) or {}
    _write(folder, {**before, "status": status, "ended": _now(), **_plain(facts)})


def cut_log(folder: Path, step: int) -> None:
    """Drop the log's lines after a step, and one that was not finished: the run goes on from there (0: begins)."""
    path = folder / LOG
    if step == 0:
        remove(path)
    if not path.exists():
        return
    try:
        text = path.read_bytes()
    except OSError as error:
        raise output_error(path, error) from error
    whole = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
    kept = b"".join(line for line in whole if json.loads(line)["step"] <= step)
    if kept != text:
        write_bytes(path, kept)


def log(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a line.

    Raises:
        OutputError: the system refused.
    """
    path = folder / LOG
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise output_error(path, error) from error


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_json(folder / RECORD, {"kind": KIND, "format": FORMAT, **record})


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORD
    if not path.exists():
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and not p.name.endswith(PART))
        if names:
            raise OutputError(
                f"{folder}: is not empty and holds no pretraining run ({', '.join(names[:SHOWN])}). Nothing was "
                "changed. Choose a new or empty folder with --out."
            )
        return None
    try:
        record = read_json(path)
    except InputError as error:
        raise OutputError(str(error)) from error
    if not isinstance(record, dict) or record.get("kind") != KIND or not isinstance(record.get("settings"), dict):
        raise OutputError(f"{path}: is not the record of a pretraining run. Choose another folder with --out.")
    if record.get("format") != FORMAT:
        raise OutputError(
            f"{path}: run format {record.get('format')}, this program writes {FORMAT}. "
            "Choose another folder with --out."
        )
    return record


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """`key is X there and Y here` for every differing key."""
    here = _plain(here)
    keys = [*here, *(key for key in there if key not in here)]
    return [
        f"{key} is {_text(there, key)} there and {_text(here, key)} here"
        for key in keys
        if _text(there, key) != _text(here, key)
    ]


def _text(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "not set"


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
