"""One scene on the grid: what GDAL's warper may not do, and which files may be read."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer

from olmoearth_cli.geo.grid import PixelBox
from olmoearth_pipelines import read as reading
from olmoearth_pipelines.providers import product
from olmoearth_pipelines.read import ReadError, read_bands, read_overview
from olmoearth_pipelines.scene_table import CELL_PX
from tests.unit.pipelines.conftest import footprint, scene, write_tif

SIDE_PX = 1200
"""Large enough for several of GDAL's blocks and for its reading of a window as one piece."""


def one_band(folder, values, origin, metres, **more):
    path = write_tif(folder / "B02.tif", values, origin, metres, **more)
    return scene("s", assets={"B02": path}, wkb=footprint(origin, len(values) * metres))


def read(held, box, metres=10, dtype="uint16"):
    return read_bands(held, product(held.product), ["B02"], box, resolution_m=metres, dtype=dtype, fill=0)[0]


def inside_a_cell(epsg):
    """A box in the middle of a cell near 51 N 5 E, and the corner of a scene of zone 31 that covers it."""
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(5.0, 51.0)
    row = round(-y / 10) // CELL_PX * CELL_PX + 1800
    col = round(x / 10) // CELL_PX * CELL_PX + 1800
    back = Transformer.from_crs(epsg, 32631, always_xy=True)
    east, north = back.transform(10.0 * (col + SIDE_PX / 2), -10.0 * (row + SIDE_PX / 2))
    origin = (round(east / 60) * 60 - 9000.0, round(north / 60) * 60 + 9000.0)
    return PixelBox(epsg, row, col, row + SIDE_PX, col + SIDE_PX), origin


@pytest.mark.parametrize(
    ("epsg", "native", "metres", "dtype"),
    [
        (32631, 15, 10, "uint16"),
        (32631, 30, 20, "uint16"),
        (32631, 60, 40, "uint16"),
        (32631, 10, 10, "float32"),
        (32632, 10, 10, "uint16"),
        (32632, 60, 40, "uint16"),
        (32632, 10, 10, "float32"),
    ],
)
def test_a_window_does_not_change_its_pixels(tmp_path, epsg, native, metres, dtype):
    rng = np.random.default_rng(native)
    n = 18_000 // native
    values = rng.gamma(4.0, 0.02, (n, n)) if dtype == "float32" else rng.integers(1, 9000, (n, n))
    box, origin = inside_a_cell(epsg)
    held = one_band(tmp_path, values.astype(dtype), origin, native)
    whole = read(held, box, metres, dtype)
    assert (whole > 0).all()
    times = metres // 10
    thin_flat, thin_tall = (300, 0, 4, SIDE_PX), (0, 604, SIDE_PX, 4)
    for top, left, height, width in (thin_flat, thin_tall, (100, 48, 64, 64), (0, 0, 600, 1100), (36, 40, 1160, 1156)):
        row, col = box.row0 + top, box.col0 + left
        part = read(held, PixelBox(epsg, row, col, row + height, col + width), metres, dtype)
        same = whole[top // times : (top + height) // times, left // times : (left + width) // times]
        assert np.array_equal(part, same), f"{(part != same).mean():.1%} of {height} x {width} differ"


def test_a_scene_of_the_next_zone_is_bilinear_and_not_blurred(tmp_path):
    values = np.random.default_rng(1).integers(1, 9000, (1800, 1800)).astype(np.uint16)
    box, origin = inside_a_cell(32632)
    got = read(one_band(tmp_path, values, origin, 10), box)[400:800, 400:800]
    cols, rows = np.meshgrid(np.arange(400, 800) + box.col0, np.arange(400, 800) + box.row0)
    east, north = Transformer.from_crs(32632, 32631, always_xy=True).transform(10 * (cols + 0.5), -10 * (rows + 0.5))
    x, y = (east - origin[0]) / 10 - 0.5, (origin[1] - north) / 10 - 0.5
    j, i = np.floor(x).astype(int), np.floor(y).astype(int)
    dx, dy = x - j, y - i
    field = values.astype(float)
    upper = field[i, j] * (1 - dx) + field[i, j + 1] * dx
    lower = field[i + 1, j] * (1 - dx) + field[i + 1, j + 1] * dx
    expected = upper * (1 - dy) + lower * dy
    # The transformer may err by 0.001 px, and neighbours of this noise differ by 9000 at most.
    assert np.abs(got - expected).max() < 0.5 + 0.002 * 9000
    assert got.std() == pytest.approx(expected.std(), rel=1e-3)


def test_pixels_of_the_scenes_own_grid_are_not_touched(tmp_path):
    values = np.random.default_rng(2).integers(1, 60_000, (1800, 1800)).astype(np.uint16)
    box, origin = inside_a_cell(32631)
    got = read(one_band(tmp_path, values, origin, 10), box)
    top, left = round(origin[1] / 10) + box.row0, box.col0 - round(origin[0] / 10)
    assert np.array_equal(got, values[top : top + SIDE_PX, left : left + SIDE_PX])


def test_jpeg_2000_reads_as_the_geotiff_does(tmp_path):
    values = np.random.default_rng(3).integers(1, 9000, (120, 120)).astype(np.uint16)
    origin = (600_000.0, 5_600_000.0)
    held = one_band(tmp_path, values, origin, 10)
    with rasterio.open(
        tmp_path / "B02.jp2",
        "w",
        driver="JP2OpenJPEG",
        count=1,
        height=120,
        width=120,
        dtype="uint16",
        crs=32631,
        transform=Affine(10, 0, origin[0], 0, -10, origin[1]),
        QUALITY=100,
        REVERSIBLE="YES",
    ) as target:
        target.write(values, 1)
    other = scene("s", assets={"B02": str(tmp_path / "B02.jp2")}, wkb=held.footprint_wkb)
    box = PixelBox(32631, -560_000 - 8, 60_000 - 8, -560_000 + 64, 60_000 + 64)
    assert np.array_equal(read(other, box), read(held, box))
    assert (read(other, box)[:8] == 0).all()
    assert np.array_equal(read(other, box)[8:, 8:], values[:64, :64])


@pytest.mark.parametrize("look", ["pixels", "overview"])
def test_a_file_that_names_other_files_is_refused(tmp_path, look):
    secret = write_tif(tmp_path / "secret.tif", np.full((40, 40), 7, np.uint16), (600_000.0, 5_600_000.0), 10)
    vrt = tmp_path / "B02.tif"
    vrt.write_text(
        '<VRTDataset rasterXSize="40" rasterYSize="40"><SRS>EPSG:32631</SRS>'
        "<GeoTransform>600000,10,0,5600000,0,-10</GeoTransform>"
        f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    held = scene("s", assets={"B02": str(vrt)})
    box = PixelBox(32631, -560_000, 60_000, -560_000 + 40, 60_000 + 40)
    with pytest.raises(ReadError, match="s, B02"):
        if look == "pixels":
            read(held, box)
        else:
            read_overview(held, product(held.product), "B02", [box], side_px=16)


def test_several_bands_in_one_file_are_refused(tmp_path):
    path = write_tif(tmp_path / "one.tif", np.ones((40, 40), np.uint16), (600_000.0, 5_600_000.0), 10)
    with rasterio.open(path) as source:
        profile = source.profile | {"count": 2, "driver": "GTiff"}
    with rasterio.open(tmp_path / "two.tif", "w", **profile) as target:
        target.write(np.ones((2, 40, 40), np.uint16))
    held = scene("s", assets={"B02": str(tmp_path / "two.tif")})
    with pytest.raises(ReadError, match="2 band"):
        read(held, PixelBox(32631, -560_000, 60_000, -560_000 + 40, 60_000 + 40))


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_blocks_are_an_error_and_never_a_hole(tmp_path, damage):
    values = np.random.default_rng(4).integers(1, 60_000, (400, 400)).astype(np.uint16)
    held = one_band(tmp_path, values, (600_000.0, 5_600_000.0), 10)
    path = Path(held.assets["B02"])
    whole = path.read_bytes()
    spoilt = bytearray(whole[: len(whole) // 2] if damage == "truncated" else whole)
    if damage == "overwritten":
        spoilt[len(whole) // 2 : len(whole) // 2 + 4000] = b"\xaa" * 4000
    path.write_bytes(spoilt)
    with pytest.raises(ReadError, match="s, B02") as caught:
        read(held, PixelBox(32631, -560_000, 60_000, -560_000 + 400, 60_000 + 400))
    assert str(tmp_path) not in str(caught.value)


def test_a_read_error_travels_between_processes():
    import pickle

    again = pickle.loads(pickle.dumps(ReadError("scene", "B02", "gone")))
    assert str(again) == "scene, B02: gone"
    assert again.exit_code == 1


def test_a_link_that_cannot_be_signed_is_a_read_error(monkeypatch):
    def down(href, row):
        raise ConnectionError("https://sas.example/token?key=SECRET: no route to host")

    monkeypatch.setattr(reading, "sign", down)
    held = scene("s", assets={"B02": "https://x.blob.core.windows.net/c/B02.tif"})
    with pytest.raises(ReadError, match="no route to host") as caught:
        read(held, PixelBox(32631, -560_000, 60_000, -560_000 + 40, 60_000 + 40))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(("status", "tokens"), [(403, 2), (404, 1)])
def test_a_refused_token_is_renewed_once(monkeypatch, status, tokens):
    from planetary_computer import sas

    seen = []

    def token(href, row):
        """As the real one: the cached token for as long as there is one."""
        seen.append(sas.TOKEN_CACHE.setdefault("account/container", f"token {len(seen)}"))
        return href

    def refuse(url):
        raise RuntimeError(f"HTTP response code: {status}")

    monkeypatch.setattr(sas, "TOKEN_CACHE", {})
    monkeypatch.setattr(reading, "sign", token)
    monkeypatch.setattr(reading, "_open_file", refuse)
    with pytest.raises(ReadError, match=str(status)):
        read(scene("s", assets={"B02": "https://x/B02.tif"}), PixelBox(32631, -560_000, 60_000, -559_960, 60_040))
    assert len(set(seen)) == tokens


def test_no_more_reads_at_once_than_the_provider_takes(tmp_path, monkeypatch):
    held = one_band(tmp_path, np.full((60, 60), 5, np.uint16), (600_000.0, 5_600_000.0), 10)
    held = replace(held, product="cdse/sentinel-2-l2a")
    running, most, lock = 0, 0, threading.Lock()
    opened = reading._open_file

    def watched(url):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return opened(url)

    monkeypatch.setattr(reading, "_open_file", watched)
    box = PixelBox(32631, -560_000, 60_000, -560_000 + 40, 60_000 + 40)
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(lambda _: read(held, box), range(24)))
    assert all((values == 5).all() for values in results)
    assert most == product(held.product).max_connections == 4
