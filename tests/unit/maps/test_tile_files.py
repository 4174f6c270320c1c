import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray
from rio_cogeo.cogeo import cog_validate

from olmoearth_cli.errors import OutputError
from olmoearth_cli.maps import files, run_record
from olmoearth_cli.maps.cog import block_side
from olmoearth_cli.maps.embedding_map import EmbeddingMap, tile_facts, tile_states, write_gap, write_tile
from olmoearth_cli.maps.tile_files import read_tiles, spec_of


def test_a_tile_reads_back_with_rasterio_alone(tmp_path, spec, tile_box, result_of):
    box = tile_box()
    result = result_of("a", box, spec)
    write_tile(tmp_path, spec, result)
    with rasterio.open(tmp_path / "tiles" / "a.tif") as tile:
        assert tile.crs.to_epsg() == 32631
        # 96 px of 10 m at square (-5760, 600): x = 600 * 960, y = 5760 * 960.
        assert tile.transform.to_gdal() == (576000.0, 40.0, 0.0, 5529600.0, 0.0, -40.0)
        assert tile.dtypes == ("int8",) * 6
        assert tile.nodatavals == (-128.0,) * 6
        assert tile.descriptions == ("e000", "e001", "e002", "e003", "e004", "e005")
        assert (tile.scales, tile.offsets) == (spec.scale, spec.offset)
        assert tile.tags()["AREA_OR_POINT"] == "Area"
        assert tile.tags()["EMB_QUANT_METHOD"] == "linear"
        codes = tile.read()
    decoded = codes * np.array(spec.scale)[:, None, None] + np.array(spec.offset)[:, None, None]
    expected = np.moveaxis(result.vectors, -1, 0)
    missing = np.isnan(expected)
    assert missing.sum() == 3 * 5 * 6
    assert (codes[missing] == -128).all()
    assert (codes[~missing] > -128).all()
    steps = np.abs(decoded - expected) / np.array(spec.scale)[:, None, None]
    assert steps[~missing].max() <= 0.5 + 1e-4


def test_a_tile_reads_back_with_rioxarray_and_mask_and_scale(tmp_path, spec, tile_box, result_of):
    result = result_of("a", tile_box(), spec)
    write_tile(tmp_path, spec, result)
    with rioxarray.open_rasterio(tmp_path / "tiles" / "a.tif", mask_and_scale=True) as tile:
        values = np.moveaxis(tile.values, 0, -1)
        assert tile.rio.crs.to_epsg() == 32631
    assert np.array_equal(np.isnan(values), np.isnan(result.vectors))
    assert np.nanmax(np.abs(values - result.vectors)) <= max(spec.scale) / 2 + 1e-4


def test_float32_tiles_keep_every_bit(tmp_path, spec_with, tile_box, result_of):
    spec = spec_with(dtype="float32")
    result = result_of("a", tile_box(), spec)
    measured = write_tile(tmp_path, spec, result)
    assert measured["loss"] is None
    with rasterio.open(tmp_path / "tiles" / "a.tif") as tile:
        assert np.array_equal(np.moveaxis(tile.read(), 0, -1), result.vectors, equal_nan=True)
        assert np.isnan(tile.nodatavals).all()
        assert tile.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_both_files_are_valid_cogs(tmp_path, spec_with, tile_box, result_of, dtype):
    spec = spec_with(dtype=dtype)
    write_tile(tmp_path, spec, result_of("a", tile_box(), spec))
    for kind in ("tiles", "quality"):
        assert cog_validate(tmp_path / kind / "a.tif", strict=True, quiet=True) == (True, [], [])


def test_a_large_tile_has_small_blocks_and_overviews_that_average_codes(tmp_path, spec_with, result_of):
    from olmoearth_cli.geo.grid import square

    spec = spec_with(dimensions=128, scale=(0.05,) * 128, offset=(0.0,) * 128, weights_sha256="cd" * 32, patch_px=2)
    box = square(32733, 512, 2, 3)  # south of the equator: rows are positive, false northing inside
    vectors = np.zeros((256, 256, 128), np.float32)
    vectors[0, 0] = np.nan
    vectors[0:2, 2:4, 5] = np.array([[1.0, 2.0], [3.0, 4.0]])
    write_tile(tmp_path, spec, result_of("a", box, spec, vectors))
    path = tmp_path / "tiles" / "a.tif"
    with rasterio.open(path) as tile:
        structure = tile.tags(ns="IMAGE_STRUCTURE")
        assert (structure["COMPRESSION"], structure["PREDICTOR"], structure["LAYOUT"]) == ("ZSTD", "2", "COG")
        assert set(tile.block_shapes) == {(128, 128)}
        assert tile.overviews(1) == [2]
    with rasterio.open(path, overview_level=0) as overview:
        half = overview.read()
    assert (half[:, 0, 0] == 0).all()  # the cell without data is left out of the mean
    assert half[5, 0, 1] == 50  # codes 20, 40, 60, 80
    assert path.stat().st_size < 60_000
    assert cog_validate(path, strict=True, quiet=True)[0]


@pytest.mark.parametrize(
    ("bands", "item_bytes", "side", "expected"),
    [
        (64, 1, 1024, 128),
        (128, 1, 1024, 128),
        (192, 1, 1024, 128),
        (384, 1, 1024, 64),
        (768, 1, 1024, 64),
        (192, 1, 64, 64),
        (192, 1, 30, 32),
        (192, 4, 1024, 64),
        (1024, 4, 1024, 16),
    ],
)
def test_blocks_decode_to_a_few_megabytes(bands, item_bytes, side, expected):
    assert block_side(bands, item_bytes, side) == expected
    assert expected**2 * bands * item_bytes <= 4_000_000


def test_equal_vectors_give_equal_bytes_whatever_the_run(tmp_path, spec, tile_box, result_of, monkeypatch):
    result = result_of("a", tile_box(), spec)
    first = write_tile(tmp_path / "one", spec, result)
    monkeypatch.setenv("GDAL_NUM_THREADS", "4")
    other_run = replace(spec, title="Another region", software={"torch": "9.9.9"})
    time.sleep(1.1)  # a date in the file would show
    second = write_tile(tmp_path / "two", other_run, replace(result, facts={"km2": 2}, sources={}))
    assert first["sha256"] == second["sha256"]
    for kind in ("tiles", "quality"):
        one, two = ((tmp_path / run / kind / "a.tif").read_bytes() for run in ("one", "two"))
        assert one == two
    assert files.file_sha256(tmp_path / "one" / "tiles" / "a.tif") == first["sha256"]


def test_a_tile_reports_its_size_share_and_loss(tmp_path, spec, tile_box, result_of):
    result = result_of("a", tile_box(), spec)
    measured = write_tile(tmp_path, spec, result)
    on_disk = sum((tmp_path / kind / "a.tif").stat().st_size for kind in ("tiles", "quality"))
    assert measured["bytes"] == on_disk
    assert measured["percent_valid"] == pytest.approx(100 * (24 * 24 - 15) / 24**2, abs=1e-3)
    assert measured["loss"]["cells"] == 24 * 24 - 15
    assert measured["loss"]["saturation"] == 0.0
    assert 0.999 < measured["loss"]["mean_cosine"] < 1
    assert tile_facts(tmp_path)["a"] == {"status": "done", **result.facts, **measured}


def test_quality_bands_are_named_and_without_data_where_the_map_is(tmp_path, spec, tile_box, result_of):
    result = result_of("a", tile_box(), spec)
    write_tile(tmp_path, spec, result)
    with rasterio.open(tmp_path / "quality" / "a.tif") as quality:
        assert quality.descriptions == ("periods_sentinel2_l2a", "disagreement")
        read = quality.read()
    for band, expected in zip(read, result.quality.values(), strict=True):
        assert np.array_equal(band, expected, equal_nan=True)


def test_the_specification_survives_the_item(tmp_path, spec_with, tile_box, result_of):
    for name, spec in (("a", spec_with()), ("b", spec_with(dtype="float32", demo=True))):
        write_tile(tmp_path / name, spec, result_of(name, tile_box(), spec))
        assert spec_of(read_tiles(tmp_path / name)[0]) == spec


def test_a_gap_is_recorded_with_its_reason_and_gives_way_to_the_tile(tmp_path, spec, tile_box, result_of):
    write_gap(tmp_path, spec, "a", tile_box(), "no imagery in any period")
    assert tile_states(tmp_path) == {"a": "gap"}
    assert tile_facts(tmp_path) == {"a": {"status": "gap", "reason": "no imagery in any period"}}
    assert not (tmp_path / "tiles").exists()
    write_tile(tmp_path, spec, result_of("a", tile_box(), spec))
    assert tile_states(tmp_path) == {"a": "done"}
    assert list((tmp_path / "gaps").iterdir()) == []


@pytest.mark.parametrize("damage", ["truncate", "delete", "item", "quality"])
def test_a_damaged_tile_is_not_done(tmp_path, spec, tile_box, result_of, damage):
    write_tile(tmp_path, spec, result_of("a", tile_box(), spec))
    tile, item = tmp_path / "tiles" / "a.tif", tmp_path / "items" / "a.json"
    if damage == "truncate":
        tile.write_bytes(tile.read_bytes()[:-1])
    elif damage == "delete":
        tile.unlink()
    elif damage == "item":
        item.write_text(item.read_text()[:200])
    else:
        (tmp_path / "quality" / "a.tif").unlink()
    assert tile_states(tmp_path) == {}


def test_arrays_that_do_not_fit_their_box_are_a_callers_mistake(tmp_path, spec, tile_box, result_of):
    good = result_of("a", tile_box(), spec)
    with pytest.raises(ValueError, match="wanted"):
        write_tile(tmp_path, spec, replace(good, vectors=good.vectors[1:]))
    with pytest.raises(ValueError, match="quality band"):
        write_tile(tmp_path, spec, replace(good, quality={"x": np.zeros((2, 2))}))
    with pytest.raises(ValueError, match="not safe"):
        write_tile(tmp_path, spec, replace(good, tile_id="../../etc/passwd"))
    assert list(tmp_path.iterdir()) == []


HELPERS = """
    import sys
    sys.path.insert(0, {helpers!r})
    from pathlib import Path
    from conftest import make_result, make_spec, make_tile_box, make_vectors
    from olmoearth_cli.errors import OutputError
    from olmoearth_cli.maps.embedding_map import write_tile
    folder, spec = Path({folder!r}), make_spec()
"""


def script(folder: Path, body: str) -> list[str]:
    head = HELPERS.format(helpers=str(Path(__file__).parent), folder=str(folder))
    return [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}


def test_a_full_disk_is_one_clear_error_and_leaves_earlier_output_whole(tmp_path, spec, tile_box, result_of):
    write_tile(tmp_path, spec, result_of("a", tile_box(), spec))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    body = """
    import resource
    import numpy as np
    box = make_tile_box(0, 1)
    noise = np.random.default_rng(0).normal(size=make_vectors(box, spec).shape).astype("float32")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # the COG takes more: the system refuses the rest
    for tile in ("b", "a"):
        try:
            write_tile(folder, spec, make_result(tile, box, spec, noise))
        except OutputError as error:
            print(error)
    """
    done = subprocess.run(
        script(tmp_path, body), env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    first, second = done.stdout.splitlines()
    assert f"{tmp_path}/tiles/b.tif: cannot be written: the file would be larger" in first
    assert f"{tmp_path}/tiles/a.tif" in second
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    # Tile a was to be made anew: its files are whole, and only its item was taken back.
    assert after == {p: content for p, content in before.items() if p.name != "a.json"}


def test_messages_say_what_to_do_by_the_systems_reason(tmp_path):
    full = str(files.output_error(tmp_path, OSError(28, "No space left on device")))
    assert "the disk is full" in full
    assert "--out" in full
    assert "no permission" in str(files.output_error(tmp_path, PermissionError(13, "Permission denied")))
    with pytest.raises(OutputError, match=r"a file is in the place of a folder.*--out"):
        (tmp_path / "file").write_text("x")
        files.write_text(tmp_path / "file" / "below.json", "{}")


def test_a_kill_at_any_moment_never_leaves_a_broken_tile_that_looks_done(tmp_path, spec, vectors_of, tile_box):
    body = """
    box = make_tile_box()
    for turn in range(10_000):
        for tile in ("a", "b"):
            write_tile(folder, spec, make_result(tile, box, spec, make_vectors(box, spec, seed=turn % 7)))
    """
    allowed = {spec.quantizer.encode(vectors_of(tile_box(), spec, seed)).tobytes() for seed in range(7)}
    delays = np.random.default_rng().uniform(0, 0.15, 3)
    seen = 0
    for delay in delays:
        process = subprocess.Popen(script(tmp_path, body), env=environment(), stderr=subprocess.DEVNULL)
        written = time.time() + 60
        marker = tmp_path / "items" / "b.json"
        marker.unlink(missing_ok=True)
        while not marker.exists() and time.time() < written and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        assert process.poll() is None, "the writer ended on its own"
        process.send_signal(signal.SIGKILL)
        process.wait()
        for entry in read_tiles(tmp_path):
            seen += 1
            with rasterio.open(entry.path) as tile:
                codes = np.ascontiguousarray(np.moveaxis(tile.read(), 0, -1))
            assert codes.tobytes() in allowed
            assert files.file_sha256(entry.path) == entry.facts["sha256"], delays
    assert seen


def test_a_stop_between_any_two_file_operations_is_not_done_and_is_made_good(
    tmp_path, spec, tile_box, result_of, monkeypatch
):
    class Killed(BaseException):
        pass

    result = result_of("a", tile_box(), spec)
    real, count = Path.replace, 0

    def replace_until(limit):
        def stopping(self, target):
            nonlocal count
            count += 1
            if count > limit:
                raise Killed
            return real(self, target)

        return stopping

    for limit in range(3):  # tile, quality, item
        count = 0
        monkeypatch.setattr(Path, "replace", replace_until(limit))
        with pytest.raises(Killed):
            write_tile(tmp_path, spec, result)
        assert tile_states(tmp_path) == {}
        monkeypatch.setattr(Path, "replace", real)
    write_tile(tmp_path, spec, result)
    assert tile_states(tmp_path) == {"a": "done"}
    assert EmbeddingMap.open(tmp_path).checksums()["a"] == tile_facts(tmp_path)["a"]["sha256"]


def test_items_are_plain_json_without_nan(tmp_path, spec, tile_box, result_of):
    run_record.start(tmp_path, {})
    write_tile(tmp_path, spec, result_of("a", tile_box(), spec))
    text = (tmp_path / "items" / "a.json").read_text()
    assert "NaN" not in text
    item = json.loads(text)
    assert item["assets"]["embeddings"]["href"] == "../tiles/a.tif"
