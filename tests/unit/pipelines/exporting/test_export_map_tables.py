"""Maps as GeoParquet: a row per cell, or per polygon, read back by geopandas and pyarrow."""

from __future__ import annotations

import json

import coded_maps as cm
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from pyproj import Transformer

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines import export_map
from olmoearth_pipelines.export_map import MapReport, MapRequest
from olmoearth_pipelines.exporting import to_parquet

TO_DEGREES = Transformer.from_crs(32631, 4326, always_xy=True)


def export(emap, out, **changes) -> MapReport:
    return export_map.run(MapRequest(map=emap.folder, to=out, **changes), lambda *_: None)


@pytest.fixture
def emap(tmp_path):
    return cm.make_map(tmp_path / "map", cm.tiles(2, 2))


def in_degrees(shape: shapely.Geometry) -> shapely.Geometry:
    return shapely.transform(shapely.segmentize(shape, 50), TO_DEGREES.transform, interleaved=False)


def test_every_cell_with_a_vector_is_a_row_at_its_centre(emap, tmp_path) -> None:
    report = export(emap, tmp_path / "map.parquet")
    frame = geopandas.read_parquet(tmp_path / "map.parquet")
    row, col = frame["row"].to_numpy(), frame["column"].to_numpy()
    box = cm.tiles(1, 1)[0]
    whole = cm.codes_of(PixelBox(box.epsg, box.row0, box.col0, box.row0 + 192, box.col0 + 192))
    assert len(frame) == report.rows == int((whole[..., 0] != -128).sum())
    assert np.array_equal(np.stack(frame["embedding"].to_list()), cm.codes_at(row, col))
    assert len(set(zip(row, col, strict=True))) == len(frame)
    lon, lat = TO_DEGREES.transform(col * 40 + 20, -row * 40 - 20)
    assert np.allclose(frame.geometry.x, lon, atol=1e-9) and np.allclose(frame.geometry.y, lat, atol=1e-9)
    assert frame.crs.to_epsg() == 4326
    assert set(frame["epsg"]) == {32631}


def test_the_file_explains_itself(emap, tmp_path) -> None:
    export(emap, tmp_path / "map.parquet")
    file = pq.ParquetFile(tmp_path / "map.parquet")
    schema = file.schema_arrow
    assert schema.field("embedding").type == pa.list_(pa.int8(), 3)
    geo = json.loads(file.metadata.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"], column["encoding"]) == ("1.1.0", "geometry", "WKB")
    assert column["geometry_types"] == ["Point"]
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    frame = geopandas.read_parquet(tmp_path / "map.parquet")
    assert column["bbox"] == frame.total_bounds.tolist()
    emb = json.loads(file.metadata.metadata[b"emb"])
    assert emb["emb:quantization"]["scale"] == list(cm.SCALE)
    assert emb["emb:runtime_parameters"]["weights_sha256"] == "cd" * 32
    assert file.metadata.row_group(0).column(3).compression == "ZSTD"


def test_a_box_reads_its_cells_alone_and_skips_row_groups(emap, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(to_parquet, "ROW_GROUP_BYTES", 30_000)
    export(emap, tmp_path / "map.parquet", dtype="float32")
    whole = geopandas.read_parquet(tmp_path / "map.parquet")
    west, south, east, north = whole.total_bounds
    box = (west, south, west + (east - west) / 4, south + (north - south) / 4)
    part = geopandas.read_parquet(tmp_path / "map.parquet", bbox=box)
    inside = whole.geometry.intersects(shapely.box(*box))
    assert len(part) == int(inside.sum()) > 50
    assert np.array_equal(np.stack(part["embedding"]), np.stack(whole["embedding"][inside]))
    metadata = pq.ParquetFile(tmp_path / "map.parquet").metadata
    assert metadata.num_row_groups >= 4
    names = metadata.schema.names
    met = 0
    for k in range(metadata.num_row_groups):
        edges = {n: metadata.row_group(k).column(names.index(n)).statistics for n in ("xmin", "ymin", "xmax", "ymax")}
        met += edges["xmin"].min <= box[2] and edges["ymin"].min <= box[3]
    assert met < metadata.num_row_groups, "a Hilbert curve keeps a row group together"


def test_rows_of_a_group_follow_the_curve(emap, tmp_path) -> None:
    export(emap, tmp_path / "map.parquet")
    frame = geopandas.read_parquet(tmp_path / "map.parquet")
    steps = np.abs(np.diff(frame["row"])) + np.abs(np.diff(frame["column"]))
    assert np.median(steps) == 1, "row by row it would be 1 as well, but then in columns alone"
    assert 0.3 < (np.diff(frame["row"]) != 0).mean() < 0.7


def test_squares_are_the_cells_themselves(emap, tmp_path) -> None:
    export(emap, tmp_path / "map.parquet", geometry="cell", aoi="4.05,49.85,4.2,49.9")
    frame = geopandas.read_parquet(tmp_path / "map.parquet")
    cell = frame.iloc[10]
    corners = np.array([(cell["column"] * 40 + dx, -cell["row"] * 40 - dy) for dx, dy in ((0, 0), (40, 40))])
    (west, north), (east, south) = (TO_DEGREES.transform(*corner) for corner in corners)
    assert cell.geometry.contains(shapely.Point((west + east) / 2, (south + north) / 2))
    assert np.allclose(frame.to_crs(32631).area, 1600, rtol=1e-6)
    assert cell.geometry.exterior.is_ccw


def test_a_square_on_the_dateline_is_divided_there() -> None:
    x, y = Transformer.from_crs(4326, 32660, always_xy=True).transform(180, 10)
    cells = np.array([[32660, int(-y // 40), int(x // 40)], [32660, int(-y // 40), int(x // 40) - 10]])
    across, beside = to_parquet.squares(cells, 4)
    assert across.geom_type == "MultiPolygon" and across.bounds[0] == -180 and across.bounds[2] == 180
    assert across.area == pytest.approx(beside.area, rel=1e-3)
    assert beside.geom_type == "Polygon"


@pytest.fixture
def fields(tmp_path):
    """Three fields: 8 x 6 cells, a sliver inside one cell, one far away; corners on cells' edges and middles."""
    box = cm.tiles(1, 1)[0]
    row, col = box.row0 // 4 + 8, box.col0 // 4 + 10
    west, north = col * 40, -row * 40
    shapes = [
        shapely.box(west, north - 6 * 40, west + 8 * 40, north),
        shapely.box(west + 42, north - 18, west + 46, north - 2),
        shapely.box(west + 9e4, north, west + 9e4 + 400, north + 400),
    ]
    frame = geopandas.GeoDataFrame(
        {"crop": ["wheat", "rye", "oat"], "cells": [1, 2, 3]}, geometry=[in_degrees(s) for s in shapes], crs=4326
    )
    frame.to_file(tmp_path / "fields.gpkg")
    return tmp_path / "fields.gpkg", row, col


def test_a_polygon_has_the_mean_of_the_cells_inside(emap, tmp_path, fields) -> None:
    path, row, col = fields
    report = export(emap, tmp_path / "fields.parquet", pool=path)
    frame = geopandas.read_parquet(tmp_path / "fields.parquet").set_index("crop")
    assert set(frame.index) == {"wheat", "rye"}
    assert report.rows == 2
    assert any("1 of 3 polygons" in note for note in report.notes)
    i, j = np.mgrid[row : row + 6, col : col + 8]
    wanted = cm.decoded(cm.codes_at(i, j)).reshape(-1, 3)
    seen = np.isfinite(wanted[:, 0])
    assert frame.loc["wheat", "cells"] == seen.sum()
    assert np.allclose(frame.loc["wheat", "embedding"], wanted[seen].mean(axis=0), rtol=1e-6)
    assert frame.loc["rye", "cells"] == 1
    assert np.array_equal(frame.loc["rye", "embedding"], cm.decoded(cm.codes_at(np.array(row), np.array(col + 1))))
    assert frame["cells_"].to_dict() == {"wheat": 1, "rye": 2}, "the file's own attribute of that name"
    assert any("cells_" in note for note in report.notes)


def test_means_become_codes_where_int8_is_asked(emap, tmp_path, fields) -> None:
    path, _, _ = fields
    export(emap, tmp_path / "exact.parquet", pool=path)
    export(emap, tmp_path / "codes.parquet", pool=path, dtype="int8")
    exact = np.stack(geopandas.read_parquet(tmp_path / "exact.parquet")["embedding"])
    codes = np.stack(geopandas.read_parquet(tmp_path / "codes.parquet")["embedding"])
    assert codes.dtype == np.int8
    assert (np.abs(codes * np.float32(cm.SCALE) + np.float32(cm.OFFSET) - exact) <= np.array(cm.SCALE) / 2 + 1e-5).all()


def test_what_cannot_be_pooled_is_refused(emap, tmp_path, fields) -> None:
    points = tmp_path / "points.geojson"
    points.write_text(shapely.to_geojson(shapely.MultiPoint([(4, 50), (4.1, 50)])))
    with pytest.raises(InputError, match="no polygon"):
        export(emap, tmp_path / "a.parquet", pool=points)
    with pytest.raises(InputError, match="--pool"):
        export(emap, tmp_path / "a.tif", pool=fields[0])
    with pytest.raises(InputError, match="--epsg"):
        export(emap, tmp_path / "a.parquet", epsg=3035)
    away = tmp_path / "away.geojson"
    away.write_text(shapely.to_geojson(shapely.box(40, 40, 41, 41)))
    with pytest.raises(InputError, match="none of its 1 polygons"):
        export(emap, tmp_path / "a.parquet", pool=away)
    assert not (tmp_path / "a.parquet").exists()
