"""Pixels to vectors: who owns a cell, what counts as seen, what blending does."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from olmoearth_cli.core.model import random_model
from olmoearth_cli.core.plan import EmbedPlan
from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.geo.tiles import Tile, Windowing, needed_blocks, pixels_of
from olmoearth_pipelines.cube import Cube
from olmoearth_pipelines.encode import BlockEncoder, encode_tile, seen_patches

EPSG = 32631
STAMPS = np.array([[1, 0, 2024], [31, 0, 2024], [1, 2, 2024]])
WINDOWING = Windowing(window_px=16, overlap_px=8, patch_px=4)
TILE = Tile(id="t", box=square(EPSG, 32, -7, 5), blocks=tuple((i, j) for i in range(-28, -24) for j in range(20, 24)))


def cube_over(box, *, seed=0, radar=True, holes=True):
    rng = np.random.default_rng(seed)
    t, h, w = len(STAMPS), box.height, box.width
    values = {"sentinel2_l2a": rng.integers(200, 4000, (t, 12, h, w)).astype(np.uint16)}
    valid = {"sentinel2_l2a": np.ones((t, h, w), bool)}
    if radar:
        values["sentinel1"] = rng.normal(-12, 4, (t, 2, h, w)).astype(np.float32)
        valid["sentinel1"] = np.ones((t, h, w), bool)
    if holes:
        valid["sentinel2_l2a"][1] = False
        valid["sentinel2_l2a"][0, :, : w // 3] = False
        values["sentinel2_l2a"][~valid["sentinel2_l2a"][:, None].repeat(12, 1)] = 0
    absent = {m: np.zeros((t, v.shape[1]), bool) for m, v in values.items()}
    return Cube(box=box, values=values, valid=valid, absent_bands=absent, clear=None, used=(), bytes_read=0)


@pytest.fixture(scope="module")
def plan():
    return EmbedPlan(random_model("v1.2-nano", seed=2), STAMPS, ("sentinel2_l2a", "sentinel1"), 16, 4)


def encode(tile, cube, plan, windowing=WINDOWING, blend="none", threads=2):
    encoder = BlockEncoder(cube, plan.model.spec, plan, windowing)
    with ThreadPoolExecutor(threads) as pool:
        return encode_tile(tile, encoder, windowing=windowing, dimensions=128, blend=blend, pool=pool)


def test_a_cells_vector_is_that_of_the_window_that_owns_it(plan):
    cube = cube_over(pixels_of(TILE, WINDOWING, "none"))
    out = encode(TILE, cube, plan)
    encoder = BlockEncoder(cube, plan.model.spec, plan, WINDOWING)
    for i, j in ((-28, 20), (-26, 21), (-25, 23)):
        _, vectors, _ = encoder.encode((i, j))
        r, c = (i + 28) * 2, (j - 20) * 2
        assert np.array_equal(out.vectors[r : r + 2, c : c + 2], vectors[0][1:3, 1:3], equal_nan=True)
    assert np.isfinite(out.vectors).all()
    assert out.windows == 16


def test_threads_and_other_blocks_change_no_byte(plan):
    cube = cube_over(pixels_of(TILE, WINDOWING, "none"))
    whole = encode(TILE, cube, plan, threads=1)
    assert np.array_equal(whole.vectors, encode(TILE, cube, plan, threads=4).vectors)
    few = Tile(id="t", box=TILE.box, blocks=TILE.blocks[5:7])
    part = encode(few, cube, plan)
    at = np.isfinite(part.vectors[..., 0])
    assert at.sum() == 8
    assert np.array_equal(part.vectors[at], whole.vectors[at])


def test_blocks_of_several_windows_cover_the_same_cells(plan):
    large = Windowing(window_px=16, overlap_px=8, patch_px=4, batch_side=2)
    tile = Tile(id="t", box=TILE.box, blocks=tuple((i, j) for i in (-14, -13) for j in (10, 11)))
    cube = cube_over(pixels_of(TILE, WINDOWING, "none"))
    a, b = encode(TILE, cube, plan), encode(tile, cube, plan, windowing=large)
    assert np.allclose(a.vectors, b.vectors, atol=1e-5)


def test_hann_blending_is_a_weighted_mean_of_the_windows_over_a_cell(plan):
    cube = cube_over(pixels_of(TILE, WINDOWING, "hann"))
    out = encode(TILE, cube, plan, blend="hann")
    encoder = BlockEncoder(cube, plan.model.spec, plan, WINDOWING)
    # Cell (1, 1) of the tile lies in windows (-28..-27, 20..21): weights by its place in each.
    ramp = np.sin(np.pi * (np.arange(4) + 0.5) / 4) ** 2
    total, mass = 0, 0
    for i in (-28, -27):
        for j in (20, 21):
            _, vectors, _ = encoder.encode((i, j))
            y, x = 1 - ((i + 28) * 2 - 1), 1 - ((j - 20) * 2 - 1)
            total, mass = total + ramp[y] * ramp[x] * vectors[0][y, x], mass + ramp[y] * ramp[x]
    assert np.allclose(out.vectors[1, 1], total / mass, atol=1e-5)


def test_cells_without_any_data_stay_without_a_vector(plan):
    cube = cube_over(pixels_of(TILE, WINDOWING, "none"), holes=False)
    for valid in cube.valid.values():
        valid[:, :20] = False
    out = encode(TILE, cube, plan)
    rows = np.isfinite(out.vectors[..., 0]).all(axis=1)
    assert rows.tolist() == [False] * 4 + [True] * 4


def test_disagreement_is_zero_where_windows_agree_and_absent_without_overlap(plan):
    box = pixels_of(TILE, WINDOWING, "none")
    out = encode(TILE, cube_over(box), plan)
    assert np.nanmax(out.disagreement) > 0
    assert np.nanmin(out.disagreement) >= -1e-6
    plain = Windowing(window_px=16, overlap_px=0, patch_px=4)
    tile = Tile(id="t", box=TILE.box, blocks=((-14, 10), (-14, 11)))
    assert np.isnan(encode(tile, cube_over(pixels_of(tile, plain, "none")), plan, windowing=plain).disagreement).all()


def test_a_patch_is_seen_when_half_of_it_is_and_radar_when_all_of_it_is():
    cube = cube_over(PixelBox(EPSG, 0, 0, 8, 8), holes=False)
    for valid in cube.valid.values():
        valid[0, :2, :4] = False  # half of the first patch
        valid[1, :3, :4] = False  # three quarters
    optical = seen_patches(cube, "sentinel2_l2a", 4)[:, 0, 0]
    radar = seen_patches(cube, "sentinel1", 4)[:, 0, 0]
    assert optical.tolist() == [True, False, True]
    assert radar.tolist() == [False, False, True]


def test_blending_needs_the_neighbours_of_a_tile():
    assert len(needed_blocks(TILE, WINDOWING, "none")) == 16
    assert len(needed_blocks(TILE, WINDOWING, "hann")) == 36
