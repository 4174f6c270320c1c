"""What a table's attributes say to learn: which field, which kind of target, which classes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from olmoearth_cli.errors import InputError

KINDS = ("classification", "multilabel", "segmentation", "regression")
PREFERRED = ("class", "label", "landcover", "land_cover", "category", "crop", "type", "target", "value")
"""Field names that are taken, in this order, where a table has several fields."""
IDENTIFIERS = ("id", "fid", "ogc_fid", "objectid", "gid", "uid", "uuid", "index", "unnamed: 0")
"""Fields that programs number features with."""
COORDINATES = ("lon", "lat", "longitude", "latitude", "long", "lng", "x", "y")
MOST_CLASSES = 50
"""Whole numbers are classes up to this many distinct values, if no more than half as many as rows."""
SEPARATOR = re.compile(r"[;|]")
"""Between the classes of a multi-label text."""
SHARE_OF_LISTS = 0.1
"""From this share of texts with a separator on, a note asks whether they are lists of classes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """The targets of the rows that have one."""

    kind: str
    """One of `KINDS`."""
    field: str
    """Name of the field, or names joined by commas."""
    class_names: tuple[str, ...]
    """In the order of the class ids: by name, numbers by value; empty for regression."""
    values: npt.NDArray[Any]
    """int64 [M] class ids, uint8 0/1 [M, C], or float64 [M]."""
    kept: npt.NDArray[np.bool_]
    """[N] True for the M rows with a target."""
    notes: tuple[str, ...]


def targets_of(columns: pd.DataFrame, *, source: str, field: str | None, task: str | None) -> Targets:
    """Targets from attributes.

    Args:
        columns: [N] rows of attributes.
        source: the file, for messages.
        field: name of the field, several 0/1 fields joined by commas, or None to find it.
        task: one of `KINDS`, or None to infer it from the values.

    Raises:
        InputError: no such field or several candidates, values that do not fit the task, fewer than two classes.
    """
    notes: list[str] = []
    if field is not None and field not in columns and "," in field:
        return _from_indicators(columns, [name.strip() for name in field.split(",")], source=source, task=task)
    if field is None:
        field, note = _only_field(columns, source)
        notes.append(note)
    _check_exists(columns, field, source)
    column = _plain(columns[field])
    kept = column.notna().to_numpy()
    if not kept.any():
        raise InputError(f"{source}: field {field!r} is empty in all {len(columns)} rows.")
    notes += _dropped_note(kept, f"a value in {field!r}")
    values = column[kept]
    where = f"{source}: field {field!r}"
    kind, inferred = (task, []) if task else _infer(values, where)
    notes += inferred
    names, targets = _learnable(kind, values, where)
    return Targets(kind=kind, field=field, class_names=names, values=targets, kept=kept, notes=tuple(notes))


def _learnable(kind: str, values: pd.Series, where: str) -> tuple[tuple[str, ...], npt.NDArray[Any]]:
    """Class names and targets of a kind."""
    if kind == "regression":
        return (), _to_numbers(values, where)
    return _from_lists(values, where) if kind == "multilabel" else _to_classes(values, where)


def natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """Distinct names sorted: by value where all are numbers, else as text whose digits count as numbers."""
    distinct = sorted(set(names))
    try:
        return tuple(sorted(distinct, key=float))
    except ValueError:
        return tuple(sorted(distinct, key=_natural))


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def number_name(value: float) -> str:
    """A number as a class name: 3.0 is `3`."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _only_field(columns: pd.DataFrame, source: str) -> tuple[str, str]:
    """The field to learn where the user named none, and a note that says so."""
    usable = [str(name) for name in columns if _is_usable(columns[name], str(name))]
    usable = [name for name in usable if columns[name].nunique() > 1] or usable
    if len(usable) == 1:
        return usable[0], f"field {usable[0]!r} is the only one that can be a target"
    by_name = {name.casefold(): name for name in reversed(usable)}
    chosen = next((by_name[name] for name in PREFERRED if name in by_name), None)
    if chosen is not None:
        return chosen, f"field {chosen!r} taken for its name; --field names another"
    if not usable:
        raise InputError(
            f"{source}: no attribute can be a target (it has: {_names(columns)}). Add a class or a number."
        )
    raise InputError(f"{source}: several fields can be the target. Name one with --field: {', '.join(usable)}.")


def _is_usable(column: pd.Series, name: str) -> bool:
    values = _plain(column).dropna()
    if not len(values) or name.casefold() in (*IDENTIFIERS, *COORDINATES):
        return False
    if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
        return False
    if not _is_text(values):
        return True
    plain = values.map(lambda value: isinstance(value, str | int | float | bool))
    return bool(plain.all()) and not _too_many(values.nunique(), len(values))


def _too_many(distinct: int, rows: int) -> bool:
    """True for identifiers: more values than can be learned as classes from so many rows."""
    return distinct > MOST_CLASSES and 2 * distinct > rows


def _check_exists(columns: pd.DataFrame, field: str, source: str) -> None:
    if field in columns:
        return
    known = {str(name).casefold(): str(name) for name in columns}
    near = difflib.get_close_matches(field.casefold(), known, n=1)
    hint = f" Did you mean {known[near[0]]!r}?" if near else ""
    raise InputError(f"{source}: has no field {field!r}.{hint} Its fields: {_names(columns)}.")


def _names(columns: pd.DataFrame) -> str:
    return ", ".join(map(str, columns)) or "none"


def _plain(column: pd.Series) -> pd.Series:
    """Numbers as they are; everything else as objects, text without blanks around it, empty text as missing."""
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
        return column
    if pd.api.types.is_numeric_dtype(column):
        return column
    plain = column.astype(object).map(lambda value: value.strip() if isinstance(value, str) else value)
    return plain.mask(plain.map(lambda value: isinstance(value, str) and not value))


def _is_text(values: pd.Series) -> bool:
    return not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)


def _dropped_note(kept: npt.NDArray[np.bool_], what: str) -> list[str]:
    return [] if kept.all() else [f"{np.sum(~kept)} of {len(kept)} labels without {what} left out"]


def _infer(values: pd.Series, where: str) -> tuple[str, list[str]]:
    """Kind of target that the values look like, and notes on it."""
    if _is_text(values):
        text = values.astype(str)
        _check_not_mixed(text, where)
        lists = text.str.contains(SEPARATOR).mean()
        hint = [f"{where}: {lists:.0%} of its values hold ; or |. If they are lists of classes, add --task multilabel"]
        return "classification", [_inferred(values, "text"), *(hint if lists >= SHARE_OF_LISTS else [])]
    numbers = values.to_numpy(dtype=np.float64)
    distinct = len(np.unique(numbers))
    whole = bool((np.isfinite(numbers) & (numbers == np.floor(numbers))).all())
    if whole and distinct <= MOST_CLASSES and 2 * distinct <= len(numbers):
        return "classification", [_inferred(values, "whole numbers")]
    return "regression", [_inferred(values, "numbers", kind="regression")]


def _inferred(values: pd.Series, what: str, kind: str = "classification") -> str:
    return f"taken as {kind}: {values.nunique()} different values ({what}) in {len(values)} labels; --task overrules"


def _check_not_mixed(text: pd.Series, where: str) -> None:
    number = pd.to_numeric(text, errors="coerce").notna()
    if number.any() and not number.all():
        raise InputError(
            f"{where} mixes numbers and text (for example {text[number].iloc[0]} and {text[~number].iloc[0]!r}). "
            "Mend the values, or take all of them as names with --task classification."
        )


def _to_classes(values: pd.Series, where: str) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Class names and int64 [M] class ids."""
    if _is_text(values):
        names = values.map(lambda value: number_name(value) if isinstance(value, float) else str(value))
    else:
        _check_finite(values.to_numpy(dtype=np.float64), where)
        names = values.map(number_name)
    class_names = natural_order(names.tolist())
    if len(class_names) < 2:
        raise InputError(f"{where} has one class only ({class_names[0]!r}): there is nothing to tell apart.")
    if _too_many(len(class_names), len(values)):
        raise InputError(
            f"{where} has {len(class_names)} different values in {len(values)} labels: identifiers or measurements, "
            "not classes. Name another field with --field, or use --task regression."
        )
    return class_names, pd.Categorical(names, categories=class_names).codes.astype(np.int64)


def _to_numbers(values: pd.Series, where: str) -> npt.NDArray[np.float64]:
    """float64 [M]."""
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any():
        raise InputError(
            f"{where} holds {values[numbers.isna()].iloc[0]!r}, which is no number; regression needs numbers. "
            "Mend it, or use --task classification."
        )
    out = numbers.to_numpy(dtype=np.float64)
    _check_finite(out, where)
    if len(np.unique(out)) < 2:
        raise InputError(f"{where} has one value only ({out[0]:.6g}): there is nothing to learn.")
    return out


def _check_finite(numbers: npt.NDArray[np.float64], where: str) -> None:
    infinite = int(np.isinf(numbers).sum())
    if infinite:
        raise InputError(f"{where} holds {infinite} infinite values. Remove these labels or mend them.")


def _from_lists(values: pd.Series, where: str) -> tuple[tuple[str, ...], npt.NDArray[np.uint8]]:
    """Class names and 0/1 [M, C] from texts such as `forest;water`."""
    if not _is_text(values):
        raise InputError(
            f"{where} holds numbers; --task multilabel needs texts such as 'forest;water', or several 0/1 fields "
            "in --field, joined by commas."
        )
    parts = values.astype(str).str.split(SEPARATOR).reset_index(drop=True).explode().str.strip()
    parts = parts[parts != ""]
    names = natural_order(parts.tolist())
    if len(names) < 2:
        raise InputError(f"{where} has one class only ({', '.join(names)}): there is nothing to tell apart.")
    out = np.zeros((len(values), len(names)), dtype=np.uint8)
    out[parts.index.to_numpy(), pd.Categorical(parts, categories=names).codes] = 1
    return names, out


def _from_indicators(columns: pd.DataFrame, fields: list[str], *, source: str, task: str | None) -> Targets:
    """Multi-label targets from several fields of 0 and 1."""
    fields = list(natural_order([name for name in fields if name]))
    for name in fields:
        _check_exists(columns, name, source)
    if task not in (None, "multilabel") or len(fields) < 2:
        raise InputError(f"{source}: --field {','.join(fields)}: several 0/1 fields are --task multilabel, not {task}.")
    numbers = columns[fields].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    for name in fields:
        wrong = ~numbers[name].isin([0, 1]) & _plain(columns[name]).notna()
        if wrong.any():
            raise InputError(
                f"{source}: field {name!r} holds {columns[name][wrong].iloc[0]}; a multi-label field is 0 or 1."
            )
    kept = numbers.notna().all(axis=1).to_numpy()
    if not kept.any():
        raise InputError(f"{source}: no row has a value in all of {', '.join(fields)}.")
    return Targets(
        kind="multilabel",
        field=",".join(fields),
        class_names=tuple(fields),
        values=numbers[kept].to_numpy().astype(np.uint8),
        kept=kept,
        notes=tuple(_dropped_note(kept, f"a value in all of {', '.join(fields)}")),
    )
