import pickle
import subprocess
import sys

import dask
import numpy as np
import pytest
from pyproj import Transformer

import olmoearth_cli
from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps import reading, run_record
from olmoearth_cli.maps.embedding_map import EmbeddingMap, MapSpec, open_map, write_gap, write_tile


@pytest.fixture
def exact(spec_with):
    """float32: what is read equals what was written."""
    return spec_with(dtype="float32")


@pytest.fixture
def folder(tmp_path, exact, tile_box, result_of):
    for name, at in (("a", (0, 0)), ("b", (0, 1)), ("c", (1, 1))):
        write_tile(tmp_path, exact, result_of(name, tile_box(*at), exact))
    write_gap(tmp_path, exact, "gap", tile_box(1, 0), "no imagery")
    return tmp_path


def whole(folder_map, vectors_of, tile_box):
    """[48, 48, D] as it should be read."""
    spec = folder_map.spec
    out = np.full((48, 48, spec.dimensions), np.nan, np.float32)
    out[:24, :24] = vectors_of(tile_box(0, 0), spec)
    out[:24, 24:] = vectors_of(tile_box(0, 1), spec)
    out[24:, 24:] = vectors_of(tile_box(1, 1), spec)
    return out


def test_the_specification_round_trips_and_can_be_hashed_and_pickled(spec_with):
    for spec in (spec_with(), spec_with(dtype="float32", demo=True)):
        assert MapSpec.from_json(spec.to_json()) == spec
        assert pickle.loads(pickle.dumps(spec)) == spec
        assert hash(pickle.loads(pickle.dumps(spec))) == hash(spec)


def test_a_specification_that_contradicts_itself_is_a_callers_mistake(spec_with):
    for changes in ({"dtype": "int16"}, {"scale": None}, {"dimensions": 7}, {"offset": (0.0,)}):
        with pytest.raises(ValueError, match=r"dtype|scale and offset"):
            spec_with(**changes)


def test_windows_over_tiles_gaps_and_nothing(folder, vectors_of, tile_box):
    opened = EmbeddingMap.open(folder)
    expected = whole(opened, vectors_of, tile_box)
    first, last = tile_box(0, 0), tile_box(1, 1)
    box = PixelBox(first.epsg, first.row0, first.col0, last.row1, last.col1)
    assert np.array_equal(opened.read_window(box), expected, equal_nan=True)
    part = PixelBox(box.epsg, box.row0 + 40, box.col0 + 80, box.row0 + 120, box.col0 + 160)
    assert np.array_equal(opened.read_window(part), expected[10:30, 20:40], equal_nan=True)
    outside = opened.read_window(box.grown(8))
    assert outside.shape == (52, 52, 6)
    assert np.array_equal(outside[2:-2, 2:-2], expected, equal_nan=True)
    assert np.isnan(outside[:2]).all()
    assert np.isnan(opened.read_window(PixelBox(32632, 0, 0, 8, 8))).all()
    with pytest.raises(ValueError, match="whole 4 px cells"):
        opened.read_window(PixelBox(box.epsg, box.row0 + 1, box.col0, box.row1, box.col1))


def test_points_get_the_vector_of_their_cell(folder, vectors_of, tile_box):
    opened = EmbeddingMap.open(folder)
    expected = whole(opened, vectors_of, tile_box)
    west, _, _, north = tile_box().bounds_m
    cells = np.array([(5, 7), (0, 0), (23, 23), (23, 24), (47, 47), (30, 5)])
    # A metre inside the cell's north-western and south-eastern corners.
    for inset in (1.0, 39.0):
        x, y = west + cells[:, 1] * 40 + inset, north - cells[:, 0] * 40 - inset
        lonlat = np.column_stack(Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y))
        assert np.array_equal(opened.read_points(lonlat), expected[cells[:, 0], cells[:, 1]], equal_nan=True)


def test_points_outside_or_nowhere_are_nan_and_the_rest_is_read(folder):
    opened = EmbeddingMap.open(folder)
    x, y = np.mean(opened.tiles[0].box.bounds_m[::2]), np.mean(opened.tiles[0].box.bounds_m[1::2])
    lon, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y)
    vectors = opened.read_points([[lon, lat], [0.0, 0.0], [np.nan, 4.0], [-177.0, 89.0], [lon, lat]])
    assert np.isfinite(vectors[[0, 4]]).all()
    assert np.isnan(vectors[1:4]).all()
    assert opened.read_points(np.empty((0, 2))).shape == (0, 6)


def test_points_read_only_blocks_that_hold_one(tmp_path, spec_with, result_of, monkeypatch):
    from olmoearth_cli.geo.grid import square

    spec = spec_with(dimensions=32, dtype="float32", patch_px=1)
    box = square(32631, 256, -2160, 225)
    vectors = np.zeros((256, 256, 32), np.float32)
    vectors[..., 0] = np.arange(256)[:, None]
    write_tile(tmp_path, spec, result_of("a", box, spec, vectors))
    read = []
    real = reading._stored
    monkeypatch.setattr(reading, "_stored", lambda source, cells: read.append(cells) or real(source, cells))
    west, _, _, north = box.bounds_m
    at = np.array([(3, 4), (5, 100), (200, 7)])
    lonlat = np.column_stack(
        Transformer.from_crs(32631, 4326, always_xy=True).transform(west + at[:, 1] * 10 + 5, north - at[:, 0] * 10 - 5)
    )
    got = EmbeddingMap.open(tmp_path).read_points(lonlat)
    assert got[:, 0].tolist() == [3, 5, 200]
    assert read == [(slice(0, 128), slice(0, 128)), (slice(128, 256), slice(0, 128))]


def test_a_point_that_two_zones_hold_is_read_from_its_own(tmp_path, exact, result_of):
    # 6.01 degrees east belongs to zone 32; zone 31's tile reaches over the border and holds other vectors.
    to_31, to_32 = (Transformer.from_crs(4326, e, always_xy=True) for e in (32631, 32632))
    point, beyond = (6.01, 49.9), (5.99, 49.9)
    for name, epsg, to, value in (("a", 32631, to_31, 31.0), ("b", 32632, to_32, 32.0)):
        x, y = to.transform(*point)
        col, row = int(x // 960), int(-y // 960)
        box = PixelBox(epsg, (row - 2) * 96, (col - 2) * 96, (row + 3) * 96, (col + 3) * 96)
        shape = (*exact.shape(box), 6)
        write_tile(tmp_path, exact, result_of(name, box, exact, np.full(shape, value, np.float32)))
    opened = EmbeddingMap.open(tmp_path)
    assert opened.zones == (32631, 32632)
    assert opened.read_points([point, beyond])[:, 0].tolist() == [32.0, 31.0]


def test_the_lazy_array_equals_the_tiles(folder, vectors_of, tile_box):
    array = open_map(folder)
    assert dask.is_dask_collection(array)
    assert array.dims == ("band", "y", "x")
    assert array.dtype == np.float32
    assert array.chunks == ((6,), (24, 24), (24, 24))
    assert array.rio.crs.to_epsg() == 32631
    assert array.rio.transform().to_gdal() == (576000.0, 40.0, 0.0, 5529600.0, 0.0, -40.0)
    assert np.isnan(array.rio.nodata)
    assert float(array.x[0]) == 576020.0
    assert float(array.y[0]) == 5529580.0
    assert array.band.values.tolist()[:2] == ["e000", "e001"]
    expected = whole(EmbeddingMap.open(folder), vectors_of, tile_box)
    assert np.array_equal(np.moveaxis(array.values, 0, -1), expected, equal_nan=True)


def test_the_lazy_array_decodes_int8_and_splits_tiles_into_their_blocks(tmp_path, spec_with, result_of):
    from olmoearth_cli.geo.grid import square

    spec = spec_with(dimensions=128, scale=(0.05,) * 128, offset=(1.0,) * 128, patch_px=1)
    box = square(32631, 192, -2880, 300)
    vectors = np.random.default_rng(0).uniform(-5, 7, (192, 192, 128)).astype(np.float32)
    write_tile(tmp_path, spec, result_of("a", box, spec, vectors))
    array = open_map(tmp_path)
    assert array.chunks == ((128,), (128, 64), (128, 64))
    part = array.isel(x=slice(120, 140), y=slice(100, 150)).compute(scheduler="processes", num_workers=1)
    assert np.abs(np.moveaxis(part.values, 0, -1) - vectors[100:150, 120:140]).max() <= 0.025 + 1e-5


def test_opening_reads_no_pixels(folder, monkeypatch):
    monkeypatch.setattr(reading, "read_cells", None)
    monkeypatch.setattr("rasterio.open", None)
    open_map(folder)


def test_a_map_over_two_zones_asks_which(folder, exact, tile_box, result_of):
    write_tile(folder, exact, result_of("z", tile_box(0, 0, epsg=32632), exact))
    with pytest.raises(InputError, match=r"32631, 32632.*epsg="):
        open_map(folder)
    assert open_map(folder, epsg=32632).rio.crs.to_epsg() == 32632
    with pytest.raises(InputError, match="EPSG:32633"):
        open_map(folder, epsg=32633)


def test_folders_that_are_no_map_are_refused_with_what_to_do(tmp_path, exact, tile_box, result_of):
    with pytest.raises(InputError, match="no such folder"):
        EmbeddingMap.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no embedding map"):
        EmbeddingMap.open(tmp_path)
    run_record.start(tmp_path, {})
    with pytest.raises(InputError, match="Run the same embed command again"):
        EmbeddingMap.open(tmp_path)
    write_gap(tmp_path, exact, "gap", tile_box(), "no imagery")
    with pytest.raises(InputError, match="gaps"):
        EmbeddingMap.open(tmp_path)


def test_a_half_finished_map_gives_what_is_complete_and_says_so(tmp_path, exact, tile_box, result_of):
    run_record.start(tmp_path, {})
    write_tile(tmp_path, exact, result_of("a", tile_box(), exact))
    opened = EmbeddingMap.open(tmp_path)
    assert not opened.complete
    assert opened.spec == exact
    assert [(t.id, t.status) for t in opened.tiles] == [("a", "done")]
    assert np.isfinite(opened.read_window(tile_box())).any()
    run_record.finish(tmp_path, {}, {"complete": True})
    assert EmbeddingMap.open(tmp_path).complete


def test_tiles_of_two_models_are_never_read_as_one_map(folder, spec_with, tile_box, result_of):
    other = spec_with(dtype="float32", weights_sha256="00" * 32)
    write_tile(folder, other, result_of("z", tile_box(2, 2), other))
    with pytest.raises(InputError, match="weights_sha256"):
        EmbeddingMap.open(folder)


def test_a_corrupt_tile_is_named_with_what_to_do(folder, tile_box):
    path = folder / "tiles" / "a.tif"
    path.write_bytes(b"\0" * path.stat().st_size)
    opened = EmbeddingMap.open(folder)
    with pytest.raises(InputError, match=r"a\.tif.*Delete the file"):
        opened.read_window(tile_box())
    sums = opened.checksums()
    assert sums["a"] != opened.tiles[0].facts["sha256"]
    assert sums["b"] == opened.tiles[1].facts["sha256"]


def test_the_package_exposes_open_map_without_importing_anything_heavy():
    assert olmoearth_cli.open_map is open_map
    assert "open_map" in dir(olmoearth_cli)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        olmoearth_cli.nonsense  # noqa: B018
    code = "import sys, olmoearth_cli; print(sorted({'torch', 'xarray', 'rasterio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
