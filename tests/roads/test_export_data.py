"""`olmoearth export data`: a catalogue becomes pretraining samples that our reader and its checks accept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 - registers the filter of the samples
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer

from olmoearth_cli.errors import InputError, OutputError, RunError
from olmoearth_pipelines.export_data import DataRequest, DataSummary, SampleTile, check_dataset, prepare, run
from olmoearth_pipelines.samples.layout import open_folder
from olmoearth_pipelines.synthetic import Scenery, make_region
from tests import real_catalogs
from tests.roads.conftest import environment, write_region

ORIGIN = (660_480.0, 5_614_080.0)  # column 258, row -2193 of the 2560 m grid
SCENERY = Scenery(seed=3, size_px=300, origin=ORIGIN, year=2023, without_s2=-1, without_s1=8, swath_edge=5)
NORTH_WEST, SOUTH = "32631-r-02193-c000258-256", "32631-r-02192-c000258-256"


def quiet(_text: str) -> None:
    """Notes of no interest."""


@pytest.fixture(scope="module")
def region(tmp_path_factory) -> dict[str, Path]:
    """300 px of imagery: one whole tile, one with 44 rows, one with 44 columns, one with 44 x 44 pixels."""
    folder = tmp_path_factory.mktemp("scenery")
    paths = make_region(folder, SCENERY)
    paths["aoi"] = write_region(folder / "aoi.geojson", SCENERY.square.lonlat(shapely.box(10, 10, 290, 290)))
    return paths


@pytest.fixture(scope="module")
def scheduler():
    """A cluster in this process, so that not every export starts one."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", protocol="tcp", silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def request_for(region, scheduler):
    return DataRequest(
        scheduler=scheduler,
        aoi=str(region["aoi"]),
        year=2023,
        catalogs=(str(region["catalog"]),),
        maps=f"worldcover={region['landcover']}",
    )


def points(path: Path, *pixels: tuple[int, int]) -> Path:
    """A CSV of points at (column, row) of the imagery."""
    lonlat = shapely.get_coordinates(SCENERY.square.lonlat(shapely.MultiPoint(pixels)))
    path.write_text("\n".join(["lon,lat", *(f"{x},{y}" for x, y in lonlat)]))
    return path


def export(request: DataRequest) -> tuple[list[SampleTile], DataSummary]:
    *tiles, summary = run(prepare(request, quiet), quiet, quiet)
    assert isinstance(summary, DataSummary)
    return tiles, summary


@pytest.fixture(scope="module")
def exported(request_for, tmp_path_factory):
    """The region exported once, undisturbed."""
    folder = tmp_path_factory.mktemp("exported") / "samples"
    tiles, summary = export(replace(request_for, out=folder))
    return folder, tiles, summary


def content(folder: Path) -> dict[str, str]:
    """File of the dataset -> checksum."""
    leaf = open_folder(folder).path
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(leaf.iterdir())}


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays and presence masks of a sample, by nothing but h5py."""
    with h5py.File(path) as file:
        arrays = {name: found[()] for name, found in file.items() if isinstance(found, h5py.Dataset)}
        return arrays, {name: mask[()] for name, mask in file["missing_timesteps_masks"].items()}


def files_of(catalog: Path, collection: str, asset: str) -> list[tuple[date, Path, float]]:
    """(day, COG, cloud cover) of every scene, from the item files alone."""
    found = []
    for path in catalog.parent.rglob("*.json"):
        item = json.loads(path.read_text())
        if item.get("collection") == collection:
            day = date.fromisoformat(item["properties"]["datetime"][:10])
            cog = path.parent / item["assets"][asset]["href"]
            found.append((day, cog, item["properties"].get("eo:cloud_cover", 0.0)))
    return sorted(found)


def in_period(files, period: int):
    start = date(2023, 1, 1).toordinal() + 30 * period
    return [each for each in files if start <= each[0].toordinal() < start + 30]


def test_two_tiles_have_enough_and_two_are_skipped_with_a_reason(exported):
    _, tiles, summary = exported
    assert {tile.tile for tile in tiles if tile.status == "done"} == {NORTH_WEST, SOUTH}
    assert (summary.samples, summary.tiles) == (8, 2)
    # The eastern tile loses the period of the swath's edge; the corner has 3 % of its pixels.
    assert summary.skipped == {
        "no satellite product has all 12 periods (most: 11)": 1,
        "no satellite product has all 12 periods (most: 0)": 1,
    }
    assert summary.left_out == {"sentinel1: pixels without data in a period": 1}
    assert summary.errors == 0, summary.findings


def test_the_dataset_is_in_the_published_layout_and_validates(exported):
    folder, _, summary = exported
    base = "h5py_data_w_missing_timesteps_zstd_3_128_x_4/sentinel1_sentinel2_l2a_worldcover/8"
    assert Path(summary.folder) == folder / base
    errors, findings = check_dataset(folder)
    assert errors == 0, findings
    assert sorted(p.name for p in folder.iterdir()) == ["export.json", base.split("/", maxsplit=1)[0], "scenes.json"]
    rows = (folder / base / "sample_metadata.csv").read_text().splitlines()
    assert rows[0] == "sample_index,sentinel2_l2a,sentinel1,worldcover"
    assert [row.split(",", 1)[1] for row in rows[1:]] == ["1,1,1"] * 4 + ["1,0,1"] * 4


def test_dates_place_and_presence_are_those_of_the_tile(exported):
    arrays, masks = read(open_folder(exported[0]).sample(0))
    assert arrays["timestamps"][:3].tolist() == [[1, 0, 2023], [31, 0, 2023], [2, 2, 2023]]
    assert arrays["timestamps"].shape == (12, 3)
    lon, lat = shapely.get_coordinates(SCENERY.square.lonlat(shapely.Point(128, 128)))[0]
    np.testing.assert_allclose(arrays["latlon"], [lat, lon], atol=1e-5)
    assert masks["sentinel2_l2a"].all()
    assert np.flatnonzero(~masks["sentinel1"]).tolist() == [8]
    assert arrays["sentinel1"].shape == (128, 128, 11, 2)


def test_optical_numbers_are_those_of_the_clearest_file_without_the_offset(exported, region):
    leaf = open_folder(exported[0])
    arrays, _ = read(leaf.sample(3))  # the south-eastern quarter of the first tile
    for band, k, metres in (("B02", 0, 10), ("B8A", 7, 20)):
        files = files_of(region["catalog"], "sentinel-2-l2a", band)
        for period in (0, 6, 11):
            clearest = min(in_period(files, period), key=lambda each: each[2])[1]
            with rasterio.open(clearest) as source:
                stored = source.read(1).astype(int)
            for row, column in ((0, 0), (17, 101), (127, 127)):
                pixel = stored[(128 + row) * 10 // metres, (128 + column) * 10 // metres]
                assert arrays["sentinel2_l2a"][row, column, period, k] == pixel - 1000, (band, period, row, column)


def test_radar_numbers_are_decibels_and_compact_in_time(exported, region):
    arrays, _ = read(open_folder(exported[0]).sample(2))  # the south-western quarter
    files = files_of(region["catalog"], "sentinel-1-rtc", "vh")
    for place, period in ((0, 0), (7, 7), (8, 9), (10, 11)):  # period 8 is missing
        (_, cog, _), *others = in_period(files, period)
        assert not others
        with rasterio.open(cog) as source:
            power = source.read(1)[128:256, :128]
        np.testing.assert_allclose(arrays["sentinel1"][:, :, place, 1], 10 * np.log10(power), rtol=1e-5)


def test_zeros_of_a_swath_edge_stay_and_maps_have_one_timestep(exported, region):
    north, _ = read(open_folder(exported[0]).sample(1))
    assert (north["sentinel2_l2a"][:, :, 5] == 0).all(axis=-1).any()
    with rasterio.open(region["landcover"]) as source:
        codes = source.read(1)[:128, 128:256]
    assert len(np.unique(codes)) > 2
    assert np.array_equal(north["worldcover"], codes[:, :, None, None])
    south, masks = read(open_folder(exported[0]).sample(7))
    assert set(masks) == {"sentinel2_l2a"}
    # Only 44 of 256 rows have imagery; the map ends there too.
    assert not south["sentinel2_l2a"].any()
    assert not south["worldcover"].any()


def test_training_reads_what_was_exported(exported):
    from olmoearth_pipelines.samples.assemble import BatchPlan, Key, assemble

    plan = BatchPlan(
        band_sets={"sentinel2_l2a": 1, "sentinel1": 1, "worldcover": 1},
        global_batch=4,
        microbatch=4,
    )
    batch = assemble(open_folder(exported[0]).path, np.arange(4), plan, Key(1, 0, 0), 128)
    assert set(batch.inputs[0]) == set(plan.band_sets)
    assert np.isfinite(batch.inputs[0]["sentinel2_l2a"].numpy()).all()


def test_running_again_changes_nothing(exported, request_for):
    folder, _, before = exported
    files = content(folder)
    tiles, summary = export(replace(request_for, out=folder))
    assert not tiles
    assert summary.unchanged and summary.folder == before.folder and summary.skipped == before.skipped
    assert content(folder) == files


def test_killed_and_resumed_gives_the_same_files(exported, request_for, tmp_path):
    both = points(tmp_path / "points.csv", (100, 100), (100, 290))
    request = replace(request_for, aoi=None, points=both, out=tmp_path / "samples", guard="off")
    alone = replace(request, scheduler=None)
    script = f"import sys; from tests.roads.test_export_data import *; export({alone!r})"
    script = "from pathlib import Path, PosixPath; " + script
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(),
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    work = tmp_path / "samples" / "work.part"
    until = time.monotonic() + 120
    while not list(work.glob("*.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(work.glob("*.json")), "killed before the first tile"
    tiles, summary = export(request)
    assert len(tiles) < 2, "nothing was kept"
    assert summary.samples == 8
    assert content(tmp_path / "samples") == content(exported[0])
    assert not list((tmp_path / "samples").rglob("*.part"))


def test_scenes_that_cannot_be_read_end_the_run_but_not_what_was_done(request_for, region, tmp_path):
    catalog = tmp_path / "catalog"
    shutil.copytree(region["catalog"].parent, catalog)
    (_, cog, _) = files_of(catalog / "catalog.json", "sentinel-2-l2a", "B02")[0]
    whole = cog.read_bytes()
    cog.write_bytes(whole[:3000])
    here = points(tmp_path / "point.csv", (100, 100))
    request = replace(
        request_for, aoi=None, points=here, catalogs=(str(catalog),), out=tmp_path / "samples", guard="off"
    )
    with pytest.raises(RunError, match=r"1 of 1 tiles could not be read.*B02"):
        export(request)
    cog.write_bytes(whole)
    _, summary = export(request)
    assert (summary.samples, summary.unreadable) == (4, {})


def test_a_real_scene_is_read_back_without_its_offset(scheduler, tmp_path):
    """One real acquisition at native resolution, listed once in each period: no series of 2560 m is at hand."""
    if not real_catalogs.DATA.is_dir():
        pytest.skip("no ../shared/data here")
    catalog, _ = real_catalogs.majortom(tmp_path / "catalog")
    (path,) = (p for p in (catalog.parent / "sentinel-2-l2a").glob("*.json") if p.name != "collection.json")
    item = json.loads(path.read_text())
    days = [date(2022, 1, 10) + timedelta(days=30 * k) for k in range(12)]
    listed = [
        {**item, "id": f"scene-{k}", "properties": {**item["properties"], "datetime": f"{day}T08:56:11Z"}}
        for k, day in enumerate(days)
    ]
    everything = path.with_name("items.json")
    everything.write_text(json.dumps({"type": "FeatureCollection", "features": listed}))
    cog = path.parent / item["assets"]["B04"]["href"]
    with rasterio.open(cog) as source:
        lon, lat = Transformer.from_crs(source.crs, 4326, always_xy=True).transform(*source.xy(500, 500))
    (tmp_path / "point.csv").write_text(f"lon,lat\n{lon},{lat}\n")
    request = DataRequest(
        points=tmp_path / "point.csv",
        start=date(2022, 1, 1),
        catalogs=(str(everything),),
        modalities=("sentinel2_l2a",),
        out=tmp_path / "samples",
        scheduler=scheduler,
        side=256,
    )
    (box,) = prepare(request, quiet).tiles
    _, summary = export(request)
    assert (summary.samples, summary.errors) == (1, 0), summary.findings
    arrays, _ = read(open_folder(tmp_path / "samples").sample(0))
    with rasterio.open(cog) as source:
        row, column = round((source.bounds.top + 10 * box.row0) / 10), (10 * box.col0 - source.bounds.left) / 10
        stored = source.read(1).astype(float)[row : row + 256]
    # The file's rows lie on the 10 m grid; its columns do not, so bilinear warping mixes two neighbours.
    left, share = int(column), column % 1
    mixed = (1 - share) * stored[:, left : left + 256] + share * stored[:, left + 1 : left + 257]
    assert stored.min() > 1000 and 0 < share < 1
    np.testing.assert_allclose(arrays["sentinel2_l2a"][:, :, 7, 2], mixed - 1000, atol=0.6)


# --- what cannot work ---------------------------------------------------------------------------------------


def test_neither_or_both_of_region_and_points_are_refused(request_for):
    for changed in ({"aoi": None}, {"points": Path("p.csv")}):
        with pytest.raises(InputError, match=r"either --aoi.*or --points"):
            prepare(replace(request_for, **changed), quiet)


def test_a_region_that_is_not_there_is_refused(request_for):
    with pytest.raises(InputError, match="no such file"):
        prepare(replace(request_for, aoi="nowhere.geojson"), quiet)


def test_other_settings_or_foreign_files_in_the_folder_are_refused_by_name(exported, request_for, tmp_path):
    with pytest.raises(OutputError, match="side is 128 there and 256 here"):
        prepare(replace(request_for, out=exported[0], side=256), quiet)
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.doc"):
        prepare(replace(request_for, out=tmp_path), quiet)


def test_too_little_imagery_leaves_nothing_behind(request_for, tmp_path):
    corner = points(tmp_path / "corner.csv", (290, 290))
    request = replace(request_for, aoi=None, points=corner, out=tmp_path / "samples", guard="off")
    with pytest.raises(InputError, match=r"none of 1 tiles has enough data \(.*most: 0\)"):
        export(request)
    assert not (tmp_path / "samples").exists()


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_prints_the_folder_and_checks_a_dataset(exported, region, capsys):
    import typer
    from typer.testing import CliRunner

    from olmoearth_cli.commands import export_data
    from olmoearth_cli.commands.options import command_of

    app = typer.Typer()
    app.command()(command_of(export_data.DataFlags, export_data.run, last=export_data.Speech))
    folder, _, summary = exported
    flags = ["--aoi", str(region["aoi"]), "--year", "2023", "--catalog", str(region["catalog"])]
    flags += ["--maps", f"worldcover={region['landcover']}", "-o", str(folder)]
    done = CliRunner().invoke(app, flags)
    assert (done.exit_code, done.stdout) == (0, f"{summary.folder}\n")
    assert "already complete (8 samples)" in done.stderr
    done = CliRunner().invoke(app, ["--validate", str(folder), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["errors"] == 0
    done = CliRunner().invoke(app, ["--validate", str(folder.parent / "none")])
    assert done.exit_code == 2 and "no such folder" in done.stderr
