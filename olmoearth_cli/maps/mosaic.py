"""One VRT per UTM zone: all tiles as one raster, with scale, offset, no data and band names.

Written as XML by hand: GDAL's own builder is not in the rasterio wheels, and it drops scale and offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import rasterio

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.cog import block_side
from olmoearth_cli.maps.files import write_text
from olmoearth_cli.maps.map_spec import MapSpec
from olmoearth_cli.maps.quantize import NO_DATA
from olmoearth_cli.maps.tile_files import TILES, TileEntry

_GDAL_TYPES = {"int8": "Int8", "float32": "Float32"}
_ITEM_BYTES = {"int8": 1, "float32": 4}


def zones(tiles: Sequence[TileEntry]) -> list[int]:
    """EPSG codes of the finished tiles, the one with most tiles first."""
    counts: dict[int, int] = {}
    for tile in tiles:
        if tile.status == "done":
            counts[tile.box.epsg] = counts.get(tile.box.epsg, 0) + 1
    return sorted(counts, key=lambda epsg: (-counts[epsg], epsg))


def extent(tiles: Sequence[TileEntry]) -> PixelBox:
    """The smallest box around tiles of one zone."""
    boxes = [tile.box for tile in tiles]
    return PixelBox(
        boxes[0].epsg,
        min(b.row0 for b in boxes),
        min(b.col0 for b in boxes),
        max(b.row1 for b in boxes),
        max(b.col1 for b in boxes),
    )


def write_mosaics(folder: Path, spec: MapSpec, tiles: Sequence[TileEntry]) -> list[Path]:
    """Write `mosaic_<epsg>.vrt` for every zone with finished tiles; paths inside are relative."""
    written = []
    for epsg in zones(tiles):
        members = [tile for tile in tiles if tile.status == "done" and tile.box.epsg == epsg]
        path = folder / f"mosaic_{epsg}.vrt"
        write_text(path, "\n".join(_lines(spec, members)) + "\n")
        written.append(path)
    return written


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A tile's place in the mosaic, in cells."""

    file: str
    shape: tuple[int, int]
    row: int
    col: int
    block: int


def _lines(spec: MapSpec, tiles: Sequence[TileEntry]) -> Iterator[str]:
    box = extent(tiles)
    height, width = spec.shape(box)
    geo = box.transform(spec.cell_m)
    sources = [_source(spec, tile, box) for tile in tiles]
    yield f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">'
    yield f"  <SRS>{_xml(rasterio.CRS.from_epsg(box.epsg).to_wkt())}</SRS>"
    yield f"  <GeoTransform>{', '.join(repr(float(v)) for v in geo.to_gdal())}</GeoTransform>"
    yield '  <Metadata><MDI key="AREA_OR_POINT">Area</MDI></Metadata>'
    for number, name in enumerate(spec.band_names):
        yield from _band(spec, number, name, sources)
    yield "</VRTDataset>"


def _source(spec: MapSpec, tile: TileEntry, box: PixelBox) -> _Source:
    shape = spec.shape(tile.box)
    return _Source(
        file=f"{TILES}/{tile.id}.tif",
        shape=shape,
        row=(tile.box.row0 - box.row0) // spec.patch_px,
        col=(tile.box.col0 - box.col0) // spec.patch_px,
        block=block_side(spec.dimensions, _ITEM_BYTES[spec.dtype], max(shape)),
    )


def _band(spec: MapSpec, number: int, name: str, sources: Sequence[_Source]) -> Iterator[str]:
    kind = _GDAL_TYPES[spec.dtype]
    yield f'  <VRTRasterBand dataType="{kind}" band="{number + 1}">'
    yield f"    <Description>{name}</Description>"
    yield f"    <NoDataValue>{NO_DATA if spec.dtype == 'int8' else 'nan'}</NoDataValue>"
    if spec.scale is not None and spec.offset is not None:
        yield f"    <Offset>{spec.offset[number]!r}</Offset>"
        yield f"    <Scale>{spec.scale[number]!r}</Scale>"
    for s in sources:
        # SourceProperties spare GDAL from opening every tile when it opens the mosaic.
        h, w = s.shape
        yield (
            f'    <SimpleSource><SourceFilename relativeToVRT="1">{_xml(s.file)}</SourceFilename>'
            f"<SourceBand>{number + 1}</SourceBand>"
            f'<SourceProperties RasterXSize="{w}" RasterYSize="{h}" DataType="{kind}" '
            f'BlockXSize="{s.block}" BlockYSize="{s.block}"/>'
            f'<SrcRect xOff="0" yOff="0" xSize="{w}" ySize="{h}"/>'
            f'<DstRect xOff="{s.col}" yOff="{s.row}" xSize="{w}" ySize="{h}"/></SimpleSource>'
        )
    yield "  </VRTRasterBand>"


def _xml(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
