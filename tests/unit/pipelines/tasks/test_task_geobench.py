from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from task_files import EUROSAT_ORDER, L8_NAMES, S2_NAMES, geobench_sample, geobench_tables

from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.registry import open_task

DATA = Path(__file__).parents[4].parent / "shared" / "data"
S2_BANDS = MODALITIES["sentinel2_l2a"].bands
TRUE_STATS = {name: 1000.0 + i for i, name in enumerate(S2_NAMES)} | {"10 - SWIR - Cirrus": 12.0}
NO_CIRRUS = tuple(name for name in S2_NAMES if "Cirrus" not in name)


def flat(names, side, dtype=np.int16, suffix="") -> dict[str, np.ndarray]:
    """Band i of the list is 100 + i everywhere, and 1 more at row 0, column 1."""
    planes = {}
    for i, name in enumerate(names):
        values = np.full((side, side), 100 + i, dtype=dtype)
        values[0, 1] += 1
        planes[name + suffix] = values
    return planes


def eurosat(tmp_path, *, label=3, stats=TRUE_STATS, splits=None, partitions=None) -> Path:
    home = tmp_path / "classification_v1.0" / "m-eurosat"
    geobench_tables(home, stats, splits or {"train": ["id_2", "id_1"], "valid": ["id_3"], "test": []}, partitions or {})
    for name in ("id_1", "id_2", "id_3"):
        geobench_sample(home, name, flat(S2_NAMES, 64), label)
    return home


def test_bands_arrive_in_the_models_order_in_digital_numbers(tmp_path) -> None:
    eurosat(tmp_path)
    reader = open_task("m-eurosat", tmp_path)
    first, second = reader.read("train")
    assert [first.id, second.id] == ["id_2", "id_1"]  # the published order, not the alphabet
    image = first.inputs["sentinel2_l2a"]
    assert image.shape == (64, 64, 1, 12)
    assert image.dtype == np.float32
    # B02 B03 B04 B08 | B05 B06 B07 B8A B11 B12 | B01 B09; positions in the file 1 2 3 7 | 4 5 6 8 11 12 | 0 9
    assert image[0, 0, 0].tolist() == [101, 102, 103, 107, 104, 105, 106, 108, 111, 112, 100, 109]
    assert image[0, 1, 0, 0] == 102
    assert image[1, 0, 0, 0] == 101  # rows and columns are not exchanged
    assert first.timestamps.tolist() == [[1, 6, 2020]]
    assert first.missing == {}
    assert first.target.shape == ()
    assert first.target == 3


def test_splits_are_counted_and_valid_is_val(tmp_path) -> None:
    home = eurosat(tmp_path)
    for folder in (tmp_path, tmp_path / "classification_v1.0", home):
        reader = open_task("M-EuroSAT", folder)
        assert dict(reader.splits()) == {"train": 2, "val": 1}
    assert [sample.id for sample in reader.read("val")] == ["id_3"]
    with pytest.raises(InputError, match="no test split of m-eurosat"):
        next(reader.read("test"))
    with pytest.raises(ValueError, match="choose from train, val, test"):
        next(reader.read("valid"))


def test_a_label_fraction_thins_train_alone(tmp_path) -> None:
    part = {"0.50x_train": {"train": ["id_1"], "valid": ["id_3"], "test": []}}
    reader = open_task("m-eurosat", eurosat(tmp_path, partitions=part))
    assert [sample.id for sample in reader.read("train", "0.50")] == ["id_1"]
    assert [sample.id for sample in reader.read("val", "0.50")] == ["id_3"]
    with pytest.raises(InputError, match=r"choose from 0\.01, 0\.02, 0\.05, 0\.10, 0\.20, 0\.50"):
        next(reader.read("train", "0.3"))
    with pytest.raises(InputError, match=r"0\.01x_train_partition\.json is not here"):
        next(reader.read("train", "0.01"))


def test_statistics_follow_the_same_band_order(tmp_path) -> None:
    table = open_task("m-eurosat", eurosat(tmp_path)).statistics("sentinel2_l2a")
    assert table.mean.tolist() == [1001, 1002, 1003, 1007, 1004, 1005, 1006, 1008, 1011, 1012, 1000, 1009]
    assert table.std[0] == 500.5
    assert table.minimum[3] == 0
    assert table.maximum[-1] == 2018
    assert table.copied == {}
    assert open_task("m-eurosat", tmp_path).statistics("sentinel1") is None


# The released m-eurosat: the statistics of its channels 9 to 13 are those of B09, cirrus, B11, B12, B8A.
SHIFTED = dict(zip(S2_NAMES, [1360, 1126, 1055, 957, 1220, 2052, 2434, 2360, 751, 12.3, 1849, 1131, 2665], strict=True))


def test_shifted_names_of_m_eurosat_are_told_by_the_cirrus_band_and_put_right(tmp_path) -> None:
    home = eurosat(tmp_path, stats=SHIFTED)
    sample = next(open_task("m-eurosat", home).read("train"))
    by_band = dict(zip(S2_BANDS, sample.inputs["sentinel2_l2a"][0, 0, 0].tolist(), strict=True))
    assert by_band["B08"] == 107
    assert [by_band[band] for band in ("B09", "B11", "B12", "B8A")] == [108, 110, 111, 112]  # 109 is cirrus
    table = open_task("m-eurosat", home).statistics("sentinel2_l2a")
    means = dict(zip(S2_BANDS, table.mean.tolist(), strict=True))
    assert [means[band] for band in ("B09", "B11", "B12", "B8A")] == [751, 1849, 1131, 2665]
    as_published = next(open_task("m-eurosat", home, reference=True).read("train"))
    by_name = dict(zip(S2_BANDS, as_published.inputs["sentinel2_l2a"][0, 0, 0].tolist(), strict=True))
    assert [by_name[band] for band in ("B09", "B11", "B12", "B8A")] == [109, 111, 112, 108]


def test_real_eurosat_patches_named_as_geobench_did_come_out_with_b8a_beside_b08(tmp_path) -> None:
    files = sorted((DATA / "s2-l1c-eurosat-samples" / "Forest").glob("*.tif"))
    if not files:
        pytest.skip("no ../shared/data/s2-l1c-eurosat-samples here")
    home = tmp_path / "m-eurosat"
    stack = []
    for file in files:
        with rasterio.open(file) as patch:
            stack.append(patch.read())
        geobench_sample(home, file.stem, dict(zip(S2_NAMES, stack[-1].astype(np.int16), strict=True)), 1)
    means = np.stack(stack).mean(axis=(0, 2, 3))
    listed = {"train": [file.stem for file in files], "valid": [], "test": []}
    geobench_tables(home, dict(zip(S2_NAMES, means.tolist(), strict=True)), listed, {})
    sample = next(open_task("m-eurosat", home).read("train"))
    got = dict(zip(S2_BANDS, np.moveaxis(sample.inputs["sentinel2_l2a"][:, :, 0], -1, 0), strict=True))
    for band in S2_BANDS:
        np.testing.assert_array_equal(got[band], stack[0][EUROSAT_ORDER.index(band)])
    # Over forest B8A is as bright as B08 and B09 half as bright: the wrong names would exchange them.
    assert 0.8 < got["B8A"].mean() / got["B08"].mean() < 1.3
    assert got["B09"].mean() < 0.6 * got["B08"].mean()


def test_brick_kiln_with_a_true_colour_picture_is_read_as_the_bands_it_holds(tmp_path) -> None:
    stats = dict(zip(S2_NAMES, [572, 669, 880, 808, 1128, 1961, 2076, 2039, 1625, 1136, 82, 90, 68], strict=True))
    home = tmp_path / "m-brick-kiln"
    geobench_tables(home, stats, {"train": ["a"], "valid": [], "test": []}, {})
    geobench_sample(home, "a", flat(S2_NAMES, 64), 1)
    sample = next(open_task("m-brick-kiln", home).read("train"))
    by_band = dict(zip(S2_BANDS, sample.inputs["sentinel2_l2a"][0, 0, 0].tolist(), strict=True))
    # In the file: B01 B02 B03 B04 B05 B07 B8A B08 B11 B12 R G B are 100 ... 112; B06 and B09 are filled.
    assert by_band == {
        **{"B01": 100, "B02": 101, "B03": 102, "B04": 103, "B05": 104, "B06": 105, "B07": 105, "B08": 107},
        **{"B8A": 106, "B09": 106, "B11": 108, "B12": 109},
    }
    plain = next(open_task("m-brick-kiln", home, reference=True).read("train"))
    assert plain.inputs["sentinel2_l2a"][0, 0, 0].tolist() == [
        101,
        102,
        103,
        107,
        104,
        105,
        106,
        108,
        111,
        112,
        100,
        109,
    ]


def test_so2sat_is_filled_and_scaled_in_input_and_statistics(tmp_path) -> None:
    names = [name for name in NO_CIRRUS if name[:2] not in ("01", "09")]
    home = tmp_path / "m-so2sat"
    radar = {"05 - VH.LEE Filtered": np.full((32, 32), 9.0)}
    optical = {name: np.full((32, 32), 0.1 + 0.01 * i, dtype=np.float32) for i, name in enumerate(names)}
    geobench_tables(home, {name: 0.2 + 0.01 * i for i, name in enumerate(names)}, {"train": ["x"]}, {})
    geobench_sample(home, "x", radar | optical, np.int64(16))
    reader = open_task("m-so2sat", home)
    sample = next(reader.read("train"))
    # File: 02 03 04 05 06 07 08 8A 11 12 = .10 ... .19; B01 <- B02, B09 <- B8A.
    expected = [1000, 1100, 1200, 1600, 1300, 1400, 1500, 1700, 1800, 1900, 1000, 1700]
    np.testing.assert_allclose(sample.inputs["sentinel2_l2a"][5, 5, 0], expected, rtol=1e-6)
    table = reader.statistics("sentinel2_l2a")
    np.testing.assert_allclose(table.mean, np.array(expected) + 1000, rtol=1e-12)
    np.testing.assert_allclose(table.std, (np.array(expected) + 1000) / 2, rtol=1e-12)
    assert sample.target == 16


def test_bigearthnet_is_a_row_of_43_flags(tmp_path) -> None:
    label = np.zeros(43, dtype=np.int64)
    label[[0, 42]] = 1
    home = tmp_path / "m-bigearthnet"
    geobench_tables(home, {name: 1.0 for name in NO_CIRRUS}, {"train": ["a", "b"]}, {})
    geobench_sample(home, "a", flat(NO_CIRRUS, 120, np.float32), label)
    geobench_sample(home, "b", flat(NO_CIRRUS, 120, np.float32), label[:19])
    samples = open_task("m-bigearthnet", home).read("train")
    target = next(samples).target
    assert target.dtype == np.uint8
    assert target.shape == (43,)
    assert np.flatnonzero(target).tolist() == [0, 42]
    with pytest.raises(InputError, match="not one of 43 classes"):
        next(samples)


def test_forestnet_fills_landsat_and_says_which_bands_are_copies(tmp_path) -> None:
    home = tmp_path / "m-forestnet"
    geobench_tables(home, {name: 70.0 + i for i, name in enumerate(L8_NAMES)}, {"train": ["s"]}, {})
    geobench_sample(home, "s", flat(L8_NAMES, 332, np.uint8, "_2014-01-01"), 11)
    reader = open_task("m-forestnet", home)
    sample = next(reader.read("train"))
    # File: red 100, green 101, blue 102, NIR 103, SWIR1 104, SWIR2 105. Order B8 B1 B2 B3 B4 B5 B6 B7 B9 B10 B11.
    assert sample.inputs["landsat"].shape == (332, 332, 1, 11)
    assert sample.inputs["landsat"][0, 0, 0].tolist() == [101, 102, 102, 101, 100, 103, 104, 105, 105, 105, 105]
    assert sample.timestamps.tolist() == [[1, 6, 2020]]
    table = reader.statistics("landsat")
    assert table.mean.tolist() == [71, 72, 72, 71, 70, 73, 74, 75, 75, 75, 75]
    assert dict(table.copied) == {0: 3, 1: 2, 8: 7, 9: 7, 10: 7}


def cashew(tmp_path, labels) -> Path:
    home = tmp_path / "segmentation_v1.0" / "m-cashew-plant"
    geobench_tables(home, {name: 1.0 for name in NO_CIRRUS}, {"train": ["s"]}, {})
    planes = flat(NO_CIRRUS, 256, np.float32, "_2019-11-05")
    cloud = {"Cloud Probability_2019-11-05": np.zeros((256, 256))}
    geobench_sample(home, "s", planes | cloud | {"label": labels})
    return home


def test_segmentation_keeps_its_labels_and_needs_no_pickle(tmp_path) -> None:
    labels = np.zeros((256, 256), dtype=np.int64)
    labels[3, 7] = 6
    home = cashew(tmp_path, labels)
    with h5py.File(home / "s.hdf5", "r+") as file:
        del file.attrs["pickle"]
    sample = next(open_task("m-cashewplant", tmp_path).read("train"))
    assert sample.target.dtype == np.int64
    np.testing.assert_array_equal(sample.target, labels)
    assert sample.inputs["sentinel2_l2a"][0, 0, 0].tolist() == [
        101,
        102,
        103,
        107,
        104,
        105,
        106,
        108,
        110,
        111,
        100,
        109,
    ]


def test_a_label_beyond_the_classes_is_refused(tmp_path) -> None:
    home = cashew(tmp_path, np.full((256, 256), 7))
    with pytest.raises(InputError, match=r"label values 7 are not among the 7 classes \(0-6\)"):
        next(open_task("m-cashewplant", home).read("train"))


def test_a_malicious_label_is_refused_before_anything_runs(tmp_path) -> None:
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    home = eurosat(tmp_path)
    with h5py.File(home / "id_2.hdf5", "r+") as file:
        file.attrs["pickle"] = str(pickle.dumps({"label": Attack()}))
    with pytest.raises(InputError, match=r"id_2\.hdf5: .* Refusing to load it"):
        next(open_task("m-eurosat", home).read("train"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../id_1", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", 7, None])
def test_a_sample_name_that_leaves_the_folder_is_refused(tmp_path, name) -> None:
    home = eurosat(tmp_path, splits={"train": [name], "valid": [], "test": []})
    with pytest.raises(InputError, match="no plain file name"):
        next(open_task("m-eurosat", home).read("train"))


def test_missing_or_damaged_samples_are_named(tmp_path) -> None:
    home = eurosat(tmp_path, splits={"train": ["absent", "id_1"]})
    with pytest.raises(InputError, match=r"absent\.hdf5: cannot be read as HDF5"):
        next(open_task("m-eurosat", home).read("train"))
    (home / "absent.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(InputError, match=r"absent\.hdf5: cannot be read as HDF5"):
        next(open_task("m-eurosat", home).read("train"))
    geobench_sample(home, "absent", flat(S2_NAMES[:5], 64), 1)
    with pytest.raises(InputError, match="has no '08 - NIR'"):
        next(open_task("m-eurosat", home).read("train"))
    geobench_sample(home, "absent", flat(S2_NAMES, 32), 1)
    with pytest.raises(InputError, match=r"is int16 of shape \(32, 32\); m-eurosat has numbers of 64 x 64 pixels"):
        next(open_task("m-eurosat", home).read("train"))
    geobench_sample(home, "absent", flat(S2_NAMES, 64), 10)
    with pytest.raises(InputError, match="label values 10 are not among the 10 classes"):
        next(open_task("m-eurosat", home).read("train"))


def test_a_band_without_statistics_is_named(tmp_path) -> None:
    home = eurosat(tmp_path)
    stats = json.loads((home / "band_stats.json").read_text())
    del stats["11 - SWIR"]
    (home / "band_stats.json").write_text(json.dumps(stats))
    with pytest.raises(InputError, match=r"band_stats\.json: no mean of band '11 - SWIR'"):
        open_task("m-eurosat", home).statistics("sentinel2_l2a")
