"""`olmoearth.toml` in the working folder: defaults for any flag, one table per subcommand.

Order of precedence: flag, then environment (`OLMOEARTH_EMBED_PATCH_SIZE`), then file, then default.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from olmoearth_cli.errors import InputError

FILE_NAME = "olmoearth.toml"


def read_defaults(folder: Path, known: Mapping[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Read the settings file of a folder.

    Args:
        folder: where `olmoearth.toml` may lie.
        known: subcommand -> names of its options, with underscores.

    Returns:
        subcommand -> option -> value; empty where there is no file.

    Raises:
        InputError: the file is not TOML, or a table or key is unknown (the nearest known one is named).
    """
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Mend its permissions or encoding.") from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}.") from None
    for table, values in tables.items():
        if table not in known:
            raise InputError(f"{path}: unknown table [{table}]{_nearest(table, known)}.")
        if not isinstance(values, dict):
            raise InputError(f"{path}: {table} must be a table: write [{table}] and its keys below it.")
        for key, value in values.items():
            if key not in known[table]:
                raise InputError(f"{path}: unknown key {key} in [{table}]{_nearest(key, known[table])}.")
            if isinstance(value, dict):
                raise InputError(f"{path}: {key} in [{table}] must be a plain value, not a table.")
    return {table: {key: _flat(value) for key, value in values.items()} for table, values in tables.items()}


def _flat(value: Any) -> Any:
    """Lists become the comma-separated form that the flags take; dates their ISO form."""
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return value.isoformat() if hasattr(value, "isoformat") else value


def _nearest(word: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f" (known: {', '.join(sorted(known))})"
