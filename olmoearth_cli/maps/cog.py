"""Cloud-optimised GeoTIFFs as bytes.

The GDAL driver writes into memory and Python writes the file: only then does a full disk raise an
error (GDAL reports late write errors on closing, where they are lost), and the file appears whole.
Nothing in the bytes depends on time, host or path, so equal arrays give equal files under one GDAL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.env import GDALVersion
from rasterio.io import MemoryFile
from rasterio.shutil import copy as gdal_copy

DECODED_BLOCK_BYTES = 4_000_000
"""Most that one block may take when decoded; all bands of a block are decoded for a single point."""
BLOCK_SIDES = (512, 256, 128, 64, 32, 16)
"""Block sides that are tried, largest first; GeoTIFF wants multiples of 16."""
ZSTD_LEVEL = 9


@dataclass(frozen=True, kw_only=True)
class Raster:
    """A georeferenced array with what its file must say."""

    values: npt.NDArray[Any]
    """[C, H, W] of int8, uint8, uint16 or float32."""
    epsg: int
    transform: Affine
    """From (column, row) to the CRS's coordinates; north up."""
    nodata: float
    names: Sequence[str]
    """[C] band descriptions."""
    scale: Sequence[float] | None = None
    """[C] GDAL scales; None where values mean themselves."""
    offset: Sequence[float] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    """Dataset metadata."""
    averaged: bool = True
    """True where an overview's pixel is the mean of its pixels, False where it is one of them (class ids)."""


def block_side(bands: int, item_bytes: int, largest_side: int) -> int:
    """Block side in cells: all bands decode to a few MB, and no block is larger than the raster needs."""
    fitting = [s for s in BLOCK_SIDES if s * s * bands * item_bytes <= DECODED_BLOCK_BYTES]
    side = fitting[0] if fitting else BLOCK_SIDES[-1]
    return min(side, -(-largest_side // 16) * 16)


def cog_bytes(raster: Raster) -> bytes:
    """Encode a raster: ZSTD with a predictor, small blocks, own overviews, no data on every band.

    Overviews average the stored codes unless told otherwise. That is right for a linear scale and offset, and cells
    without data are left out of the mean.
    """
    bands, height, width = raster.values.shape
    options = _creation_options(raster)
    with MemoryFile() as plain, MemoryFile() as cog:
        with plain.open(
            driver="GTiff",
            dtype=raster.values.dtype.name,
            count=bands,
            height=height,
            width=width,
            crs=rasterio.CRS.from_epsg(raster.epsg),
            transform=raster.transform,
            nodata=raster.nodata,
            interleave="band",
        ) as target:
            target.write(raster.values)
            target.descriptions = tuple(raster.names)
            if raster.scale is not None and raster.offset is not None:
                target.scales = tuple(raster.scale)
                target.offsets = tuple(raster.offset)
            target.update_tags(AREA_OR_POINT="Area", **raster.tags)
        # GDAL warns of blocks below 128 and writes them all the same; `_check` looks at the result.
        with rasterio.Env(GDAL_VALIDATE_CREATION_OPTIONS="NO"):
            gdal_copy(plain.name, cog.name, driver="COG", **options)
        _check(cog, raster, options)
        return bytes(cog.getbuffer())


def _creation_options(raster: Raster) -> dict[str, str]:
    bands, height, width = raster.values.shape
    side = block_side(bands, raster.values.dtype.itemsize, max(height, width))
    options = {
        "COMPRESS": "ZSTD",
        "LEVEL": str(ZSTD_LEVEL),
        # 2 for integers, 3 for floats: GDAL's "YES" picks by type.
        "PREDICTOR": "YES",
        "BLOCKSIZE": str(side),
        "BIGTIFF": "IF_SAFER",
        # Not from the environment (GDAL_NUM_THREADS): the workers share the cores out themselves.
        "NUM_THREADS": "1",
        "OVERVIEW_RESAMPLING": "AVERAGE" if raster.averaged else "NEAREST",
    }
    if GDALVersion.runtime().at_least("3.11"):
        # GDAL 3.10 ignores the option in silence and writes PIXEL (spec/outputs.md 1.1).
        options["INTERLEAVE"] = "TILE"
    return options


def _check(cog: MemoryFile, raster: Raster, options: Mapping[str, str]) -> None:
    """GDAL ignores creation options that it does not know: look at what it wrote."""
    side = int(options["BLOCKSIZE"])
    with cog.open() as written:
        structure = written.tags(ns="IMAGE_STRUCTURE")
        assert structure.get("LAYOUT") == "COG", structure
        assert structure.get("COMPRESSION") == "ZSTD", structure
        # A TILE-interleaved file is reported as BAND by GDAL versions that do not know the name.
        wanted = {"TILE", "BAND"} if "INTERLEAVE" in options else {"PIXEL"}
        assert written.count == 1 or structure.get("INTERLEAVE") in wanted, structure
        assert set(written.block_shapes) == {(side, side)}, written.block_shapes[0]
        assert all(_same(value, raster.nodata) for value in written.nodatavals), written.nodatavals[:3]
        if raster.scale is not None and raster.offset is not None:
            assert np.array_equal(written.scales, raster.scale), "scales were not kept"
            assert np.array_equal(written.offsets, raster.offset), "offsets were not kept"


def _same(a: float, b: float) -> bool:
    return a == b or (np.isnan(a) and np.isnan(b))
