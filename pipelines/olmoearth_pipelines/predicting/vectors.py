"""A map of classes as polygons: neighbouring pixels of one class, with their area and mean confidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from rasterio.features import rasterize, shapes
from rasterio.windows import Window

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.maps.files import file_sha256, output_error, publish, read_json, write_json
from olmoearth_pipelines.exporting.output import work_folder
from olmoearth_pipelines.probing.class_layout import PERCENT, WINDOW, Layout

if TYPE_CHECKING:
    import geopandas

FORMATS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".parquet": "Parquet"}
MADE = "vectors.json"
"""In a prediction's folder: which vector files were made of which raster, so that a second run leaves them alone."""


def check_vector(path: Path, layout: Layout) -> None:
    """Refuse a file that cannot be made.

    Raises:
        InputError: an unknown ending, or a map without classes.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--vector {path}: the ending says which format: {', '.join(FORMATS)}.")
    if not layout.has_classes:
        what = "values" if layout.kind == "regression" else "several labels a place"
        raise InputError(
            f"--vector {path}: polygons are of pixels with one class, and this model predicts {what}. Leave the flag "
            "out and use the raster."
        )


def check_place(path: Path, folder: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file that no earlier run of this prediction made, or that it is about to make.

    Raises:
        OutputError: says so.
    """
    if path.is_dir():
        raise OutputError(f"--vector {path}: is a folder. Name a file.")
    if path.resolve() == (folder / "index.parquet").resolve():
        raise OutputError(f"--vector {path}: is the name of the prediction's own index. Choose another file.")
    if not path.exists() or overwrite:
        return
    made = _made(folder).get(str(path.resolve()))
    if made is None or made["sha256"] != file_sha256(path):
        raise OutputError(f"--vector {path}: is there already. Choose another file, or replace it with --overwrite.")


def write_vector(raster: Path, path: Path, layout: Layout) -> bool:
    """Write the polygons of a merged class map beside what is recorded in the map's folder.

    Args:
        raster: the merged map, in the prediction's folder.
        path: of the new file.
        layout: of the raster.

    Returns:
        False where an earlier run made this file of this raster.

    Raises:
        OutputError: the system refused.
    """
    made, key = _made(raster.parent), str(path.resolve())
    source = file_sha256(raster)
    if path.is_file() and made.get(key) == {"raster": source, "sha256": file_sha256(path)}:
        return False
    with work_folder(path) as work:
        part = work / path.name
        _save(polygons(raster, layout), part)
        publish(part, path)
    write_json(raster.parent / MADE, {**made, key: {"raster": source, "sha256": file_sha256(path)}})
    return True


def polygons(raster: Path, layout: Layout) -> geopandas.GeoDataFrame:
    """Neighbouring pixels of one class (by their sides) as polygons, in the raster's reference system.

    The raster is read in windows; memory grows with the polygons.

    Returns:
        `class`, `class_id`, `confidence` (mean probability of the class, 0 to 1), `area_m2`, and the outline.
    """
    import geopandas

    with rasterio.open(raster) as source:
        found = [
            (int(value), shapely.geometry.shape(outline))
            for outline, value in shapes(rasterio.band(source, 1), connectivity=4, transform=source.transform)
            if value != source.nodata
        ]
        ids = np.array([value for value, _ in found], dtype=np.int64)
        outlines = np.array([outline for _, outline in found], dtype=object)
        count, total = _tallies(source, outlines)
        crs, pixel_m2 = source.crs, abs(source.transform.a * source.transform.e)
    return geopandas.GeoDataFrame(
        {
            "class": np.array([*layout.class_names, ""], dtype=object)[ids],
            "class_id": ids,
            "confidence": np.round(total / np.maximum(count, 1) * PERCENT, 4),
            "area_m2": count * pixel_m2,
        },
        geometry=outlines,
        crs=crs,
    )


def _tallies(
    source: rasterio.DatasetReader, outlines: npt.NDArray[np.object_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pixels in each polygon, and the sum of their confidence in percent.

    Polygons are burned back window by window: each pixel's middle lies in exactly one.
    """
    count, total = np.zeros(len(outlines), np.int64), np.zeros(len(outlines))
    tree = shapely.STRtree(outlines)
    for row in range(0, source.height, WINDOW):
        for col in range(0, source.width, WINDOW):
            window = Window(col, row, min(WINDOW, source.width - col), min(WINDOW, source.height - row))
            near = np.sort(tree.query(shapely.box(*source.window_bounds(window))))
            if len(near):
                owner = _owners(source, window, outlines[near])
                seen = owner > 0
                at = near[owner[seen] - 1]
                confidence = source.read(2, window=window)[seen].astype(np.float64)
                count += np.bincount(at, minlength=len(outlines))
                total += np.bincount(at, weights=confidence, minlength=len(outlines))
    return count, total


def _owners(source: rasterio.DatasetReader, window: Window, outlines: npt.NDArray[np.object_]) -> npt.NDArray[np.int32]:
    """[H, W] number of the polygon, from 1, that holds a pixel; 0 for none."""
    owners: npt.NDArray[np.int32] = rasterize(
        zip(outlines, range(1, len(outlines) + 1), strict=True),
        out_shape=(window.height, window.width),
        transform=source.window_transform(window),
        dtype="int32",
    )
    return owners


def _save(frame: geopandas.GeoDataFrame, path: Path) -> None:
    """Write a whole file; GeoJSON is in longitude and latitude, as its standard wants."""
    driver = FORMATS[path.suffix.lower()]
    try:
        if driver == "Parquet":
            frame.to_parquet(path, index=False)
        else:
            frame = frame.to_crs(4326) if driver == "GeoJSON" else frame
            frame.to_file(path, driver=driver, layer=path.stem, engine="pyogrio")
    except OSError as error:
        raise output_error(path, error) from error


def _made(folder: Path) -> dict[str, Any]:
    """Absolute path of a vector file -> checksums of the raster that it was made of, and of the file then."""
    path = folder / MADE
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found
