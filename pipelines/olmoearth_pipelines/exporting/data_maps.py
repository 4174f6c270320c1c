"""Map modalities of a tile (WorldCover, SRTM, ...) from rasters that the user names, with the filters of the format.

Rasters may lie on disk or on a web server and may be mosaics (VRT). They are read by the nearest pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError, RunError
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_pipelines.read import GDAL_OPTIONS, TOLERANCE_PX
from olmoearth_pipelines.samples.rules import DTYPES, LIMITS
from olmoearth_pipelines.stac import redact

Array = npt.NDArray[Any]
Masked = np.ma.MaskedArray[Any, np.dtype[Any]]
MAPS = tuple(name for name, modality in MODALITIES.items() if not modality.multitemporal)
OSM_SHIFT_M = 3.75
"""From the middle of a 10 m pixel to that of its north-western 2.5 m pixel, the one that is kept (section 1.6)."""
LEAST_CANOPY = 0.2
"""A canopy height map with a smaller share of pixels above 0 is left out."""
NO_CANOPY = 255
LARGEST_SHARE = 100
"""WorldCereal's codes above it mean no cropland, or no data."""


@dataclass(frozen=True, kw_only=True)
class MapRaster:
    """A raster that gives one map modality."""

    name: str
    """The modality."""
    href: str
    """Absolute path or URL; may hold a token, so it is shown by `shown` only."""

    @property
    def shown(self) -> str:
        """The address without user, query and fragment."""
        return redact(self.href)

    def why(self, error: Exception) -> str:
        """GDAL's words without tokens."""
        return str(error).replace(self.href, self.shown)


class MapError(RunError):
    """A map raster could not be read; the tile that needs it has to be tried again."""


def open_maps(text: str | None) -> tuple[MapRaster, ...]:
    """`worldcover=FILE,srtm=FILE` -> rasters that can be read, in the models' order.

    Raises:
        InputError: an unknown or repeated name, an unreadable file, or one that cannot hold the modality.
    """
    found: dict[str, MapRaster] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, _, href = part.partition("=")
        if name not in MAPS or not href or name in found:
            raise InputError(
                f"--maps {name}: give name=FILE, each name once, several with commas. Names: {', '.join(MAPS)}."
            )
        raster = MapRaster(name=name, href=href if urlsplit(href).scheme else str(Path(href).expanduser().resolve()))
        _check(raster)
        found[name] = raster
    return tuple(found[name] for name in MAPS if name in found)


def read_maps(rasters: Iterable[MapRaster], tile: PixelBox) -> tuple[dict[str, Array], dict[str, str]]:
    """Map modalities of a tile.

    Returns:
        {modality: [H, W, 1, C] in the format's dtype}, and {modality: why it is not in the tile}.

    Raises:
        MapError: a raster cannot be read any more.
    """
    images, left_out = {}, {}
    for raster in rasters:
        values = _pixels(raster, tile)
        kept = "no data here" if values.mask.all() else _FILTERS[raster.name](values)
        if isinstance(kept, str):
            left_out[raster.name] = kept
            continue
        low, high = kept.min(), kept.max()
        least, largest = LIMITS[raster.name]
        if low < least or high > largest:
            left_out[raster.name] = f"values outside {least} to {largest}: another product?"
            continue
        kept = kept.astype(DTYPES[raster.name])
        images[raster.name] = np.ascontiguousarray(np.moveaxis(kept, 0, -1)[:, :, None])  # C H W -> H W 1 C
    return images, left_out


def _check(raster: MapRaster) -> None:
    where = f"--maps {raster.name}={raster.shown}"
    bands = MODALITIES[raster.name].bands
    try:
        with rasterio.Env(**GDAL_OPTIONS), rasterio.open(raster.href) as source:
            crs, count, kinds = source.crs, source.count, {np.dtype(dtype).kind for dtype in source.dtypes}
    except RasterioError as error:
        raise InputError(f"{where}: cannot be read as a raster ({raster.why(error)}). Check the path.") from None
    if crs is None:
        raise InputError(f"{where}: has no coordinate reference system. Set it (gdal_edit.py -a_srs) and try again.")
    if count != len(bands):
        raise InputError(f"{where}: has {count} band(s); {raster.name} has {len(bands)}: {', '.join(bands)}.")
    if raster.name not in ("srtm", "worldcereal") and not kinds <= set("iub"):
        raise InputError(f"{where}: holds fractions; {raster.name} has whole numbers. Give the product as published.")


def _pixels(raster: MapRaster, tile: PixelBox) -> Masked:
    """[C, H, W], masked where the raster has no data."""
    shift = OSM_SHIFT_M if raster.name == "openstreetmap_raster" else 0.0
    west, _, _, north = tile.bounds_m
    grid = Affine(PIXEL_M, 0.0, west - shift, 0.0, -PIXEL_M, north + shift)
    try:
        with rasterio.Env(**GDAL_OPTIONS), rasterio.open(raster.href) as source:
            return _warped(source, tile, grid)
    except RasterioError as error:
        raise MapError(f"{raster.name}: the raster cannot be read ({raster.why(error)})") from None


def _warped(source: DatasetReader, tile: PixelBox, transform: Affine) -> Masked:
    with WarpedVRT(
        source,
        crs=f"EPSG:{tile.epsg}",
        transform=transform,
        width=tile.width,
        height=tile.height,
        resampling=Resampling.nearest,
        tolerance=TOLERANCE_PX,
        add_alpha=True,  # without it, ground outside a raster that declares no no-data value would read as 0
    ) as warped:
        values = warped.read(list(source.indexes))  # C H W
        seen = warped.read(source.count + 1) > 0  # H W
    absent = ~np.isfinite(values) | ~seen
    for k, nodata in enumerate(source.nodatavals):  # alpha is 0 only where all bands have no data
        absent[k] |= False if nodata is None else values[k] == nodata
    return np.ma.masked_array(values, mask=absent)


# One filter per map (section 1.6): [C, H, W] as the format wants it, or why the tile goes without the map.


def _worldcover(values: Masked) -> Array | str:
    return values.filled(0)


def _srtm(values: Masked) -> Array | str:
    # Upstream keeps voids. As metres they would lie far outside anything real, and leaving a map out is always allowed.
    return "pixels without data" if values.mask.any() else np.rint(values.data)


def _openstreetmap(values: Masked) -> Array | str:
    filled = values.filled(0)
    return filled if filled.any() else "nothing mapped here"


def _canopy(values: Masked) -> Array | str:
    if values.mask.any() or (values.data == NO_CANOPY).any():
        return "pixels without data"
    return values.data if np.mean(values.data > 0) >= LEAST_CANOPY else f"under {LEAST_CANOPY:.0%} of pixels above 0"


def _cdl(values: Masked) -> Array | str:
    return "pixels without data" if values.mask.any() or (values.data == 0).any() else values.data


def _worldcereal(values: Masked) -> Array | str:
    filled = values.filled(0)
    return np.where(filled > LARGEST_SHARE, 0, filled)


_FILTERS: Mapping[str, Callable[[Masked], Array | str]] = MappingProxyType(
    {
        "worldcover": _worldcover,
        "srtm": _srtm,
        "openstreetmap_raster": _openstreetmap,
        "wri_canopy_height_map": _canopy,
        "cdl": _cdl,
        "worldcereal": _worldcereal,
    }
)
