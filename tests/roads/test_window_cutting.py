"""Windows cut for labels: their pixels, their targets, and that nothing is read twice."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize
from shapely.affinity import affine_transform, translate

from olmoearth_cli.errors import GuardError, InputError, OutputError, RunError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.geo.periods import periods
from olmoearth_pipelines.cube import read_cube
from olmoearth_pipelines.stac import CELL_PX, search
from olmoearth_pipelines.windows.folder import WindowFolder
from olmoearth_pipelines.windows.prepare import CutTile, WindowRequest, prepare_windows
from tests.roads.conftest import write_region

ROW, COL = -561_300, 66_000
"""First pixel of the region's imagery, in zone 32631."""
SIDE = 216
START = date(2024, 1, 1)


def quiet(_text: str) -> None:
    """Notes of no interest."""


def lonlat(shape: shapely.Geometry) -> shapely.Geometry:
    """A shape in pixels of the imagery, x to the east and y to the south, in degrees."""
    from pyproj import Transformer

    back = Transformer.from_crs(32631, 4326, always_xy=True)
    metres = shapely.transform(shape, lambda xy: np.stack([(COL + xy[:, 0]) * 10, -(ROW + xy[:, 1]) * 10], axis=1))
    return shapely.transform(metres, back.transform, interleaved=False)


def features(path: Path, *labels: tuple[shapely.Geometry, str]) -> Path:
    write_region(path, *(lonlat(shape) for shape, _ in labels))
    content = json.loads(path.read_text())
    for feature, (_, name) in zip(content["features"], labels, strict=True):
        feature["properties"] = {"class": name}
    path.write_text(json.dumps(content))
    return path


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[str]:
    """Address of a cluster in this process, so that not every run starts one."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=workers,
        threads_per_worker=2,
        processes=False,
        dashboard_address=":0",
        protocol="tcp",
        silence_logs=50,
    ) as made:
        yield made.scheduler_address


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with cluster(1) as address:
        yield address


FIELDS = [
    (shapely.box(c * 27 + 4.3, r * 27 + 5.2, c * 27 + 22.9, r * 27 + 19.6), "abc"[(r + c) % 3])
    for r in range(8)
    for c in range(8)
]


@pytest.fixture(scope="module")
def request_for(place, scheduler, tmp_path_factory) -> WindowRequest:
    """64 fields of three classes, windows of 64 px."""
    folder = tmp_path_factory.mktemp("fields")
    shutil.copytree(place.catalog.parent, folder / "imagery")
    return WindowRequest(
        labels=str(features(folder / "fields.geojson", *FIELDS)),
        catalogs=(str(folder / "imagery" / place.catalog.name),),
        start=START,
        periods=3,
        scheduler=scheduler,
        out=folder / "windows",
    )


@pytest.fixture(scope="module")
def finished(request_for) -> tuple[list[CutTile], WindowFolder, list[str]]:
    return cut(request_for)


@contextlib.contextmanager
def without_catalogue(request: WindowRequest) -> Iterator[None]:
    folder = Path(str(request.catalogs[0])).parent
    folder.rename(folder.with_name("hidden"))
    try:
        yield
    finally:
        folder.with_name("hidden").rename(folder)


def cut(request: WindowRequest) -> tuple[list[CutTile], WindowFolder, list[str]]:
    said: list[str] = []
    *tiles, folder = prepare_windows(request, quiet, said.append)
    assert isinstance(folder, WindowFolder)
    return [tile for tile in tiles if isinstance(tile, CutTile)], folder, said


def box_of(window_id: str, side: int) -> PixelBox:
    epsg, row, col = int(window_id[:5]), int(window_id[7:13]), int(window_id[15:21])
    return PixelBox(epsg, row * side, col * side, (row + 1) * side, (col + 1) * side)


def test_windows_hold_the_stack_of_their_ground_and_the_polygons_that_gdal_burns(finished, place) -> None:
    tiles, folder, _ = finished
    assert {tile.status for tile in tiles} == {"done"}
    assert sum(tile.windows for tile in tiles) == len(folder)
    task = folder.task
    assert (task.kind, task.class_names, task.field) == ("segmentation", ("a", "b", "c"), "class")
    assert (task.modalities, task.window_px, task.periods) == (("sentinel2_l2a", "sentinel1"), 64, 3)
    assert task.sparse and not task.centre
    table = search([(32631, ROW // CELL_PX, COL // CELL_PX)], periods(START, 3), [str(place.catalog)], None)
    back = [(translate(shape, COL, ROW), name) for shape, name in FIELDS]
    back = [(affine_transform(shape, [10, 0, 0, -10, 0, 0]), "abc".index(name)) for shape, name in back]
    labelled = 0
    for number, name in enumerate(folder.ids):
        box, window = box_of(name, 64), folder.read(number)
        burnt = rasterize(back, out_shape=(64, 64), transform=box.transform(), fill=-1, dtype="int16")
        np.testing.assert_array_equal(window.target, burnt)
        labelled += int((burnt >= 0).sum())
        if number % 5:
            continue
        cube = read_cube(box, table.for_box(box), 3, table.modalities)
        for modality, image in window.images.items():
            np.testing.assert_array_equal(image, cube.values[modality].transpose(2, 3, 0, 1))
            np.testing.assert_array_equal(window.valid[modality], cube.valid[modality].transpose(1, 2, 0))
            np.testing.assert_array_equal(window.absent[modality], cube.absent_bands[modality])
        assert window.timestamps.tolist() == [[1, 0, 2024], [31, 0, 2024], [1, 2, 2024]]
        lon, lat = shapely.get_coordinates(lonlat(shapely.Point(box.col0 + 32 - COL, box.row0 + 32 - ROW)))[0]
        assert window.lonlat == pytest.approx((lon, lat), abs=1e-9)
    # Centres from 4.5 + 27c to 22.5 + 27c and from 5.5 + 27r to 19.5 + 27r, with the corner on a whole pixel.
    assert labelled == 64 * 19 * 15


def test_a_second_run_reads_no_catalogue(request_for, finished) -> None:
    _, first, warned = finished
    with without_catalogue(request_for):
        tiles, again, warned_again = cut(request_for)
    assert tiles == []
    assert again.fingerprint == first.fingerprint
    assert warned_again == warned


def test_other_settings_are_refused_before_anything_is_read(request_for, finished) -> None:
    with without_catalogue(request_for), pytest.raises(OutputError, match=r"block_km was None, is 0\.32"):
        cut(replace(request_for, block_km=0.32))
    assert WindowFolder.open(request_for.folder).fingerprint == finished[1].fingerprint


def test_a_run_that_was_broken_off_goes_on_and_ends_alike(request_for, finished, tmp_path) -> None:
    request = replace(request_for, out=tmp_path / "windows")
    broken = prepare_windows(request, quiet, quiet)
    next(broken)
    broken.close()
    before = {path: path.stat().st_mtime_ns for path in (request.folder / "windows").glob("*.h5")}
    assert len(before) > 1 and not (request.folder / "windows.json").exists()
    missing = next(iter(before))
    missing.unlink()  # its neighbours, cut before, stay
    _, found, _ = cut(request)
    assert found.fingerprint == finished[1].fingerprint
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path != missing)


def test_two_workers_cut_the_same_windows_as_one(request_for, finished, tmp_path) -> None:
    with cluster(2) as address:
        _, two, _ = cut(replace(request_for, out=tmp_path / "two", scheduler=address))
    assert two.fingerprint == finished[1].fingerprint


def test_places_have_their_class_and_data_in_the_middle_cell(request_for, tmp_path) -> None:
    spots = [(shapely.Point(27 * c + 9, 27 * r + 9), "ab"[(r + c) % 2]) for r in range(8) for c in range(8)]
    beyond = [(shapely.Point(SIDE + 20, 100), "a"), (shapely.Point(-3, 100), "b")]
    points = features(tmp_path / "points.geojson", *spots, *beyond)
    request = replace(request_for, labels=str(points), kind="classification", window_px=16, out=tmp_path / "windows")
    _, folder, said = cut(request)
    assert folder.task.centre and not folder.task.sparse
    assert len(folder) == 64
    (lost,) = [line for line in said if "no scene has data" in line]
    assert lost.startswith("2 of 66 windows with 2 labels left out")
    assert "features 65, 64; first at" in lost  # from west to east
    for number in range(64):
        window = folder.read(number)
        column, row = shapely.get_coordinates(shapely.Point(window.lonlat))[0]
        found = [
            name for spot, name in spots if np.allclose(shapely.get_coordinates(lonlat(spot)), (column, row), atol=6e-4)
        ]
        assert len(found) == 1
        assert window.target.shape == ()
        assert "ab"[int(window.target)] == found[0]
        assert window.valid["sentinel1"][8:12, 8:12].any()


def test_labels_without_any_imagery_are_refused_and_leave_nothing(request_for, tmp_path) -> None:
    far = features(tmp_path / "far.geojson", *((translate(shape, 300, 0), name) for shape, name in FIELDS))
    request = replace(request_for, labels=str(far), out=tmp_path / "windows")
    with pytest.raises(InputError, match=r"none of the \d+ windows has imagery where it is labelled"):
        cut(request)
    assert not request.folder.exists()


def test_scenes_that_cannot_be_read_end_the_run_unless_gaps_are_allowed(request_for, tmp_path) -> None:
    imagery = tmp_path / "imagery"
    catalog = Path(str(request_for.catalogs[0]))
    shutil.copytree(catalog.parent, imagery)
    broken = [path for path in imagery.rglob("*.tif") if "vv" in path.name.lower()]
    for path in broken:
        path.write_bytes(path.read_bytes()[:300])
    assert broken
    request = replace(request_for, catalogs=(str(imagery / catalog.name),), guard="off", out=tmp_path / "windows")
    with pytest.raises(RunError, match=r"could not be read .* --allow-gaps to go on without them"):
        cut(request)
    with pytest.raises(InputError, match=r"none of the \d+ windows has imagery"):
        cut(replace(request, allow_gaps=True))


def test_somebody_elses_folder_is_left_alone(request_for, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match=r"is not empty and holds no windows .thesis.txt."):
        cut(replace(request_for, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_scenes_that_contradict_their_catalogue_stop_the_run_before_the_folder(request_for, tmp_path) -> None:
    imagery = tmp_path / "imagery"
    catalog = Path(str(request_for.catalogs[0]))
    shutil.copytree(catalog.parent, imagery)
    for path in imagery.rglob("*.tif"):
        if "vv" in path.name.lower():
            in_decibels(path)
    request = replace(request_for, catalogs=(str(imagery / catalog.name),), out=tmp_path / "windows")
    with pytest.raises(GuardError, match="decibels"):
        cut(request)
    assert not request.folder.exists()


def in_decibels(path: Path) -> None:
    """Write the pixels of a radar image in decibels."""
    with rasterio.open(path) as source:
        profile, power = source.profile, source.read()
    with rasterio.open(path, "w", **profile) as out:
        out.write(np.where(power > 0, 10 * np.log10(np.maximum(power, 1e-9)), power).astype(power.dtype))
