import math

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.aoi import Aoi
from olmoearth_cli.geo.tiles import Windowing, blocks_of, tile_grid


def area(west, south, east, north):
    return Aoi(geometry=shapely.MultiPolygon([shapely.box(west, south, east, north)]), source="test", name="test")


DEFAULT = Windowing(window_px=64, overlap_px=32, patch_px=4)


@pytest.mark.parametrize(
    ("window", "overlap", "patch", "words"),
    [
        (64, 32, 5, "--patch-size 5 does not divide --window 64"),
        (64, 64, 4, "--overlap 64"),
        (64, 12, 4, "--overlap 12"),
        (64, 0, 9, "--patch-size 9"),
        (64, 0, 0, "--patch-size 0"),
        (0, 0, 4, "--window 0"),
        (64, -8, 4, "--overlap -8"),
    ],
)
def test_windows_that_do_not_fit_are_refused_with_what_to_do(window, overlap, patch, words):
    with pytest.raises(InputError, match=words):
        Windowing(window_px=window, overlap_px=overlap, patch_px=patch)


@given(
    patch=st.integers(1, 8),
    cells=st.integers(1, 24),
    half=st.integers(0, 11),
    i=st.integers(-9999, 9999),
    j=st.integers(-9999, 9999),
)
def test_owned_squares_tile_the_plane_and_lie_on_the_patch_grid(patch, cells, half, i, j):
    if 2 * half >= cells:
        half = 0
    w = Windowing(window_px=patch * cells, overlap_px=2 * half * patch, patch_px=patch)
    here, right, below = (w.owned(32631, *at) for at in ((i, j), (i, j + 1), (i + 1, j)))
    assert (here.col1, here.row1) == (right.col0, below.row0)
    window = w.window(32631, i, j)
    assert window.width == window.height == w.window_px
    assert window.intersection(here) == here
    assert all(edge % patch == 0 for edge in (window.row0, window.col0, here.row0, here.col0))


def test_a_region_of_two_zones_is_gridded_in_both():
    grid = tile_grid(area(5.98, 50.0, 6.02, 50.02), DEFAULT)
    assert {tile.box.epsg for tile in grid.tiles} == {32631, 32632}


@settings(max_examples=25, deadline=None)
@given(
    # A centimetre: slivers of 1e-115 degrees at the equator are cut differently by every projection.
    lon=st.floats(-170, 170).map(lambda v: round(v, 7)),
    lat=st.floats(-75, 78).map(lambda v: round(v, 7)),
    width=st.floats(0.002, 0.08),
    height=st.floats(0.002, 0.05),
    cut=st.floats(0.1, 0.9),
)
def test_blocks_of_a_region_are_those_of_its_halves(lon, lat, width, height, cut):
    middle = lon + cut * width
    whole = blocks_of(area(lon, lat, lon + width, lat + height), DEFAULT.block_px)
    parts = [
        blocks_of(area(lon, lat, middle, lat + height), DEFAULT.block_px),
        blocks_of(area(middle, lat, lon + width, lat + height), DEFAULT.block_px),
    ]
    united = {epsg: set() for part in parts for epsg in part}
    for part in parts:
        for epsg, members in part.items():
            united[epsg] |= set(members)
    assert {epsg: set(members) for epsg, members in whole.items()} == united


@settings(max_examples=15, deadline=None)
@given(side=st.sampled_from([64, 128, 256, 512, 1024]), batch=st.sampled_from([1, 2, 4]))
def test_tiles_hold_every_block_once_whatever_their_size(side, batch):
    w = Windowing(window_px=64, overlap_px=32, patch_px=4, batch_side=batch)
    region = area(5.3, 50.6, 5.36, 50.63)
    grid = tile_grid(region, w, tile_px=side)
    held = [(tile.box.epsg, block) for tile in grid.tiles for block in tile.blocks]
    expected = [(epsg, block) for epsg, blocks in blocks_of(region, w.block_px).items() for block in blocks]
    assert sorted(held) == sorted(expected)
    assert len(set(tile.id for tile in grid.tiles)) == len(grid.tiles)
    for tile in grid.tiles:
        for i, j in tile.blocks:
            assert tile.box.row0 <= i * w.block_px < tile.box.row1
            assert tile.box.col0 <= j * w.block_px < tile.box.col1


def test_covered_area_is_the_region_and_a_rim():
    region = area(5.3, 50.6, 5.4, 50.66)
    grid = tile_grid(region, DEFAULT)
    rim = 4 * math.sqrt(region.area_km2) * 0.64
    assert region.area_km2 <= grid.area_km2 <= region.area_km2 + rim


def test_small_regions_get_small_tiles_and_large_ones_large_tiles():
    assert tile_grid(area(5.30, 50.60, 5.32, 50.62), DEFAULT).tile_px == 256
    assert tile_grid(area(5.3, 50.2, 6.0, 50.7), DEFAULT).tile_px == 1024
