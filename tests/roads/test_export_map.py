"""`olmoearth export map`: the same vectors in one COG, one Zarr store, one table."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import xarray

from olmoearth_cli.maps.embedding_map import EmbeddingMap, open_map
from tests.roads.conftest import olmoearth


@pytest.fixture(scope="module")
def mapped(place, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "map"
    done = olmoearth("embed", *place.flags("-o", str(folder), "--quiet"))
    assert done.code == 0, done.err
    return folder


def vectors_at(folder: Path, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N, D] of the map at coordinates of its own zone."""
    array = open_map(folder)
    picked = array.sel(x=xarray.DataArray(x), y=xarray.DataArray(y), method="nearest")
    return np.asarray(picked.values).T


def test_one_cog_holds_what_the_tiles_hold(mapped, tmp_path, here):
    out = tmp_path / "map.tif"
    done = here("export", "map", str(mapped), "--to", str(out), "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    spec = EmbeddingMap.open(mapped).spec
    with rasterio.open(out) as source:
        assert source.count == spec.dimensions
        assert set(source.nodatavals) == {-128}
        assert source.dtypes[0] == "int8"
        codes = source.read()
        known = (codes != -128).all(axis=0)
        rows, cols = (index[::37] for index in np.nonzero(known))
        x, y = rasterio.transform.xy(source.transform, rows, cols)
        values = np.asarray(spec.quantizer.decode(np.moveaxis(codes, 0, -1)[rows, cols]))
    assert len(rows) > 10
    np.testing.assert_allclose(values, vectors_at(mapped, np.array(x), np.array(y)), atol=1e-5)


def test_a_zarr_store_opens_in_xarray_with_its_place_and_values(mapped, tmp_path, here):
    out = tmp_path / "map.zarr"
    done = here("export", "map", str(mapped), "--to", str(out), "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    groups = [path.parent for path in out.rglob("zarr.json") if (path.parent / "x" / "zarr.json").is_file()]
    assert len(groups) == 1
    opened = xarray.open_zarr(groups[0], consolidated=False)
    codes = opened[next(name for name, values in opened.data_vars.items() if values.ndim >= 3)].squeeze()
    # Scale and offset differ by dimension, which CF's attributes cannot say: they are arrays of the store.
    vectors = opened["offset"].values[:, None, None] + opened["scale"].values[:, None, None] * codes.values
    rows, cols = (index[::37] for index in np.nonzero(np.isfinite(vectors[0])))
    x, y = opened["x"].values[cols], opened["y"].values[rows]
    assert len(rows) > 10
    np.testing.assert_allclose(vectors[:, rows, cols].T, vectors_at(mapped, x, y), atol=1e-5)


def test_a_table_has_one_row_for_every_cell_with_a_vector(mapped, tmp_path, here):
    out = tmp_path / "map.parquet"
    done = here("export", "map", str(mapped), "--to", str(out), "--dtype", "float32", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    table = geopandas.read_parquet(out)
    emap = EmbeddingMap.open(mapped)
    cells = sum(int(np.isfinite(emap.read_window(tile.box)[..., 0]).sum()) for tile in emap.tiles)
    assert len(table) == cells
    lonlat = table.geometry.to_crs(4326).representative_point()
    some = table.iloc[::101]
    found = emap.read_points(np.column_stack([lonlat.x, lonlat.y])[::101])
    np.testing.assert_allclose(np.stack(some["embedding"].to_list()), found, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nowhere", "--to", "a.tif"], ["nowhere"]),
        (["{map}", "--to", "a.docx"], ["a.docx"]),
        (["{map}", "--to", "a.tif", "--aoi", "100,0,101,1"], ["100,0,101,1"]),
    ],
)
def test_bad_input_is_one_message_and_leaves_no_file(mapped, tmp_path, here, flags, words):
    done = here("export", "map", *(flag.format(map=mapped) for flag in flags), cwd=tmp_path)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_replaced_on_request_only(mapped, tmp_path, here):
    out = tmp_path / "map.tif"
    out.write_text("mine")
    done = here("export", "map", str(mapped), "--to", str(out), cwd=tmp_path)
    assert done.code == 2, done.err
    assert out.read_text() == "mine"
    done = here("export", "map", str(mapped), "--to", str(out), "--overwrite", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)
    with rasterio.open(out) as source:
        assert source.count > 1
