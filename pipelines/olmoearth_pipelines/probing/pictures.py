"""The pictures of a probe's HTML page: the class map, the map's preview, and where the labels lie on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from pyproj import Transformer

from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_cli.maps.preview import png_bytes
from olmoearth_pipelines.probing.class_picture import picture
from olmoearth_pipelines.probing.samples import Samples

MARKS = 2000
"""Labels drawn at most, evenly spread."""


def class_map_png(path: Path) -> bytes:
    """A class map as a PNG, transparent where there is no data."""
    return png_bytes(np.moveaxis(picture(path).rgba, -1, 0))


def preview_png(emap: EmbeddingMap) -> bytes | None:
    """The map's preview; None for a map that has none yet (a run that was stopped)."""
    path = emap.folder / "preview.png"
    return path.read_bytes() if path.is_file() else None


def label_marks(emap: EmbeddingMap, samples: Samples) -> list[tuple[float, float, int]]:
    """(share of width, share of height, class) of the labels on the preview; class 0 where there is no single one."""
    path = emap.folder / "preview.tif"
    if not path.is_file() or samples.lonlat is None:
        return []
    step = -(-len(samples) // MARKS)
    lonlat = samples.lonlat[::step]
    ids = samples.targets[::step] if samples.kind == "classification" else np.zeros(len(lonlat), dtype=np.int64)
    with rasterio.open(path) as source:
        x, y = Transformer.from_crs(4326, source.crs, always_xy=True).transform(lonlat[:, 0], lonlat[:, 1])
        inverse = ~source.transform
        x, y = np.asarray(x), np.asarray(y)
        col, row = inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f
        across, down = col / source.width, row / source.height
    inside = (across >= 0) & (across <= 1) & (down >= 0) & (down <= 1)
    return [(float(a), float(b), int(c)) for a, b, c in zip(across[inside], down[inside], ids[inside], strict=True)]
