"""Physical units to model values: figures of spec/inputs.md section 9 and worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from olmoearth_cli.core import normalize as module
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.normalize import band_range, band_statistics, normalize

S2 = MODALITIES["sentinel2_l2a"].bands


def s2(**bands: float) -> np.ndarray:
    """One Sentinel-2 pixel at the training mean, but for the bands given."""
    pixel = band_statistics("sentinel2_l2a").mean.astype(np.float32)
    for band, value in bands.items():
        pixel[S2.index(band)] = value
    return pixel


def test_the_mean_becomes_one_half_and_two_deviations_below_it_zero() -> None:
    assert normalize("sentinel2_l2a", s2(), release="v1.2") == pytest.approx(np.full(12, 0.5), abs=1e-6)
    assert normalize("sentinel1", np.array([-33.3297, -17.745436]), release="v1.2") == pytest.approx([0, 0.5], abs=1e-5)


def test_nothing_is_clipped() -> None:
    out = normalize("sentinel1", np.array([[-60.0, 30.0]]), release="v1.2")
    assert out[0, 0] < -0.5 < 1.5 < out[0, 1]


def test_whole_numbers_go_in_and_float32_comes_out() -> None:
    out = normalize("landsat", np.full((2, 11), 10000, np.uint16), release="v1")
    assert out.dtype == np.float32
    assert out == pytest.approx(normalize("landsat", np.full((2, 11), 10000.0), release="v1"))


def test_worldcereal_and_openstreetmap_are_scaled_by_fixed_limits() -> None:
    assert normalize("worldcereal", np.full(8, 50.0), release="v1") == pytest.approx(np.full(8, 0.5))
    assert normalize("openstreetmap_raster", np.ones(30), release="v1") == pytest.approx(np.ones(30))


@pytest.mark.parametrize("hole", [np.nan, -99999.0])
@pytest.mark.parametrize("release", ["v1.1", "v1.2", "v1.3"])
def test_later_releases_get_zero_where_a_band_is_missing(release: str, hole: float) -> None:
    out = normalize("sentinel2_l2a", s2(B05=hole), release=release)
    assert out[S2.index("B05")] == 0
    assert np.delete(out, S2.index("B05")) == pytest.approx(np.full(11, 0.5), abs=1e-6)


@pytest.mark.parametrize(
    ("missing", "source"),
    [("B01", "B02"), ("B09", "B8A"), ("B12", "B11"), ("B06", "B05")],  # 740 nm is nearer to 705 than to 783
)
def test_v1_copies_the_band_with_the_nearest_wavelength(missing: str, source: str) -> None:
    pixel = s2(**{source: 4321.0})
    expected = normalize("sentinel2_l2a", s2(**{source: 4321.0, missing: 4321.0}), release="v1")
    pixel[S2.index(missing)] = np.nan
    assert normalize("sentinel2_l2a", pixel, release="v1") == pytest.approx(expected)


def test_v1_copies_only_values_that_were_there() -> None:
    # B01 (443 nm): B02 and B03 are missing too, so it comes from B04, not from the filled B02.
    out = normalize("sentinel2_l2a", s2(B01=np.nan, B02=np.nan, B03=np.nan, B04=2222.0), release="v1")
    expected = normalize("sentinel2_l2a", s2(B01=2222.0, B02=2222.0, B03=2222.0, B04=2222.0), release="v1")
    assert out == pytest.approx(expected)


def test_v1_fills_thermal_bands_from_each_other_only() -> None:
    pixel = band_statistics("landsat").mean.copy()
    bands = MODALITIES["landsat"].bands
    pixel[[bands.index("B10"), bands.index("B11")]] = np.nan
    out = normalize("landsat", pixel, release="v1")
    assert out[bands.index("B10")] == out[bands.index("B11")] == 0


def test_many_missing_bands_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    module._warned.clear()
    for _ in range(3):
        normalize("sentinel2_l2a", s2(B02=np.nan, B03=np.nan, B04=np.nan), release="v1.2")
    assert [record.message[:13] for record in caplog.records] == ["sentinel2_l2a"]


@pytest.mark.parametrize(
    ("modality", "shape", "release"),
    [("lidar", (12,), "v1"), ("sentinel2_l2a", (11,), "v1"), ("sentinel1", (2,), "v9")],
)
def test_what_does_not_fit_is_refused(modality: str, shape: tuple[int, ...], release: str) -> None:
    with pytest.raises(ValueError, match=r"lidar|12 bands|v9"):
        normalize(modality, np.zeros(shape), release=release)


def test_shipped_numbers_are_the_specifications(spec_folder: Path) -> None:
    shipped = Path(module.__file__).with_name("normalization.json").read_text()
    assert json.loads(shipped) == json.loads((spec_folder / "normalization.json").read_text())


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_modality_has_limits_for_every_band(modality: str) -> None:
    limits = band_range(modality)
    assert limits.lo.shape == limits.hi.shape == (len(MODALITIES[modality].bands),)
    assert (limits.hi > limits.lo).all()
