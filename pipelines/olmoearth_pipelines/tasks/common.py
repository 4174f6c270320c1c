"""What the readers of the benchmark formats share: finding files, band order, labels, dates."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.task import IGNORE, SPLITS

S2, S1, L8 = "sentinel2_l2a", "sentinel1", "landsat"
ALL_S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""The 13 bands in ESA's order: the channels of the prepared tensors."""
FRACTIONS = ("0.01", "0.02", "0.05", "0.10", "0.20", "0.50")
"""Label fractions with a partition file, `<fraction>x_train_partition.json` (spec/evaluation.md 5.5)."""
SINGLE_DATE = np.array([[1, 6, 2020]], dtype=np.int64)
"""Timestamps [1, 3] of the sets without a date: 1 July 2020, months from 0 (spec/evaluation.md section 2)."""
_SAFE_NAME = re.compile(r"(?!\.)[^/\\\x00]+")


def month_starts(year: int, month: int, count: int) -> npt.NDArray[np.int64]:
    """First days of `count` months, [T, 3] as day, month 0-11, year; `month` counts from 0."""
    months = np.arange(month, month + count)
    return np.stack([np.ones_like(months), months % 12, year + months // 12], axis=1).astype(np.int64)


def band_positions(modality: str, stored: Sequence[str], fills: Mapping[str, str] | None = None) -> list[int]:
    """Position in `stored` of each band of the modality, in canonical order.

    Args:
        modality: as in `core.modality`.
        stored: bands in the order of the file.
        fills: band -> neighbour whose values it takes where the file lacks it (spec/evaluation.md 2.2).
    """
    fills = fills or {}
    return [stored.index(fills.get(band, band)) for band in MODALITIES[modality].bands]


def find_home(folder: Path, below: Sequence[str], wanted: Sequence[str], *, task: str, layout: str) -> Path:
    """The folder that holds a task: the one given, or one of the usual places below it.

    Args:
        folder: as the user gave it.
        below: relative folders to look in, for a benchmark's common parent.
        wanted: relative paths that must be there.
        task: name, for the message.
        layout: what a right folder looks like, for the message.

    Raises:
        InputError: none of them holds every wanted path; names the missing ones.
    """
    places = [folder, *(folder / name for name in below)]
    missing = {place: [name for name in wanted if not (place / name).exists()] for place in places}
    for place in places:
        if not missing[place]:
            return place
    why = "there is no such folder" if not folder.is_dir() else f"not found: {', '.join(missing[folder])}"
    also = f" (nor below {', '.join(below)})" if below and folder.is_dir() else ""
    raise InputError(f"{folder}: not the data of {task}: {why}{also}. Expected layout: {layout}.")


def require_split(split: str, present: Mapping[str, int], *, task: str, home: Path) -> None:
    """Refuse a split that does not exist (`ValueError`) or that this folder does not hold (`InputError`)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: choose from {', '.join(SPLITS)}.")
    if split not in present:
        raise InputError(f"{home}: no {split} split of {task} here, only {', '.join(present) or 'none'}.")


def refuse_fraction(partition: str | None, *, task: str) -> None:
    """Refuse a label fraction of a set that is published without (`InputError`)."""
    if partition is not None:
        raise InputError(f"{task} is published without label fractions; run it without a fraction.")


def partition_file(places: Sequence[Path], partition: str, *, task: str, known: Sequence[str]) -> Path:
    """The file that lists the training samples of a label fraction.

    Raises:
        InputError: the set has no such fraction, or its file is not there.
    """
    if partition not in known:
        raise InputError(f"{task} has no label fraction {partition}; choose from {', '.join(known)}.")
    name = f"{partition}x_train_partition.json"
    for place in places:
        if (place / name).is_file():
            return place / name
    raise InputError(f"{places[0]}: {name} is not here. It is published with {task}; download it, or use all labels.")


def train_indices(path: Path, count: int) -> list[int]:
    """Sample numbers in a partition file of the `.pt` sets: a plain list.

    Raises:
        InputError: it is something else, or a number is beyond the split's `count` samples.
    """
    numbers = read_json(path)
    if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < count for n in numbers):
        raise InputError(f"{path}: must be a list of sample numbers below {count}. Download the file again.")
    return numbers


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}). Download the file again.") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        InputError: missing, damaged, or holding something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object. Download the file again.")
    return content


def safe_name(name: object, source: Path) -> str:
    """A file name that data gave, if it is a plain name inside its folder.

    Raises:
        InputError: it is not text, starts with a dot, or leads elsewhere.
    """
    if not isinstance(name, str) or _SAFE_NAME.fullmatch(name) is None:
        raise InputError(f"{source}: lists the sample {name!r}, which is no plain file name. Refusing to follow it.")
    return name


def load_tensors(path: Path) -> Any:
    """What a `.pt` file holds, tensors only; mapped from disk rather than read where its format allows it.

    Raises:
        InputError: missing, damaged, or holding more than tensors and plain containers.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # torch's own words end in advice to unpickle the file after all: only what is wrong with it is passed on.
        refused = re.search(r"(Unsupported \w+: .*?)(?: was not| \.|\n|$)", str(error))
        reason = refused[1] if refused else str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(f"{path}: cannot be read as tensors ({reason}). Download the file again.") from None


def tensor_of(content: Any, key: str, shape: Sequence[int | None], path: Path) -> torch.Tensor:
    """One tensor of a loaded file, with its shape checked; None in `shape` is any length.

    Raises:
        InputError: it is absent or shaped otherwise.
    """
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, torch.Tensor):
        raise InputError(f"{path}: holds no tensor `{key}`. Download the prepared file again.")
    return shaped(found, shape, f"{path}: `{key}`")


def shaped(tensor: torch.Tensor, shape: Sequence[int | None], what: str) -> torch.Tensor:
    """The tensor, if its shape is the one expected; None is any length.

    Raises:
        InputError: it is not.
    """
    agrees = len(tensor.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not agrees:
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise InputError(f"{what} has shape {tuple(tensor.shape)}, expected ({expected}).")
    return tensor


def checked_labels(labels: npt.NDArray[np.int64], classes: int, source: object) -> npt.NDArray[np.int64]:
    """Labels that are -1 or a class id.

    Raises:
        InputError: another value is among them.
    """
    wrong = np.unique(labels[(labels < IGNORE) | (labels >= classes)])
    if len(wrong):
        values = ", ".join(str(value) for value in wrong[:5])
        raise InputError(f"{source}: label values {values} are not among the {classes} classes (0-{classes - 1}).")
    return labels
