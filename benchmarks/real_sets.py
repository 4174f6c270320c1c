"""The labelled real data of ../shared/data as a user would hold it: imagery to map, labels, vectors.

Labels that come as a raster are given to the probe as that raster (spatial folds), or as one point per pixel in a CSV
with a column `side` where the data's README suggests which land to train and to test on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch
from rasterio.warp import transform, transform_bounds

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.normalize import normalize
from tests import real_catalogs as real

CORSICA = real.DATA / "points-s1s2-monthly-corsica-2022"
CORSICA_CLASSES = {
    "grasslands": "grassland",
    "permanent_crops": "permanent",
    "temporary_crops": "temporary",
    "temporary_grasses": "temporary",
}
"""`landcover10` -> class; 407 samples have one."""
CORSICA_BLOCK_DEGREES = 0.05
"""Side of the cells by which the README's folds are grouped."""
MISSING_DN = 65535
CHILE, DENMARK, TANZANIA = "433D_629L_3_1", "637U_59R_1_3", "38D_378R_2_3"
CHIP_START = {CHILE: "2020-04-01", DENMARK: "2017-10-15", TANZANIA: "2023-06-01"}
"""First day of a 30-day period that holds both images of the chip."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Labels, and how they are divided."""

    name: str
    """Split, for the table."""
    labels: Path
    split: str = "spatial"
    field: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scenery:
    """Imagery that is mapped once per encoder, and what is asked of it."""

    name: str
    catalog: Path
    aoi: str
    """A file, or bounds in lon/lat."""
    embed: tuple[str, ...]
    """Flags of `olmoearth embed`."""
    questions: tuple[Question, ...]


def haspengouw(folder: Path) -> list[Scenery]:
    """Cropland in Belgium over twelve months; west to east are the README's sides in whole cells of 40 m."""
    catalog, region = real.haspengouw(folder)
    sides = {"train": (0, 44), "test": (56, 100)}
    points = pixel_points(real.HASPENGOUW_LABELS, sides, folder / "columns.csv", field="cropland")
    questions = (
        Question(name="spatial folds", labels=real.HASPENGOUW_LABELS),
        Question(name="west to east", labels=points, split="field:side", field="cropland"),
    )
    flags = ("--start", "2020-11-01", "--patch-size", "4")
    return [Scenery(name="Haspengouw cropland", catalog=catalog, aoi=str(region), embed=flags, questions=questions)]


def terramesh(folder: Path) -> list[Scenery]:
    """Land cover of three chips, one date each."""
    found = []
    for chip, place in ((CHILE, "Chile"), (DENMARK, "Denmark"), (TANZANIA, "Tanzania")):
        catalog, _ = real.terramesh(folder / chip, chip)
        labels = real.TERRAMESH / chip / "LULC.tif"
        questions = [Question(name="spatial folds", labels=labels)]
        if chip == CHILE:
            sides = {"train": (0, 107), "test": (117, 224)}
            points = pixel_points(labels, sides, folder / chip / "columns.csv", field="lulc")
            questions.append(Question(name="west to east", labels=points, split="field:side", field="lulc"))
        found.append(
            Scenery(
                name=f"TerraMesh {place}",
                catalog=catalog,
                aoi=bounds_of(labels),
                embed=("--start", CHIP_START[chip], "--periods", "1", "--patch-size", "4"),
                questions=tuple(questions),
            )
        )
    return found


def leipzig(folder: Path) -> list[Scenery]:
    """Ninety-seven points in cells of 40 m (the default) and of 10 m (one pixel, as in the README)."""
    catalog, region = real.leipzig(folder)
    labels = real.LEIPZIG / "leipzig_points.geojson"
    questions = tuple(Question(name=f"{how} folds", labels=labels, split=how) for how in ("spatial", "random"))
    return [
        Scenery(
            name=f"Leipzig points, {10 * patch} m cells",
            catalog=catalog,
            aoi=str(region),
            embed=("--start", "2018-07-01", "--periods", "1", "--modalities", "s2", "--patch-size", str(patch)),
            questions=questions,
        )
        for patch in (4, 1)
    ]


SCENERIES: Mapping[str, Callable[[Path], list[Scenery]]] = {
    "haspengouw": haspengouw,
    "terramesh": terramesh,
    "leipzig": leipzig,
}


def pixel_points(raster: Path, sides: Mapping[str, tuple[int, int]], out: Path, *, field: str) -> Path:
    """Labelled pixels of some columns [first, last) as points with `field` and `side`."""
    with rasterio.open(raster) as source:
        values = source.read(1)
        labelled = values != source.nodata if source.nodata is not None else np.ones_like(values, dtype=bool)
        frames = []
        for side, (first, last) in sides.items():
            rows, cols = np.nonzero(labelled[:, first:last])
            xs, ys = source.transform * (cols + first + 0.5, rows + 0.5)
            lon, lat = transform(source.crs, 4326, xs, ys)
            names = [f"class {value}" for value in values[rows, cols + first]]
            frames.append(pd.DataFrame({"lon": lon, "lat": lat, field: names, "side": side}))
    pd.concat(frames).to_csv(out, index=False)
    return out


def bounds_of(raster: Path) -> str:
    """The raster's bounds in lon/lat, as `--aoi` takes them."""
    with rasterio.open(raster) as source:
        return ",".join(f"{edge:.7f}" for edge in transform_bounds(source.crs, 4326, *source.bounds))


# --- Corsica: single pixels, no map ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelSeries:
    """N pixels over T months."""

    columns: dict[str, np.ndarray]
    """[N] class, lon, lat and block of each pixel."""
    values: dict[str, np.ndarray]
    """Modality -> model values float32 [N, T, C]; NaN where a month, or a band in all months, is missing."""
    stamps: np.ndarray
    """int64 [T, 3] day, month from 0, year."""


def corsica(first: str, last: str) -> PixelSeries:
    """The months from `first` to `last` (YYYY-MM) of the 407 parcels with one of the three classes."""
    labels = pd.read_csv(CORSICA / "labels.csv").set_index("sample_id")
    named = labels["landcover10"].map(CORSICA_CLASSES).dropna().sort_index()  # the order of the series
    series = pd.read_parquet(CORSICA / "timeseries.parquet").set_index(["sample_id", "timestamp"]).sort_index()
    months = series.index.get_level_values("timestamp")
    chosen = series[(months >= first) & (months <= f"{last}-28")].loc[named.index]
    days = chosen.index.get_level_values("timestamp").unique().sort_values()
    place = labels.loc[named.index, ["lon", "lat"]]
    cell = np.floor(place / CORSICA_BLOCK_DEGREES).astype(int).astype(str)
    columns = {
        "landcover": named.to_numpy(dtype=str),
        "lon": place["lon"].to_numpy(),
        "lat": place["lat"].to_numpy(),
        "block": (cell["lon"] + " " + cell["lat"]).to_numpy(dtype=str),
    }
    values = {
        "sentinel2_l2a": _model_values(chosen, "sentinel2_l2a", "S2-L2A-{}", len(named)),
        "sentinel1": _model_values(chosen, "sentinel1", "S1-SIGMA0-{}", len(named)),
    }
    return PixelSeries(columns=columns, values=values, stamps=np.array([(d.day, d.month - 1, d.year) for d in days]))


def _model_values(table: pd.DataFrame, modality: str, column: str, count: int) -> np.ndarray:
    """[N, T, C] in the models' units, NaN where there is no value."""
    bands = MODALITIES[modality].bands
    physical = np.full((len(table), len(bands)), np.nan)
    for i, band in enumerate(bands):
        name = column.format(band.upper())
        if name in table:
            physical[:, i] = table[name].replace(MISSING_DN, np.nan)
    if modality == "sentinel1":
        physical = 20 * np.log10(physical) - 83  # decibel; the README's formula
    out = normalize(modality, physical, release="v1.2")
    out[np.isnan(physical)] = np.nan
    return out.reshape(count, -1, len(bands))


def raw_features(series: PixelSeries) -> np.ndarray:
    """float32 [N, F]: as the raw-band baseline over a map does it: filled in time, columns centred, spread kept."""
    parts = []
    for values in series.values.values():
        n, t, _ = values.shape
        there = values[..., ~np.isnan(values).all(axis=(0, 1))]
        wide = pd.DataFrame(there.transpose(0, 2, 1).reshape(-1, t))
        filled = wide.interpolate(axis=1, limit_direction="both").to_numpy().reshape(n, -1)
        parts.append(filled - np.nanmean(filled, axis=0))
    return np.nan_to_num(np.concatenate(parts, axis=1)).astype(np.float32)


def encoded(series: PixelSeries, model: OlmoEarthModel) -> np.ndarray:
    """float32 [N, D]: windows of one pixel, patch size 1; months without data are masked, absent bands are 0."""
    inputs, masks = {}, {}
    for modality, values in series.values.items():
        absent = np.isnan(values).all(axis=(0, 1))
        missing = np.isnan(values[..., ~absent]).any(axis=-1)  # N T
        inputs[modality] = torch.as_tensor(np.nan_to_num(values))[:, None, None]  # N 1 1 T C
        codes = torch.as_tensor(np.where(missing, 3, 0))[:, None, None, :, None]
        sets = len(model.spec.encoder.band_sets(modality))
        masks[modality] = codes.expand(-1, -1, -1, -1, sets).contiguous()
    stamps = torch.as_tensor(series.stamps)[None].expand(len(series.columns["lon"]), -1, -1)
    with torch.inference_mode():
        tokens = model.encode(inputs, stamps, masks, 1)
        return model.pool(tokens, masks)[:, 0, 0].float().numpy()
