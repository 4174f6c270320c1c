"""From finished tiles to one cloud-optimised GeoTIFF (`maps.merge`), counted on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rasterio.windows import Window

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.merge import Grid, Mosaic, by_zone, extent_in, piece_on, write_cog
from olmoearth_cli.maps.mosaic import zones
from olmoearth_cli.maps.tile_files import TileEntry
from olmoearth_pipelines.probing.class_layout import Array, Layout
from olmoearth_pipelines.probing.class_tally import Tally


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The finished tiles of a class map."""

    files: tuple[tuple[Path, PixelBox], ...]
    """Each with the box that it covers in its own zone; main zone first, then the others, each by id."""
    extent: PixelBox
    """The box around all in the main zone."""


def place(tiles: Sequence[TileEntry], files: Mapping[str, Path], patch_px: int) -> Placed:
    """Where every finished tile goes.

    Args:
        tiles: of the map.
        files: tile id -> finished tile of the class map.
        patch_px: side of the map's cells, on which all places lie.
    """
    main = zones(tiles)[0]
    return Placed(
        files=tuple((files[tile.id], tile.box) for tile in by_zone(tiles, main)),
        extent=extent_in(tiles, main, patch_px),
    )


def merge(placed: Placed, layout: Layout, work: Path, tags: Mapping[str, str]) -> Path:
    """Write the merged class map into the work folder.

    Args:
        placed: from `place`.
        layout: the form of the bands.
        work: an existing folder on the file system of the output.
        tags: dataset metadata; the figures of the pixels are added as `OLMOEARTH_FIGURES`.

    Returns:
        A whole, checked COG, to be moved to its place.

    Raises:
        OutputError: the disk refused.
    """
    grid = Grid.over(placed.extent, layout.pixel_m)
    pieces = [piece_on(grid, path, box, layout.pixel_m) for path, box in placed.files]
    mosaic, tally = Mosaic(pieces, grid, layout.form), Tally(layout=layout)
    return write_cog(
        _counted(mosaic, tally),
        grid,
        layout.form,
        work,
        what="the class map",
        tags=lambda: {**tags, "OLMOEARTH_FIGURES": tally.to_json()},
    )


def _counted(mosaic: Mosaic, tally: Tally) -> Iterator[tuple[Window, Array]]:
    for window in mosaic.grid.windows(mosaic.form.window):
        values = mosaic.read(window)
        tally.add(values)
        yield window, values
