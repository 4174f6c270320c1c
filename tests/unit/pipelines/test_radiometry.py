"""The check values of spec/inputs.md section 9."""

import numpy as np
import pytest

from olmoearth_cli.core.normalize import normalize
from olmoearth_pipelines.radiometry import remove_offset, to_decibel


@pytest.mark.parametrize(
    ("stored", "offset", "expected"),
    [(1350, 1000, 350), (1000, 1000, 1), (600, 1000, 1), (0, 1000, 0), (350, 0, 350), (1350, 0, 1350)],
)
def test_sentinel2_digital_numbers(stored, offset, expected):
    out = remove_offset(np.array([stored], np.uint16), offset)
    assert out.dtype == np.uint16
    assert out[0] == expected


def test_radar_power_to_decibels():
    out = to_decibel(np.array([0.1, 0.0, -32768.0, np.nan, np.inf], np.float32))
    assert out[:2] == pytest.approx([-10.0, -100.0], abs=1e-5)
    assert np.isnan(out[2:]).all()


def test_normalisation_of_the_check_values():
    bands = np.full((1, 12), 1188.94, np.float32)
    assert normalize("sentinel2_l2a", bands, release="v1.2")[0, 0] == pytest.approx(0.5, abs=1e-4)
    assert normalize("sentinel1", np.array([[-33.3297, -20.0]]), release="v1.2")[0, 0] == pytest.approx(0.0, abs=1e-4)
