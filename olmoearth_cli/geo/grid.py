"""The global 10 m pixel grid: one per UTM zone, anchored at easting 0, northing 0.

Every position in the program is an integer on this grid. Model windows, tiles and scene-selection
cells are all squares of it, so two runs over overlapping regions meet on the same pixels.
Rows grow southwards (as in a raster), hence rows in the northern hemisphere are negative.
"""

from __future__ import annotations

from dataclasses import dataclass

from affine import Affine

PIXEL_M = 10
"""Side of a model pixel in metres (spec/inputs.md section 2)."""


@dataclass(frozen=True, order=True)
class PixelBox:
    """A rectangle of one UTM zone's 10 m pixel grid, half open: [row0, row1) x [col0, col1)."""

    epsg: int
    """UTM zone on WGS84: 32601-32660 (north) or 32701-32760 (south)."""
    row0: int
    """First row; row r spans northing -10 r down to -10 (r + 1)."""
    col0: int
    """First column; column c spans easting 10 c to 10 (c + 1)."""
    row1: int
    col1: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.row1 - self.row0

    @property
    def width(self) -> int:
        """Columns."""
        return self.col1 - self.col0

    @property
    def empty(self) -> bool:
        """True where the box holds no pixel."""
        return self.height <= 0 or self.width <= 0

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """(min easting, min northing, max easting, max northing) in metres."""
        return (
            float(self.col0 * PIXEL_M),
            float(-self.row1 * PIXEL_M),
            float(self.col1 * PIXEL_M),
            float(-self.row0 * PIXEL_M),
        )

    def transform(self, resolution_m: float = PIXEL_M) -> Affine:
        """Affine from (column, row) of a raster over this box to (easting, northing)."""
        west, _, _, north = self.bounds_m
        return Affine(resolution_m, 0.0, west, 0.0, -resolution_m, north)

    def grown(self, margin_px: int) -> PixelBox:
        """The box with `margin_px` more pixels on every side."""
        return PixelBox(
            self.epsg,
            self.row0 - margin_px,
            self.col0 - margin_px,
            self.row1 + margin_px,
            self.col1 + margin_px,
        )

    def snapped(self, multiple_px: int) -> PixelBox:
        """The smallest box that holds this one with all edges on multiples of `multiple_px`."""
        m = multiple_px
        return PixelBox(
            self.epsg, self.row0 // m * m, self.col0 // m * m, -(-self.row1 // m) * m, -(-self.col1 // m) * m
        )

    def intersection(self, other: PixelBox) -> PixelBox:
        """The common rectangle; `empty` where there is none."""
        if self.epsg != other.epsg:
            return PixelBox(self.epsg, 0, 0, 0, 0)
        return PixelBox(
            self.epsg,
            max(self.row0, other.row0),
            max(self.col0, other.col0),
            min(self.row1, other.row1),
            min(self.col1, other.col1),
        )

    def slices_in(self, outer: PixelBox) -> tuple[slice, slice]:
        """(rows, columns) of this box inside an array over `outer`."""
        return (
            slice(self.row0 - outer.row0, self.row1 - outer.row0),
            slice(self.col0 - outer.col0, self.col1 - outer.col0),
        )

    def squares(self, side_px: int) -> list[tuple[int, int]]:
        """(i, j) of every grid square of `side_px` that meets the box, row by row."""
        if self.empty:
            return []
        rows = range(self.row0 // side_px, -(-self.row1 // side_px))
        cols = range(self.col0 // side_px, -(-self.col1 // side_px))
        return [(i, j) for i in rows for j in cols]


def square(epsg: int, side_px: int, i: int, j: int) -> PixelBox:
    """Square (i, j) of the global grid with side `side_px`."""
    return PixelBox(epsg, i * side_px, j * side_px, (i + 1) * side_px, (j + 1) * side_px)
