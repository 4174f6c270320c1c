"""A map as one cloud-optimised GeoTIFF (spec/outputs.md 1.1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rasterio.windows import Window

from olmoearth_cli.maps.merge import Array, Form, Grid, write_cog
from olmoearth_pipelines.exporting.layers import Layer
from olmoearth_pipelines.exporting.source import Source, block_of, form_of, window_of


def write_raster(source: Source, grid: Grid, work: Path) -> tuple[Path, Layer]:
    """Write a map's cells on a grid.

    Args:
        source: the map.
        grid: of the raster.
        work: folder for it and for what is made on the way.

    Returns:
        The COG in the work folder, and what it holds.

    Raises:
        InputError: a tile's file is gone or damaged.
        OutputError: the disk refused.
    """
    spec = source.spec
    block = block_of(spec, grid)
    form = form_of(spec, block=block, window=window_of(spec, block))
    counter = _Counter(form)
    tags = {
        "EMB_MODEL": spec.model_id,
        "EMB_WEIGHTS_SHA256": spec.weights_sha256,
        "EMB_DEMO_WEIGHTS": str(spec.demo).lower(),
        "EMB_PERIOD": f"{spec.start:%Y-%m-%d}/{spec.end:%Y-%m-%d}",
        "EMB_QUANT_METHOD": "linear" if spec.quantizer else "none",
    }
    parts = counter.counted(source.windows(grid, form.window, source.tiles))
    path = write_cog(parts, grid, form, work, what="the raster", tags=lambda: tags)
    return path, Layer.of(grid, name=None, cells=counter.cells)


class _Counter:
    """Counts the cells with data that pass."""

    def __init__(self, form: Form) -> None:
        self.cells = 0
        self._form = form

    def counted(self, parts: Iterator[tuple[Window, Array]]) -> Iterator[tuple[Window, Array]]:
        for window, values in parts:
            self.cells += int(self._form.has_data(values).sum())
            yield window, values
