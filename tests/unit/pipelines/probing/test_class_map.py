"""Class maps over tiny embedding maps: what is in the file, what happens when a run dies, what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import clustered_map as cm
import numpy as np
import pytest
import rasterio
from distributed import LocalCluster
from pyproj import Transformer

from olmoearth_cli.core.probe.knn import fit_knn
from olmoearth_cli.errors import InputError, OutputError
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_cli.maps.embedding_map import EmbeddingMap, write_gap
from olmoearth_pipelines.probing.class_layout import colours, layout_of
from olmoearth_pipelines.probing.class_map import ClassMapSummary, ClassTile, write_class_map
from olmoearth_pipelines.probing.class_picture import picture


@pytest.fixture(scope="module")
def scheduler():
    """One cluster inside this process for all tests that do not ask for their own."""
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "protocol": "tcp://"}
    with LocalCluster(**options, dashboard_address=None, silence_logs=50) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def classify(scheduler):
    def run(emap, probe_file, out, **changes) -> tuple[list[ClassTile], ClassMapSummary]:
        options = {"workers": 1, "scheduler": scheduler, "overwrite": False, **changes}
        *reports, summary = write_class_map(emap, probe_file, out, **options)
        return reports, summary

    return run


@pytest.fixture
def emap(tmp_path):
    """Three of four squares, and a gap."""
    boxes = cm.tiles(2, 2)
    write_gap(tmp_path / "map", cm.spec(), "gap", boxes[3], "no imagery")
    return cm.make_map(tmp_path / "map", boxes[:3])


@pytest.fixture
def probe_file(tmp_path):
    return cm.stored(tmp_path / "cover.safetensors", cm.saved())


def read(path: Path):
    with rasterio.open(path) as source:
        return source.read()


def expected_classes() -> np.ndarray:
    """[48, 48] truth, 255 without data."""
    box = cm.tiles(1, 1)[0]
    found = cm.truth(PixelBox(box.epsg, box.row0, box.col0, box.row0 + 192, box.col0 + 192))
    found[24:, 24:] = -1
    return np.where(found < 0, 255, found)


def test_every_cell_gets_its_class_and_cells_without_a_vector_none(emap, probe_file, classify, tmp_path) -> None:
    reports, summary = classify(emap, probe_file, tmp_path / "out" / "classes.tif")
    ids, confidence = read(tmp_path / "out" / "classes.tif")
    wanted = expected_classes()
    assert np.array_equal(ids, wanted)
    assert (confidence[wanted != 255] == 100).all()
    assert (confidence[wanted == 255] == 255).all()
    assert sorted(report.tile for report in reports) == ["t000", "t001", "t002"]
    assert {(r.status, r.tiles_to_do) for r in reports} == {("done", 3)}
    cells = int((wanted != 255).sum())
    assert sum(r.km2 for r in reports) == pytest.approx(cells * 0.0016, rel=1e-4)
    assert (summary.tiles, summary.gaps, summary.kept, summary.unchanged) == (3, 1, 0, False)
    assert summary.km2 == pytest.approx(cells * 0.0016)
    for number, name in enumerate(cm.NAMES):
        count = int((wanted == number).sum())
        assert summary.classes[name] == {"km2": pytest.approx(count * 0.0016), "share": pytest.approx(count / cells)}
    assert summary.mean_confidence == pytest.approx(1.0)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"classes.tif", "classes.tif.aux.xml"}


def test_the_file_says_what_its_numbers_mean(emap, probe_file, classify, tmp_path) -> None:
    out = tmp_path / "classes.tif"
    classify(emap, probe_file, out)
    with rasterio.open(out) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.crs.to_epsg() == 32631
        assert source.transform.to_gdal() == (576000.0, 40.0, 0.0, 5529600.0, 0.0, -40.0)
        assert source.descriptions == ("class", "confidence")
        assert source.nodatavals == (255, 255)
        assert source.scales == (1.0, 0.01)
        tags = source.tags()
        assert [tags[f"CLASS_{n}"] for n in range(3)] == list(cm.NAMES)
        classes = json.loads(tags["CLASSIFICATION_CLASSES"])
        assert [(c["value"], c["title"]) for c in classes] == list(enumerate(cm.NAMES))
        assert tags["EMB_MODEL"] == "allenai/OlmoEarth-v1_2-Nano"
        # GDAL reads the colours from the .aux.xml, and must not take the confidence for transparency.
        assert [c.name for c in source.colorinterp] == ["palette", "undefined"]
        palette = source.colormap(1)
    assert [palette[n][:3] for n in range(3)] == [(0, 100, 200), (0, 100, 0), (250, 0, 0)]
    assert "<Category>built-up</Category>" in (tmp_path / "classes.tif.aux.xml").read_text()


def test_the_confidence_is_the_calibrated_probability_of_the_chosen_class(emap, classify, tmp_path) -> None:
    # Between two axes: every query has the same cosines to five labels of one class and five of the other.
    x = np.repeat(np.eye(8)[[0, 1]], [3, 2], axis=0)
    probe = fit_knn(x, np.array([0, 0, 0, 1, 1]), kind="classification", classes=3, k=5, temperature=1e6)
    file = cm.stored(tmp_path / "p.safetensors", cm.saved(probe=probe, temperature=2.0))
    classify(emap, file, tmp_path / "classes.tif")
    ids, confidence = read(tmp_path / "classes.tif")
    seen = ids != 255
    assert (ids[seen] == 0).all()
    a, b, rest = np.sqrt([0.6, 0.4, 1e-6])  # shares 3/5, 2/5 and none, softened by T = 2
    assert set(confidence[seen].tolist()) == {round(100 * a / (a + b + rest))} == {55}


def test_running_again_changes_nothing_and_other_settings_are_refused(emap, probe_file, classify, tmp_path) -> None:
    out = tmp_path / "classes.tif"
    _, first = classify(emap, probe_file, out)
    before = out.read_bytes(), out.stat().st_mtime_ns
    reports, again = classify(emap, probe_file, out)
    assert not reports
    assert again.unchanged
    assert (again.classes, again.km2, again.kept) == (first.classes, first.km2, 3)
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before
    other = cm.stored(tmp_path / "other.safetensors", cm.saved(temperature=1.5))
    with pytest.raises(OutputError, match="another probe"):
        classify(emap, other, out)
    assert out.read_bytes() == before[0]
    _, replaced = classify(emap, other, out, overwrite=True)
    assert not replaced.unchanged
    assert out.read_bytes() != before[0]


def test_a_file_that_is_no_class_map_is_never_replaced_unasked(emap, probe_file, classify, tmp_path) -> None:
    out = tmp_path / "notes.tif"
    out.write_text("mine")
    with pytest.raises(OutputError, match="no class map"):
        classify(emap, probe_file, out)
    assert out.read_text() == "mine"
    with pytest.raises(OutputError, match="is a folder"):
        classify(emap, probe_file, tmp_path, overwrite=True)


def test_a_map_of_another_model_is_refused_naming_both(probe_file, classify, tmp_path) -> None:
    other = cm.spec(model_id="allenai/OlmoEarth-v1-Base", weights_sha256="cd" * 32)
    emap = cm.make_map(tmp_path / "other", cm.tiles(1, 1), other)
    with pytest.raises(InputError, match=r"OlmoEarth-v1_2-Nano.*OlmoEarth-v1-Base"):
        classify(emap, probe_file, tmp_path / "classes.tif")
    assert not (tmp_path / "classes.tif").exists()


def test_a_work_folder_of_other_settings_is_started_anew(emap, probe_file, classify, tmp_path) -> None:
    stale = tmp_path / ".classes.tif.work"
    (stale / "tiles").mkdir(parents=True)
    (stale / "settings.json").write_text('{"format": 0}')
    (stale / "tiles" / "t000.tif").write_text("of another probe")
    _, summary = classify(emap, probe_file, tmp_path / "classes.tif")
    assert summary.kept == 0
    assert np.array_equal(read(tmp_path / "classes.tif")[0], expected_classes())


def test_independent_labels_get_one_band_of_percent_each(emap, classify, tmp_path) -> None:
    y = np.repeat(np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]]), 10, axis=0)
    file = cm.stored(tmp_path / "p.safetensors", cm.saved("multilabel", targets=y))
    _, summary = classify(emap, file, tmp_path / "classes.tif")
    bands, wanted = read(tmp_path / "classes.tif"), expected_classes()
    for c in range(3):
        table = np.append(100 * y[::10, c], 255)  # class id of the stripe -> percent
        assert np.array_equal(bands[c], table[np.where(wanted == 255, 3, wanted)])
    share = np.array([(wanted == n).sum() for n in range(3)]) / (wanted != 255).sum()
    found = [summary.classes[name]["share"] for name in cm.NAMES]
    assert found == pytest.approx([share[0], share[1] + share[2], share[2]])
    assert summary.mean_confidence is None


def test_values_come_as_one_float_band(emap, classify, tmp_path) -> None:
    file = cm.stored(
        tmp_path / "p.safetensors", cm.saved("regression", targets=np.repeat([0.5, 7.0, -2.0], 10), field="biomass")
    )
    _, summary = classify(emap, file, tmp_path / "values.tif")
    with rasterio.open(tmp_path / "values.tif") as source:
        assert source.descriptions == ("biomass",)
        values = source.read(1)
    wanted = expected_classes()
    assert np.isnan(values[wanted == 255]).all()
    for number, value in enumerate((0.5, 7.0, -2.0)):
        np.testing.assert_allclose(values[wanted == number], value, rtol=1e-6)
    assert summary.values["min"] == pytest.approx(-2)
    assert summary.values["max"] == pytest.approx(7)
    assert not (tmp_path / "values.tif.aux.xml").exists()


def test_the_pixels_of_a_cell_lie_where_the_labels_had_them(emap, classify, tmp_path) -> None:
    patterns = np.random.default_rng(0).integers(0, 3, (3, 4, 4))
    patterns[2, 0, 0] = -1  # never labelled in cells of the third kind
    file = cm.stored(tmp_path / "p.safetensors", cm.saved("segmentation", targets=np.repeat(patterns, 10, axis=0)))
    classify(emap, file, tmp_path / "classes.tif")
    with rasterio.open(tmp_path / "classes.tif") as source:
        assert source.transform.to_gdal() == (576000.0, 10.0, 0.0, 5529600.0, 0.0, -10.0)
        ids, confidence = source.read()
    kinds = expected_classes()
    assert ids.shape == (192, 192)
    for y in range(48):
        for x in range(48):
            want = (
                np.full((4, 4), 255)
                if kinds[y, x] == 255
                else np.where(patterns[kinds[y, x]] < 0, 255, patterns[kinds[y, x]])
            )
            assert np.array_equal(ids[y * 4 : y * 4 + 4, x * 4 : x * 4 + 4], want)
    assert np.array_equal(confidence == 255, ids == 255)


def test_a_neighbouring_zone_is_warped_onto_the_grid_of_the_main_one(probe_file, classify, tmp_path) -> None:
    # At 6 degrees east, where zones 31 and 32 meet: two squares in zone 31, one in zone 32.
    x31, y31 = Transformer.from_crs(4326, 32631, always_xy=True).transform(6.0, 50.0)
    x32, y32 = Transformer.from_crs(4326, 32632, always_xy=True).transform(6.0, 50.0)
    west = PixelBox(32631, int(-y31 // 40) * 4, int(x31 // 40) * 4 - 96, int(-y31 // 40) * 4 + 96, int(x31 // 40) * 4)
    north = PixelBox(32631, west.row0 - 96, west.col0, west.row0, west.col1)
    east = PixelBox(32632, int(-y32 // 40) * 4, int(x32 // 40) * 4, int(-y32 // 40) * 4 + 96, int(x32 // 40) * 4 + 96)
    one_class = {west: 0, north: 1, east: 2}
    emap = cm.make_map(
        tmp_path / "map", list(one_class), content=lambda b: np.full((24, 24), one_class[b], dtype=np.int64)
    )
    classify(emap, probe_file, tmp_path / "classes.tif")
    with rasterio.open(tmp_path / "classes.tif") as source:
        assert source.crs.to_epsg() == 32631
        ids, geo = source.read(1), source.transform
    assert geo.a == 40 and geo.c % 40 == 0
    assert (ids == 0).sum() == (ids == 1).sum() == 24 * 24
    # Independently: a pixel of the third class is one whose centre lies in the eastern square, and in no western one.
    rows, cols = np.mgrid[: ids.shape[0], : ids.shape[1]]
    x, y = geo.c + 40 * (cols + 0.5), geo.f - 40 * (rows + 0.5)
    ex, ey = Transformer.from_crs(32631, 32632, always_xy=True).transform(x, y)
    left, bottom, right, top = east.bounds_m
    inside = (ex > left) & (ex < right) & (ey > bottom) & (ey < top) & ~np.isin(ids, (0, 1))
    assert np.array_equal(ids == 2, inside)
    assert 500 < inside.sum() < 600


def test_a_map_too_wide_for_one_zone_is_refused(probe_file, classify, tmp_path) -> None:
    emap = cm.make_map(tmp_path / "map", [*cm.tiles(1, 1, epsg=32631), *cm.tiles(1, 1, epsg=32634)])
    with pytest.raises(InputError, match=r"EPSG:32631.*EPSG:32634"):
        classify(emap, probe_file, tmp_path / "classes.tif")


def test_windows_of_the_merge_leave_no_seam(tmp_path, classify) -> None:
    # 700 cells across one-pixel patches: four windows, tiles that straddle their borders.
    of = cm.spec(patch_px=1, dimensions=3)
    boxes = [
        PixelBox(32631, -1000 + 350 * i, 5000 + 350 * j, -650 + 350 * i, 5350 + 350 * j) for i in (0, 1) for j in (0, 1)
    ]
    content = lambda b: np.add.outer(np.arange(b.row0, b.row1), np.arange(b.col0, b.col1)) // 7 % 3  # noqa: E731
    emap = cm.make_map(tmp_path / "map", boxes, of, content)
    probe = cm.saved(x=cm.vectors(np.repeat(np.arange(3), 10), 3), patch_px=1)
    classify(emap, cm.stored(tmp_path / "p.safetensors", probe), tmp_path / "classes.tif")
    whole = PixelBox(32631, -1000, 5000, -300, 5700)
    assert np.array_equal(read(tmp_path / "classes.tif")[0], content(whole))
    small = picture(tmp_path / "classes.tif", max_side=100)
    assert small.rgba.shape == (100, 100, 4)
    assert small.transform.to_gdal() == (50000.0, 70.0, 0.0, 10000.0, 0.0, -70.0)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(scope="module")
def many_tiles(tmp_path_factory):
    """Thirty tiles and a probe with enough labels to keep a worker busy."""
    folder = tmp_path_factory.mktemp("many")
    of = cm.spec(dimensions=32)
    cm.make_map(folder / "map", cm.tiles(5, 6, side=192), of, noise=0.6)
    ids = np.arange(3000) % 3
    probe = cm.saved(targets=ids, x=cm.vectors(ids, 32, noise=0.6, seed=7))
    cm.stored(folder / "p.safetensors", probe)
    return folder


@pytest.fixture(scope="module")
def undisturbed(many_tiles):
    """Made by two worker processes."""
    out = many_tiles / "two.tif"
    emap = EmbeddingMap.open(many_tiles / "map")
    list(write_class_map(emap, many_tiles / "p.safetensors", out, workers=2, scheduler=None, overwrite=False))
    return out.read_bytes()


def test_a_run_that_was_killed_and_resumed_gives_the_same_bytes(many_tiles, undisturbed, classify) -> None:
    out, work = many_tiles / "killed.tif", many_tiles / ".killed.tif.work"
    arguments = [str(many_tiles / "map"), str(many_tiles / "p.safetensors"), str(out), "1"]
    process = subprocess.Popen(
        [sys.executable, cm.__file__, *arguments],
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    limit = time.monotonic() + 60
    while len(list((work / "tiles").glob("*.tif"))) < 3 and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name for path in (work / "tiles").glob("*.tif")}
    assert 3 <= len(kept) < 30, "killed too late or too early to prove anything"
    assert not out.exists()
    emap = EmbeddingMap.open(many_tiles / "map")
    reports, summary = classify(emap, many_tiles / "p.safetensors", out)
    assert summary.kept == len(kept)
    assert not kept & {f"{report.tile}.tif" for report in reports}
    assert len(reports) + len(kept) == 30
    assert out.read_bytes() == undisturbed
    assert not work.exists()


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
import clustered_map as cm
from olmoearth_cli.errors import OutputError
from olmoearth_cli.maps.embedding_map import EmbeddingMap
from olmoearth_pipelines.probing.class_layout import layout_of
from olmoearth_pipelines.probing.class_merge import merge, place
emap = EmbeddingMap.open(sys.argv[1])
pieces = place(emap.tiles, {tile.id: tile.path for tile in emap.tiles}, 1)
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        path = merge(pieces, layout_of(cm.saved("regression"), 1), Path(sys.argv[1]), {})
    except OutputError as error:
        print(error)
    else:
        print("written", path.stat().st_size)
"""


def test_a_full_disk_is_one_clear_error_and_never_a_file_that_looks_whole(tmp_path) -> None:
    # A limit on the size of files stands in for the disk: the first stops the merged raster (1.3 MB), the second
    # the COG (1.6 MB with its overviews). One-band tiles of noise are taken as finished tiles of a regression.
    of = cm.spec(dimensions=1, patch_px=1)
    box = PixelBox(32631, -600, 5000, 0, 5600)
    cm.make_map(tmp_path, [box], of, lambda b: np.zeros((b.height, b.width), dtype=np.int64), noise=1.0)
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path), "300000", "1450000", "10000000"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(done.stdout.splitlines()) == 3, done.stderr
    merged, cog, whole = done.stdout.splitlines()
    assert "cannot be written" in merged and "free some space" in merged
    assert "cannot be written" in cog
    assert whole.startswith("written")
    assert int(whole.split()[1]) > 1_450_000


def test_colours_are_customary_where_a_cover_is_known_and_always_different() -> None:
    assert colours(["Water bodies", "Trees", "Cropland"]) == [(0, 100, 200), (0, 100, 0), (240, 150, 255)]
    assert colours(["no forest"]) == [(0, 114, 178)]
    assert colours(["heath", "water"]) == [(230, 159, 0), (0, 100, 200)], "the palette's first blue is too like water"
    found = colours(["forest", "pine forest", *(f"class {n}" for n in range(298))])
    assert len(set(found)) == 300
    assert found == colours(["forest", "pine forest", *(f"class {n}" for n in range(298))])
    assert found[0] == (0, 100, 0)
    assert found[2] == (0, 114, 178)


def test_many_classes_take_two_bytes(emap, classify, tmp_path) -> None:
    names = tuple(f"class {n}" for n in range(300))
    ids = np.repeat([7, 260, 299], 10)
    probe = fit_knn(cm.saved().probe.vectors.numpy(), ids, kind="classification", classes=300, k=5)
    assert layout_of(cm.saved(probe=probe, class_names=names[:255]), 4).dtype == "uint8"
    file = cm.stored(tmp_path / "p.safetensors", cm.saved(probe=probe, class_names=names))
    classify(emap, file, tmp_path / "classes.tif")
    with rasterio.open(tmp_path / "classes.tif") as source:
        assert source.nodatavals == (65535, 65535)
        found, confidence = source.read()
        assert source.colormap(1)[299][3] == 255
    wanted = expected_classes()
    assert np.array_equal(found, np.array([7, 260, 299, 65535])[np.where(wanted == 255, 3, wanted)])
    assert set(confidence.ravel().tolist()) == {100, 65535}


def test_a_picture_shows_classes_in_their_colours_and_nothing_else(emap, probe_file, classify, tmp_path) -> None:
    classify(emap, probe_file, tmp_path / "classes.tif")
    drawn = picture(tmp_path / "classes.tif")
    wanted = expected_classes()
    assert drawn.epsg == 32631
    assert drawn.legend == (("water", (0, 100, 200)), ("forest", (0, 100, 0)), ("built-up", (250, 0, 0)))
    table = np.array([*(colour for _, colour in drawn.legend), (0, 0, 0)])
    assert np.array_equal(drawn.rgba[..., :3], table[np.where(wanted == 255, 3, wanted)])
    assert np.array_equal(drawn.rgba[..., 3] == 255, wanted != 255)
    with pytest.raises(InputError, match="no class map"):
        picture(emap.tiles[1].path)
