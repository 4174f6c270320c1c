"""Writing whole datasets, resumably, and validating what is on disk."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pretrain_data import FULL, LANDSAT, S1, S2, STAMPS, put_dataset, sample

from olmoearth_cli.errors import InputError, OutputError
from olmoearth_pipelines.samples.dataset_writer import DatasetWriter, pieces
from olmoearth_pipelines.samples.layout import open_folder
from olmoearth_pipelines.samples.sample_file import SampleData, open_sample
from olmoearth_pipelines.samples.validate import validate

COLUMNS = ("worldcover", S1, S2)
LEAF = "h5py_data_w_missing_timesteps_zstd_3_128_x_4/sentinel1_sentinel2_l2a_worldcover"


def tile(seed: int = 0, **more) -> SampleData:
    """Three timesteps of Sentinel-2 cost less than twelve; Sentinel-1 is complete."""
    return sample(256, {S1: FULL, S2: np.isin(np.arange(12), (1, 2, 9))}, ("worldcover",), seed=seed, **more)


@pytest.fixture(scope="module")
def tiles() -> list[SampleData]:
    return [tile(0), sample(256, {S1: FULL}, seed=1)]


@pytest.fixture
def written(tmp_path: Path, tiles: list[SampleData]) -> Path:
    writer = DatasetWriter(tmp_path, COLUMNS)
    for i, each in enumerate(tiles):
        writer.add(f"tile {i}", each)
    return writer.finish()


def content(leaf: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in leaf.iterdir()}


def test_a_dataset_has_the_published_files_and_validates(written: Path, tmp_path: Path, tiles) -> None:
    assert written == tmp_path / LEAF / "8"
    assert set(content(written)) == {f"sample_{i}.h5" for i in range(8)} | {
        "sample_metadata.csv",
        "latlon_distribution.npy",
        "compression_settings.json",
    }
    head, *rows = (written / "sample_metadata.csv").read_text().splitlines()
    assert head == "sample_index,worldcover,sentinel1,sentinel2_l2a"
    assert rows == [f"{i},1,1,1" for i in range(4)] + [f"{i},0,1,0" for i in range(4, 8)]
    places = np.load(written / "latlon_distribution.npy")
    assert places.dtype == np.float64 and places.tolist() == [[45.0, 7.25]] * 4 + [[45.125, 7.25]] * 4
    settings = json.loads((written / "compression_settings.json").read_text())
    assert settings == {"compression": "zstd", "compression_opts": 3, "shuffle": None}
    assert validate(tmp_path) == []
    assert open_folder(tmp_path).path == written


def test_pieces_go_row_by_row_from_the_north_west(written: Path, tiles) -> None:
    values = tiles[0].images[S2]
    quarters = [values[:128, :128], values[:128, 128:], values[128:, :128], values[128:, 128:]]
    for i, quarter in enumerate(quarters):
        with h5py.File(written / f"sample_{i}.h5") as file:
            np.testing.assert_array_equal(file[S2][:], quarter)
    with open_sample(written / "sample_2.h5", (S2,)) as opened:
        assert opened.present[S2].tolist() == [True, True, False, False, False, False, False, False, True]
    whole = list(pieces(tiles[0], 256))
    assert len(whole) == 1 and np.array_equal(whole[0].images[S2], values)


def test_an_interrupted_export_goes_on_and_ends_the_same(written: Path, tmp_path: Path, tiles) -> None:
    other = tmp_path / "other"
    (other / LEAF).mkdir(parents=True)
    (other / LEAF / "tiles.jsonl.1-ab.part").touch()  # killed at the very beginning
    DatasetWriter(other, COLUMNS).add("tile 0", tiles[0])
    work = other / LEAF / "unfinished.part"
    (work / "sample_4.h5").write_bytes(b"half")  # of a tile that was not complete
    (work / "sample_9.h5").write_bytes(b"older")
    (work / "sample_5.h5.1-ab.part").write_bytes(b"half")
    with (other / LEAF / "tiles.jsonl").open("a") as file:
        file.write('{"tile": "tile 1", "lat')  # torn
    with pytest.raises(InputError, match="no sample_metadata"):
        open_folder(other)
    again = DatasetWriter(other, COLUMNS)
    assert "tile 0" in again and "tile 1" not in again and len(again) == 4
    again.add("tile 1", tiles[1])
    assert content(again.finish()) == content(written)
    assert not work.exists()


def test_a_finished_dataset_is_kept_and_not_extended(written: Path, tmp_path: Path, tiles) -> None:
    before = content(written)
    again = DatasetWriter(tmp_path, COLUMNS)
    assert "tile 1" in again and again.finish() == written
    with pytest.raises(OutputError, match="finished"):
        again.add("tile 2", tiles[0])
    assert content(written) == before
    with pytest.raises(OutputError, match="other settings"):
        DatasetWriter(tmp_path, COLUMNS, settings={"years": [2020]})
    (tmp_path / LEAF / "tiles.jsonl").unlink()
    with pytest.raises(OutputError, match=r"holds files, but no tiles\.jsonl"):
        DatasetWriter(tmp_path, COLUMNS)


def test_lost_samples_and_empty_datasets_are_not_finished(tmp_path: Path, tiles) -> None:
    writer = DatasetWriter(tmp_path, COLUMNS)
    with pytest.raises(InputError, match="no tile has data"):
        writer.finish()
    writer.add("a", tiles[1])
    (tmp_path / LEAF / "unfinished.part" / "sample_2.h5").unlink()
    with pytest.raises(OutputError, match="1 of 4 samples are gone, first 2"):
        writer.finish()
    with pytest.raises(ValueError, match="complete already"):
        writer.add("a", tiles[1])


def test_a_full_disk_leaves_no_half_tile_and_the_next_run_goes_on(written: Path, tmp_path: Path, tiles) -> None:
    """A limit on the file size stands for it: the system refuses in the middle of a write, as a full disk does."""
    full = tmp_path / "full"
    writer = DatasetWriter(full, COLUMNS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        with pytest.raises(OutputError, match="cannot be written"):
            writer.add("tile 0", tiles[0])
        journal = full / LEAF / "tiles.jsonl"
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 10, hard))
        with pytest.raises(OutputError, match="cannot be written"):
            writer.add("tile 0", tiles[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "tile 0" not in writer and not list((full / LEAF).glob("unfinished.part/*"))
    again = DatasetWriter(full, COLUMNS)
    for i, each in enumerate(tiles):
        again.add(f"tile {i}", each)
    assert content(again.finish()) == content(written)


def test_a_full_disk_at_the_record_takes_the_torn_line_back(tmp_path: Path, tiles, monkeypatch) -> None:
    writer = DatasetWriter(tmp_path, COLUMNS)
    journal = tmp_path / LEAF / "tiles.jsonl"
    before = journal.read_bytes()
    monkeypatch.setattr("olmoearth_pipelines.samples.dataset_writer.write_sample", lambda path, piece: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
        with pytest.raises(OutputError, match="cannot be written"):
            writer.add("tile 0", tiles[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.read_bytes() == before and "tile 0" not in writer


def changed(each: SampleData, name: str, values: np.ndarray) -> SampleData:
    return replace(each, images={**each.images, name: values})


REFUSED = {
    "linear power": (lambda t: changed(t, S1, 10 ** (t.images[S1] / 10)), "power or amplitude"),
    "no data as number": (lambda t: changed(t, S1, t.images[S1] * 0 - 32768), "outside -100 to 100"),
    "NaN": (lambda t: changed(t, S1, t.images[S1] * np.float32(np.nan)), "sentinel1 has NaN"),
    "another dtype": (lambda t: changed(t, S2, t.images[S2].astype("i4")), "sentinel2_l2a is int32, not uint16"),
    "reflectance": (lambda t: changed(t, S2, t.images[S2] // 3000), "reflectance, not digital numbers"),
    "an empty period": (
        lambda t: changed(t, S2, t.images[S2] * np.array([1, 0, 1], "u2")[:, None]),
        r"timesteps \[1\]",
    ),
    "a class beyond": (lambda t: changed(t, "worldcover", t.images["worldcover"] + 101), "outside 0 to 100"),
    "a quarter tile": (lambda t: changed(t, S2, t.images[S2][:128, :128]), r"not \(256, 256, 3, 12\)"),
    "a slice too many": (lambda t: changed(t, S2, t.images[S2][:, :, [0, 1, 2, 2]]), "4 timesteps"),
    "a stranger": (lambda t: changed(t, LANDSAT, t.images[S2]), "landsat not among"),
    "no complete series": (
        lambda t: replace(
            t,
            present={S1: FULL & (np.arange(12) > 0), S2: t.present[S2]},
            images={**t.images, S1: t.images[S1][:, :, 1:]},
        ),
        "no satellite product has all 12",
    ),
    "no mask": (lambda t: replace(t, present={S1: FULL}), "missing_timesteps_masks has"),
    "months from 1": (lambda t: replace(t, timestamps=STAMPS + np.array([0, 1, 0], "i4")), "no .day, month 0-11"),
    "falling dates": (lambda t: replace(t, timestamps=STAMPS[::-1]), "do not increase"),
    "31 February": (lambda t: replace(t, timestamps=STAMPS + np.array([29, 0, 0], "i4")), "no .day, month 0-11"),
    "lon, lat": (lambda t: replace(t, latlon=np.array([120, 45], "f4")), "no .latitude, longitude."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tile_that_breaks_the_format_is_refused(tmp_path: Path, tiles, case: str) -> None:
    change, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        DatasetWriter(tmp_path, COLUMNS).add("t", change(tiles[0]))


def small_dataset(tmp_path: Path, change=lambda samples: samples) -> Path:
    """The first two samples of a tile of sixteen."""
    return put_dataset(tmp_path / "d" / "2", change([sample(64, {S2: FULL}, ("srtm",)) for _ in range(2)]))


def edit(leaf: Path, change) -> None:
    with h5py.File(leaf / "sample_1.h5", "r+") as file:
        change(file)


def found(root: Path) -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in validate(root)]


def test_plain_files_are_valid(tmp_path: Path) -> None:
    assert found(small_dataset(tmp_path)) == []


def test_other_storage_and_dtypes_are_warnings(tmp_path: Path) -> None:
    leaf = small_dataset(tmp_path)
    (leaf / "compression_settings.json").unlink()

    def change(file: h5py.File) -> None:
        values = file["srtm"][:]
        del file["srtm"]
        file["srtm"] = values.astype("i2")
        file["notes"] = 1

    edit(leaf, change)
    levels, lines = zip(*found(tmp_path), strict=True)
    assert set(levels) == {"warning"}
    assert [
        any(word in line for line in lines) for word in ("compression_settings", "notes", "filters []", "int16")
    ] == [True] * 4
    assert len(lines) == 4


def delete(name: str):
    def change(leaf: Path) -> None:
        edit(leaf, lambda file: file.__delitem__(name))

    return change


def write(name: str, values):
    def change(leaf: Path) -> None:
        edit(leaf, lambda file: file[name].__setitem__(..., values))

    return change


MASK = f"missing_timesteps_masks/{S2}"
BROKEN = {
    "a missing file": (lambda leaf: (leaf / "sample_1.h5").unlink(), "1 of 2 sample files are missing, first 1"),
    "a cut file": (lambda leaf: (leaf / "sample_1.h5").write_bytes(b"\x89HDF\r\n\x1a\n"), "cut short"),
    "a file too many": (lambda leaf: (leaf / "sample_2.h5").touch(), "not in sample_metadata.csv, first 2"),
    "a product that the table has": (delete("srtm"), "says 1 for srtm, the file 0"),
    "a mask that is not the array's": (write(MASK, np.arange(12) > 3), "marks 8 as present"),
    "a mask without array": (delete(S2), "but the satellite products are []"),
    "another place": (write("latlon", [1, 2]), "latlon_distribution.npy says [45.0, 7.25], the file [1.0, 2.0]"),
    "other dates in a tile": (
        write("timestamps", STAMPS + np.array([1, 0, 0], "i4")),
        "than the first sample of its tile",
    ),
    "no table of places": (lambda leaf: (leaf / "latlon_distribution.npy").unlink(), "not readable as a NumPy array"),
    "a short table": (lambda leaf: np.save(leaf / "latlon_distribution.npy", np.zeros((1, 2))), "not float64 (2, 2)"),
    "another count": (lambda leaf: leaf.rename(leaf.with_name("3")), "named after 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_validation_finds(tmp_path: Path, case: str) -> None:
    change, words = BROKEN[case]
    change(small_dataset(tmp_path))
    errors = [line for level, line in found(tmp_path) if level == "error"]
    assert any(words in line for line in errors), errors


def test_units_are_looked_at_over_the_whole_dataset(tmp_path: Path) -> None:
    def shifted(samples: list[SampleData]) -> list[SampleData]:
        return [changed(s, S2, s.images[S2] + np.uint16(9000)) for s in samples]

    findings = found(small_dataset(tmp_path, shifted))
    assert len(findings) == 1 and findings[0][0] == "warning"
    assert "sentinel2_l2a: means lie far" in findings[0][1] and "B02 +5.3" in findings[0][1]


def test_findings_can_be_capped_and_restricted(tmp_path: Path) -> None:
    leaf = small_dataset(tmp_path)
    write("latlon", [1, 2])(leaf)
    assert validate(tmp_path, indices=[0]) == []
    assert len(validate(tmp_path)) == 2 and len(validate(tmp_path, most=1)) == 1
    with pytest.raises(ValueError, match="0 to 1"):
        validate(tmp_path, indices=[2])


def test_a_dataset_of_another_side_is_told(tmp_path: Path) -> None:
    put_dataset(tmp_path / "1", [sample(48, {S2: FULL})])
    assert any("samples of 48 x 48 px" in line for _, line in found(tmp_path))
