"""The raw-band baseline over a real (synthetic) map: its numbers against the files read directly."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import rasterio

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_pipelines.cube import Cube
from olmoearth_pipelines.probing.raw_bands import _cell_series, _features, available, fill_in_time, raw_vectors
from olmoearth_pipelines.scene_table import SceneTable
from tests.roads.conftest import Place, olmoearth

OUTSIDE = (32631, 0, 0)
"""A cell of the zone far from any imagery."""


@pytest.fixture(scope="module")
def emap(place: Place, tmp_path_factory) -> EmbeddingMap:
    out = tmp_path_factory.mktemp("raw") / "map"
    done = olmoearth("embed", *place.flags("--out", str(out)))
    assert done.code == 0, done.err
    return EmbeddingMap.open(out)


@pytest.fixture(scope="module")
def cells(emap) -> np.ndarray:
    """Cells [N, 3] of the map that have a vector, one in seven."""
    found = []
    for tile in emap.tiles:
        rows, cols = np.nonzero(np.isfinite(emap.read_window(tile.box)[..., 0]))
        p = emap.spec.patch_px
        places = np.column_stack(
            [np.full(len(rows), tile.box.epsg), rows + tile.box.row0 // p, cols + tile.box.col0 // p]
        )
        found.append(places[::7])
    return np.concatenate(found)


@pytest.fixture(scope="module")
def raw(emap, cells):
    return raw_vectors(emap, cells)


def edited(emap: EmbeddingMap, folder: Path, change) -> EmbeddingMap:
    """A copy of a map whose scenes.json was changed."""
    shutil.copytree(emap.folder, folder)
    content = json.loads((folder / "scenes.json").read_text())
    change(content)
    (folder / "scenes.json").write_text(json.dumps(content))
    return EmbeddingMap.open(folder)


def from_file(emap, cells, modality: str, band: str, period: int) -> np.ndarray:
    """Float64 [N] model values from the first chosen scene's own file, NaN where it has no data in part of a cell."""
    table = SceneTable.from_json((emap.folder / "scenes.json").read_text())
    scene = next(s.scenes[0] for s in table.selections if (s.period, s.modality) == (period, modality))
    facts = json.loads((files("olmoearth_cli.core") / "normalization.json").read_text())["computed"][modality]
    at = facts["bands"].index(band)
    out = []
    with rasterio.open(scene.assets[band]) as source:
        for epsg, row, col in cells:
            p = emap.spec.patch_px
            box = PixelBox(epsg, row * p, col * p, row * p + p, col * p + p)
            pixels = source.read(1, window=source.window(*box.bounds_m)).astype(np.float64)
            numbers = 10 * np.log10(pixels) if modality == "sentinel1" else pixels - scene.offset_dn
            bad = (pixels <= 0).any() or not pixels.size
            out.append(np.nan if bad else (numbers.mean() - facts["lo"][at]) / (facts["hi"][at] - facts["lo"][at]))
    return np.array(out)


@pytest.mark.parametrize(
    ("modality", "band", "period"),
    [("sentinel2_l2a", "B04", 0), ("sentinel2_l2a", "B11", 2), ("sentinel1", "vv", 1), ("sentinel1", "vh", 2)],
)
def test_a_feature_is_the_cells_mean_in_model_units_as_the_scenes_own_file_has_it(
    emap, cells, raw, modality, band, period
):
    day = ("2024-01-01", "2024-01-31", "2024-03-01")[period]
    column = raw.vectors[:, raw.names.index(f"{modality} {band} {day}")]
    expected = from_file(emap, cells, modality, band, period)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(column, expected - expected.mean(), atol=2e-5)
    assert np.ptp(column) > 0.02
    assert raw.vectors.shape == (len(cells), len(raw.names)) and np.isfinite(raw.vectors).all()


def test_a_period_without_scenes_lies_halfway_between_its_neighbours(raw):
    table = raw.vectors.reshape(len(raw.vectors), 14, 3)
    np.testing.assert_allclose(table[:, :12, 1], (table[:, :12, 0] + table[:, :12, 2]) / 2, atol=1e-6)
    assert raw.missing_share == pytest.approx(12 / (14 * 3))
    assert raw.notes == ("28.6% of the values had no imagery and were filled from other periods",)


def test_rows_follow_the_cells_asked_for_and_a_cell_without_imagery_is_a_nan_row(emap, cells):
    asked = np.array([cells[5], OUTSIDE, cells[0], cells[5]])
    mixed = raw_vectors(emap, asked)
    alone = raw_vectors(emap, cells[[5, 0]])
    assert np.isnan(mixed.vectors[1]).all()
    assert np.array_equal(mixed.vectors[0], mixed.vectors[3])
    np.testing.assert_allclose(mixed.vectors[0] - mixed.vectors[2], alone.vectors[0] - alone.vectors[1], atol=1e-6)
    np.testing.assert_allclose(np.nanmean(mixed.vectors, axis=0), 0, atol=1e-6)
    assert "1 cells without any imagery" in mixed.notes
    with pytest.raises(InputError, match="no imagery at any of the 1 labelled cells"):
        raw_vectors(emap, np.array([OUTSIDE]))


def test_a_band_that_no_scene_has_is_left_out_and_said(emap, cells, tmp_path):
    def without_b01(content):
        for scene in content["scenes"]:
            scene["assets"].pop("B01", None)

    less = raw_vectors(edited(emap, tmp_path / "map", without_b01), cells[:3])
    assert less.vectors.shape == (3, 13 * 3)
    assert not any(" B01 " in name for name in less.names)
    assert "no imagery of sentinel2_l2a B01; left out" in less.notes


def test_imagery_on_disk_is_available_and_anything_else_has_a_reason_without_links(emap, tmp_path):
    assert available(emap) is None

    def moved(content):
        content["scenes"][0]["assets"]["B02"] = str(tmp_path / "gone.tif")

    def remote(content):
        content["scenes"][0]["assets"]["B02"] = "https://example.org/b02.tif?sig=SECRET"

    assert available(edited(emap, tmp_path / "a", moved)).startswith("scene files were moved or deleted (1 of ")
    reason = available(edited(emap, tmp_path / "b", remote))
    assert reason.startswith("scenes are remote (1 of ") and "SECRET" not in reason and "example" not in reason
    (tmp_path / "a" / "scenes.json").unlink()
    assert available(EmbeddingMap.open(tmp_path / "a")).endswith("scenes.json is missing")


def test_the_scenes_of_another_map_or_a_damaged_file_are_refused(emap, cells, tmp_path):
    other = edited(emap, tmp_path / "a", lambda content: content["periods"].pop())
    with pytest.raises(InputError, match="other periods or modalities"):
        raw_vectors(other, cells[:1])
    (tmp_path / "a" / "scenes.json").write_text("[1]")
    with pytest.raises(InputError, match="not readable as the map's scenes"):
        raw_vectors(other, cells[:1])
    assert "not readable as the map's scenes" in available(other)


def test_filling_in_time_is_numpys_interpolation_and_leaves_an_empty_series_empty():
    rng = np.random.default_rng(1)
    values = np.where(rng.random((50, 3, 7)) < 0.6, np.nan, rng.normal(size=(50, 3, 7))).astype(np.float32)
    values[0, 0] = np.nan
    filled = fill_in_time(values)
    for series, out in zip(values.reshape(-1, 7), filled.reshape(-1, 7), strict=True):
        known = np.isfinite(series)
        if known.any():
            np.testing.assert_allclose(out, np.interp(np.arange(7), np.flatnonzero(known), series[known]), atol=1e-6)
        else:
            assert np.isnan(out).all()


def test_a_mean_is_over_pixels_with_data_and_a_period_counts_only_where_the_encoder_saw_the_cell():
    box = PixelBox(32631, -80, 40, -76, 48)
    optical = np.full((2, 12, 4, 8), 1000, np.uint16)
    optical[:, :, :, :2] = 3000
    valid = np.ones((2, 4, 8), bool)
    valid[0, :, 0] = False  # a quarter of the first cell: its mean is of 4 x 3000 and 8 x 1000
    valid[1, :3, 4:7] = False  # 9 of 16 pixels of the second: unseen
    radar = np.full((2, 2, 4, 8), -10, np.float32)
    clear = np.ones((2, 4, 8), bool)
    clear[0, 0, 0], radar[0, :, 0, 0] = False, np.nan  # one pixel is enough for Sentinel-1
    absent = np.zeros((2, 12), bool)
    absent[0, 11] = True
    cube = Cube(
        box=box,
        values={"sentinel2_l2a": optical, "sentinel1": radar},
        valid={"sentinel2_l2a": valid, "sentinel1": clear},
        absent_bands={"sentinel2_l2a": absent, "sentinel1": np.zeros((2, 2), bool)},
        clear=None,
        used=(),
        bytes_read=0,
    )
    cells = np.array([[32631, -20, 11], [32631, -20, 10]])
    facts = json.loads((files("olmoearth_cli.core") / "normalization.json").read_text())["computed"]
    second, first = _cell_series(cube, "sentinel2_l2a", cells, 4)
    low, high = facts["sentinel2_l2a"]["lo"][0], facts["sentinel2_l2a"]["hi"][0]
    assert first[0, 0] == pytest.approx((5000 / 3 - low) / (high - low), rel=1e-5)
    assert first[0, 1] == pytest.approx((2000 - low) / (high - low), rel=1e-5)
    assert np.isnan(second[:, 1]).all() and np.isfinite(second[:11, 0]).all()
    assert np.isnan(first[11, 0]) and np.isfinite(first[11, 1])
    second, first = _cell_series(cube, "sentinel1", cells, 4)
    assert np.isnan(first[:, 0]).all() and np.isfinite(first[:, 1]).all() and np.isfinite(second).all()


def test_a_cell_without_a_band_that_others_have_gets_their_mean(emap):
    nan = np.nan
    vv_and_vh = np.array([[[1, nan], [4, 6]], [[3, 5], [nan, nan]], [[nan, nan], [nan, nan]]], np.float32)
    raw = _features({"sentinel1": vv_and_vh}, ["2024-01-01", "2024-01-31"], emap)
    assert raw.names[1:3] == ("sentinel1 vv 2024-01-31", "sentinel1 vh 2024-01-01")
    np.testing.assert_array_equal(raw.vectors[:2], [[-1, -2, 0, 0], [1, 2, 0, 0]])
    assert np.isnan(raw.vectors[2]).all()
    assert raw.missing_share == 3 / 8
    assert "1 cells lack a band in every period; the mean of the others stands in" in raw.notes
