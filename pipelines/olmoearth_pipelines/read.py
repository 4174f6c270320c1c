"""One scene's bands over a box: stackstac underneath, on a grid that is anchored to the selection cell."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from threading import BoundedSemaphore
from typing import Any, NoReturn

import numpy as np
import stackstac
from affine import Affine
from rasterio import errors as rasterio_errors
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from stackstac.rio_env import LayeredEnv
from stackstac.rio_reader import (
    MULTITHREADED_DRIVER_ALLOWLIST,
    AutoParallelRioReader,
    SelfCleaningDatasetReader,
    SingleThreadedRioDataset,
    ThreadLocalRioDataset,
)

from olmoearth_cli.errors import RunError
from olmoearth_cli.geo.grid import PIXEL_M, PixelBox
from olmoearth_pipelines.providers import PRODUCTS, Product, product
from olmoearth_pipelines.scene import Scene
from olmoearth_pipelines.scene_table import CELL_PX
from olmoearth_pipelines.stac import sign

Array = np.ndarray
CELL_M = CELL_PX * PIXEL_M

GDAL_OPTIONS: Mapping[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_TIMEOUT": "120",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "VSI_CACHE": "TRUE",
    "VSI_CACHE_SIZE": "5000000",
    "GDAL_CACHEMAX": 128 << 20,
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GDAL_VRT_WARP_USE_DATASET_RASTERIO": "NO",  # warp fixed blocks, never the window (see AnchoredReader)
}
"""For reading COGs over a network, and harmless on a disk. Memory stays bounded: GDAL_CACHEMAX is in bytes."""
OVERVIEW_M = 20
"""Finest pixel of a low-resolution look, in metres."""
TOLERANCE_PX = 0.001
"""Error in pixels that GDAL's transformer may make; rasterio refuses 0."""
NO_BLUR = {"XSCALE": "1", "YSCALE": "1"}
"""No product is read on a coarser grid than its own, so the bilinear kernel always spans two pixels."""
DRIVERS = ("GTiff", "COG", "JP2OpenJPEG", "JP2ECW", "JP2KAK", "JPEG2000")
"""Formats that a scene's file may have; anything else (a VRT that names other files, say) is refused."""
GATES = {row.key: BoundedSemaphore(row.max_connections) for row in PRODUCTS}
"""At most this many reads of a product at once in this process: some providers cut off those who ask for more."""


class _Discretion(logging.Filter):
    """GDAL's warnings without signed links. What it tries again is no news: only a final failure is."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a record; none is dropped."""
        text = record.getMessage()
        record.msg, record.args = re.sub(r"(://[^\s?]+)\?\S+", r"\1", text), ()
        if "Retrying again" in text:
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return True


for _name in ("rasterio._env", "rasterio._err"):
    logging.getLogger(_name).addFilter(_Discretion())  # else Python prints them, tokens and all, to stderr


class ReadError(RunError):
    """A scene's pixels could not be read; the tile that needs them becomes a gap with this reason."""

    def __init__(self, scene: str, asset: str, reason: str) -> None:
        super().__init__(f"{scene}, {asset}: {reason}")
        self.parts = (scene, asset, reason)

    def __reduce__(self) -> tuple[Any, tuple[str, str, str]]:
        return ReadError, self.parts


class AnchoredReader(AutoParallelRioReader):
    """stackstac's reader on a virtual grid whose origin is the selection cell's corner.

    stackstac would make the virtual raster as large as the box that is asked for, and three things would then
    make a pixel's value depend on that box. Rounding differs with the raster's origin: so the grid is the
    cell's. GDAL (from 3.9) warps the window as one piece, and its transformer interpolates between the
    piece's edges: so it is told to warp the virtual raster's own blocks, whole, whatever window is read. And
    it guesses the kernel's width from the piece's shape after rotation, which also blurs: so the scale is
    fixed. Measured from the next zone without the last two: 99 % of the pixels changed with the window, and
    noise lost 8 % of its deviation; with them, none did, and 0.06 us a pixel in place of 0.6.
    """

    def _open(self) -> Any:
        with self.gdal_env.open:
            try:
                dataset = _open_file(self.url)
            except Exception as error:
                raise RuntimeError(f"cannot open {self.url}") from error  # GDAL's own words may not name the file
        with self.gdal_env.open_vrt:
            side = round(CELL_M / self.spec.resolutions_xy[0])
            nodata = self.fill_value if dataset.nodata is None else dataset.nodata
            vrt = WarpedVRT(
                dataset,
                sharing=False,
                crs=self.spec.epsg,
                transform=self._anchor(),
                width=side,
                height=side,
                resampling=self.resampling,
                tolerance=TOLERANCE_PX,
                src_nodata=nodata,
                nodata=nodata,
                **NO_BLUR,
            )
        threaded = dataset.driver in MULTITHREADED_DRIVER_ALLOWLIST
        return (ThreadLocalRioDataset if threaded else SingleThreadedRioDataset)(self.gdal_env, dataset, vrt=vrt)

    def _anchor(self) -> Affine:
        """The grid of the whole cell."""
        west, _, _, north = self.spec.bounds
        resolution = self.spec.resolutions_xy[0]
        return Affine(resolution, 0.0, west - west % CELL_M, 0.0, -resolution, north + -north % CELL_M)

    def _offset(self) -> tuple[int, int]:
        """(columns, rows) from the cell's corner to the box's."""
        west, _, _, north = self.spec.bounds
        resolution = self.spec.resolutions_xy[0]
        return round(west % CELL_M / resolution), round(-north % CELL_M / resolution)

    def read(self, window: Window, **kwargs: Any) -> Array:
        """Read a window of the box."""
        columns, rows = self._offset()
        moved = Window(window.col_off + columns, window.row_off + rows, window.width, window.height)
        result: Array = super().read(moved, **kwargs)
        return result


def _open_file(url: str) -> Any:
    """A scene's file: a plain raster, never one (a VRT, say) that names other files.

    Raises:
        RuntimeError: it is something else; `rasterio.errors.RasterioIOError`: it cannot be opened.
    """
    dataset = SelfCleaningDatasetReader(url, sharing=False, driver=list(DRIVERS))
    if dataset.count != 1 or dataset.crs is None:
        kind = f"{dataset.driver}, {dataset.count} band(s), {'no CRS' if dataset.crs is None else 'with CRS'}"
        dataset.close()
        raise RuntimeError(f"not a georeferenced single-band GeoTIFF or JPEG 2000 ({kind})")
    return dataset


def read_bands(  # noqa: PLR0913 - what differs between the groups
    scene: Scene,
    row: Product,
    bands: Sequence[str],
    box: PixelBox,
    *,
    resolution_m: int,
    dtype: str,
    fill: float,
    nearest: bool = False,
) -> Array:
    """Read some bands of one scene, warped to a box.

    Args:
        scene: what to read.
        row: its row of the provider table.
        bands: bands that the scene has.
        box: within one selection cell; edges on multiples of `resolution_m`.
        resolution_m: pixel side of the result in metres.
        dtype: of the result.
        fill: value for no data.
        nearest: nearest neighbour (class layers) in place of bilinear.

    Returns:
        [C, H, W] in the resolution's own pixels.

    Raises:
        ReadError: the file is missing, corrupt, or does not answer. Never a silent hole.
    """
    stack = partial(
        stackstac.stack,
        assets=list(bands),
        epsg=box.epsg,
        resolution=resolution_m,
        bounds=box.bounds_m,
        snap_bounds=False,
        resampling=Resampling.nearest if nearest else Resampling.bilinear,
        dtype=np.dtype(dtype),
        fill_value=np.dtype(dtype).type(fill),
        rescale=False,
        xy_coords="center",
        chunksize=max(box.height, box.width),
        gdal_env=_env(row.key),
        errors_as_nodata=(),  # stackstac's default turns HTTP 404 into pixels without data
        reader=AnchoredReader,
        properties=False,
        band_coords=False,
    )
    for attempt in (1, 2):
        try:
            with GATES[row.key]:
                values: Array = stack([_item(scene, row, bands, box)]).data[0].compute(scheduler="synchronous")
            break
        except Exception as error:  # GDAL, CURL, PROJ and stackstac raise many kinds; all mean the same here
            if attempt == 2 or not _renewed(row, error):
                _explain(scene, bands, error)
    return values


def _item(scene: Scene, row: Product, bands: Sequence[str], box: PixelBox) -> dict[str, Any]:
    """What stackstac reads of an item, with links signed now."""
    # The box itself stands for the asset's extent: a catalogue's own figure may be wrong, and outside the
    # raster there is no data anyway.
    extent = list(box.bounds_m)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": scene.id,
        "geometry": None,
        "bbox": [-180, -90, 180, 90],
        "properties": {"datetime": scene.acquired.isoformat(), "proj:epsg": box.epsg},
        "assets": {b: {"href": sign(scene.assets[b], row), "proj:bbox": extent} for b in bands},
    }


def _renewed(row: Product, error: BaseException) -> bool:
    """True if a link was refused and a fresh token may help (spec/inputs.md section 7.4)."""
    if row.signing != "planetary-computer" or "HTTP response code: 403" not in _words(error):
        return False
    from planetary_computer import sas

    sas.TOKEN_CACHE.clear()
    return True


@cache
def _env(key: str) -> LayeredEnv:
    return LayeredEnv(always={**GDAL_OPTIONS, **product(key).gdal_options})


def _words(error: BaseException) -> list[str]:
    """The messages of an error and its causes, outermost first."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    return texts


def _explain(scene: Scene, bands: Sequence[str], error: BaseException) -> NoReturn:
    """A ReadError with the asset's name and GDAL's own words, without links (they may be signed)."""
    whole = " ".join(_words(error))
    links = {b: scene.assets[b].split("?")[0] for b in bands}
    asset = max((b for b in bands if links[b] in whole), key=lambda b: len(links[b]), default=", ".join(bands))
    reason = next((t for t in reversed(_words(error)) if t), type(error).__name__)
    reason = re.sub(r"(?:https?|s3|gs)://\S+|/vsi\w+/\S+|(?<!\w)/[^\s'\"]+", "file", reason)
    reason = " ".join(reason.split())[:200]
    if re.search(r"got \d+ bytes, expected", reason):
        reason = f"the file ends early, or its server stopped answering ({reason})"
    raise ReadError(scene.id, asset, reason) from None


def read_overview(scene: Scene, row: Product, band: str, boxes: Sequence[PixelBox], *, side_px: int) -> Array:
    """A small picture of one band over some boxes, as stored: from overviews where the file has them.

    Args:
        scene: what to read.
        row: its row of the provider table.
        band: a band or class layer that the scene has.
        boxes: only the part of the file around them is looked at.
        side_px: most rows and columns of the result.

    Returns:
        [H, W] in the file's own numbers; the same shape for every band of a scene, whatever its resolution.

    Raises:
        ReadError: as `read_bands`.
    """
    try:
        with GATES[row.key], _env(row.key).open, _open_file(sign(scene.assets[band], row)) as source:
            window = _window_of(source, boxes)
            if window is None:
                return np.empty((0, 0), source.dtypes[0])
            metres = (window.height * source.res[1], window.width * source.res[0])
            shape = tuple(min(side_px, max(1, round(m / OVERVIEW_M))) for m in metres)
            # Nearest for all: an average of pixels would move dark percentiles and break no-data.
            values: Array = source.read(1, window=window, out_shape=shape, resampling=Resampling.nearest)
    except Exception as error:
        _explain(scene, [band], error)
    return values


def _window_of(source: Any, boxes: Sequence[PixelBox]) -> Window | None:
    """The smallest window of a file that holds its common part with the boxes."""
    from rasterio.warp import transform_bounds
    from rasterio.windows import from_bounds

    bounds = []
    for epsg in {box.epsg for box in boxes}:
        edges = np.array([box.bounds_m for box in boxes if box.epsg == epsg])
        whole = (*edges[:, :2].min(axis=0), *edges[:, 2:].max(axis=0))
        bounds.append(transform_bounds(epsg, source.crs, *whole))
    merged = np.array([b for b in bounds if np.isfinite(b).all()])  # not so for zones on the other side of the Earth
    if not merged.size:
        return None
    window = from_bounds(*merged[:, :2].min(axis=0), *merged[:, 2:].max(axis=0), transform=source.transform)
    try:
        window = window.intersection(Window(0, 0, source.width, source.height))
    except rasterio_errors.WindowError:
        return None
    return window if window.width > 0 and window.height > 0 else None
