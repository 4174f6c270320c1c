import datetime

import pytest

from olmoearth_cli.errors import InputError
from olmoearth_cli.settings import read_defaults

KNOWN = {"embed": {"patch_size", "model", "catalog", "start"}, "models": {"as_json"}}


GROUPED = {"probe": {"knn": {"labels", "k"}, "linear": {"labels", "epochs"}}}


def write(folder, text):
    (folder / "olmoearth.toml").write_text(text, encoding="utf-8")
    return folder


def test_no_file_means_no_defaults(tmp_path):
    assert read_defaults(tmp_path, KNOWN) == {}


def test_values_reach_their_command(tmp_path):
    text = '[embed]\npatch_size = 8\ncatalog = ["planetary-computer", "usgs"]\nstart = 2024-03-01\n'
    defaults = read_defaults(write(tmp_path, text), KNOWN)
    assert defaults == {"embed": {"patch_size": 8, "catalog": "planetary-computer,usgs", "start": "2024-03-01"}}
    assert datetime.date.fromisoformat(defaults["embed"]["start"]).month == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[embed]\npatchsize = 8\n", ["patchsize", "did you mean patch_size?"]),
        ("[embed]\npatch-size = 8\n", ["patch-size", "did you mean patch_size?"]),
        ("[embd]\npatch_size = 8\n", ["[embd]", "did you mean embed?"]),
        ("model = 'x'\n", ["unknown table [model]"]),
        ("embed = 3\n", ["embed must be a table"]),
        ("[embed]\nmodel = {a = 1}\n", ["model in [embed]", "plain value"]),
        ("[embed\n", ["not valid TOML"]),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(InputError) as caught:
        read_defaults(write(tmp_path, text), KNOWN)
    for word in [*words, "olmoearth.toml"]:
        assert word in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "olmoearth.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_defaults(tmp_path, KNOWN)


def test_a_group_s_table_reaches_every_subcommand_that_has_the_option(tmp_path):
    text = '[probe]\nlabels = "a.gpkg"\nk = 5\n[probe.linear]\nlabels = "b.gpkg"\nepochs = 10\n'
    defaults = read_defaults(write(tmp_path, text), GROUPED)
    assert defaults == {"probe": {"knn": {"labels": "a.gpkg", "k": 5}, "linear": {"labels": "b.gpkg", "epochs": 10}}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[probe]\nlabel = 'x'\n", ["label in [probe]", "did you mean labels?"]),
        ("[probe.knn]\nepochs = 3\n", ["epochs in [probe.knn]"]),
        ("[probe.kn]\nk = 3\n", ["kn in [probe]", "did you mean knn?"]),
    ],
)
def test_a_group_refuses_what_none_of_its_subcommands_knows(tmp_path, text, words):
    with pytest.raises(InputError) as caught:
        read_defaults(write(tmp_path, text), GROUPED)
    for word in words:
        assert word in str(caught.value)


BORROWING = {
    "embed": {"catalog", "model", "year", "start", "periods", "aoi"},
    "finetune": {"catalog", "model", "year", "start", "periods", "epochs"},
}


def test_finetune_borrows_catalogue_model_and_dates_that_embed_alone_says(tmp_path):
    text = '[embed]\naoi = "r.geojson"\ncatalog = "cdse"\nmodel = "v1.2-base"\nyear = 2023\nperiods = 6\n'
    lent = {"catalog": "cdse", "model": "v1.2-base", "year": 2023, "periods": 6}
    assert read_defaults(write(tmp_path, text), BORROWING)["finetune"] == lent
    own = read_defaults(write(tmp_path, text + '[finetune]\nmodel = "x"\nepochs = 3\n'), BORROWING)["finetune"]
    assert own == {**lent, "model": "x", "epochs": 3}


def test_finetune_borrows_dates_together_or_not_at_all(tmp_path):
    text = "[embed]\nyear = 2023\nperiods = 6\n[finetune]\nstart = 2024-03-01\n"
    assert read_defaults(write(tmp_path, text), BORROWING)["finetune"] == {"start": "2024-03-01"}


def test_predict_borrows_catalogue_and_dates_down_the_road_but_no_model(tmp_path):
    known = {**BORROWING, "predict": {"catalog", "model", "year", "start", "end", "periods"}}
    text = '[embed]\ncatalog = "cdse"\nmodel = "v1.2-base"\nyear = 2023\nperiods = 6\n'
    assert read_defaults(write(tmp_path, text), known)["predict"] == {"catalog": "cdse", "year": 2023}
    own = text + "[finetune]\nstart = 2024-03-01\n"
    assert read_defaults(write(tmp_path, own), known)["predict"] == {"catalog": "cdse", "start": "2024-03-01"}
    own += "[predict]\nyear = 2025\n"
    assert read_defaults(write(tmp_path, own), known)["predict"] == {"catalog": "cdse", "year": 2025}
