"""Files that appear whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from olmoearth_cli.errors import InputError, OutputError

PART = ".part"
"""Ending of a file that is being written; never read, cleared away by the next run."""

_REASONS = {
    errno.EEXIST: "a file is in the place of a folder. Choose another folder with {flag}.",
    errno.ENOTDIR: "a file is in the place of a folder. Choose another folder with {flag}.",
    errno.ENOSPC: "the disk is full. Free some space and run again (finished tiles are kept), "
    "or choose another folder with {flag}.",
    errno.EDQUOT: "the disk quota is used up. Free some space, or choose another folder with {flag}.",
    errno.EFBIG: "the file would be larger than this system allows (ulimit -f, or the file system). "
    "Raise the limit, or choose another folder with {flag}.",
    errno.EACCES: "no permission to write. Choose another folder with {flag}, or change its permissions.",
    errno.EPERM: "no permission to write. Choose another folder with {flag}, or change its permissions.",
    errno.EROFS: "the file system is read-only. Choose another folder with {flag}.",
}


def output_error(path: Path, error: OSError, *, flag: str = "--out") -> OutputError:
    """The message for a file that the system refused to write; `flag` is what the user said its place with."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}. Check the folder, or choose another {flag}.")
    return OutputError(f"{path}: cannot be written: {reason.replace('{flag}', flag)}")


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` in one step: readers see the old file or the new one, never a part.

    Raises:
        OutputError: the system refused; the old file, if any, is untouched.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def publish(part: Path, out: Path) -> None:
    """Move a finished file or folder to its place in one step; a folder that is in the way is replaced.

    Raises:
        OutputError: the system refused.
    """
    aside = out.with_name(f".{out.name}.{secrets.token_hex(4)}{PART}")
    try:
        if part.is_dir():
            os.sync()  # its files may be many: one call for all
            if out.is_dir():
                out.rename(aside)  # no system call replaces a folder that holds files
        else:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(out)
        _sync_folder(out.parent)
        if aside.is_dir():
            shutil.rmtree(aside)
    except OSError as error:
        raise output_error(out, error) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; file systems that cannot sync a folder order it themselves."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write plain JSON (no NaN) in one step."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON that an earlier run wrote.

    Raises:
        InputError: not readable, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}). Restore the file, or make the map again.") from error


def remove(path: Path) -> None:
    """Delete a file; nothing happens where there is none.

    Raises:
        OutputError: the system refused.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def sha256(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
