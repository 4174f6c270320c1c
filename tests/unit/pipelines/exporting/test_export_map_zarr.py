"""Maps as Zarr v3 stores, read back by xarray and rioxarray without options."""

from __future__ import annotations

import json
import warnings

import coded_maps as cm
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 - gives arrays their .rio
import xarray as xr

from olmoearth_cli.errors import OutputError
from olmoearth_cli.geo.grid import square
from olmoearth_pipelines import export_map
from olmoearth_pipelines.export_map import MapReport, MapRequest


def export(emap, out, **changes) -> MapReport:
    return export_map.run(MapRequest(map=emap.folder, to=out, **changes), lambda *_: None)


@pytest.fixture
def emap(tmp_path):
    """Two tiles with an empty square between them, wide enough for a chunk that nobody writes."""
    boxes = [square(32631, 512, -1080, 112), square(32631, 512, -1080, 115)]
    return cm.make_map(tmp_path / "map", boxes)


def codes(emap) -> np.ndarray:
    """[3, Y, X] over both tiles and the gap between them."""
    left, right = (np.moveaxis(cm.codes_of(tile.box), -1, 0) for tile in emap.tiles)
    empty = np.full((3, 128, 256), -128, dtype=np.int8)
    return np.concatenate([left, empty, right], axis=2)


@pytest.mark.parametrize("shard", [False, True])
def test_xarray_reads_codes_no_data_and_place(emap, tmp_path, shard) -> None:
    report = export(emap, tmp_path / "map.zarr", shard=shard)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        opened = xr.open_zarr(tmp_path / "map.zarr")
    values = opened["embedding"]
    wanted = codes(emap)
    assert values.dims == ("embedding_dim", "y", "x")
    assert values.dtype == np.float32
    assert np.array_equal(np.isnan(values), wanted == -128)
    assert np.array_equal(np.nan_to_num(values, nan=-128).astype(np.int8), wanted)
    vectors = values * opened["scale"] + opened["offset"]
    assert np.array_equal(np.moveaxis(vectors.values, 0, -1), cm.decoded(np.moveaxis(wanted, 0, -1)), equal_nan=True)
    assert values.rio.crs.to_epsg() == 32631
    box = emap.tiles[0].box
    assert values.rio.transform().to_gdal() == (box.col0 * 10.0, 40.0, 0.0, -box.row0 * 10.0, 0.0, -40.0)
    assert float(opened.x[0]) == box.col0 * 10 + 20 and float(opened.y[0]) == -box.row0 * 10 - 20
    assert report.layers[0]["cells"] == int((wanted[0] != -128).sum())


def test_the_metadata_says_what_readers_look_for(emap, tmp_path) -> None:
    export(emap, tmp_path / "map.zarr")
    array = json.loads((tmp_path / "map.zarr" / "embedding" / "zarr.json").read_text())
    assert array["zarr_format"] == 3
    assert array["fill_value"] == array["attributes"]["_FillValue"] == -128
    assert array["dimension_names"] == ["embedding_dim", "y", "x"]
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [3, 64, 64]
    blosc = next(codec for codec in array["codecs"] if codec["name"] == "blosc")
    assert blosc["configuration"]["cname"] == "zstd"
    assert array["attributes"]["grid_mapping"] == "spatial_ref"
    group = json.loads((tmp_path / "map.zarr" / "zarr.json").read_text())["attributes"]
    for place in (array["attributes"], group):
        assert place["proj:code"] == "EPSG:32631"
        box = emap.tiles[0].box
        assert place["spatial:transform"] == [40, 0, box.col0 * 10, 0, -40, -box.row0 * 10]
        assert place["spatial:shape"] == [128, 512]
        assert place["spatial:dimensions"] == ["y", "x"]
        west, south, east, north = place["spatial:bbox"]
        assert (east - west, north - south) == (512 * 40, 128 * 40)
    uuids = {entry["uuid"][:8] for entry in group["zarr_conventions"]}
    assert uuids == {"689b58e2", "f17cb550", "61c12cc5"}
    assert group["geoemb:dimensions"] == 3 and group["geoemb:type"] == "pixel"
    assert group["geoemb:quantization"]["method"] == "linear"
    assert group["olmoearth"]["weights_sha256"] == "cd" * 32
    axes = {a: json.loads((tmp_path / "map.zarr" / a / "zarr.json").read_text())["attributes"] for a in "xy"}
    assert {a: v["standard_name"] for a, v in axes.items()} == {
        "x": "projection_x_coordinate",
        "y": "projection_y_coordinate",
    }
    # The square between the tiles has no chunk on disk: its columns 2 to 5 of 8.
    stored = {path.name for path in (tmp_path / "map.zarr" / "embedding" / "c" / "0" / "0").iterdir()}
    assert stored == {"0", "1", "6", "7"}


def test_several_zones_are_a_group_each_and_nothing_is_resampled(tmp_path) -> None:
    emap = cm.make_map(tmp_path / "map", [*cm.tiles(1, 2), *cm.tiles(1, 1, epsg=32634)], thirds=[1, 1, 2])
    report = export(emap, tmp_path / "map.zarr")
    assert [(layer["name"], layer["epsg"]) for layer in report.layers] == [("epsg_32631", 32631), ("epsg_32634", 32634)]
    for name, boxes, third in (("epsg_32631", cm.tiles(1, 2), 1), ("epsg_32634", cm.tiles(1, 1, epsg=32634), 2)):
        opened = xr.open_zarr(tmp_path / "map.zarr", group=name, mask_and_scale=False)
        wanted = np.concatenate([cm.codes_of(box, third) for box in boxes], axis=1)
        assert np.array_equal(opened["embedding"], np.moveaxis(wanted, -1, 0))
        assert opened["embedding"].rio.crs.to_epsg() == int(name[-5:])


def test_degrees_and_float32(emap, tmp_path) -> None:
    export(emap, tmp_path / "map.zarr", epsg=4326, dtype="float32")
    export(emap, tmp_path / "map.tif", epsg=4326, dtype="float32")
    opened = xr.open_zarr(tmp_path / "map.zarr")
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert np.array_equal(opened["embedding"], raster.read(), equal_nan=True)
        assert opened["embedding"].rio.transform() == raster.transform
    assert opened["embedding"].dtype == np.float32
    assert opened.x.attrs["units"] == "degrees_east" and opened.y.attrs["units"] == "degrees_north"
    assert opened["embedding"].rio.crs.to_epsg() == 4326
    assert "scale" not in opened


def test_only_a_store_is_replaced_and_only_on_request(emap, tmp_path) -> None:
    out = tmp_path / "map.zarr"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="other files"):
        export(emap, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    with pytest.raises(OutputError, match="--overwrite"):
        export(emap, out)
    export(emap, out, overwrite=True)
    (out / "stale").write_text("of the first export")
    export(emap, out, overwrite=True)
    assert not (out / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map", "map.zarr"]
