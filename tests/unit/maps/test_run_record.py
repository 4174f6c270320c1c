import json

import pytest

from olmoearth_cli.errors import OutputError
from olmoearth_cli.maps import run_record
from olmoearth_cli.maps.embedding_map import finish_map, write_gap, write_tile

SETTINGS = {"model": "v1.2-tiny", "patch_size": 4, "modalities": ("sentinel2_l2a",)}


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def make_map(folder, spec, result_of, tile_box, settings=SETTINGS):
    run_record.start(folder, settings)
    run_record.write_text(folder / "scenes.json", "{}")
    write_tile(folder, spec, result_of("a", tile_box(), spec))
    finish_map(folder, spec)
    facts = {"complete": True, "summary": {"tiles": 1}, "tiles": run_record.tile_facts(folder)}
    run_record.finish(folder, settings, facts)


def test_a_new_or_empty_folder_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".DS_Store").touch()
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty"):
        run_record.start(folder, SETTINGS)
        assert json.loads((folder / "run.json").read_text())["status"] == "running"
        assert run_record.matches(folder, SETTINGS)


def test_checking_changes_nothing(tmp_path):
    run_record.check(tmp_path / "new", SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_refused_with_the_keys_and_both_values(tmp_path):
    run_record.start(tmp_path, SETTINGS)
    before = snapshot(tmp_path)
    other = SETTINGS | {"patch_size": 8, "blend": "hann"}
    with pytest.raises(OutputError) as error:
        run_record.start(tmp_path, other)
    text = str(error.value)
    assert "patch_size is 4 there and 8 here" in text
    assert 'blend is not set there and "hann" here' in text
    assert "--overwrite" in text
    assert "model" not in text
    assert snapshot(tmp_path) == before
    assert not run_record.matches(tmp_path, other)


def test_the_same_settings_continue_the_map(tmp_path, spec, result_of, tile_box):
    run_record.start(tmp_path, SETTINGS)
    write_tile(tmp_path, spec, result_of("a", tile_box(), spec))
    run_record.start(tmp_path, dict(SETTINGS, modalities=["sentinel2_l2a"]))  # JSON knows no tuples
    assert run_record.tile_states(tmp_path) == {"a": "done"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_somebody_elses_files_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        run_record.start(tmp_path, SETTINGS, overwrite=overwrite)
    assert snapshot(tmp_path).keys() == {(tmp_path / "thesis.tex").relative_to(tmp_path)}


@pytest.mark.parametrize("content", ["not json", "[1]", '{"some": "thing"}'])
def test_a_run_json_of_another_program_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(OutputError, match=r"run\.json"):
        run_record.start(tmp_path, SETTINGS, overwrite=True)
    assert (tmp_path / "run.json").read_text() == content
    assert not run_record.matches(tmp_path, SETTINGS)


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "map").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        run_record.check(tmp_path / "map", SETTINGS)
    with pytest.raises(OutputError, match="cannot be written"):
        run_record.start(tmp_path / "map" / "below", SETTINGS)


def test_overwriting_removes_what_the_map_owns_and_nothing_else(tmp_path, spec, result_of, tile_box):
    make_map(tmp_path, spec, result_of, tile_box)
    write_gap(tmp_path, spec, "b", tile_box(0, 1), "no imagery")
    kept = [tmp_path / "notes.txt", tmp_path / "tiles" / "a.tif.aux.xml", tmp_path / "my" / "labels.gpkg"]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    run_record.start(tmp_path, SETTINGS | {"patch_size": 8}, overwrite=True)
    left = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {*kept, tmp_path / "run.json"}
    assert run_record.matches(tmp_path, SETTINGS | {"patch_size": 8})


def test_a_finished_map_is_recognised_until_a_file_goes_missing(tmp_path, spec, result_of, tile_box):
    make_map(tmp_path, spec, result_of, tile_box)
    record = run_record.finished(tmp_path, SETTINGS)
    assert record is not None
    assert record["summary"] == {"tiles": 1}
    assert run_record.finished(tmp_path, SETTINGS | {"patch_size": 8}) is None
    for name in ("preview.png", "mosaic_32631.vrt", "tiles/a.tif"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        assert run_record.finished(tmp_path, SETTINGS) is None, name
        (tmp_path / name).write_bytes(content)
        assert run_record.finished(tmp_path, SETTINGS) is not None


def test_a_map_with_gaps_is_not_finished(tmp_path, spec, result_of, tile_box):
    make_map(tmp_path, spec, result_of, tile_box)
    run_record.finish(tmp_path, SETTINGS, {"complete": False, "tiles": {}})
    assert run_record.finished(tmp_path, SETTINGS) is None


def test_a_run_clears_away_what_a_killed_one_was_writing(tmp_path, spec, result_of, tile_box):
    make_map(tmp_path, spec, result_of, tile_box)
    part = tmp_path / "tiles" / "b.tif.123-abcd.part"
    part.write_bytes(b"half")
    run_record.start(tmp_path, SETTINGS)
    assert not part.exists()
    assert run_record.tile_states(tmp_path) == {"a": "done"}
