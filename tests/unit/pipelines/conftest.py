from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer

from olmoearth_pipelines.scene import Scene

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def real(name: str) -> Path:
    """A folder of real data; skips where the project stands alone."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no ../shared/data/{name} here")
    return DATA / name


def item(path: str) -> dict:
    return json.loads((real("stac-items") / path).read_text())


def write_tif(path: Path, values, origin, metres, epsg=32631, nodata=0):
    """A tiled GeoTIFF of [H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    profile = {
        "driver": "COG",
        "count": 1,
        "height": values.shape[0],
        "width": values.shape[1],
        "dtype": values.dtype,
        "crs": epsg,
        "transform": Affine(metres, 0, origin[0], 0, -metres, origin[1]),
        "nodata": nodata,
        "blocksize": 128,
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(values, 1)
    return str(path)


def footprint(origin, side_m, epsg=32631) -> bytes:
    to_lonlat = Transformer.from_crs(epsg, 4326, always_xy=True)
    square = shapely.box(origin[0], origin[1] - side_m, origin[0] + side_m, origin[1])
    moved = shapely.transform(shapely.segmentize(square, 1000), to_lonlat.transform, interleaved=False)
    return shapely.to_wkb(moved)


def scene(name="s", *, modality="sentinel2_l2a", assets=None, wkb=None, cloud=0.0, day=5, **more) -> Scene:
    product = {
        "sentinel2_l2a": "planetary-computer/sentinel-2-l2a",
        "sentinel1": "planetary-computer/sentinel-1-rtc",
        "landsat": "usgs/landsat-c2l1",
    }[modality]
    facts = {
        "id": name,
        "modality": modality,
        "product": product,
        "collection": product.split("/")[1],
        "acquired": datetime(2024, 1, day, 10, tzinfo=UTC),
        "footprint_wkb": wkb or footprint((600_000.0, 5_600_000.0), 3000.0),
        "assets": assets or {},
        "epsg": 32631,
        "offset_dn": 0,
        "cloud_cover_percent": cloud,
        "key": name,
        "self_href": None,
    }
    return Scene(**{**facts, **more})
