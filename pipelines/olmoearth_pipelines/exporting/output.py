"""Where an export goes: refused early, made beside, moved into place whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from olmoearth_cli.errors import OutputError
from olmoearth_cli.maps.files import output_error


def check_output(out: Path, *, overwrite: bool, own_file: str | None = None) -> None:
    """Refuse a place that holds something that the export must not replace.

    Args:
        out: file or folder to write.
        overwrite: True allows replacing what an earlier export left.
        own_file: for a folder, the file by which an earlier export is known; None where a file is written.

    Raises:
        OutputError: what is in the way.
    """
    if not (out.exists() or out.is_symlink()):
        return
    if own_file is None and out.is_dir():
        raise OutputError(f"{out}: is a folder, and a file is to be written there. Choose another name.")
    if own_file is not None and not out.is_dir():
        raise OutputError(f"{out}: is a file, and a folder is to be written there. Choose another name.")
    if own_file is not None and any(out.iterdir()) and not (out / own_file).is_file():
        raise OutputError(f"{out}: holds other files (no {own_file}). Choose another folder; this one is left alone.")
    if not overwrite:
        raise OutputError(f"{out}: is there already. Choose another name, or replace it with --overwrite.")


@contextmanager
def work_folder(out: Path, *, flag: str = "--out") -> Iterator[Path]:
    """A folder beside the output, on its file system; gone at the end, whatever happens.

    Args:
        out: file or folder to write.
        flag: what the user said the output with.

    Raises:
        OutputError: it cannot be made.
    """
    work = out.with_name(f".{out.name}.work")
    try:
        if work.exists():
            shutil.rmtree(work)  # of a run that was killed
        work.mkdir(parents=True)
    except OSError as error:
        raise output_error(out, error, flag=flag) from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)
