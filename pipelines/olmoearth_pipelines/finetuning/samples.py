"""The windows that a run shows, kept in its folder so that its page can be made again without model and imagery."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from olmoearth_cli.errors import OutputError
from olmoearth_cli.maps.files import write_bytes
from olmoearth_pipelines.finetuning.report import Shown

SAMPLES = "samples.npz"
"""`id` [n] text, `picture` uint8 [n, H, W, 3], `truth` and `predicted` [n, ...]; all windows of a run are alike."""


def write_samples(folder: Path, shown: Sequence[Shown]) -> None:
    """Keep windows, at least one.

    Raises:
        OutputError: the system refused; an older file is untouched.
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        id=np.array([one.id for one in shown], dtype=np.str_),
        picture=np.stack([one.picture for one in shown]),
        truth=np.stack([one.truth for one in shown]),
        predicted=np.stack([one.predicted for one in shown]),
    )
    write_bytes(folder / SAMPLES, buffer.getbuffer())


def read_samples(folder: Path) -> list[Shown]:
    """The windows of a finished run; none where they were not kept. Nothing is unpickled.

    Raises:
        OutputError: the file is damaged.
    """
    path = folder / SAMPLES
    if not path.exists():
        return []
    try:
        with np.load(path, allow_pickle=False) as kept:
            names, *parts = (kept[key] for key in ("id", "picture", "truth", "predicted"))
        rows = list(zip(names, *parts, strict=True))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutputError(f"{path}: damaged ({reason}). Delete it for a page without pictures.") from error
    return [
        Shown(id=str(name), picture=picture, truth=np.asarray(truth), predicted=np.asarray(predicted))
        for name, picture, truth, predicted in rows
    ]
