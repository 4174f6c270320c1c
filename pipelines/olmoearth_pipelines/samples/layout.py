"""Where a pretraining dataset keeps what (spec/pretraining.md sections 1.2 and 1.3).

Upstream takes the number of samples from the folder's name. Here `sample_metadata.csv` says it, and a name that
disagrees is refused; nothing else is read from names.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.files import PART, sha256

METADATA = "sample_metadata.csv"
LATLON = "latlon_distribution.npy"
COMPRESSION = "compression_settings.json"
INDEX = "sample_index"
TILE_PX = 256
"""Side of the tile that samples are cut from, at 10 m."""
ZSTD_LEVEL = 3
_BASE = f"h5py_data_w_missing_timesteps_zstd_{ZSTD_LEVEL}"
_DEPTH = 3
"""Folders between the root of an unpacked archive and its samples."""
_SAMPLE = re.compile(r"sample_(0|[1-9]\d*)\.h5")


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleFolder:
    """The leaf folder of a dataset, as its CSV describes it."""

    path: Path
    """Holds `sample_{i}.h5`."""
    has: Mapping[str, npt.NDArray[np.bool_]]
    """{modality: [N]} True where sample i holds it; only the models' modalities that the CSV has a column for."""
    count: int
    """Samples N."""
    csv_sha256: str
    """Of `sample_metadata.csv`."""

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Path:
        """The file of a sample."""
        return self.path / sample_name(index)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint records, to know the dataset again (section 6.2)."""
        return {"samples": self.count, "csv_sha256": self.csv_sha256}


def sample_name(index: int) -> str:
    """File name of a sample; no zero padding."""
    return f"sample_{index}.h5"


def pieces_per_tile(side_px: int) -> int:
    """Samples that one tile is cut into.

    Raises:
        InputError: tiles of 256 px cannot be cut into such samples.
    """
    if side_px < 8 or TILE_PX % side_px:
        raise InputError(
            f"samples of {side_px} x {side_px} px: a tile of {TILE_PX} px is cut into 8, 16, 32, 64, 128 or 256 px. "
            "Write the dataset with one of these sides."
        )
    return (TILE_PX // side_px) ** 2


def modality_folder(root: Path, modalities: Sequence[str], side_px: int) -> Path:
    """Parent of the leaf folder of a new dataset: `<root>/<format>/<modalities>`."""
    tiling = f"_{side_px}_x_{pieces_per_tile(side_px)}"
    return root / f"{_BASE}{tiling}" / "_".join(sorted(modalities))


def open_folder(root: Path) -> SampleFolder:
    """Find a dataset and read its table.

    Args:
        root: the folder with the samples, or one of up to three folders above it (where archives were unpacked).

    Raises:
        InputError: no dataset there or several, a damaged table, or a folder name that contradicts it.
    """
    path = _leaf(Path(root))
    raw = _read(path / METADATA)
    table = _table(raw, path / METADATA)
    if path.name.isascii() and path.name.isdigit() and int(path.name) != len(table):
        raise InputError(
            f"{path}: the folder is named after {int(path.name)} samples, but {METADATA} lists {len(table)}. Unpack "
            f"the archives again; if the table is right, rename the folder to {len(table)}."
        )
    has = {name: table[name].to_numpy() == 1 for name in MODALITIES if name in table}
    return SampleFolder(path=path, has=has, count=len(table), csv_sha256=sha256(raw))


def samples_on_disk(path: Path) -> npt.NDArray[np.int64]:
    """Sorted indices of the sample files in a leaf folder; one pass over its listing."""
    with os.scandir(path) as entries:
        found = [int(match[1]) for entry in entries if (match := _SAMPLE.fullmatch(entry.name))]
    return np.sort(np.array(found, dtype=np.int64))


def _leaf(root: Path) -> Path:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder. Give the folder where the pretraining dataset was unpacked.")
    try:
        found = sorted(_leaves(root, _DEPTH))
    except OSError as error:
        raise InputError(f"{root}: cannot be listed ({error.strerror}). Check its permissions.") from error
    if not found:
        raise InputError(
            f"{root}: no {METADATA} here or up to {_DEPTH} folders below. Give the folder where the HDF5 archives of "
            "the pretraining dataset were unpacked."
        )
    if len(found) > 1:
        listed = ", ".join(str(each) for each in found)
        raise InputError(f"{root}: holds {len(found)} datasets ({listed}). Give the folder of one of them.")
    return found[0]


def _leaves(folder: Path, depth: int) -> Iterator[Path]:
    """Leaf folders at or below; never lists one, for it may hold a million files."""
    if (folder / METADATA).is_file():
        yield folder
    elif depth:
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if entry.is_dir() and not entry.name.endswith(PART)]
        for path in below:
            yield from _leaves(Path(path), depth - 1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error


def _table(raw: bytes, path: Path) -> pd.DataFrame:
    """The CSV's rows in the order of the samples, checked."""
    again = "Unpack the dataset again."
    try:
        table = pd.read_csv(io.BytesIO(raw))
    except ValueError as error:  # pandas' parser errors and bad encodings are ValueErrors
        raise InputError(f"{path}: not a CSV table ({error}). {again}") from error
    if INDEX not in table or not len(table):
        raise InputError(f"{path}: a column {INDEX} and at least one sample are needed. {again}")
    table = table.sort_values(INDEX, ignore_index=True)
    if not table[INDEX].equals(pd.Series(range(len(table)), name=INDEX)):
        raise InputError(f"{path}: {INDEX} must run from 0 to {len(table) - 1}, each once. {again}")
    for name in table.columns.drop(INDEX):
        if not table[name].isin([0, 1]).all():
            odd = table.index[~table[name].isin([0, 1])][0]
            raise InputError(f"{path}: {name} of sample {odd} is {table[name][odd]}, not 0 or 1. {again}")
    if not any(name in table and MODALITIES[name].multitemporal for name in MODALITIES):
        raise InputError(f"{path}: no column of a satellite product ({', '.join(table.columns)}). {again}")
    return table
