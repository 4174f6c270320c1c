"""Reading single cells of a map."""

import numpy as np
import pytest

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox, square
from olmoearth_cli.maps import reading
from olmoearth_cli.maps.embedding_map import EmbeddingMap, write_gap, write_tile


@pytest.fixture(params=["int8", "float32"])
def opened(request, tmp_path, spec_with, tile_box, result_of):
    spec = spec_with(dtype=request.param)
    for name, box in (("a", tile_box(0, 0)), ("b", tile_box(0, 1)), ("c", tile_box(0, 0, epsg=32632))):
        write_tile(tmp_path, spec, result_of(name, box, spec))
    write_gap(tmp_path, spec, "gap", tile_box(1, 0), "no imagery")
    return EmbeddingMap.open(tmp_path)


def test_cells_in_any_order_get_the_vectors_of_the_windows_that_hold_them(opened, tile_box):
    rng = np.random.default_rng(0)
    cells, expected = [], []
    for box in (tile_box(0, 0), tile_box(0, 1), tile_box(0, 0, epsg=32632)):
        window = opened.read_window(box)
        at = rng.integers(0, 24, (30, 2))
        cells.append(np.column_stack([np.full(30, box.epsg), box.row0 // 4 + at[:, 0], box.col0 // 4 + at[:, 1]]))
        expected.append(window[at[:, 0], at[:, 1]])
    order = rng.permutation(90)
    got = opened.read_cells(np.concatenate(cells)[order])
    assert got.dtype == np.float32
    assert np.array_equal(got, np.concatenate(expected)[order], equal_nan=True)
    assert np.isfinite(got).all(axis=1).sum() > 60


def test_cells_without_data_or_tile_are_nan(opened, tile_box):
    box, gap = tile_box(0, 0), tile_box(1, 0)
    row, col = box.row0 // 4, box.col0 // 4
    got = opened.read_cells([
        [box.epsg, row, col],  # the corner without data
        [box.epsg, row + 10, col + 10],
        [gap.epsg, gap.row0 // 4, gap.col0 // 4],
        [box.epsg, row - 1, col],
        [32633, row, col],
    ])  # fmt: skip
    assert np.isfinite(got).all(axis=1).tolist() == [False, True, False, False, False]
    assert np.isnan(got[[0, 2, 3, 4]]).all()
    assert opened.read_cells(np.empty((0, 3), np.int64)).shape == (0, 6)


def test_only_blocks_that_hold_a_cell_are_read(tmp_path, spec_with, result_of, monkeypatch):
    spec = spec_with(dimensions=32, dtype="float32", patch_px=1)
    box = square(32631, 256, -2160, 225)
    vectors = np.zeros((256, 256, 32), np.float32)
    vectors[..., 0], vectors[..., 1] = np.arange(256)[:, None], np.arange(256)
    write_tile(tmp_path, spec, result_of("a", box, spec, vectors))
    read = []
    real = reading._stored
    monkeypatch.setattr(reading, "_stored", lambda source, cells: read.append(cells) or real(source, cells))
    at = np.array([(200, 7), (3, 4), (5, 100), (3, 4)])
    cells = np.column_stack([np.full(4, 32631), at[:, 0] + box.row0, at[:, 1] + box.col0])
    got = EmbeddingMap.open(tmp_path).read_cells(cells)
    assert got[:, :2].tolist() == at.tolist()
    assert read == [(slice(0, 128), slice(0, 128)), (slice(128, 256), slice(0, 128))]


def test_a_tile_that_is_not_square_and_ends_inside_a_block_is_read_to_its_edge(tmp_path, spec_with, result_of):
    spec = spec_with(dtype="float32")
    box = PixelBox(32631, -552960, 57600, -552960 + 4 * 20, 57600 + 4 * 37)
    vectors = np.arange(20 * 37 * 6, dtype=np.float32).reshape(20, 37, 6)
    write_tile(tmp_path, spec, result_of("a", box, spec, vectors))
    row, col = np.mgrid[0:20, 0:37].reshape(2, -1)
    cells = np.column_stack([np.full(row.size, 32631), box.row0 // 4 + row, box.col0 // 4 + col])
    assert np.array_equal(EmbeddingMap.open(tmp_path).read_cells(cells), vectors.reshape(-1, 6))


def test_a_damaged_tile_is_named(opened, tile_box):
    path = opened.folder / "tiles" / "b.tif"
    path.write_bytes(b"\0" * path.stat().st_size)
    box = tile_box(0, 1)
    with pytest.raises(InputError, match=r"b\.tif.*Delete the file"):
        opened.read_cells([[box.epsg, box.row0 // 4, box.col0 // 4]])
