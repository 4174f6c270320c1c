from __future__ import annotations

import json

import numpy as np
import pytest
from task_files import rslearn_raster, rslearn_window

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.registry import open_task

NANDI, AWF = "groundtruth_polygon_split_window_32", "20250822"
S2_SETS = {"B02_B03_B04_B08": 32, "B05_B06_B07_B8A_B11_B12": 16, "B01_B09": 8}
L8_SETS = {"B8": 32, "B1_B2_B3_B4_B5_B6_B7_B9_B10_B11": 16}
S2_ORDER = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")


def dataset(root, group, layers=("sentinel2", "sentinel1", "landsat", "label")):
    (root / "windows" / group).mkdir(parents=True)
    (root / "config.json").write_text(json.dumps({"layers": {name: {"type": "raster"} for name in layers}}))
    return root / "windows" / group


def number(band: str) -> int:
    """B02 -> 2, B8A -> 80, B11 -> 11."""
    return 80 if band == "B8A" else int(band[1:])


def fill(window, layer, sets, month, dtype=np.uint16) -> None:
    """Band b of month t is 100 t + b, plus 10,000 at row 15, column 14 of the 10 m grid."""
    name = layer if month == 0 else f"{layer}.{month}"
    for bands, side in sets.items():
        numbers = np.array([number(band) for band in bands.split("_")])
        values = (100 * month + numbers)[:, None, None] + np.zeros((1, side, side))
        step = 32 // side
        values[:, 15 // step, 14 // step] += 10_000
        rslearn_raster(window, name, bands, values.astype(dtype))


def radar(window, month, layer="sentinel1", values=(0.1, 0.01)) -> None:
    image = np.zeros((2, 32, 32)) + np.array(values)[:, None, None]
    rslearn_raster(window, layer if month == 0 else f"{layer}.{month}", "vv_vh", image.astype(np.float32))


def full_window(group, name, options, label, months=range(12)):
    window = rslearn_window(group, name, options, 32, label)
    for month in months:
        fill(window, "sentinel2", S2_SETS, month)
        fill(window, "landsat", L8_SETS, month)
        radar(window, month)
    return window


def test_nandi_is_the_middle_four_pixels_of_twelve_months(tmp_path) -> None:
    group = dataset(tmp_path, NANDI)
    full_window(group, "w", {"split": "train"}, {"category": "Maize"})
    sample = next(open_task("nandi", tmp_path).read("train"))
    optical = sample.inputs["sentinel2_l2a"]
    assert optical.shape == (4, 4, 12, 12)
    assert optical.dtype == np.float32
    # Pixel (15, 14) of 32 is (1, 0) of the middle four; the 20 m pixel (7, 7) covers rows and columns 14 and 15.
    assert optical[3, 3, 2].tolist() == [200 + number(band) for band in S2_ORDER]
    ten_metre, twenty_metre = optical[:, :, 0, 0] > 9000, optical[:, :, 0, 4] > 9000
    assert np.argwhere(ten_metre).tolist() == [[1, 0]]
    assert np.argwhere(twenty_metre).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    landsat = sample.inputs["landsat"]
    assert landsat[3, 3, 11].tolist() == [1100 + n for n in (8, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11)]
    np.testing.assert_allclose(sample.inputs["sentinel1"][0, 0, 0], [-10, -20], rtol=1e-5)
    assert sample.timestamps[0].tolist() == [1, 8, 2022]
    assert sample.timestamps[4].tolist() == [1, 0, 2023]
    assert sample.timestamps[-1].tolist() == [1, 7, 2023]
    assert sample.target == 3
    assert sample.missing == {}
    assert sample.id == "w"


def test_awf_is_the_whole_window_of_2023(tmp_path) -> None:
    group = dataset(tmp_path / "awf", AWF)
    full_window(group, "w", {"helios_split": "test"}, {"lulc": "Woodland forest (>40% canopy)"}, months=range(1))
    reader = open_task("awf", tmp_path)
    assert dict(reader.splits()) == {"test": 1}
    sample = next(reader.read("test"))
    assert sample.inputs["sentinel2_l2a"].shape == (32, 32, 12, 12)
    assert sample.timestamps[0].tolist() == [1, 0, 2023]
    assert sample.timestamps[-1].tolist() == [1, 11, 2023]
    assert sample.target == 8
    for modality in ("sentinel2_l2a", "sentinel1", "landsat"):
        assert sample.missing[modality].tolist() == [False] + [True] * 11


def test_months_without_values_are_missing_and_radar_gaps_take_their_month(tmp_path) -> None:
    group = dataset(tmp_path, NANDI, layers=("sentinel2", "sentinel1", "label"))
    window = rslearn_window(group, "w", {"split": "val"}, 32, {"category": "Tea"})
    for month in range(12):
        fill(window, "sentinel2", S2_SETS, month) if month != 5 else [
            rslearn_raster(window, "sentinel2.5", bands, np.zeros((bands.count("_") + 1, side, side), dtype=np.uint16))
            for bands, side in S2_SETS.items()
        ]
        radar(window, month, values=(0.1, -32768) if month == 7 else (0.1, np.nan) if month == 8 else (1.0, 0.0))
    sample = next(open_task("nandi", tmp_path).read("val"))
    assert np.flatnonzero(sample.missing["sentinel2_l2a"]).tolist() == [5]
    assert np.flatnonzero(sample.missing["sentinel1"]).tolist() == [7, 8]
    assert sample.inputs["sentinel1"][0, 0, 0].tolist() == [0, -100]
    assert np.isfinite(sample.inputs["sentinel1"]).all()
    assert "landsat" not in sample.inputs  # config.json has no such layer


def test_splits_follow_the_first_known_option_and_windows_their_names(tmp_path) -> None:
    group = dataset(tmp_path, NANDI)
    options = {
        "b": {"split": "val", "olmoearth_evals_split": "train"},
        "a": {"helios_split": "train", "split": "test"},
        "c": {"eval_split": "val"},
        "d": {},
        "e": {"split": "predict"},
    }
    for name, option in options.items():
        rslearn_window(group, name, option, 32, {"category": "Coffee"})
    reader = open_task("nandi", tmp_path)
    assert dict(reader.splits()) == {"train": 2, "val": 1}
    assert [sample.id for sample in reader.read("train")] == ["a", "b"]
    with pytest.raises(InputError, match="published without label fractions"):
        next(reader.read("train", "0.01"))


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ({"category": "Water"}, "category is Water; nandi has the classes Coffee"),
        ({"lulc": "Tea"}, "category is absent"),
    ],
)
def test_a_class_of_another_label_set_is_refused(tmp_path, label, says) -> None:
    rslearn_window(dataset(tmp_path, NANDI), "w", {"split": "train"}, 32, label)
    with pytest.raises(InputError, match=says):
        next(open_task("nandi", tmp_path).read("train"))


def test_damaged_windows_are_named(tmp_path) -> None:
    group = dataset(tmp_path, NANDI, layers=("sentinel2", "label"))
    window = rslearn_window(group, "w", {"split": "train"}, 32, {"category": "Tea"})
    rslearn_raster(window, "sentinel2", "B02_B03_B04_B08", np.ones((4, 32, 32), dtype=np.uint16))
    with pytest.raises(InputError, match=r"sentinel2: has no band B05, B06, B07, B8A, B11, B12, B01, B09"):
        next(open_task("nandi", tmp_path).read("train"))
    rslearn_raster(window, "sentinel2", "B01_B09", np.ones((2, 5, 5), dtype=np.uint16))
    with pytest.raises(InputError, match=r"is \(2, 5, 5\), not 2 bands of a window of 32 pixels"):
        next(open_task("nandi", tmp_path).read("train"))


def test_a_group_without_splits_says_which_options_were_looked_for(tmp_path) -> None:
    rslearn_window(dataset(tmp_path, NANDI), "w", {}, 32, {"category": "Tea"})
    with pytest.raises(InputError, match="olmoearth_evals_split, helios_split, split, eval_split"):
        open_task("nandi", tmp_path).splits()
