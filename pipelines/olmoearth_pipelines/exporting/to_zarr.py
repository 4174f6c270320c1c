"""A map as a Zarr v3 store for xarray (spec/outputs.md 1.2): CF attributes, and the Zarr conventions beside them.

One zone lies in the root, several in a group each. Chunks without data are not written: `fill_value` stands for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pyproj import CRS

from olmoearth_cli.errors import InputError
from olmoearth_cli.maps.embedding_map import MapSpec, TileEntry
from olmoearth_cli.maps.map_spec import utc_text
from olmoearth_cli.maps.merge import Grid
from olmoearth_cli.maps.quantize import NO_DATA
from olmoearth_cli.maps.stac_collection import SOURCES
from olmoearth_cli.maps.stac_items import lineage, runtime_parameters
from olmoearth_pipelines.exporting.layers import Layer
from olmoearth_pipelines.exporting.source import Source, form_of, window_of

if TYPE_CHECKING:
    import zarr

EMBEDDING = "embedding"
CHUNK = 64
"""Side of a chunk in cells; a chunk holds all dimensions."""
SHARD = 256
"""Side of a shard in cells, where chunks are packed into larger files."""
CONVENTIONS = {
    "spatial:": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Where the pixels of an array are"),
    "proj:": ("f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system"),
    "geoemb:": ("61c12cc5-0e28-4056-999a-480cf3fb7e4c", "Geospatial embeddings and the model that made them"),
}
"""Prefix -> (UUID, what it says) of the conventions that are kept."""


def write_store(
    source: Source, grids: Sequence[tuple[Grid, tuple[TileEntry, ...]]], folder: Path, *, shard: bool
) -> list[Layer]:
    """Write a map's cells on one grid or several.

    Args:
        source: the map.
        grids: each with the tiles that fill it.
        folder: of the new store.
        shard: True packs 16 chunks into a file, which GDAL reads from 3.13 on.

    Raises:
        InputError: zarr is not installed, or a tile's file is gone or damaged.
    """
    root = _library().create_group(folder, zarr_format=3)
    root.attrs.update(_root_attributes(source.spec))
    layers = []
    for grid, tiles in grids:
        name = None if len(grids) == 1 else f"epsg_{grid.crs.to_epsg()}"
        group = root if name is None else root.create_group(name)
        cells = _write_group(source, grid, tiles, group, shard=shard)
        layers.append(Layer.of(grid, name=name, cells=cells))
        _consolidate(folder, name)
    if len(grids) > 1:
        _consolidate(folder, None)
    return layers


def _consolidate(folder: Path, name: str | None) -> None:
    """Repeat the metadata of a group's arrays in the group, where xarray looks first and warns if it is not there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        _library().consolidate_metadata(folder, path=name)


def _library() -> Any:
    try:
        import zarr
    except ImportError:
        raise InputError(
            "Zarr needs a package that is not installed here: pip install 'olmoearth[export]' (or zarr)."
        ) from None
    return zarr


def _write_group(source: Source, grid: Grid, tiles: tuple[TileEntry, ...], group: zarr.Group, *, shard: bool) -> int:
    """One raster with its coordinates; returns the number of cells with data."""
    spec = source.spec
    group.attrs.update(_place_attributes(grid, ("spatial:", "proj:", "geoemb:")) | _embedding_attributes(spec, grid))
    _write_coordinates(group, spec, grid)
    array = _embedding_array(group, spec, grid, shard=shard)
    side = SHARD if shard else window_of(spec, CHUNK)
    form = form_of(spec, block=CHUNK, window=side)
    cells = 0
    for window, values in source.windows(grid, side, tiles):
        seen = int(form.has_data(values).sum())
        if seen:
            row, col = window.row_off, window.col_off
            array[:, row : row + window.height, col : col + window.width] = values
        cells += seen
    return cells


def _embedding_array(group: zarr.Group, spec: MapSpec, grid: Grid, *, shard: bool) -> zarr.Array:
    from zarr.codecs import BloscCodec

    chunk = (spec.dimensions, CHUNK, CHUNK)
    is_int8 = spec.dtype == "int8"
    with_rule = ["scale", "offset"] if is_int8 else []
    attributes = {
        "long_name": f"OlmoEarth embedding ({spec.model_id})",
        "grid_mapping": "spatial_ref",
        # Readers take for coordinates what is named here; without it the reference system would be a mere variable.
        "coordinates": " ".join(["spatial_ref", *with_rule]),
        **_place_attributes(grid, ("spatial:", "proj:")),
    }
    if is_int8:
        attributes |= {"_FillValue": NO_DATA, "valid_min": -127, "valid_max": 127}
    return group.create_array(
        EMBEDDING,
        shape=(spec.dimensions, grid.height, grid.width),
        chunks=chunk,
        shards=(spec.dimensions, SHARD, SHARD) if shard else None,
        dtype=spec.dtype,
        fill_value=NO_DATA if is_int8 else float("nan"),
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        dimension_names=("embedding_dim", "y", "x"),
        attributes=attributes,
    )


def _write_coordinates(group: zarr.Group, spec: MapSpec, grid: Grid) -> None:
    geo = grid.transform
    crs = CRS.from_epsg(grid.crs.to_epsg())
    axes = {axis["axis"].lower(): axis for axis in crs.cs_to_cf()}
    centres = {
        "y": geo.f + geo.e * (np.arange(grid.height) + 0.5),
        "x": geo.c + geo.a * (np.arange(grid.width) + 0.5),
    }
    for axis, values in centres.items():
        _coordinate(group, axis, values, (axis,), axes[axis])
    dimension = ("embedding_dim",)
    numbers = np.arange(spec.dimensions, dtype=np.int32)
    _coordinate(group, "embedding_dim", numbers, dimension, {"long_name": "dimension of the embedding"})
    if spec.scale is not None and spec.offset is not None:
        rule = "vector = offset + scale * code"
        _coordinate(
            group,
            "scale",
            np.array(spec.scale, dtype=np.float32),
            dimension,
            {"long_name": "step of a code", "comment": rule},
        )
        _coordinate(
            group,
            "offset",
            np.array(spec.offset, dtype=np.float32),
            dimension,
            {"long_name": "value of code 0", "comment": rule},
        )
    gdal = " ".join(repr(float(v)) for v in geo.to_gdal())
    mapping = crs.to_cf() | {"GeoTransform": gdal}
    _coordinate(group, "spatial_ref", np.array(0, dtype=np.int32), (), mapping)


def _coordinate(
    group: zarr.Group, name: str, values: np.ndarray, dimensions: tuple[str, ...], attributes: dict[str, Any]
) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=values.shape,
        dtype=values.dtype,
        fill_value=0,
        dimension_names=dimensions,
        attributes=attributes,
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _place_attributes(grid: Grid, conventions: Sequence[str]) -> dict[str, Any]:
    named = [{"uuid": CONVENTIONS[c][0], "name": c, "description": CONVENTIONS[c][1]} for c in conventions]
    return {
        "zarr_conventions": named,
        "proj:code": f"EPSG:{grid.crs.to_epsg()}",
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": [float(v) for v in tuple(grid.transform)[:6]],
        "spatial:shape": [grid.height, grid.width],
        "spatial:bbox": list(grid.bounds),
        "spatial:registration": "pixel",
    }


def _embedding_attributes(spec: MapSpec, grid: Grid) -> dict[str, Any]:
    published = not spec.demo and spec.model_id.count("/") == 1
    quantization = {
        "method": "linear",
        "original_dtype": "float32",
        "quantized_dtype": "int8",
        "nodata": NO_DATA,  # scale and offset differ by dimension: they are arrays of the group
    }
    metres = grid.transform.a * grid.crs.linear_units_factor[1] if grid.crs.is_projected else spec.cell_m
    return {
        "geoemb:type": "pixel",
        "geoemb:dimensions": spec.dimensions,
        "geoemb:model": f"https://huggingface.co/{spec.model_id}" if published else spec.model_id,
        "geoemb:source_data": SOURCES[spec.modalities[0]][1],
        "geoemb:data_type": spec.dtype,
        "geoemb:gsd": metres,
        **({"geoemb:quantization": quantization} if spec.quantizer else {}),
    }


def _root_attributes(spec: MapSpec) -> dict[str, Any]:
    return {
        "Conventions": "CF-1.11",
        "title": spec.title,
        "history": lineage(spec),
        "time_coverage_start": utc_text(spec.start),
        "time_coverage_end": utc_text(spec.end),
        "olmoearth": {**runtime_parameters(spec), "software": dict(spec.software)},
    }
