"""Windows on disk: a folder that many processes fill, that a broken run goes on with, and that training reads.

windows.json            what the windows teach, their order and splits; written last
windows.started.json    in its place while windows are being made
windows/<name>.h5       the windows (window_file.py)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.files import PART, read_json, remove, write_json
from olmoearth_pipelines.windows.window import SPLITS, UNUSED, Window, WindowTask
from olmoearth_pipelines.windows.window_file import AGAIN, read_heads, read_window, write_windows

LIST, STARTED, FILES = "windows.json", "windows.started.json", "windows"
FORMAT, VERSION = "olmoearth windows", 1
SUFFIX = ".h5"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def write_window(folder: Path, window: Window, split: str) -> None:
    """Put a window into a folder, whole or not at all. Any process may, at any time before `finish`.

    Args:
        folder: where a `WindowWriter` was begun.
        window: its id becomes a file name: letters, digits, `.`, `_` and `-`.
        split: one of `SPLITS`, or `UNUSED`.

    Raises:
        ValueError: an id that is no file name, arrays that do not fit each other, an unknown split.
        OutputError: the system refused.
    """
    write_shard(folder, window.id, [(window, split)])


def write_shard(folder: Path, name: str, windows: Sequence[tuple[Window, str]]) -> None:
    """Put several windows into one file, as `write_window` does with one; their ids may be any text.

    Args:
        folder: where a `WindowWriter` was begun.
        name: of the file.
        windows: the windows with their splits.
    """
    write_windows(_file(folder, name), windows)


def begun(folder: Path, settings: Mapping[str, Any]) -> bool:
    """True where the making of these very windows was begun or finished in a folder; False where none were begun.

    Raises:
        OutputError: the folder holds windows of other settings.
        InputError: its list is damaged, or was made by a newer olmoearth.
    """
    wanted = _plain(settings)
    found = [_content(folder / name).get("settings") for name in (LIST, STARTED) if (folder / name).is_file()]
    for other in found:
        old = other if isinstance(other, dict) else {}
        keys = [key for key in sorted({*old, *wanted}) if old.get(key) != wanted.get(key)]
        if keys:
            changed = ", ".join(f"{key} was {old.get(key)}, is {wanted.get(key)}" for key in keys[:5])
            raise OutputError(
                f"{folder}: holds windows of other settings ({changed}). Move the folder away or delete it."
            )
    return bool(found)


class WindowWriter:
    """Fills a folder; begun again with the same settings, it goes on."""

    def __init__(self, folder: Path, task: WindowTask, settings: Mapping[str, Any]) -> None:
        """Begin, or go on.

        Args:
            folder: made if it is not there.
            task: what the windows share.
            settings: everything that decides the windows, as plain JSON.

        Raises:
            OutputError: the folder holds windows of other settings, or cannot be written.
        """
        self.folder = Path(folder)
        self.task, self._settings = task, _plain(settings)
        if not begun(self.folder, self._settings):
            write_json(self.folder / STARTED, self._header())
        for left in (self.folder / FILES).glob(f"*{PART}"):
            remove(left)

    def finished(self) -> WindowFolder | None:
        """The set, where an earlier run finished it; None where windows are to be made.

        Raises:
            InputError: it is damaged, or files are missing.
        """
        return WindowFolder.open(self.folder) if (self.folder / LIST).is_file() else None

    def done(self) -> set[str]:
        """Names of the files that are there: ids, where each window has a file of its own."""
        names = {path.stem for path in (self.folder / FILES).glob(f"*{SUFFIX}")}
        return {name for name in names if _SAFE.fullmatch(name)}

    def finish(self, order: Sequence[tuple[str, str]], task: WindowTask | None = None) -> WindowFolder:
        """Write the list, by which the set is complete. Windows on disk that it does not name are not part of the set.

        Args:
            order: (id, split) of each window, in the order of the set; the split is that of writing, or `UNUSED`.
            task: in place of the one at the beginning, where it is known only now (band statistics).

        Raises:
            ValueError: an id that occurs twice, was not written, or was written for another split.
            InputError: a file is damaged.
            OutputError: the system refused.
        """
        twice = [name for name, count in Counter(name for name, _ in order).items() if count > 1]
        if twice:
            raise ValueError(f"windows {', '.join(twice[:5])} are listed twice")
        places = self._places()
        rows = []
        for name, split in order:
            if name not in places:
                raise ValueError(f"window {name} was not written")
            head, file, at = places[name]
            if split not in {head.split, UNUSED}:
                raise ValueError(f"window {name} was written for {head.split!r}, not for {split!r}")
            rows.append((name, split, file, at, head.sha256))
        columns = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True)) if rows else _EMPTY
        write_json(self.folder / LIST, {**self._header(task), "windows": columns})
        remove(self.folder / STARTED)
        return WindowFolder.open(self.folder)

    def _places(self) -> dict[str, tuple[Any, str, int]]:
        """Id -> (head, file, position in it)."""
        places: dict[str, tuple[Any, str, int]] = {}
        for file in sorted(self.done()):
            for at, head in enumerate(read_heads(_file(self.folder, file))):
                if head.id in places:
                    raise ValueError(f"window {head.id} lies in {places[head.id][1]} and in {file}")
                places[head.id] = (head, file, at)
        return places

    def _header(self, task: WindowTask | None = None) -> dict[str, Any]:
        content = _task_json(task or self.task)
        return {"format": FORMAT, "version": VERSION, "task": content, "settings": self._settings}


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowFolder:
    """A finished folder of windows (a `WindowSource`): nothing but the list is in memory."""

    path: Path
    task: WindowTask
    settings: Mapping[str, Any]
    """Everything that decided the windows, as plain JSON."""
    ids: tuple[str, ...]
    """[N] in the order of the set."""
    splits: tuple[str, ...]
    """[N] one of `SPLITS`, or `UNUSED`."""
    files: tuple[str, ...]
    """[N] name of the file that holds the window."""
    places: tuple[int, ...]
    """[N] position in the file."""
    digests: tuple[str, ...]
    """[N] SHA-256 of the windows' content."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def open(cls, path: Path) -> WindowFolder:
        """Open a folder that `WindowWriter` finished.

        Raises:
            InputError: no such folder, unfinished, made by a newer olmoearth, damaged, or files are missing.
        """
        path = Path(path)
        if not (path / LIST).is_file():
            raise InputError(_why_no_list(path))
        content = _content(path / LIST)
        try:
            columns = content["windows"]
            ids, splits, files, places, digests = (tuple(columns[name]) for name in _COLUMNS)
            folder = cls(
                path=path,
                task=_task_from(content["task"]),
                settings=content["settings"],
                ids=tuple(map(str, ids)),
                splits=splits,
                files=files,
                places=tuple(map(int, places)),
                digests=tuple(map(str, digests)),
            )
            _check(folder)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path / LIST}: not a list of windows ({error!r}). {AGAIN}") from error
        present = {file.stem for file in (path / FILES).glob(f"*{SUFFIX}")}
        missing = sorted(set(folder.files) - present)
        if missing:
            first = path / FILES / f"{missing[0]}{SUFFIX}"
            raise InputError(f"{path}: {len(missing)} files of windows are missing, for example {first}. {AGAIN}")
        return folder

    def split(self, name: str) -> npt.NDArray[np.int64]:
        """Numbers of a split's windows, in the order of the set.

        Raises:
            ValueError: no such split.
        """
        if name not in SPLITS:
            raise ValueError(f"split {name!r}: choose from {', '.join(SPLITS)}")
        return np.flatnonzero(np.array(self.splits, dtype=object) == name).astype(np.int64)

    def read(self, number: int) -> Window:
        """A window.

        Raises:
            InputError: the file is gone or damaged.
        """
        return read_window(_file(self.path, self.files[number]), self.places[number], self.digests[number])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what the windows teach and each one's id, split and content, in order."""
        parts = [taught(self.task), *zip(self.ids, self.splits, self.digests, strict=True)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


_COLUMNS = ("id", "split", "file", "at", "sha256")
_EMPTY: dict[str, list[Any]] = {name: [] for name in _COLUMNS}


def _file(folder: Path, name: str) -> Path:
    if not _SAFE.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a file name: use letters, digits, '.', '_' and '-'")
    return Path(folder) / FILES / f"{name}{SUFFIX}"


def _why_no_list(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: no such folder. Give one that holds {LIST}."
    if (path / STARTED).is_file():
        return f"{path}: making its windows was broken off. Run the command that makes them again: it goes on."
    return f"{path}: holds no set of windows (no {LIST}). Give the folder that windows were written to."


def _content(path: Path) -> dict[str, Any]:
    """A list, or the beginning of one.

    Raises:
        InputError: damaged, or made by a newer olmoearth.
    """
    try:
        content = read_json(path)
    except InputError as error:
        raise InputError(f"{path}: not readable as JSON. {AGAIN}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a list of windows. {AGAIN}")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise InputError(
            f"{path}: version {version} of the format; this olmoearth reads up to {VERSION}. Install a newer one."
        )
    return content


def _check(folder: WindowFolder) -> None:
    """Refuse a list that contradicts itself (`ValueError`)."""
    count = len(folder.ids)
    if {len(folder.splits), len(folder.files), len(folder.places), len(folder.digests)} != {count}:
        raise ValueError("its columns differ in length")
    if len(set(folder.ids)) != count:
        raise ValueError("an id occurs twice")
    stray = sorted(map(repr, set(folder.splits) - {*SPLITS, UNUSED}))
    if stray:
        raise ValueError(f"unknown splits {', '.join(stray[:5])}")
    for name in set(folder.files):
        _file(folder.path, name)


def taught(task: WindowTask) -> dict[str, Any]:
    """A task without its name and where it comes from, as plain JSON: what a fingerprint covers."""
    return {key: value for key, value in _task_json(task).items() if key not in {"name", "facts"}}


def _task_json(task: WindowTask) -> dict[str, Any]:
    limits = task.normalisation and dict(task.normalisation)
    return _plain(vars(task) | {"facts": dict(task.facts), "normalisation": limits})


def _task_from(content: Mapping[str, Any]) -> WindowTask:
    limits = content["normalisation"]
    if limits is not None:
        limits = {name: (tuple(map(float, low)), tuple(map(float, high))) for name, (low, high) in limits.items()}
    names = {"class_names": tuple(content["class_names"]), "modalities": tuple(content["modalities"])}
    return WindowTask(**{**content, **names, "normalisation": limits})


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back; raises `TypeError` or `ValueError` where it cannot be written."""
    plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    return plain
