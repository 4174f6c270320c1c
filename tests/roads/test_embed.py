"""The whole road, as a user runs it: region and catalogue in, map out."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer

from tests.roads.conftest import checksums, command, environment, olmoearth, write_region


@pytest.fixture(scope="module")
def reference(place, tmp_path_factory):
    """The region mapped once, undisturbed."""
    folder = tmp_path_factory.mktemp("reference") / "map"
    done = olmoearth("embed", *place.flags("-o", str(folder)))
    assert done.code == 0, done.err
    return folder, done


def region_of(place) -> shapely.Geometry:
    collection = json.loads(place.aoi.read_text())
    features = collection["features"]
    return shapely.union_all([shapely.from_geojson(json.dumps(f["geometry"])) for f in features])


def read(folder: Path, name: str) -> np.ndarray:
    with rasterio.open(folder / "tiles" / name) as source:
        return source.read()


def test_stdout_carries_the_folder_and_nothing_else(reference):
    folder, done = reference
    assert done.out == f"{folder}\n"
    assert "preview" in done.err
    assert "DEMO WEIGHTS" in done.err


def test_the_folder_holds_what_the_docs_promise(reference):
    folder, _ = reference
    for name in ("collection.json", "index.parquet", "preview.png", "preview.tif", "run.json", "scenes.json"):
        assert (folder / name).is_file(), name
    assert list(folder.glob("mosaic_*.vrt"))
    tiles = checksums(folder)
    assert tiles
    assert set(tiles) == set(checksums(folder, "quality"))
    assert not list(folder.rglob("*.part"))


def test_run_json_says_how_the_map_was_made(reference):
    record = json.loads((reference[0] / "run.json").read_text())
    assert record["settings"]["patch_size"] == 8
    summary = record["summary"]
    assert summary["demo"] is True
    assert 0.99 < summary["mean_cosine"] <= 1
    assert summary["seam"] > 0
    assert record["guard"]["figures"]


def test_open_map_gives_vectors_where_the_region_is(place, reference):
    import olmoearth_cli

    data = olmoearth_cli.open_map(reference[0])
    assert data.rio.crs.to_epsg() in (32631, 32632, 32633)
    values = data.compute().values
    assert np.isfinite(values).any()
    assert values.dtype == np.float32
    assert values.shape[0] == 128


def test_running_again_changes_nothing(place, reference):
    folder, _ = reference
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    done = olmoearth("embed", *place.flags("-o", str(folder), "--json"))
    assert done.code == 0, done.err
    assert json.loads(done.out)["unchanged"] is True
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_other_settings_in_the_same_folder_are_refused_by_name(place, reference):
    folder, _ = reference
    before = checksums(folder)
    done = olmoearth("embed", *place.flags("-o", str(folder), "--overlap", "0"))
    assert done.code == 2
    assert "overlap" in done.err and "16" in done.err and "--overwrite" in done.err
    assert "Traceback" not in done.err
    assert checksums(folder) == before


def test_two_workers_give_the_same_bytes(place, reference, tmp_path):
    done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--workers", "2"))
    assert done.code == 0, done.err
    assert checksums(tmp_path / "map") == checksums(reference[0])
    assert checksums(tmp_path / "map", "quality") == checksums(reference[0], "quality")


def test_a_running_scheduler_gives_the_same_bytes(place, reference, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=50) as cluster:
        flags = place.flags("-o", str(tmp_path / "map"), "--scheduler", cluster.scheduler_address)
        done = olmoearth("embed", *flags)
    assert done.code == 0, done.err
    assert checksums(tmp_path / "map") == checksums(reference[0])


def test_a_region_of_two_halves_gives_the_same_bytes(place, reference, tmp_path):
    whole = region_of(place)
    west, south, east, north = whole.bounds
    middle = west + 0.437 * (east - west)
    halves = [
        whole.intersection(shapely.box(west - 1, south - 1, middle, north + 1)),
        whole.intersection(shapely.box(middle, south - 1, east + 1, north + 1)),
    ]
    aoi = write_region(tmp_path / "halves.geojson", *halves)
    done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--aoi", str(aoi)))
    assert done.code == 0, done.err
    assert checksums(tmp_path / "map") == checksums(reference[0])


def test_overlapping_regions_agree_on_every_common_cell(place, reference, tmp_path):
    whole = region_of(place)
    west, south, east, north = whole.bounds
    part = whole.intersection(shapely.box(west, south, west + 0.55 * (east - west), north))
    aoi = write_region(tmp_path / "part.geojson", part)
    done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--aoi", str(aoi)))
    assert done.code == 0, done.err
    shared = 0
    for name in checksums(tmp_path / "map"):
        a, b = read(tmp_path / "map", name), read(reference[0], name)
        common = (a[0] != -128) & (b[0] != -128)
        assert np.array_equal(a[:, common], b[:, common])
        assert not ((a[0] != -128) & (b[0] == -128)).any(), "the part covers what the whole does not"
        shared += common.sum()
    assert shared > 50


def test_the_tile_size_changes_no_cell(place, reference, tmp_path):
    import olmoearth_cli

    done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--tile-size", "64"))
    assert done.code == 0, done.err
    assert len(checksums(tmp_path / "map")) > len(checksums(reference[0]))
    small, large = olmoearth_cli.open_map(tmp_path / "map"), olmoearth_cli.open_map(reference[0])
    small, large = small.compute(), large.compute()
    both = small.reindex_like(large)
    assert np.array_equal(both.values, large.values, equal_nan=True)


def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(place, reference, tmp_path):
    folder = tmp_path / "map"
    flags = place.flags("-o", str(folder), "--workers", "2", "--tile-size", "64")
    chance = random.Random(5)
    for _ in range(3):
        process = subprocess.Popen(
            command("embed", *flags),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(chance.uniform(3.0, 9.0))
        kill_all(process)
        for item in (folder / "items").glob("*.json"):
            assert json.loads(item.read_text())["id"]
    done = olmoearth("embed", *flags)
    assert done.code == 0, done.err
    plain = olmoearth("embed", *place.flags("-o", str(tmp_path / "plain"), "--tile-size", "64"))
    assert plain.code == 0, plain.err
    assert checksums(folder) == checksums(tmp_path / "plain")
    assert not list(folder.rglob("*.part"))


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL the program and its workers at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_interrupting_says_how_to_go_on(place, tmp_path):
    process = subprocess.Popen(
        command("embed", *place.flags("-o", str(tmp_path / "map"), "--tile-size", "32")),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(4.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "run the same command again" in err
    assert "Traceback" not in err


def test_hann_blending_is_as_independent_of_the_tiles(place, tmp_path):
    import olmoearth_cli

    maps = []
    for side in ("64", "128"):
        folder = tmp_path / side
        done = olmoearth("embed", *place.flags("-o", str(folder), "--blend", "hann", "--tile-size", side))
        assert done.code == 0, done.err
        maps.append(olmoearth_cli.open_map(folder).compute())
    assert np.array_equal(maps[0].reindex_like(maps[1]).values, maps[1].values, equal_nan=True)


def test_a_corrupt_scene_is_a_gap_with_its_reason_and_exit_code_3(place, tmp_path):
    shutil.copytree(place.catalog.parent, tmp_path / "catalog")
    broken = max((tmp_path / "catalog").rglob("*B04*.tif"), key=lambda path: path.stat().st_size)
    content = bytearray(broken.read_bytes())
    content[len(content) // 3 :] = b"\0" * (len(content) - len(content) // 3)
    broken.write_bytes(content)
    flags = place.flags("-o", str(tmp_path / "map"), "--catalog", str(tmp_path / "catalog" / "catalog.json"))
    done = olmoearth("embed", *flags, "--guard", "off")
    assert done.code == 3, done.err
    assert "without a map" in done.err
    assert "Traceback" not in done.err
    record = json.loads((tmp_path / "map" / "run.json").read_text())
    assert any("B04" in reason for reason in record["summary"]["gaps"])


def test_plan_prints_the_cost_and_writes_nothing(place, tmp_path):
    done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--plan", "--json"))
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    for key in ("tiles", "scenes", "bytes_to_read", "gflops", "memory_per_worker", "expected_seconds", "disk_bytes"):
        assert figures[key], key
    assert not (tmp_path / "map").exists()


def test_the_guard_stops_decibels_sold_as_power(place, tmp_path):
    shutil.copytree(place.catalog.parent, tmp_path / "catalog")
    for path in (tmp_path / "catalog").rglob("*vv*.tif"):
        with rasterio.open(path) as source:
            profile, values = source.profile, source.read()
        with rasterio.open(path, "w", **{**profile, "driver": "GTiff"}) as target:
            target.write(np.where(values > 0, 10 * np.log10(np.maximum(values, 1e-6)), values).astype("float32"))
    flags = place.flags("-o", str(tmp_path / "map"), "--catalog", str(tmp_path / "catalog" / "catalog.json"))
    done = olmoearth("embed", *flags)
    assert done.code == 2, done.err
    assert "--guard" in done.err
    assert not (tmp_path / "map").exists()


def test_the_file_of_defaults_is_used_and_checked(place, tmp_path, monkeypatch):
    text = "[embed]\ncatalog = '{}'\nmodel = '{}'\nyear = 2024\nperiods = 3\npatch_size = 8\nwindow = 32\noverlap = 0\n"
    (tmp_path / "olmoearth.toml").write_text(text.format(place.catalog, place.model))
    shutil.copy(place.aoi, tmp_path / "region.geojson")
    done = olmoearth("embed", "--aoi", "region.geojson", "--plan", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["periods"] == 3
    monkeypatch.setenv("OLMOEARTH_EMBED_PERIODS", "2")
    done = olmoearth("embed", "--aoi", "region.geojson", "--plan", "--json", cwd=tmp_path)
    assert json.loads(done.out)["periods"] == 2, "the environment wins over the file"
    done = olmoearth("embed", "--aoi", "region.geojson", "--plan", "--json", "--periods", "1", cwd=tmp_path)
    assert json.loads(done.out)["periods"] == 1, "a flag wins over both"
    (tmp_path / "olmoearth.toml").write_text("[embed]\npatchsize = 8\n")
    done = olmoearth("embed", "--aoi", "region.geojson", cwd=tmp_path)
    assert done.code == 2
    assert "did you mean patch_size" in done.err


def test_a_region_over_two_zones_is_mapped_in_both(model_folder, tmp_path):
    import olmoearth_cli
    from olmoearth_cli.errors import InputError
    from olmoearth_pipelines.synthetic import Scenery, make_region

    to_utm = Transformer.from_crs(4326, 32631, always_xy=True)
    x, y = to_utm.transform(6.0, 50.6)
    origin = (round((x - 1000) / 60) * 60.0, round((y + 1000) / 60) * 60.0)
    make_region(tmp_path, Scenery(seed=4, size_px=216, periods=2, origin=origin))
    done = olmoearth(
        *("embed", "--aoi", "region.geojson", "--catalog", "catalog/catalog.json", "--model", str(model_folder)),
        *("--year", "2024", "--periods", "2", "--patch-size", "8", "-o", "map"),
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    assert {name[:5] for name in checksums(tmp_path / "map")} == {"32631", "32632"}
    with pytest.raises(InputError, match="32631"):
        olmoearth_cli.open_map(tmp_path / "map")
    for epsg in (32631, 32632):
        assert np.isfinite(olmoearth_cli.open_map(tmp_path / "map", epsg=epsg).compute().values).any()
        assert (tmp_path / "map" / f"mosaic_{epsg}.vrt").is_file()
