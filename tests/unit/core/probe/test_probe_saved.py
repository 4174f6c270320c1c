"""A probe in a file: comes back as it was, and nothing else passes for one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from olmoearth_cli.core.probe.knn import fit_knn
from olmoearth_cli.core.probe.saved import SavedProbe, check_fits, load_probe, save_probe
from olmoearth_cli.errors import InputError, ModelError, OutputError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 6)).astype(np.float32)
TARGETS = {
    "classification": RNG.integers(0, 3, 30),
    "multilabel": RNG.integers(0, 2, (30, 3)).astype(np.uint8),
    "segmentation": RNG.integers(-1, 3, (30, 4, 4)),
    "regression": RNG.normal(size=30),
}


def make(kind: str = "classification", **changes) -> SavedProbe:
    names = () if kind == "regression" else ("water", "Wälder", 'built "up"')
    fields = {
        "probe": fit_knn(X, TARGETS[kind], kind=kind, classes=len(names) or 1, k=4),
        "method": "knn",
        "class_names": names,
        "field": "cover",
        "temperature": 1.0,
        "model_id": "allenai/OlmoEarth-v1_2-Nano",
        "model_name": "v1.2-nano",
        "weights_sha256": "ab" * 32,
        "demo": True,
        "patch_px": 4,
        "labels": 30,
        "software": {"olmoearth": "0.1.0"},
        "facts": {"accuracy": 0.5, "folds": [1, 2]},
    }
    return SavedProbe(**{**fields, **changes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cover.safetensors"


@pytest.mark.parametrize("kind", TARGETS)
def test_a_probe_comes_back_as_it_was(kind, path) -> None:
    before = make(kind, temperature=1.7)
    save_probe(path, before)
    after = load_probe(path)
    for name in ("method", "class_names", "field", "temperature", "model_id", "model_name", "weights_sha256"):
        assert getattr(after, name) == getattr(before, name)
    assert (after.demo, after.patch_px, after.labels) == (True, 4, 30)
    assert (after.facts, after.software) == (before.facts, before.software)
    assert (after.kind, after.dimensions) == (kind, 6)
    assert after.probe.targets.dtype == before.probe.targets.dtype
    assert np.array_equal(after.probe.targets, before.probe.targets)
    queries = RNG.normal(size=(9, 6)).astype(np.float32)
    assert np.array_equal(after.probabilities(queries), before.probabilities(queries))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_linear_probe_comes_back_as_it_was(path) -> None:
    linear = pytest.importorskip("olmoearth_cli.core.probe.linear")
    recipe = linear.LinearRecipe(epochs=2, lrs=(0.1,))
    fit = linear.fit_linear(X, TARGETS["classification"], kind="classification", classes=3, recipe=recipe)
    save_probe(path, make(probe=fit.probe, method="linear"))
    after = load_probe(path)
    assert type(after.probe) is type(fit.probe)
    assert np.array_equal(after.probe.scores(X), fit.probe.scores(X))


def test_probabilities_are_softened_by_the_temperature() -> None:
    probe = fit_knn(np.eye(2), np.array([0, 1]), kind="classification", classes=2, k=2, temperature=1.0)
    query = np.array([[1.0, 0.0]])
    share = np.e / (np.e + 1)  # cosines 1 and 0
    hard = make(probe=probe, class_names=("a", "b")).probabilities(query)
    np.testing.assert_allclose(hard, [[share, 1 - share]], rtol=1e-6)
    soft = make(probe=probe, class_names=("a", "b"), temperature=2.0).probabilities(query)
    root = np.sqrt([share, 1 - share])
    np.testing.assert_allclose(soft, [root / root.sum()], rtol=1e-6)


def test_values_are_not_softened() -> None:
    saved = make("regression", temperature=3.0)
    assert np.array_equal(saved.probabilities(X), saved.probe.scores(X))


def test_equal_probes_give_equal_bytes(path, tmp_path) -> None:
    save_probe(path, make())
    save_probe(tmp_path / "again", make())
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_files_that_are_no_probe_are_refused_with_what_to_do(path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_probe(path)
    path.write_text("not tensors")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_probe(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="no probe"):
        load_probe(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, share) -> None:
    save_probe(path, make())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_probe(path)


def changed(path, **changes) -> None:
    """Store the probe again with other entries in its description."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["olmoearth_probe"])
    save_file(load_file(path), path, metadata={"olmoearth_probe": json.dumps({**header, **changes})})


def test_a_newer_format_asks_for_a_newer_program(path) -> None:
    save_probe(path, make())
    changed(path, format=2)
    with pytest.raises(ModelError, match=r"format 2.*newer olmoearth"):
        load_probe(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "regresion"}, "regresion"),
        ({"method": "forest"}, "forest"),
        ({"class_names": ["a", "b"]}, "2 names for 3 classes"),
        ({"classes": 4, "class_names": list("abcd")}, ""),
        ({"temperature": 0}, "temperature"),
        ({"model": {}}, "'id' is missing"),
        ({"dimensions": "many", "labels": None}, ""),
    ],
)
def test_a_description_that_does_not_fit_is_damage(path, changes, reason) -> None:
    save_probe(path, make())
    changed(path, **changes)
    if changes.get("classes") == 4:
        assert len(load_probe(path).class_names) == 4  # a class without labels is no contradiction
        return
    with pytest.raises(ModelError, match=f"damaged.*{reason}"):
        load_probe(path)


def test_tensors_that_do_not_fit_each_other_are_damage(path) -> None:
    broken = make()
    save_probe(path, replace(broken, probe=replace(broken.probe, k=31)))
    with pytest.raises(ModelError, match="damaged"):
        load_probe(path)
    save_probe(path, replace(make("segmentation"), patch_px=8))
    with pytest.raises(ModelError, match="4 px cells"):
        load_probe(path)
    save_probe(path, replace(broken, probe=replace(broken.probe, vectors=broken.probe.vectors * np.nan)))
    with pytest.raises(ModelError, match="not finite"):
        load_probe(path)


def test_a_probe_knows_which_maps_it_fits() -> None:
    saved = make()
    ours = {"model_id": "allenai/OlmoEarth-v1_2-Nano", "weights_sha256": "ab" * 32, "dimensions": 6, "patch_px": 4}
    check_fits(saved, **ours)
    check_fits(saved, **{**ours, "patch_px": 8})
    other = {**ours, "model_id": "allenai/OlmoEarth-v1-Base", "weights_sha256": "cd" * 32}
    with pytest.raises(InputError, match=r"OlmoEarth-v1_2-Nano .*abab.*OlmoEarth-v1-Base .*cdcd"):
        check_fits(saved, **other)
    with pytest.raises(InputError, match="768 dimensions"):
        check_fits(saved, **{**ours, "dimensions": 768})
    with pytest.raises(InputError, match=r"4 px.*8 px"):
        check_fits(make("segmentation"), **{**ours, "patch_px": 8})


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_probe(tmp_path / "file" / "cover.safetensors", make())
