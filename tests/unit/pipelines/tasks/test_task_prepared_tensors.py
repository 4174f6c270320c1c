"""PASTIS, MADOS and Sen1Floods11: the prepared `.pt` layouts."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from task_files import pastis_split

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.registry import open_task

# Channels of the prepared images: B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12.
S2_CHANNELS = [1, 2, 3, 7, 4, 5, 6, 8, 11, 12, 0, 9]
MONTHS = [201809, 201810, 201811, 201812, 201901, 201902, 201903, 201904, 201905, 201906, 201907, 201908]


class Attack:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pastis(root) -> None:
    for split, count in (("train", 3), ("valid", 1)):
        targets = torch.zeros((count, 64, 64), dtype=torch.long)
        targets[:, 0, 0], targets[:, 0, 1], targets[:, 5, 9] = 19, -1, 18
        series = []
        for number in range(count):
            s2 = torch.zeros((12, 13, 64, 64))
            s2 += 100 * torch.arange(12).view(12, 1, 1, 1) + torch.arange(13).view(1, 13, 1, 1) + 1000 * number
            s2[0, 1, 2, 3] = 7777
            s1 = torch.zeros((12, 2, 64, 64)) - torch.tensor([10.0, 17.0]).view(1, 2, 1, 1)
            series.append((s2, s1))
        pastis_split(root, split, [MONTHS] * count, targets, series)


def test_pastis_axes_bands_dates_and_void(tmp_path) -> None:
    pastis(tmp_path)
    sample = next(open_task("pastis", tmp_path).read("train"))
    optical, radar = sample.inputs["sentinel2_l2a"], sample.inputs["sentinel1"]
    assert optical.shape == (64, 64, 12, 12)
    assert radar.shape == (64, 64, 12, 2)
    assert optical[1, 1, 0].tolist() == S2_CHANNELS
    assert optical[1, 1, 11].tolist() == [1100 + channel for channel in S2_CHANNELS]
    assert optical[2, 3, 0, 0] == 7777  # row 2, column 3, B02
    assert radar[0, 0, 4].tolist() == [-10, -17]
    assert sample.timestamps[0].tolist() == [1, 8, 2018]
    assert sample.timestamps[3:5].tolist() == [[1, 11, 2018], [1, 0, 2019]]
    assert sample.timestamps[-1].tolist() == [1, 7, 2019]
    assert sample.target.dtype == np.int64
    assert [sample.target[0, 0], sample.target[0, 1], sample.target[5, 9], sample.target[1, 1]] == [-1, -1, 18, 0]


def test_pastis_splits_and_fractions_from_the_sister_folder(tmp_path) -> None:
    pastis(tmp_path / "pastis_r")
    (tmp_path / "pastis").mkdir()
    (tmp_path / "pastis" / "0.50x_train_partition.json").write_text("[2, 0]")
    reader = open_task("pastis", tmp_path)
    assert dict(reader.splits()) == {"train": 3, "val": 1}
    samples = list(reader.read("train", "0.50"))
    assert [sample.id for sample in samples] == ["2", "0"]
    assert samples[0].inputs["sentinel2_l2a"][0, 0, 0, 0] == 2001
    assert len(list(reader.read("val", "0.50"))) == 1
    assert reader.statistics("sentinel1") is None
    (tmp_path / "pastis" / "0.50x_train_partition.json").write_text("[3]")
    with pytest.raises(InputError, match="list of sample numbers below 3"):
        next(reader.read("train", "0.50"))


def test_pastis_files_of_another_shape_are_named(tmp_path) -> None:
    pastis(tmp_path)
    torch.save(torch.zeros((12, 10, 64, 64)), tmp_path / "pastis_r_train" / "s2_images" / "0.pt")
    with pytest.raises(InputError, match=r"s2_images/0\.pt has shape \(12, 10, 64, 64\), expected \(12, 13, 64, 64\)"):
        next(open_task("pastis", tmp_path).read("train"))
    torch.save(torch.full((1, 12), 201813), tmp_path / "pastis_r_valid" / "months.pt")
    with pytest.raises(InputError, match="are not months like 201809"):
        next(open_task("pastis", tmp_path).read("val"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pt_file_that_would_run_code_is_refused(tmp_path, legacy) -> None:
    pastis(tmp_path)
    path = tmp_path / "pastis_r_train" / "s1_images" / "0.pt"
    torch.save(Attack(tmp_path / "run"), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"s1_images/0\.pt: cannot be read as tensors") as refused:
        next(open_task("pastis", tmp_path).read("train"))
    assert not (tmp_path / "run").exists()
    assert "weights_only" not in str(refused.value)  # torch's own text ends in advice to run the file after all
    assert len(str(refused.value).splitlines()) == 1


def test_tensors_in_the_legacy_format_are_read_too(tmp_path) -> None:
    pastis(tmp_path)
    path = tmp_path / "pastis_r_train" / "s1_images" / "0.pt"
    torch.save(torch.full((12, 2, 64, 64), -3.0), path, _use_new_zipfile_serialization=False)
    assert next(open_task("pastis", tmp_path).read("train")).inputs["sentinel1"].max() == -3


def mados(root, *, first_class=0, bands_last=True, split="train") -> None:
    """Four tiles: reflectance of channel c is (c + 1) / 100, tile n adds n / 10."""
    images = torch.zeros((4, 80, 80, 13)) + (torch.arange(13) + 1) / 100 + torch.arange(4).view(4, 1, 1, 1) / 10
    images[0, 2, 3, 1] = 0.5
    labels = torch.full((4, 80, 80), first_class - 1)
    labels[:, 0, 0], labels[:, 0, 1] = first_class, first_class + 14
    content = {"images": images if bands_last else images.permute(0, 3, 1, 2).contiguous(), "labels": labels}
    torch.save(content, root / f"MADOS_{split}.pt")


@pytest.mark.parametrize("first_class", [0, 1])
@pytest.mark.parametrize("bands_last", [True, False])
def test_mados_leaves_in_digital_numbers_with_unlabelled_pixels_ignored(tmp_path, first_class, bands_last) -> None:
    mados(tmp_path, first_class=first_class, bands_last=bands_last)
    sample = next(open_task("mados", tmp_path).read("train"))
    image = sample.inputs["sentinel2_l2a"]
    assert image.shape == (80, 80, 1, 12)
    np.testing.assert_allclose(image[9, 9, 0], [(channel + 1) * 100 for channel in S2_CHANNELS], rtol=1e-6)
    assert image[2, 3, 0, 0] == pytest.approx(5000)
    assert sample.timestamps.tolist() == [[1, 6, 2020]]
    assert sample.target[0, :3].tolist() == [0, 14, -1]
    assert sample.target.dtype == np.int64


def test_mados_can_be_left_in_reflectance_as_in_the_reference(tmp_path) -> None:
    mados(tmp_path)
    sample = next(open_task("mados", tmp_path, reference=True).read("train"))
    np.testing.assert_allclose(sample.inputs["sentinel2_l2a"][9, 9, 0, :2], [0.02, 0.03], rtol=1e-6)


def test_mados_splits_and_fractions(tmp_path) -> None:
    mados(tmp_path)
    mados(tmp_path, split="val")
    (tmp_path / "0.05x_train_partition.json").write_text(json.dumps([3, 1]))
    reader = open_task("mados", tmp_path)
    assert dict(reader.splits()) == {"train": 4, "val": 4}
    assert [sample.id for sample in reader.read("train", "0.05")] == ["3", "1"]
    assert [sample.id for sample in reader.read("val")] == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match=r"no label fraction 0\.3"):
        next(reader.read("train", "0.3"))


def test_mados_labels_of_neither_numbering_are_refused(tmp_path) -> None:
    mados(tmp_path, first_class=2)
    with pytest.raises(InputError, match="label values 15 are not among the 15 classes"):
        next(open_task("mados", tmp_path).read("train"))


def floods(root, split="train") -> None:
    s1 = torch.zeros((4, 2, 64, 64)) + torch.tensor([-11.0, -18.0]).view(1, 2, 1, 1) - torch.arange(4).view(4, 1, 1, 1)
    s1[0, 1, 5, 6] = -30
    s1[1, 0, 63, 63], s1[2, 1, 0, 0] = float("nan"), float("-inf")
    labels = torch.zeros((4, 1, 64, 64), dtype=torch.int16)
    labels[:, 0, 0, 1], labels[:, 0, 1, 0] = 1, -1
    content = {"s1": s1, "s2": torch.zeros((4, 13, 64, 64)), "labels": labels}
    torch.save(content, root / f"flood_{split}_data.pt")


def test_floods_drop_tiles_that_are_not_finite_before_fractions_are_counted(tmp_path) -> None:
    floods(tmp_path)
    floods(tmp_path, "valid")
    (tmp_path / "0.10x_train_partition.json").write_text("[1]")
    reader = open_task("sen1floods11", tmp_path)
    assert dict(reader.splits()) == {"train": 2, "val": 2}
    first, second = reader.read("train")
    assert [first.id, second.id] == ["0", "3"]
    assert first.inputs["sentinel1"].shape == (64, 64, 1, 2)
    assert first.inputs["sentinel1"][0, 0, 0].tolist() == [-11, -18]
    assert first.inputs["sentinel1"][5, 6, 0].tolist() == [-11, -30]
    assert second.inputs["sentinel1"][0, 0, 0].tolist() == [-14, -21]
    assert first.target.dtype == np.int64
    assert [first.target[0, 1], first.target[1, 0], first.target[0, 0]] == [1, -1, 0]
    assert first.timestamps.tolist() == [[1, 6, 2020]]
    assert [sample.id for sample in reader.read("train", "0.10")] == ["3"]


def test_a_prepared_file_without_its_tensors_is_named(tmp_path) -> None:
    torch.save({"s2": torch.zeros(1)}, tmp_path / "flood_train_data.pt")
    with pytest.raises(InputError, match=r"flood_train_data\.pt: holds no tensor `labels`"):
        open_task("sen1floods11", tmp_path).splits()
    (tmp_path / "flood_train_data.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as tensors"):
        open_task("sen1floods11", tmp_path).splits()
