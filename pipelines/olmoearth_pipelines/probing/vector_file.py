"""Labelled vectors from a bare file, without a map: `--vectors file.npz` or `file.parquet`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.label_targets import Targets, targets_of
from olmoearth_pipelines.probing.samples import Samples

VECTOR_NAMES = ("vectors", "embeddings", "embedding", "vector", "features", "x")
"""Names of the array or column that holds the vectors, in order of preference, in any case."""
PLACES = (("lon", "lat"), ("longitude", "latitude"))
GROUP = "group"
"""Rows of one group (a parcel, a patient, a scene) are never divided between training and test."""


def read_vectors(
    path: Path, *, field: str | None, kind: str | None, split_field: str | None
) -> tuple[Samples, Targets, tuple[str, ...]]:
    """Read labelled vectors.

    Args:
        path: `.npz` with an array [N, D] and arrays [N] of labels and other attributes (no pickles), or `.parquet`
            with a column of lists of one length and columns of attributes. `lon` and `lat` (or `lonlat` [N, 2], or a
            geometry column) place the rows; `group` keeps rows together.
        field: name of the labels; found where None.
        kind: kind of target, to overrule what the labels look like.
        split_field: attribute whose values divide the rows.

    Returns:
        The samples, how the labels were read, and notes on rows left out.

    Raises:
        InputError: not readable, no vectors, lengths that differ, or labels that cannot be used.
    """
    vectors, columns, lonlat = _read(path)
    attributes = _attributes(columns)
    if field is None and list(attributes) == ["y"]:
        field = "y"  # numpy.savez(X=..., y=...): no coordinate
    targets = targets_of(attributes, source=str(path), field=field, task=kind)
    finite = np.isfinite(vectors).all(axis=1)
    kept = targets.kept & finite
    if not kept.any():
        raise InputError(f"{path}: no row has both a label and a vector of finite numbers.")
    notes = list(targets.notes)
    if lonlat is not None and not _on_earth(lonlat[kept]):
        raise InputError(f"{path}: its positions are no longitudes and latitudes in degrees. Mend or drop them.")
    if (targets.kept & ~finite).any():
        notes.append(f"{int((targets.kept & ~finite).sum())} of {len(vectors)} rows with NaN vectors left out")
    split = None
    if split_field is not None:
        if split_field not in columns:
            raise InputError(f"{path}: has no column {split_field!r} to split by. Its columns: {', '.join(columns)}.")
        split = columns[split_field].astype(object).to_numpy()[kept]
    rows = np.flatnonzero(kept)
    group = pd.factorize(columns[GROUP])[0][kept] if GROUP in columns else rows
    samples = Samples(
        kind=targets.kind,
        class_names=targets.class_names,
        vectors=np.ascontiguousarray(vectors[kept], dtype=np.float32),
        targets=targets.values[finite[targets.kept]],
        lonlat=None if lonlat is None else lonlat[kept],
        group=group.astype(np.int64),
        split=split,
    )
    return samples, targets, tuple(notes)


def _read(path: Path) -> tuple[npt.NDArray[np.floating[Any]], pd.DataFrame, npt.NDArray[np.float64] | None]:
    """Vectors [N, D], attributes of N rows, and lon/lat [N, 2] or None."""
    if not path.is_file():
        raise InputError(f"--vectors {path}: no such file.")
    readers = {".npz": _read_npz, ".parquet": _read_parquet, ".geoparquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"--vectors {path}: give a .npz or .parquet file.")
    vectors, columns, lonlat = reader(path)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or not vectors.size:
        raise InputError(
            f"--vectors {path}: vectors of shape {list(vectors.shape)} {vectors.dtype}; wanted [N, D] numbers."
        )
    return vectors, columns, lonlat if lonlat is not None else _places(columns)


def _read_npz(path: Path) -> tuple[npt.NDArray[Any], pd.DataFrame, npt.NDArray[np.float64] | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"--vectors {path}: cannot be read ({error}). Save plain arrays with numpy.savez (no Python objects)."
        ) from None
    vectors = arrays.pop(_vector_name(arrays, path))
    lonlat = arrays.pop("lonlat", None)
    wrong = [f"{name} {list(a.shape)}" for name, a in arrays.items() if a.shape != (len(vectors),)]
    if wrong or (lonlat is not None and lonlat.shape != (len(vectors), 2)):
        raise InputError(
            f"--vectors {path}: {len(vectors)} vectors, but {', '.join(wrong) or 'lonlat'} of another shape."
        )
    return vectors, pd.DataFrame(arrays), lonlat


def _read_parquet(path: Path) -> tuple[npt.NDArray[Any], pd.DataFrame, npt.NDArray[np.float64] | None]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path).to_pandas()
    except (OSError, ValueError) as error:
        raise InputError(f"--vectors {path}: cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
    name = _vector_name(table, path)
    lengths = table[name].map(lambda value: len(value) if isinstance(value, list | np.ndarray) else -1)
    if lengths.nunique() != 1 or lengths.iloc[0] < 1:
        raise InputError(f"--vectors {path}: column {name!r} must hold lists of numbers, all of one length.")
    vectors = np.stack(table[name].map(np.asarray).to_list())
    return vectors, table.drop(columns=name), _points(table, path)


def _points(table: pd.DataFrame, path: Path) -> npt.NDArray[np.float64] | None:
    """Middles of a GeoParquet's geometries, in lon/lat."""
    if "geometry" not in table:
        return None
    import geopandas

    try:
        frame = geopandas.read_parquet(path, columns=["geometry"]).to_crs(4326)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--vectors {path}: its column geometry is no GeoParquet ({str(error).splitlines()[0]}). "
            "Save it with geopandas, or drop the column and give lon and lat."
        ) from None
    middle = frame.geometry.representative_point()
    return np.column_stack([middle.x, middle.y])


def _vector_name(names: Mapping[str, Any] | pd.DataFrame, path: Path) -> str:
    by_name = {str(name).casefold(): str(name) for name in names}
    for wanted in VECTOR_NAMES:
        if wanted in by_name:
            return by_name[wanted]
    raise InputError(
        f"--vectors {path}: none of {', '.join(VECTOR_NAMES)} among its names ({', '.join(map(str, names)) or 'none'})."
    )


def _places(columns: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    by_name = {str(name).casefold(): name for name in columns}
    for lon, lat in PLACES:
        if lon in by_name and lat in by_name:
            place = columns[[by_name[lon], by_name[lat]]]
            return place.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    return None


def _on_earth(lonlat: npt.NDArray[Any]) -> bool:
    """False for values that are no numbers, or no degrees."""
    return lonlat.dtype.kind in "fiu" and bool((np.abs(lonlat) <= (180, 90)).all())


def _attributes(columns: pd.DataFrame) -> pd.DataFrame:
    """Columns that may be labels: not the ones that say where a row belongs."""
    reserved = {GROUP, "split", "geometry", *(name for pair in PLACES for name in pair)}
    return columns[[name for name in columns if str(name).casefold() not in reserved]]
