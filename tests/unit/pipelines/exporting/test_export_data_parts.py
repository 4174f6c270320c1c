"""What `export data` is made of: the tiles of a list of points, map rasters, and what counts as a period."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import square
from olmoearth_pipelines.cube import Cube
from olmoearth_pipelines.exporting.data_maps import MapRaster, open_maps, read_maps
from olmoearth_pipelines.exporting.data_tile import satellite_images
from olmoearth_pipelines.exporting.data_tiles import drawn, tiles_at

ORIGIN = (660_480.0, 5_614_080.0)  # column 258, row -2193 of the 2560 m grid


def raster(path: Path, values: np.ndarray, origin=ORIGIN, metres=10.0, crs="EPSG:32631", nodata=None) -> Path:
    profile = {
        "driver": "GTiff",
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "crs": crs,
        "nodata": nodata,
        "transform": Affine(metres, 0, origin[0], 0, -metres, origin[1]),
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(values)
    return path


def test_points_outside_utm_or_other_shapes_are_refused(tmp_path):
    (tmp_path / "pole.csv").write_text("lon,lat\n5,50\n6,86.5\n")
    with pytest.raises(InputError, match=r"1 of 2 points lie outside UTM.*6, 86\.5"):
        tiles_at(tmp_path / "pole.csv")
    areas = tmp_path / "areas.geojson"
    areas.write_text(shapely.to_geojson(shapely.box(5, 50, 6, 51)))
    with pytest.raises(InputError, match=r"Polygon.*--aoi"):
        tiles_at(areas)


@pytest.mark.parametrize(
    ("bands", "crs", "words"),
    [(1, None, "no coordinate reference system"), (2, "EPSG:32631", "2 band"), (0, None, "cannot be read")],
)
def test_a_map_raster_that_cannot_be_used_is_refused(tmp_path, bands, crs, words):
    path = tmp_path / "map.tif"
    if bands:
        raster(path, np.ones((bands, 8, 8), np.uint8), crs=crs)
    else:
        path.write_bytes(b"no raster")
    with pytest.raises(InputError, match=words):
        open_maps(f"worldcover={path}")


def test_a_map_of_an_unknown_name_is_refused_without_its_token():
    with pytest.raises(InputError, match="world_cover") as refused:
        open_maps("world_cover=https://me:pass@host/map.tif?sig=secret")
    assert "secret" not in str(refused.value)


def test_points_give_the_tiles_that_hold_them_each_once(tmp_path):
    to_lonlat = Transformer.from_crs(32631, 4326, always_xy=True)
    places = [to_lonlat.transform(ORIGIN[0] + x, ORIGIN[1] - y) for x, y in ((10, 10), (2550, 2550), (2570, 30))]
    lines = [f"{lon},{lat}" for lon, lat in [*places, (-70.1, -33.4)]]
    (tmp_path / "points.csv").write_text("\n".join(["lon,lat", *lines]))
    tiles, _ = tiles_at(tmp_path / "points.csv")
    assert [(t.epsg, t.row0 // 256, t.col0 // 256) for t in tiles[:2]] == [(32631, -2193, 258), (32631, -2193, 259)]
    assert [t.epsg for t in tiles] == [32631, 32631, 32719]


def test_a_draw_of_tiles_keeps_their_order_and_depends_on_the_seed():
    tiles = [square(32631, 256, 0, j) for j in range(100)]
    one, two = drawn(tiles, 10, 1), drawn(tiles, 10, 2)
    assert len(one) == 10 and one == tuple(sorted(one)) and one == drawn(tiles, 10, 1)
    assert one != two
    assert drawn(tiles, None, 1) == tuple(tiles)


def filtered(tmp_path, name: str, values: np.ndarray, **place):
    """What a map of these values leaves of the synthetic region's first tile."""
    path = raster(tmp_path / f"{name}.tif", values, **place)
    return read_maps([MapRaster(name=name, href=str(path))], square(32631, 256, -2193, 258))


def test_openstreetmap_keeps_the_north_western_of_sixteen_pixels(tmp_path):
    values = np.zeros((30, 1024, 1024), np.uint8)
    values[4, 0::4, 0::4] = 1
    values[4, 40, 80] = 0
    images, _ = filtered(tmp_path, "openstreetmap_raster", values, metres=2.5)
    found = images["openstreetmap_raster"]
    assert found.shape == (256, 256, 1, 30)
    assert found[..., 4].sum() == 256 * 256 - 1 and found[10, 20, 0, 4] == 0
    _, left_out = filtered(tmp_path, "openstreetmap_raster", np.zeros((30, 1024, 1024), np.uint8), metres=2.5)
    assert left_out == {"openstreetmap_raster": "nothing mapped here"}


def test_maps_are_left_out_as_the_format_says(tmp_path):
    canopy = np.zeros((1, 256, 256), np.uint8)
    canopy[0, :51] = 9  # 19.9 % of the rows
    assert "20%" in filtered(tmp_path, "wri_canopy_height_map", canopy)[1]["wri_canopy_height_map"]
    canopy[0, :52] = 9
    assert filtered(tmp_path, "wri_canopy_height_map", canopy)[0]["wri_canopy_height_map"].dtype == np.uint8
    canopy[0, 200, 200] = 255
    assert not filtered(tmp_path, "wri_canopy_height_map", canopy)[0]
    crops = np.ones((1, 256, 256), np.uint8)
    assert filtered(tmp_path, "cdl", crops)[0]
    crops[0, 3, 3] = 0
    assert not filtered(tmp_path, "cdl", crops)[0]
    heights = np.full((1, 256, 256), 12.6, np.float32)
    assert (filtered(tmp_path, "srtm", heights, nodata=-32768)[0]["srtm"] == 13).all()
    heights[0, 0, 0] = -32768
    assert not filtered(tmp_path, "srtm", heights, nodata=-32768)[0]
    cereal = np.full((8, 256, 256), 70, np.uint8)
    cereal[2] = 254
    found = filtered(tmp_path, "worldcereal", cereal, nodata=255)[0]["worldcereal"]
    assert found.dtype == np.float32 and found[5, 5, 0].tolist() == [70, 70, 0, 70, 70, 70, 70, 70]


def test_a_raster_elsewhere_or_of_another_product_leaves_the_map_out(tmp_path):
    there = np.full((1, 64, 64), 10, np.uint8)
    assert filtered(tmp_path, "worldcover", there, origin=(100_000.0, 100_000.0))[1] == {"worldcover": "no data here"}
    assert filtered(tmp_path, "worldcover", there, origin=(-80.0, 10.0), metres=0.1, crs="EPSG:4326")[1]
    other = np.full((1, 256, 256), 200, np.uint8)
    assert "another product" in filtered(tmp_path, "worldcover", other)[1]["worldcover"]


def test_a_period_with_a_tenth_of_the_tile_counts_and_one_with_less_does_not():
    valid = np.zeros((2, 256, 256), bool)
    valid[0, :26], valid[1, :25] = True, True  # 10.2 % and 9.8 %
    values = np.where(valid[:, None], 5, 0).astype(np.uint16).repeat(12, axis=1)
    cube = Cube(
        box=square(32631, 256, 0, 0),
        values={"sentinel2_l2a": values},
        valid={"sentinel2_l2a": valid},
        absent_bands={"sentinel2_l2a": np.zeros((2, 12), bool)},
        clear=None,
        used=(),
        bytes_read=0,
    )
    images, present, left_out = satellite_images(cube)
    assert present["sentinel2_l2a"].tolist() == [True, False] and not left_out
    assert images["sentinel2_l2a"].shape == (256, 256, 1, 12)
    cube.absent_bands["sentinel2_l2a"][0, 3] = True
    assert satellite_images(cube)[2] == {"sentinel2_l2a": "no imagery"}
