"""What cannot work ends in one clear message and exit code 2, and leaves what was there as it was."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import subprocess

import pytest

from tests.roads.conftest import checksums, command, environment, olmoearth


class Evil:
    """A pickle that would run code."""

    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/olmoearth-pickle-ran",)


def model_with(model_folder, folder, write):
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    write(folder)
    return folder


def truncated(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)


def pickled(folder):
    (folder / "weights.pth").write_bytes(pickle.dumps({"encoder.norm.weight": Evil()}))


def foreign(folder):
    import torch

    torch.save({"conv1.weight": torch.zeros(3, 3)}, folder / "weights.pth")


def nothing(folder):
    pass


@pytest.mark.parametrize(
    ("write", "words"),
    [(truncated, "model.safetensors"), (pickled, "weights.pth"), (foreign, "weights.pth"), (nothing, "weights")],
)
def test_weights_that_cannot_be_used(place, model_folder, tmp_path, write, words):
    from pathlib import Path

    broken = model_with(model_folder, tmp_path / "model", write)
    done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--model", str(broken)))
    assert done.code == 2, done.err
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "map").exists()
    assert not Path("/tmp/olmoearth-pickle-ran").exists()


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nothing/map"])
def test_a_folder_that_cannot_be_written(place, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    done = olmoearth("embed", *place.flags("-o", str(tmp_path / out if not out.startswith("/") else out)))
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert out.split("/")[-1] in done.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_somebody_else_is_left_alone(place, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for flags in ([], ["--overwrite"]):
        done = olmoearth("embed", *place.flags("-o", str(tmp_path), *flags))
        assert done.code == 2
        assert "thesis.txt" in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_stops_the_run_and_a_later_one_finishes_it(place, tmp_path):
    """A file size limit stands in for a full disk: the same refusal, from the kernel, in the middle of a write."""
    folder = tmp_path / "map"
    flags = place.flags("-o", str(folder), "--dtype", "float32")
    limited = subprocess.run(
        command("embed", *flags),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert limited.returncode == 2, limited.stderr
    assert "Traceback" not in limited.stderr
    assert "map" in limited.stderr
    assert not list(folder.rglob("*.part"))
    done = olmoearth("embed", *flags)
    assert done.code == 0, done.err
    assert checksums(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{not json", "STAC"),
        ('{"type": "Banana"}', "Banana"),
        ("[]", "STAC"),
        ('{"type": "Catalog", "links": []}', "0 items"),
    ],
)
def test_a_catalogue_of_garbage(place, tmp_path, content, words):
    (tmp_path / "catalog.json").write_text(content)
    flags = place.flags("-o", str(tmp_path / "map"), "--catalog", str(tmp_path / "catalog.json"))
    done = olmoearth("embed", *flags)
    assert done.code == 2, done.err
    assert words in done.err
    assert "Traceback" not in done.err


def test_modalities_that_the_catalogue_lacks_are_an_error_only_when_asked_for(place, tmp_path):
    shutil.copytree(place.catalog.parent, tmp_path / "catalog")
    root = json.loads((tmp_path / "catalog" / "catalog.json").read_text())
    root["links"] = [link for link in root["links"] if "sentinel-1" not in link["href"]]
    (tmp_path / "catalog" / "catalog.json").write_text(json.dumps(root))
    flags = place.flags("--catalog", str(tmp_path / "catalog" / "catalog.json"), "--plan", "--json")
    asked = olmoearth("embed", *flags, "--modalities", "s2,s1")
    assert asked.code == 2
    assert "sentinel1" in asked.err
    free = olmoearth("embed", *flags)
    assert free.code == 0, free.err
    assert set(json.loads(free.out)["scenes"]) == {"sentinel2_l2a"}


def test_a_gpu_that_is_not_there(place, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = olmoearth("embed", *place.flags("-o", str(tmp_path / "map"), "--device", "cuda"))
    assert done.code == 2
    assert "--device cuda" in done.err
    assert not (tmp_path / "map").exists()
