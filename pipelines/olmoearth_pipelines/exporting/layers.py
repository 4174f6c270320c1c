"""What an exported raster says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from olmoearth_cli.maps.merge import Grid


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One raster of an export."""

    name: str | None
    """Group of the Zarr store; None where the raster is the whole file or store."""
    epsg: int
    height: int
    width: int
    resolution: float
    """Side of a pixel in the units of the reference system."""
    bounds: tuple[float, float, float, float]
    """West, south, east, north in the reference system."""
    cells: int
    """Pixels with data."""

    @classmethod
    def of(cls, grid: Grid, *, name: str | None, cells: int) -> Layer:
        """The layer on a grid."""
        return cls(
            name=name,
            epsg=int(grid.crs.to_epsg()),
            height=grid.height,
            width=grid.width,
            resolution=float(grid.transform.a),
            bounds=grid.bounds,
            cells=cells,
        )
