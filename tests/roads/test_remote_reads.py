"""Scenes behind HTTP range requests and in S3 give the pixels of files on disk, or a reason why not."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stackstac.rio_env import LayeredEnv
from starlette.responses import PlainTextResponse

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines import read as reading
from olmoearth_pipelines.cube import ReadError, read_cube
from olmoearth_pipelines.scene import Scene, Selection
from olmoearth_pipelines.scene_table import CELL_PX
from tests.servers import Flaky, file_app, serve, serve_s3
from tests.unit.pipelines.conftest import footprint, scene, write_tif

ORIGIN = (600_000.0, 5_600_000.0)
SIDE_M = 7680
BOX = PixelBox(32631, -560_000 + 300, 60_000 + 300, -560_000 + 420, 60_000 + 420)
NATIVE = {"B01": 60, "B09": 60} | {b: 20 for b in ("B05", "B06", "B07", "B8A", "B11", "B12", "SCL")}
SECRET = "?sv=2024&sig=SECRET"


class Watched:
    """An ASGI layer that records the ranges asked for, and may answer with an error after `spare` good ones."""

    def __init__(self, app: Any, *, status: int = 0, path: str = "", spare: int = 0) -> None:
        self.app, self.status, self.path, self.spare = app, status, path, spare
        self.from_the_start = spare == 0
        self.ranges: list[int] = []
        """Bytes that each request asked for."""

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = dict(scope["headers"]).get(b"range", b"")
        if asked:
            first, last = asked.removeprefix(b"bytes=").split(b"-")
            self.ranges.append(int(last) - int(first) + 1)
        if self.status and self.path in scope["path"]:
            self.spare -= bool(asked)
            if self.spare < 0 or self.from_the_start:
                return await PlainTextResponse("no", status_code=self.status)(scope, receive, send)
        return await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def scenes(folder) -> dict[str, Scene]:
    """One scene per sensor, with texture."""
    rng = np.random.default_rng(5)
    wkb = footprint(ORIGIN, SIDE_M)
    optical, radar = {}, {}
    for band in (*MODALITIES["sentinel2_l2a"].bands, "SCL"):
        n = SIDE_M // NATIVE.get(band, 10)
        values = rng.integers(4, 7, (n, n)) if band == "SCL" else rng.integers(1001, 9000, (n, n))
        kind = np.uint8 if band == "SCL" else np.uint16
        optical[band] = write_tif(folder / "s2" / f"{band}.tif", values.astype(kind), ORIGIN, NATIVE.get(band, 10))
    for band in ("vv", "vh"):
        values = rng.gamma(4.4, 0.02, (SIDE_M // 10, SIDE_M // 10)).astype(np.float32)
        radar[band] = write_tif(folder / "s1" / f"{band}.tif", values, ORIGIN, 10, nodata=-32768)
    return {
        "sentinel2_l2a": scene("s2", assets=optical, wkb=wkb, offset_dn=1000),
        "sentinel1": scene("s1", modality="sentinel1", assets=radar, wkb=wkb),
    }


@pytest.fixture(scope="module")
def on_disk(scenes):
    return stack(scenes)


def stack(scenes: dict[str, Scene]):
    cells = BOX.squares(CELL_PX)
    chosen = [Selection(BOX.epsg, c, 0, m, (s,), 1) for c in cells for m, s in scenes.items()]
    return read_cube(BOX, chosen, 1, tuple(scenes))


def moved(scenes: dict[str, Scene], base: str, query: str = "") -> dict[str, Scene]:
    """The same scenes below another address."""
    return {m: replace(s, assets={b: f"{base}/{s.id}/{b}.tif{query}" for b in s.assets}) for m, s in scenes.items()}


def assert_same(cube, other):
    for m in other.values:
        assert np.array_equal(cube.values[m], other.values[m], equal_nan=True)
        assert np.array_equal(cube.valid[m], other.valid[m])
        assert other.valid[m].all()
        assert np.nanstd(other.values[m]) > 1
    assert np.array_equal(cube.clear, other.clear)


@pytest.fixture
def hasty(monkeypatch):
    """The program's own GDAL settings with shorter pauses between attempts."""
    quick = LayeredEnv(always={**reading.GDAL_OPTIONS, "GDAL_HTTP_RETRY_DELAY": "0.01", "GDAL_HTTP_MAX_RETRY": "2"})
    monkeypatch.setattr(reading, "_env", lambda key: quick)


def test_range_requests_give_the_pixels_of_the_files_and_fetch_only_what_is_needed(folder, scenes, on_disk):
    with serve(watched := Watched(file_app(folder))) as url:
        cube = stack(moved(scenes, url, SECRET))
    assert_same(cube, on_disk)
    stored = sum(path.stat().st_size for path in folder.rglob("*.tif"))
    assert len(watched.ranges) >= 15
    assert sum(watched.ranges) < stored / 2


def test_s3_gives_the_pixels_of_the_files(folder, scenes, on_disk, monkeypatch):
    with serve_s3(folder, "archive") as address:
        access = {"AWS_S3_ENDPOINT": address, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in (access | keys).items():
            monkeypatch.setenv(name, value)
        cube = stack(moved(scenes, "s3://archive"))
    assert_same(cube, on_disk)


@pytest.mark.usefixtures("hasty")
def test_a_busy_server_is_asked_again_without_a_word(folder, scenes, on_disk, caplog):
    only = {"sentinel1": scenes["sentinel1"]}
    with serve(flaky := Flaky(file_app(folder), failures=2)) as url:
        cube = stack(moved(only, url, SECRET))
    assert flaky.requests > 2
    assert "SECRET" not in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert np.array_equal(cube.values["sentinel1"], on_disk.values["sentinel1"])


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("spare", [0, 1], ids=["when opened", "after it was opened"])
@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refused_request_is_an_error_and_never_a_hole(folder, scenes, status, spare, caplog):
    with serve(Watched(file_app(folder), status=status, path="B04", spare=spare)) as url:
        with pytest.raises(ReadError) as caught:
            stack(moved(scenes, url, SECRET))
    assert str(caught.value).startswith("s2, B04: ")
    assert (f"HTTP response code: {status}" if spare == 0 else "its server stopped") in str(caught.value)
    for secret in ("SECRET", "127.0.0.1", "http://"):
        assert secret not in str(caught.value)
    assert "SECRET" not in caplog.text


def test_a_file_cut_short_on_the_server_is_an_error(folder, scenes, tmp_path):
    for path in folder.rglob("*.tif"):
        copy = tmp_path / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        content = path.read_bytes()
        copy.write_bytes(content[: len(content) // 3] if path.name == "B8A.tif" else content)
    with serve(file_app(tmp_path)) as url, pytest.raises(ReadError, match="s2, B8A"):
        stack(moved(scenes, url))


@pytest.mark.usefixtures("hasty")
def test_a_server_that_is_gone_is_an_error(scenes):
    with pytest.raises(ReadError, match=r"s2, B0\d") as caught:
        stack(moved(scenes, "http://127.0.0.1:9", SECRET))
    assert "SECRET" not in str(caught.value)
