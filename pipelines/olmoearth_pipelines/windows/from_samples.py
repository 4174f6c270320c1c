"""Samples in the pretraining layout as labelled windows: one of their maps is what is learned.

Nothing is copied: a window is cut out of its sample when it is asked for. Windows lie on a fixed grid within the
samples, and whole blocks of land go to one split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.probing.plane import numbered
from olmoearth_pipelines.samples.layout import LATLON, SampleFolder, open_folder, pieces_per_tile
from olmoearth_pipelines.samples.loader import sample_side
from olmoearth_pipelines.samples.order import Indices, usable_samples
from olmoearth_pipelines.samples.sample_file import PERIODS, Crop, open_sample
from olmoearth_pipelines.samples.sample_file import Window as Cut
from olmoearth_pipelines.windows.folder import taught
from olmoearth_pipelines.windows.window import SPLITS, Array, Window, WindowTask

WORLDCOVER: Mapping[int, str] = MappingProxyType(
    {
        10: "tree cover",
        20: "shrubland",
        30: "grassland",
        40: "cropland",
        50: "built-up",
        60: "bare or sparse vegetation",
        70: "snow and ice",
        80: "permanent water",
        90: "herbaceous wetland",
        95: "mangroves",
        100: "moss and lichen",
    }
)
"""Codes of ESA WorldCover; 0 is no data."""
VALUES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"wri_canopy_height_map": (0.0, 254.0), "srtm": (-500.0, 9000.0)}
)
"""Maps of metres that can be learned -> least and largest value; voids lie outside."""
SHARES = (0.6, 0.2, 0.2)
"""Of the samples in each of `SPLITS`."""
BLOCKS_KM = (50.0, 20.0, 10.0, 5.0)
BLOCKS_AT_LEAST = 20
"""Blocks that the chosen side leaves; where none does, tiles are what is not divided."""
RADAR_FLOOR_DB = -100.0
"""What no power at all becomes in decibels."""
KM_PER_DEGREE = 111.195
PIXEL_KM = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleWindows:
    """Windows of a sample folder (a `WindowSource`). Make one with `sample_windows`."""

    folder: SampleFolder
    task: WindowTask
    samples: Indices
    """[N] indices of the samples that are used."""
    blocks: Indices
    """[N] block of land of each."""
    roles: npt.NDArray[np.int8]
    """[N] position in `SPLITS` of each."""
    places: npt.NDArray[np.float64]
    """[N, 2] latitude and longitude of each sample's tile."""
    side_px: int
    """Side of the samples."""

    @property
    def per_side(self) -> int:
        """Windows along a sample's side."""
        return self.side_px // self.task.window_px

    def __len__(self) -> int:
        return len(self.samples) * self.per_side**2

    def split(self, name: str) -> npt.NDArray[np.int64]:
        """Numbers of a split's windows, sample by sample.

        Raises:
            ValueError: no such split.
        """
        if name not in SPLITS:
            raise ValueError(f"split {name!r}: choose from {', '.join(SPLITS)}")
        windows = self.per_side**2
        chosen = np.flatnonzero(self.roles == SPLITS.index(name))
        return (chosen[:, None] * windows + np.arange(windows)).reshape(-1).astype(np.int64)

    def read(self, number: int) -> Window:
        """A window, float32 throughout.

        Raises:
            InputError: the sample's file is gone or damaged, or its map has codes that are unknown.
        """
        at, piece = divmod(int(number), self.per_side**2)
        row, column = (part * self.task.window_px for part in divmod(piece, self.per_side))
        index, field = int(self.samples[at]), self.task.field
        path = self.folder.sample(index)
        with open_sample(path, (*self.task.modalities, field)) as sample:
            side, periods = self.task.window_px, len(sample.timestamps)
            crop = sample.read(Cut(row=row, column=column, side_px=side, start=0, periods=periods))
        images, valid = _images(crop, self.task)
        return Window(
            id=f"sample_{index}_r{row}_c{column}",
            images=images,
            valid=valid,
            absent={name: np.zeros(image.shape[2:], np.bool_) for name, image in images.items()},
            timestamps=crop.timestamps.astype(np.int64),
            target=_target(crop, field, path),
            lonlat=self._centre(at, index, row, column),
            group=int(self.blocks[at]),
        )

    def _centre(self, at: int, index: int, row: int, column: int) -> tuple[float, float]:
        """Longitude and latitude of a window's middle, from its tile's; a few metres off."""
        pieces = pieces_per_tile(self.side_px)
        across = round(pieces**0.5)
        below, right = (part * self.side_px for part in divmod(index % pieces, across))
        middle = across * self.side_px / 2 - self.task.window_px / 2
        south, east = ((part - middle) * PIXEL_KM / KM_PER_DEGREE for part in (below + row, right + column))
        latitude, longitude = (float(value) for value in self.places[at])
        return longitude + east / float(np.cos(np.radians(latitude))), latitude - south

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the dataset's table, the task and the splits; the files' content is not read for it."""
        digest = hashlib.sha256(json.dumps([self.folder.identity(), taught(self.task)], sort_keys=True).encode())
        for values in (self.samples, self.blocks, self.roles):
            digest.update(values.tobytes())
        return digest.hexdigest()


def sample_windows(
    path: Path,
    *,
    field: str = "worldcover",
    modalities: Sequence[str] | None = None,
    window_px: int = 64,
    block_km: float | None = None,
    seed: int = 42,
) -> SampleWindows:
    """Open a dataset of `olmoearth export data`, or the published one.

    Args:
        path: its folder.
        field: map modality that is learned: `worldcover` (classes), `wri_canopy_height_map` or `srtm` (metres).
        modalities: satellite products that are read; None for all that samples have.
        window_px: side of the windows; divides that of the samples.
        block_km: side of the blocks of land that are not divided between splits; None chooses it by the number of
            blocks. 60 % of the samples train, 20 % validate and 20 % test.
        seed: of the division.

    Raises:
        InputError: no dataset, a map that cannot be learned or that no sample has, windows that do not fit, or too
            little land for three splits.
    """
    if field != "worldcover" and field not in VALUES:
        raise InputError(f"{field}: cannot be learned from samples. Choose worldcover, {', '.join(VALUES)}.")
    folder = open_folder(path)
    chosen = _chosen(folder, modalities)
    samples = usable_samples(folder, chosen)
    samples = samples[folder.has[field][samples]] if field in folder.has else samples[:0]
    if not len(samples):
        raise InputError(f"{folder.path}: no sample with imagery has the map {field}. Choose another --field.")
    side_px = sample_side(folder, int(samples[0]), chosen)
    if not 0 < window_px <= side_px or side_px % window_px:
        raise InputError(f"windows of {window_px} px: choose a divisor of the samples' {side_px} px.")
    latlon = _latlon(folder)[samples]
    tiles = numbered(samples // pieces_per_tile(side_px))
    blocks, side_km = _blocks(latlon, tiles, block_km)
    return SampleWindows(
        folder=folder,
        task=WindowTask(
            name=f"{Path(path).resolve().name} {field}",
            kind="segmentation" if field == "worldcover" else "pixel_regression",
            class_names=tuple(WORLDCOVER.values()) if field == "worldcover" else (),
            field=field,
            modalities=chosen,
            window_px=window_px,
            periods=PERIODS,
            facts={"samples": str(folder.path), "split": "spatial", "block_km": side_km, "seed": seed},
        ),
        samples=samples,
        blocks=blocks,
        roles=_roles(blocks, seed, folder.path),
        places=latlon,
        side_px=side_px,
    )


def _chosen(folder: SampleFolder, modalities: Sequence[str] | None) -> tuple[str, ...]:
    """Satellite products that are read, in canonical order."""
    held = [name for name in folder.has if MODALITIES[name].multitemporal and folder.has[name].any()]
    lacking = [name for name in modalities or () if name not in held]
    if lacking:
        raise InputError(f"{folder.path}: no sample has {', '.join(lacking)}; they have {', '.join(held)}.")
    return tuple(name for name in MODALITIES if name in (held if modalities is None else modalities))


def _latlon(folder: SampleFolder) -> npt.NDArray[np.float64]:
    """[N, 2] latitude and longitude of every sample's tile."""
    path = folder.path / LATLON
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not readable as places of samples ({error}). Unpack the dataset again.") from error
    if values.shape != (len(folder), 2) or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise InputError(
            f"{path}: {values.dtype} of shape {values.shape} where {len(folder)} places in degrees are needed. Unpack "
            "the dataset again."
        )
    return values.astype(np.float64)


def _blocks(latlon: Array, tiles: Indices, side_km: float | None) -> tuple[Indices, float | None]:
    """Block of each sample, and the side of the blocks; None where tiles are the blocks."""
    if side_km is not None:
        return _squares(latlon, side_km), side_km
    for candidate in BLOCKS_KM:
        blocks = _squares(latlon, candidate)
        if blocks.max() + 1 >= BLOCKS_AT_LEAST:
            return blocks, candidate
    return tiles, None


def _squares(latlon: Array, side_km: float) -> Indices:
    """Number of the square that each place lies in: rows of equal height, cut into squares from Greenwich on."""
    if not 0 < side_km < np.inf:
        raise InputError(f"--block-km {side_km}: the side of a block must be a positive number of kilometres.")
    step = side_km / KM_PER_DEGREE
    row = np.floor(latlon[:, 0] / step)
    width = step / np.cos(np.radians(np.clip((row + 0.5) * step, -89.0, 89.0)))
    return numbered(np.stack([row, np.floor(latlon[:, 1] / width)], axis=1))


def _roles(blocks: Indices, seed: int, path: Path) -> npt.NDArray[np.int8]:
    """Position in `SPLITS` of each sample: blocks in a drawn order, dealt until each split has its share."""
    count = int(blocks.max()) + 1
    if count < len(SPLITS):
        raise InputError(
            f"{path}: the samples lie in {count} blocks of land; train, val and test need one each. Choose smaller "
            "blocks with --block-km, or more samples."
        )
    order = np.random.default_rng(seed).permutation(count)
    sizes = np.bincount(blocks)[order]
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    role = np.searchsorted(np.cumsum(SHARES)[:-1], middle, side="right")
    # However large the blocks are, no split is empty.
    role = np.clip(role, np.maximum(0, np.arange(count) - count + len(SPLITS)), np.arange(count))
    dealt = np.empty(count, np.int8)
    dealt[order] = role
    return dealt[blocks]


def _images(crop: Crop, task: WindowTask) -> tuple[dict[str, Array], dict[str, npt.NDArray[np.bool_]]]:
    """{modality: [H, W, T, C]}, zeros where a timestep is missing, and {modality: [H, W, T]}, True with data."""
    images, valid, side = {}, {}, task.window_px
    for name, values in crop.values.items():
        if name == task.field:
            continue
        present = crop.present[name]
        image = np.zeros((side, side, len(present), values.shape[-1]), np.float32)
        image[:, :, present] = values
        # As in maps: optical pixels are no data where all bands are 0, radar where a polarisation has no power.
        data = (image > RADAR_FLOOR_DB).all(axis=-1) if name == "sentinel1" else (image > 0).any(axis=-1)
        images[name], valid[name] = image, data & present
    return images, valid


def _target(crop: Crop, field: str, path: Path) -> Array:
    """int64 [H, W] class ids, -1 without data; or float32 [H, W], NaN without data."""
    if field not in crop.values:
        raise InputError(f"{path}: has no {field}, although the table says so. Unpack the dataset again.")
    values = crop.values[field][:, :, 0, 0]  # H W
    if field in VALUES:
        low, high = VALUES[field]
        return np.where((values >= low) & (values <= high), values, np.float32(np.nan))
    codes = np.array([0, *WORLDCOVER])
    strange = np.setdiff1d(values, codes)
    if len(strange):
        raise InputError(f"{path}: {field} has the codes {strange[:5].tolist()}, which are no classes of WorldCover.")
    target: Array = np.searchsorted(codes, values) - 1
    return target
