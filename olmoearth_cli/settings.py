"""`olmoearth.toml` in the working folder: defaults for any flag, one table per subcommand.

A group of subcommands has one table for all of them and, where they differ, one each: `[probe]`, `[probe.knn]`.
`[finetune]` takes from `[embed]` what it leaves open of catalogue, dates and model: the same land by the same model.
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
LOANS = (
    ("embed", "finetune", (("catalog",), ("model",), ("year", "start", "end", "periods"))),
    ("finetune", "predict", (("catalog",), ("year", "start", "end"))),
)
"""Lender, borrower, and keys that are lent, in this order; keys of one bracket together, and only where the
borrower has none of them. `predict` needs neither model nor periods: the model's folder says them."""


Known = Mapping[str, set[str] | Mapping[str, set[str]]]
"""Subcommand -> names of its options with underscores; a group -> the same of its own subcommands."""


def read_defaults(folder: Path, known: Known) -> dict[str, dict[str, Any]]:
    """Read the settings file of a folder.

    Args:
        folder: where `olmoearth.toml` may lie.
        known: what may stand in it.

    Returns:
        subcommand -> option -> value, one level deeper for groups; empty where there is no file.

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
    defaults: dict[str, dict[str, Any]] = {}
    for table, values in tables.items():
        if table not in known:
            raise InputError(f"{path}: unknown table [{table}]{_nearest(table, known)}.")
        if not isinstance(values, dict):
            raise InputError(f"{path}: {table} must be a table: write [{table}] and its keys below it.")
        options = known[table]
        defaults[table] = (
            _command(path, table, values, options) if isinstance(options, set) else _group(path, table, values, options)
        )
    for lender, borrower, lent in LOANS:
        if lender in defaults and borrower in known:
            defaults[borrower] = _lent(defaults[lender], defaults.get(borrower, {}), lent)
    return defaults


def _lent(lender: Mapping[str, Any], borrower: Mapping[str, Any], lent: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    open_keys = [key for keys in lent if not any(key in borrower for key in keys) for key in keys]
    return {key: lender[key] for key in open_keys if key in lender} | dict(borrower)


def _command(path: Path, table: str, values: Mapping[str, Any], options: set[str]) -> dict[str, Any]:
    for key, value in values.items():
        if key not in options:
            raise InputError(f"{path}: unknown key {key} in [{table}]{_nearest(key, options)}.")
        if isinstance(value, dict):
            raise InputError(f"{path}: {key} in [{table}] must be a plain value, not a table.")
    return {key: _flat(value) for key, value in values.items()}


def _group(
    path: Path, table: str, values: Mapping[str, Any], commands: Mapping[str, set[str]]
) -> dict[str, dict[str, Any]]:
    """Keys of the group's own table go to every subcommand that has the option; its own table comes first."""
    own = {key: value for key, value in values.items() if key in commands and isinstance(value, dict)}
    shared = {key: value for key, value in values.items() if key not in own}
    unknown = [key for key in shared if key not in set().union(*commands.values())]
    if unknown:
        words = {*commands, *set().union(*commands.values())}
        raise InputError(f"{path}: unknown key {unknown[0]} in [{table}]{_nearest(unknown[0], words)}.")
    common = _command(path, table, shared, set(shared))
    return {
        name: {key: value for key, value in common.items() if key in options}
        | _command(path, f"{table}.{name}", own.get(name, {}), options)
        for name, options in commands.items()
    }


def _flat(value: Any) -> Any:
    """Lists become the comma-separated form that the flags take; dates their ISO form."""
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return value.isoformat() if hasattr(value, "isoformat") else value


def _nearest(word: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f" (known: {', '.join(sorted(known))})"
