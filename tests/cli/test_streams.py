"""stdout, stderr and exit codes of what needs no imagery."""

import json
import resource

import pytest

from tests.roads.conftest import olmoearth


def test_help_is_fast_and_ends_with_an_example():
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = olmoearth("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.code == 0
    assert "olmoearth embed --aoi region.geojson" in done.out
    # Processor time: other tests run beside this one. 0.3 s on a quiet machine is the target (benchmarks/startup.py).
    assert min(times) < 0.6


def test_models_lists_the_family():
    done = olmoearth("models", "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in json.loads(done.out)["models"]}
    assert rows["v1.2-tiny"]["dimensions"] == 192
    assert rows["v1-large"]["gflops_per_km2"] > rows["v1.2-tiny"]["gflops_per_km2"] > 0


def test_version():
    assert olmoearth("--version").out.startswith("olmoearth ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--aoi", "nowhere.geojson"], ["nowhere.geojson"]),
        (["--aoi", "1,2,3"], ["1,2,3"]),
        (["--aoi", "5,50,5.1,50.1", "--model", "v9-huge"], ["v9-huge", "v1.2-tiny"]),
        (["--aoi", "5,50,5.1,50.1", "--patch-size", "5"], ["--patch-size 5", "--window 64"]),
        (["--aoi", "5,50,5.1,50.1", "--modalities", "s3"], ["s3", "s2, s1, landsat"]),
        (["--aoi", "5,86,5.1,87"], ["84"]),
        (["--aoi", "5,50,5.1,50.1", "--year", "2999"], ["2999"]),
        (["--aoi", "5,50,5.1,50.1", "--catalog", "nowhere/catalog.json", "--plan"], ["nowhere/catalog.json"]),
        (["--aoi", "5,50,5.1,50.1", "--catalog", "http://127.0.0.1:9/stac", "--plan"], ["127.0.0.1:9"]),
        (["--aoi", "5,50,5.1,50.1", "--dtype", "int4"], ["int4"]),
        (["--aoi", "5,50,5.1,50.1", "--device", "tpu"], ["--device tpu", "cuda:N"]),
        (["--aoi", "5,50,5.1,50.1", "--model", "v1.3-base"], ["v1.3", "v1.2-base"]),
        ([], ["--aoi"]),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(flags, words, tmp_path):
    done = olmoearth("embed", *flags, cwd=tmp_path)
    assert done.code == 2, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert list(tmp_path.iterdir()) == []
