"""Write a dataset in the published format (spec/pretraining.md section 1.10), resumably.

The folder is named after the number of samples, which is known only at the end. Until then samples lie in
`unfinished.part`, and `tiles.jsonl` beside it lists what is complete: its first line says how the dataset is made, then
one line follows for each tile, after the tile's samples. It stays, as the record of which tile became which samples.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.files import PART, output_error, remove, write_bytes, write_json, write_text
from olmoearth_pipelines.samples import layout
from olmoearth_pipelines.samples.rules import check_sample, empty_periods, odd_dtypes
from olmoearth_pipelines.samples.sample_file import SampleData, write_sample

JOURNAL = "tiles.jsonl"
UNFINISHED = f"unfinished{PART}"
OTHER = "Choose another folder with --out."


class DatasetWriter:
    """A dataset that grows tile by tile and appears when it is finished.

    One process writes. A writer opened on the same folder again continues; a tile that was not complete is made anew.
    """

    def __init__(
        self, root: Path, modalities: Sequence[str], *, side_px: int = 128, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Begin or continue.

        Args:
            root: folder of the dataset.
            modalities: columns of the table, in order; a tile need not have them all.
            side_px: side of a sample; four per tile at 128, one at 256.
            settings: plain JSON, recorded; a dataset is continued only with the same ones.

        Raises:
            InputError: another side than the format knows, or an unreadable record.
            OutputError: the folder holds a dataset made otherwise.
        """
        unknown = [name for name in modalities if name not in MODALITIES]
        if unknown or not any(MODALITIES[name].multitemporal for name in modalities):
            raise ValueError(f"modalities {', '.join(modalities)}: known ones, with a satellite product, are written")
        self._modalities = tuple(modalities)
        self._side_px = side_px
        self._pieces = layout.pieces_per_tile(side_px)
        self._home = layout.modality_folder(root, modalities, side_px)
        self._work = self._home / UNFINISHED
        header = {
            "modalities": list(modalities),
            "side_px": side_px,
            "settings": json.loads(json.dumps(settings or {})),
        }
        self._tiles: dict[str, dict[str, Any]] = _journal(self._home / JOURNAL, header)

    def __contains__(self, name: object) -> bool:
        """Whether a tile is complete."""
        return name in self._tiles

    def __len__(self) -> int:
        """Samples so far."""
        return len(self._tiles) * self._pieces

    @property
    def leaf(self) -> Path:
        """Where the dataset will lie if no more tiles are added."""
        return self._home / str(len(self))

    def add(self, name: str, tile: SampleData) -> None:
        """Write the samples of a tile.

        Args:
            name: of the tile; for the record, and to know it again.
            tile: rasters of 256 x 256 px in the format's dtypes, row 0 north.

        Raises:
            ValueError: content that the format does not allow, or a name that is taken.
            OutputError: the system refused, or the dataset is finished.
        """
        if name in self._tiles:
            raise ValueError(f"tile {name} is complete already")
        if len(self) and self.leaf.exists():
            raise OutputError(f"{self.leaf}: this dataset is finished; tile {name} cannot be added. {OTHER}")
        findings = self._check(tile)
        if findings:
            raise ValueError(f"tile {name}: {'; '.join(findings)}")
        for k, piece in enumerate(pieces(tile, self._side_px)):
            write_sample(self._work / layout.sample_name(len(self) + k), piece)
        row = {"tile": name, "latlon": [float(v) for v in tile.latlon], "has": sorted(tile.images)}
        _append(self._home / JOURNAL, row)
        self._tiles[name] = row

    def finish(self) -> Path:
        """Write the tables and give the folder its name; again after an interruption, or for nothing.

        Returns:
            The leaf folder.

        Raises:
            InputError: there is no tile.
            OutputError: the system refused, or another dataset has the name.
        """
        if not self._tiles:
            raise InputError(f"{self._home}: no tile has data, so there is no dataset to write. Choose another region.")
        if self.leaf.exists() and not self._work.exists():
            return self.leaf
        self._tidy()
        write_text(self._work / layout.METADATA, self._table())
        write_bytes(self._work / layout.LATLON, self._latlon())
        write_json(
            self._work / layout.COMPRESSION,
            {"compression": "zstd", "compression_opts": layout.ZSTD_LEVEL, "shuffle": None},
        )
        try:
            self._work.rename(self.leaf)
        except OSError as error:
            raise output_error(self.leaf, error) from error
        return self.leaf

    def _check(self, tile: SampleData) -> list[str]:
        strangers = [name for name in tile.images if name not in self._modalities]
        if strangers:
            return [f"{', '.join(strangers)} not among the dataset's {', '.join(self._modalities)}"]
        findings = check_sample(tile, layout.TILE_PX) + odd_dtypes(tile)
        for name in ("sentinel2_l2a", "landsat"):
            if not findings and name in tile.images and (empty := empty_periods(tile.images[name])):
                findings.append(f"{name} is 0 everywhere in timesteps {empty}: leave them out")
        return findings

    def _tidy(self) -> None:
        """Clear away what a tile that never became complete has left; nothing may be missing then."""
        for path in self._work.glob(f"*{PART}"):
            remove(path)
        found = layout.samples_on_disk(self._work) if self._work.is_dir() else np.arange(0)
        missing = np.setdiff1d(np.arange(len(self)), found)
        if len(missing):
            raise OutputError(
                f"{self._work}: {len(missing)} of {len(self)} samples are gone, first {missing[0]}. Delete "
                f"{self._home} and run again."
            )
        for index in found[len(self) :]:
            remove(self._work / layout.sample_name(index))

    def _table(self) -> str:
        lines = [",".join((layout.INDEX, *self._modalities))]
        for tile in self._tiles.values():
            cells = ",".join(str(int(name in tile["has"])) for name in self._modalities)
            lines += [f"{len(lines) - 1 + k},{cells}" for k in range(self._pieces)]
        return "\n".join(lines) + "\n"

    def _latlon(self) -> bytes:
        values = np.array([tile["latlon"] for tile in self._tiles.values()], dtype=np.float64)
        file = io.BytesIO()
        np.save(file, values.repeat(self._pieces, axis=0), allow_pickle=False)
        return file.getvalue()


def pieces(tile: SampleData, side_px: int) -> Iterator[SampleData]:
    """Cut a tile into samples, row by row from the north-west; all keep the tile's place and dates."""
    for row in range(0, layout.TILE_PX, side_px):
        for column in range(0, layout.TILE_PX, side_px):
            cut = {
                name: np.ascontiguousarray(values[row : row + side_px, column : column + side_px])
                for name, values in tile.images.items()
            }
            yield replace(tile, images=cut)


def _journal(path: Path, header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the complete tiles by name; a new record if there is none."""
    if not path.exists():
        if path.parent.is_dir() and any(p.is_dir() or not p.name.endswith(PART) for p in path.parent.iterdir()):
            raise OutputError(f"{path.parent}: holds files, but no {JOURNAL} of this program. {OTHER}")
        write_text(path, json.dumps(header) + "\n")
        return {}
    try:
        text = path.read_bytes()
        # A line that was being written when the power went has no end: its tile is not complete.
        whole = text[: text.rfind(b"\n") + 1]
        found, *rows = [json.loads(line) for line in whole.splitlines()]
        tiles = {row["tile"]: row for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not readable as the record of a dataset ({error}). {OTHER}") from error
    if found != header:
        changed = ", ".join(key for key in header if not isinstance(found, dict) or found.get(key) != header[key])
        raise OutputError(f"{path.parent}: holds a dataset made with other {changed or 'settings'}. {OTHER}")
    if whole != text:
        write_bytes(path, whole)
    return tiles


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line that is there after a power cut, or not at all."""
    size = None
    try:
        size = path.stat().st_size
        with path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if size is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
        raise output_error(path, error) from error
