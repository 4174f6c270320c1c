"""Suggestions on a map whose close calls and strangers are known."""

from __future__ import annotations

import json

import clustered_map as cm
import numpy as np
import pytest
from pyproj import Geod, Transformer

from olmoearth_cli.core.probe.knn import fit_knn
from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.embedding_map import TileResult, write_tile
from olmoearth_pipelines.probing import suggest
from olmoearth_pipelines.probing.suggest import Suggestion, check_not_filled_in, where_to_label, write_suggestions

AXES = np.eye(cm.DIMENSIONS, dtype=np.float32)


def angle(degrees: float) -> np.ndarray:
    """A direction in the plane of the first two classes."""
    a = np.radians(degrees)
    return np.cos(a) * AXES[0] + np.sin(a) * AXES[1]


@pytest.fixture
def box():
    return cm.tiles(1, 1, side=192)[0]


def map_of(folder, box, cells: np.ndarray):
    """A map of given vectors [Y, X, D]."""
    quality = {"disagreement": np.zeros(cells.shape[:2], np.float32)}
    result = TileResult(tile_id="a", box=box, vectors=cells, quality=quality, sources={}, facts={})
    write_tile(folder, cm.spec(), result)
    return cm.EmbeddingMap.open(folder)


@pytest.fixture
def emap(tmp_path, box):
    """48 x 48 cells: water in the west, forest in the east, a gradual shore, and a corner of something else."""
    x = np.linspace(-1, 1, 48)
    degrees = 45 + 45 * np.clip(x * 6, -1, 1)
    cells = np.stack([angle(d) for d in degrees])[None].repeat(48, axis=0)
    cells[40:, :8] = AXES[5]
    cells[:4, 44:] = np.nan
    return map_of(tmp_path / "map", box, cells.astype(np.float32))


def share_of_the_other(temperature: float) -> float:
    """Vote of the farther class in the two middle columns, which lie 1/47 off the middle of the shore."""
    a = np.radians(45 - 45 * 6 / 47)
    return float(1 / (1 + np.exp((np.cos(a) - np.sin(a)) / temperature)))


def probe():
    """Ten labels each of pure water and pure forest; a vote mild enough to have close decisions."""
    return cm.saved(
        probe=fit_knn(AXES[[0, 1] * 10], np.array([0, 1] * 10), kind="classification", classes=3, k=20, temperature=0.3)
    )


def cells_of(box: PixelBox, suggestions: list[Suggestion]) -> np.ndarray:
    """[N, 2] row and column of the suggested cells; their centres must be cell centres."""
    x, y = Transformer.from_crs(4326, box.epsg, always_xy=True).transform(
        [s.lon for s in suggestions], [s.lat for s in suggestions]
    )
    west, _, _, north = box.bounds_m
    rows, cols = (north - np.array(y)) / 40 - 0.5, (np.array(x) - west) / 40 - 0.5
    assert np.abs(rows - np.rint(rows)).max() < 1e-2
    assert np.abs(cols - np.rint(cols)).max() < 1e-2
    return np.rint(np.column_stack([rows, cols])).astype(int)


def test_the_stranger_comes_first_then_close_decisions(emap, box) -> None:
    found = where_to_label(emap, probe(), 4, avoid_lonlat=None)
    cells = cells_of(box, found)
    assert len(found) == 4
    assert found[0].reason == "unlike any label"
    assert cells[0, 0] >= 40 and cells[0, 1] < 8
    # The stranger is as far from both classes; the closest decision of the shore is as close as its angle says.
    assert [s.confidence for s in found[:2]] == pytest.approx([0.5, 1 - share_of_the_other(0.3)], abs=1e-3)
    assert all(s.reason == "close decision" for s in found[1:])
    assert all(22 <= col <= 25 for col in cells[1:, 1]), "the shore"
    assert {s.predicted for s in found} <= {"water", "forest"}
    assert all(0 < s.score <= 1 for s in found)


def test_suggestions_are_the_same_again_and_keep_their_distance(emap) -> None:
    first = where_to_label(emap, probe(), 12, avoid_lonlat=None)
    assert first == where_to_label(emap, probe(), 12, avoid_lonlat=None)
    geod = Geod(ellps="WGS84")
    area_km2 = (48 * 48 - 16) * 0.0016
    wanted = 0.25 * 1000 * np.sqrt(area_km2 / 12)
    for a in range(12):
        for b in range(a):
            metres = geod.inv(first[a].lon, first[a].lat, first[b].lon, first[b].lat)[2]
            assert metres > 0.99 * wanted


def test_labelled_places_are_avoided(emap, box) -> None:
    first = where_to_label(emap, probe(), 4, avoid_lonlat=None)
    there = [(s.lon, s.lat) for s in first]
    again = where_to_label(emap, probe(), 4, avoid_lonlat=there)
    moved = cells_of(box, again)
    for row, col in cells_of(box, first):
        assert (np.hypot(moved[:, 0] - row, moved[:, 1] - col) > 1).all()


def test_fewer_come_back_where_the_map_has_no_more(tmp_path, box) -> None:
    cells = np.full((48, 48, cm.DIMENSIONS), np.nan, np.float32)
    cells[0, :6] = angle(45)
    emap = map_of(tmp_path / "map", box, cells)
    found = cells_of(box, where_to_label(emap, probe(), 50, avoid_lonlat=None))
    assert (found[:, 0] == 0).all()
    assert len(found) == 3, "of six cells in a row every second is far enough from the others"
    empty = map_of(tmp_path / "empty", box, np.full_like(cells, np.nan))
    assert where_to_label(empty, probe(), 5, avoid_lonlat=None) == []


def test_a_large_map_is_sampled_evenly_and_by_its_seed(emap, box, monkeypatch) -> None:
    monkeypatch.setattr(suggest, "SAMPLE_CELLS", 400)
    sample = suggest._sample(emap, 1)
    assert len(sample.vectors) == len(sample.lonlat) == 400
    assert sample.km2 == pytest.approx((48 * 48 - 16) * 0.0016)
    west, south, east, north = sample.lonlat.min(axis=0).tolist() + sample.lonlat.max(axis=0).tolist()
    middle = ((west + east) / 2, (south + north) / 2)
    for side in (sample.lonlat > middle).T:
        assert 140 < side.sum() < 260
    assert not np.array_equal(sample.lonlat, suggest._sample(emap, 2).lonlat)


@pytest.mark.parametrize("kind", ["multilabel", "segmentation"])
def test_other_kinds_are_unsure_at_the_shore_too(kind, emap, box) -> None:
    y = np.array([[1, 0, 0], [0, 1, 0]] * 10) if kind == "multilabel" else np.array([0, 1] * 10)[:, None, None]
    targets = y if kind == "multilabel" else y.repeat(4, axis=1).repeat(4, axis=2)
    fitted = fit_knn(AXES[[0, 1] * 10], targets, kind=kind, classes=3, k=20, temperature=0.3)
    found = where_to_label(emap, cm.saved(probe=fitted), 3, avoid_lonlat=None)
    sure = [s for s in found if s.reason == "close decision"]
    assert sure
    assert all(20 <= col <= 27 for _, col in cells_of(box, sure))
    assert min(s.confidence for s in sure) == pytest.approx(1 - share_of_the_other(0.3), abs=1e-3)


def test_values_are_suggested_where_the_labels_disagree(emap, box) -> None:
    fitted = fit_knn(AXES[[0, 1] * 10], np.array([1000.0, 1001.0] * 10), kind="regression", classes=1, k=20)
    found = where_to_label(emap, cm.saved(probe=fitted, class_names=()), 5, avoid_lonlat=None)
    assert all(s.confidence is None for s in found)
    shore = [s for s in found if s.reason == "labels disagree"]
    assert shore
    assert all(20 <= col <= 27 for _, col in cells_of(box, shore))
    p = share_of_the_other(0.07)  # of values 1000 and 1001, whose own spread is one half
    assert max(s.score for s in shore) == pytest.approx(np.sqrt(p * (1 - p)) / 0.5, abs=1e-3)
    assert all(1000 <= float(s.predicted) <= 1001 for s in found)


def test_the_file_can_be_filled_in_by_hand(tmp_path) -> None:
    places = [
        Suggestion(lon=5.1, lat=52.2, predicted="water", confidence=0.5, score=0.9, reason="close decision"),
        Suggestion(lon=5.3, lat=52.4, predicted="forest", confidence=None, score=0.1, reason="spread"),
    ]
    write_suggestions(tmp_path / "next.geojson", places, label_field="cover")
    features = json.loads((tmp_path / "next.geojson").read_text())["features"]
    assert [f["geometry"]["coordinates"] for f in features] == [[5.1, 52.2], [5.3, 52.4]]
    assert features[0]["properties"] == {
        "rank": 1,
        "cover": None,
        "predicted": "water",
        "confidence": 0.5,
        "score": 0.9,
        "reason": "close decision",
    }


@pytest.mark.parametrize("field", ["cover", "score"])
def test_places_that_were_labelled_by_hand_are_never_written_over(tmp_path, field) -> None:
    path = tmp_path / "next.geojson"
    check_not_filled_in(path, label_field=field)
    place = Suggestion(lon=5.1, lat=52.2, predicted="water", confidence=0.5, score=0.9, reason="close decision")
    write_suggestions(path, [place, place], label_field=field)
    check_not_filled_in(path, label_field=field)
    content = json.loads(path.read_text())
    assert content["features"][0]["properties"][field] is None
    content["features"][1]["properties"][field] = "water"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="1 of its 2 places have been labelled"):
        check_not_filled_in(path, label_field=field)


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"features": [{"properties": null}]}'])
def test_a_file_that_is_no_suggestion_is_not_written_over(tmp_path, text) -> None:
    path = tmp_path / "next.geojson"
    path.write_text(text)
    with pytest.raises(InputError, match="is not what --where-to-label wrote"):
        check_not_filled_in(path, label_field="cover")
