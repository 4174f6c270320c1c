"""Does a dataset on disk keep the format's promises? (spec/pretraining.md sections 1.3, 1.4 and 1.10)"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from olmoearth_cli.core.modality import ENCODER_INPUTS, MODALITIES
from olmoearth_cli.core.normalize import band_statistics
from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.files import read_json
from olmoearth_pipelines.samples import layout
from olmoearth_pipelines.samples.layout import SampleFolder
from olmoearth_pipelines.samples.rules import check_sample, odd_dtypes
from olmoearth_pipelines.samples.sample_file import (
    MASKS,
    PERIODS,
    Array,
    SampleData,
    check_rasters,
    dataset,
    hdf5_errors,
    open_file,
    read_array,
    read_timestamps,
)

UNUSED = ("gse", "worldpop", "era5_10")
"""In published files, but read by no model."""
ZSTD_ID = 32015
FAR_Z = 3.0
"""Distance of a band's mean from the training mean, in training deviations, that is worth a warning."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as the format wants it."""

    where: str
    """File, or the dataset's folder."""
    what: str
    """One line."""
    level: str = "error"
    """`error`, or `warning` where training can go on."""


def validate(root: Path, *, indices: Sequence[int] | None = None, most: int = 1000) -> list[Finding]:
    """Look at every file of a dataset.

    Args:
        root: as for `layout.open_folder`.
        indices: samples to look into; all by default. The folder itself is checked in any case.
        most: stop after so many findings.

    Returns:
        In the order of the files; empty where all is well.
    """
    try:
        folder = layout.open_folder(root)
    except InputError as error:
        return [Finding(where=str(root), what=str(error))]
    chosen = range(len(folder)) if indices is None else sorted(set(indices))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < len(folder):
        raise ValueError(f"indices {chosen[0]} to {chosen[-1]}: the dataset has samples 0 to {len(folder) - 1}")
    return list(itertools.islice(itertools.chain(_folder(folder), _samples(folder, chosen)), most))


def _folder(folder: SampleFolder) -> Iterator[Finding]:
    where = str(folder.path)
    found = layout.samples_on_disk(folder.path)
    missing = np.setdiff1d(np.arange(len(folder)), found)
    extra = found[found >= len(folder)]
    if len(missing):
        yield Finding(where=where, what=f"{len(missing)} of {len(folder)} sample files are missing, first {missing[0]}")
    if len(extra):
        yield Finding(where=where, what=f"{len(extra)} sample files are not in {layout.METADATA}, first {extra[0]}")
    wanted = {"compression": "zstd", "compression_opts": layout.ZSTD_LEVEL, "shuffle": None}
    try:
        settings = read_json(folder.path / layout.COMPRESSION)
    except InputError as error:
        yield Finding(where=where, what=str(error), level="warning")
    else:
        if settings != wanted:
            yield Finding(where=where, what=f"{layout.COMPRESSION} says {settings}, not {wanted}", level="warning")


def _samples(folder: SampleFolder, indices: Sequence[int]) -> Iterator[Finding]:
    """Findings of each sample, of each with the first one of its tile, and of all together."""
    try:
        places = _places(folder)
    except InputError as error:
        yield Finding(where=str(folder.path / layout.LATLON), what=str(error))
        places = None
    together = _Together()
    for index in indices:
        path = folder.sample(index)
        try:
            with open_file(path) as file, hdf5_errors(path):
                sample = _content(file, path)
                warnings = [*_storage(file, path), *odd_dtypes(sample)]
        except InputError as error:
            yield Finding(where=str(path), what=str(error))
            continue
        errors = [*together.add(index, sample), *_agreement(folder, places, index, sample)]
        yield from (Finding(where=str(path), what=what) for what in errors)
        yield from (Finding(where=str(path), what=what, level="warning") for what in warnings)
    yield from (Finding(where=str(folder.path), what=what, level="warning") for what in together.far_means())


class _Together:
    """What one sample cannot show: the common side, the neighbours in a tile, the means of all."""

    def __init__(self) -> None:
        self._side_px, self._pieces = 0, 1
        self._first: tuple[int, SampleData] | None = None
        self._sums: dict[str, Array] = {}
        self._counts: Counter[str] = Counter()

    def add(self, index: int, sample: SampleData) -> Iterator[str]:
        """Count a sample in; what is wrong with it, alone and beside the first one of its tile."""
        if not self._side_px:
            self._side_px = next((values.shape[0] for values in sample.images.values()), 0)
            try:
                self._pieces = layout.pieces_per_tile(self._side_px)
            except InputError as error:
                yield str(error)
        yield from check_sample(sample, self._side_px)
        tile = index // self._pieces
        if self._first is None or self._first[0] != tile:
            self._first = (tile, sample)
        elif not _same_tile(self._first[1], sample):
            yield "other place, dates or products than the first sample of its tile"
        for name in ENCODER_INPUTS:
            if name in sample.images and sample.images[name].size:
                mean = sample.images[name].mean(axis=(0, 1, 2), dtype=np.float64)
                self._sums[name] = self._sums.get(name, 0) + mean
                self._counts[name] += 1

    def far_means(self) -> Iterator[str]:
        """Bands whose mean over all samples the training never saw: other units, offsets or band orders."""
        for name, total in self._sums.items():
            statistics = band_statistics(name)
            z = (total / self._counts[name] - statistics.mean) / statistics.std
            bands = zip(MODALITIES[name].bands, z, strict=True)
            far = [f"{band} {score:+.1f}" for band, score in bands if abs(score) > FAR_Z]
            if far:
                yield f"{name}: means lie far from the training data's, in its deviations: {', '.join(far)}"


def _content(file: h5py.File, path: Path) -> SampleData:
    """A file's content, whole; a file without masks has all timesteps."""
    names = [name for name in MODALITIES if name in file]
    check_rasters({name: dataset(file, name, path) for name in names}, path)
    stamps = read_timestamps(file, path)
    series = [name for name in names if MODALITIES[name].multitemporal]
    if MASKS in file:
        masks = file[MASKS]
        if not isinstance(masks, h5py.Group):
            raise InputError(f"{path}: {MASKS} is not a group.")
        present = {name: read_array(masks, name, path) for name in masks if name not in UNUSED}
        odd = [name for name, mask in present.items() if mask.dtype != bool]
        if odd:
            raise InputError(f"{path}: {MASKS}/{odd[0]} is {present[odd[0]].dtype}, not bool.")
    else:
        present = {name: np.ones(PERIODS, dtype=bool) for name in series}
    return SampleData(
        latlon=read_array(file, "latlon", path),
        timestamps=stamps,
        images={name: read_array(file, name, path) for name in names},
        present=present,
    )


def _storage(file: h5py.File, path: Path) -> Iterator[str]:
    """What readers other than ours may stumble over."""
    known = {"latlon", "timestamps", MASKS, *MODALITIES, *UNUSED}
    strange = sorted(map(str, set(file) - known))
    if strange:
        yield f"unknown entries {strange}"
    if file["timestamps"].dtype.kind != "i" or file["timestamps"].dtype.itemsize != 4:
        yield f"timestamps are {file['timestamps'].dtype}, not int32"
    for name in sorted(set(file) & (known - {MASKS})):
        found = dataset(file, name, path)
        plist = found.id.get_create_plist()
        filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
        if found.chunks != found.shape or filters != [ZSTD_ID]:
            yield f"{name} has chunks {found.chunks} and filters {filters}; one Zstandard chunk is the format's"


def _places(folder: SampleFolder) -> Array:
    """[N, 2] of the latitude and longitude table."""
    path = folder.path / layout.LATLON
    try:
        places = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"not readable as a NumPy array ({error})") from error
    if not isinstance(places, np.ndarray) or places.shape != (len(folder), 2) or places.dtype != np.float64:
        found = f"{places.dtype} {places.shape}" if isinstance(places, np.ndarray) else "an archive"
        raise InputError(f"{found}, not float64 ({len(folder)}, 2)")
    return places


def _agreement(folder: SampleFolder, places: Array | None, index: int, sample: SampleData) -> Iterator[str]:
    """Do the tables say what the file says?"""
    for name, has in folder.has.items():
        if has[index] != (name in sample.images):
            yield f"{layout.METADATA} says {int(has[index])} for {name}, the file {int(name in sample.images)}"
    unlisted = sorted(set(sample.images) - set(folder.has))
    if unlisted:
        yield f"{layout.METADATA} has no column for {', '.join(unlisted)}"
    if places is not None and not np.array_equal(places[index].astype(np.float32), sample.latlon.astype(np.float32)):
        yield f"{layout.LATLON} says {places[index].tolist()}, the file {sample.latlon.tolist()}"


def _same_tile(one: SampleData, other: SampleData) -> bool:
    return (
        np.array_equal(one.latlon, other.latlon)
        and np.array_equal(one.timestamps, other.timestamps)
        and set(one.images) == set(other.images)
    )
