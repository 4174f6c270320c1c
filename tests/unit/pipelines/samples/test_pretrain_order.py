"""Dataset folders, usable samples, epochs and shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pretrain_data import FULL, LANDSAT, S1, S2, put_dataset, sample

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.samples.layout import modality_folder, open_folder, pieces_per_tile
from olmoearth_pipelines.samples.order import epoch_order, random_share, read_indices, share_of_rank, usable_samples


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four samples: Sentinel-2 in 0 and 1, Sentinel-1 in 2, a map alone in 3."""
    present = [{S2: FULL}, {S2: FULL}, {S1: FULL}, {}]
    put_dataset(tmp_path / "format" / "names" / "4", [sample(8, p, ("cdl",), seed=i) for i, p in enumerate(present)])
    return tmp_path


def table_of(root: Path) -> Path:
    return root / "format" / "names" / "4" / "sample_metadata.csv"


@pytest.mark.parametrize("below", ["", "format", "format/names", "format/names/4"])
def test_the_leaf_is_found_from_every_folder_above(root: Path, below: str) -> None:
    folder = open_folder(root / below)
    assert len(folder) == 4 and folder.path == root / "format" / "names" / "4"
    assert folder.has[S2].tolist() == [True, True, False, False]
    assert folder.has["cdl"].all() and not folder.has[LANDSAT].any()
    assert folder.sample(3).name == "sample_3.h5"


def test_samples_without_a_requested_satellite_are_left_out(root: Path) -> None:
    folder = open_folder(root)
    assert usable_samples(folder, (S2, S1, "cdl")).tolist() == [0, 1, 2]
    assert usable_samples(folder, (S2, "cdl")).tolist() == [0, 1]
    assert usable_samples(folder, (S2, S1), allowed=np.array([1, 2, 3])).tolist() == [1, 2]
    with pytest.raises(InputError, match="none of the 4 samples has landsat"):
        usable_samples(folder, (LANDSAT,))
    with pytest.raises(InputError, match="at least one satellite"):
        usable_samples(folder, ("cdl",))


def test_missing_files_are_told_before_training(root: Path) -> None:
    folder = open_folder(root)
    folder.sample(1).unlink()
    with pytest.raises(InputError, match=r"1 of 3 sample files are missing, first sample_1\.h5"):
        usable_samples(folder, (S2, S1))
    assert usable_samples(folder, (S2, S1), allowed=np.array([0, 2])).tolist() == [0, 2]


def test_files_that_the_table_does_not_list_are_told(root: Path) -> None:
    head, *rows = table_of(root).read_text().splitlines()
    table_of(root).write_text("\n".join([head, *rows[:2]]) + "\n")
    table_of(root).parent.rename(root / "mine")
    with pytest.raises(InputError, match=r"sample_3\.h5 is there, but sample_metadata\.csv lists 2"):
        usable_samples(open_folder(root), (S2, S1))


def test_a_number_as_name_must_be_the_count_any_other_name_is_free(root: Path) -> None:
    leaf = table_of(root).parent
    leaf.rename(leaf.with_name("5"))
    with pytest.raises(InputError, match=r"named after 5 samples, but sample_metadata\.csv lists 4"):
        open_folder(root)
    leaf.with_name("5").rename(leaf.with_name("mine"))
    assert len(open_folder(root)) == 4


def test_none_or_two_datasets_are_refused(root: Path, tmp_path: Path) -> None:
    put_dataset(root / "other" / "1", [sample(8, {S2: FULL})])
    with pytest.raises(InputError, match="holds 2 datasets"):
        open_folder(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no sample_metadata\.csv"):
        open_folder(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder"):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a CSV table"),
        ("sample_index,sentinel2_l2a\n", "at least one sample"),
        ("index,sentinel2_l2a\n0,1\n", "a column sample_index"),
        ("sample_index,sentinel2_l2a\n0,1\n2,1\n", "from 0 to 1"),
        ("sample_index,sentinel2_l2a\n0,1\n0,1\n", "from 0 to 1"),
        ("sample_index,sentinel2_l2a\n0,1\n1,2\n", "sample 1 is 2, not 0 or 1"),
        ("sample_index,sentinel2_l2a\n0,1\n1,\n", "not 0 or 1"),
        ("sample_index,cdl\n0,1\n", "no column of a satellite"),
        ("sample_index,a\n0,1\n1,1,1,1\n", "not a CSV table"),
    ],
)
def test_a_damaged_table_is_refused(root: Path, text: str, words: str) -> None:
    table_of(root).write_text(text)
    with pytest.raises(InputError, match=words):
        open_folder(root)


def test_rows_in_another_order_are_the_same_dataset_with_another_identity(root: Path) -> None:
    before = open_folder(root)
    head, *rows = table_of(root).read_text().splitlines()
    table_of(root).write_text("\n".join([head, *reversed(rows)]) + "\n")
    after = open_folder(root)
    assert after.has[S2].tolist() == before.has[S2].tolist()
    assert after.identity() != before.identity() == open_folder(root).identity() | {"csv_sha256": before.csv_sha256}


def test_the_published_folder_name_is_built() -> None:
    made = modality_folder(Path("/r"), ("worldcover", "landsat", "cdl"), 128)
    assert made == Path("/r/h5py_data_w_missing_timesteps_zstd_3_128_x_4/cdl_landsat_worldcover")
    assert modality_folder(Path("/r"), (S2,), 256).parent.name == "h5py_data_w_missing_timesteps_zstd_3_256_x_1"
    assert [pieces_per_tile(side) for side in (256, 128, 64)] == [1, 4, 16]
    for side in (0, 4, 100, 512):
        with pytest.raises(InputError, match=f"{side} x {side}"):
            pieces_per_tile(side)


def test_an_epoch_is_numpys_shuffle_without_the_tail() -> None:
    samples = np.arange(10, 33, dtype=np.int64)
    expected = np.arange(10, 33)
    np.random.Generator(np.random.PCG64(3622 + 2)).shuffle(expected)
    order = epoch_order(samples, epoch=2, seed=3622, global_batch=5)
    assert order.shape == (4, 5) and order.ravel().tolist() == expected[:20].tolist()
    assert samples.tolist() == list(range(10, 33))
    assert not np.array_equal(order, epoch_order(samples, epoch=3, seed=3622, global_batch=5))


def test_the_published_set_has_2224_steps() -> None:
    assert len(epoch_order(np.arange(1_138_828), epoch=1, seed=3622, global_batch=512)) == 2224


def test_ranks_share_a_batch_between_them() -> None:
    batch = np.arange(8) * 10
    assert [share_of_rank(batch, rank, 4).tolist() for rank in range(4)] == [[0, 40], [10, 50], [20, 60], [30, 70]]


def test_a_random_share_keeps_tiles_whole() -> None:
    samples = np.setdiff1d(np.arange(400), [5, 17])
    share = random_share(samples, 0.3, pieces=4, seed=1)
    tiles = np.unique(share // 4)
    assert len(tiles) == 30
    assert share.tolist() == [i for i in samples if i // 4 in tiles]
    assert share.tolist() == random_share(samples, 0.3, pieces=4, seed=1).tolist()
    assert share.tolist() != random_share(samples, 0.3, pieces=4, seed=2).tolist()
    assert random_share(samples, 1.0, pieces=4, seed=1).tolist() == samples.tolist()
    for fraction in (0.0, -1.0, 1.5, 0.001, float("nan")):
        with pytest.raises(InputError, match="fraction"):
            random_share(samples, fraction, pieces=4, seed=1)


def test_a_list_of_indices_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.npy"
    np.save(path, np.array([7, 3, 3], dtype=np.int32))
    assert read_indices(path, 8).tolist() == [3, 7]
    with pytest.raises(InputError, match="3 to 7, but the samples are 0 to 6"):
        read_indices(path, 7)
    for values in (np.array([0.5]), np.zeros((2, 2), int), np.array([], int), np.array([True])):
        np.save(path, values)
        with pytest.raises(InputError, match="one-dimensional array of whole numbers"):
            read_indices(path, 8)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not readable"):
        read_indices(path, 8)
