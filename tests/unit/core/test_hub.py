"""Published models from a hub on loopback: download, cache, offline, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import hub

from olmoearth_cli.core.model import OlmoEarthModel, save_model

REPO = "allenai/OlmoEarth-v1_2-Nano"
LOAD = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
logging.getLogger("httpx").setLevel(logging.WARNING)
from olmoearth_cli.core import hub, load_model
from olmoearth_cli.errors import ModelError
print("cached before:", hub.is_cached("allenai/OlmoEarth-v1_2-Nano"))
try:
    model = load_model(sys.argv[1])
except ModelError as error:
    sys.exit(f"ModelError: {error}")
print("loaded:", model.name, model.spec.repo, model.weights_sha256)
"""


def load(name: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env = {
        **keep,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [sys.executable, "-c", LOAD, name]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, nano: OlmoEarthModel) -> Path:
    return save_model(nano, tmp_path_factory.mktemp("published"), weights="weights.pth")


@pytest.fixture
def server(published: Path) -> Iterator[tuple[str, list[str]]]:
    with hub({REPO: published}) as running:
        yield running


def test_a_model_is_fetched_once_and_then_works_offline(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, requests = server
    first = load("v1.2-nano", tmp_path, HF_ENDPOINT=address)
    assert first.returncode == 0, first.stderr
    assert "cached before: False" in first.stdout
    assert "OlmoEarth Artifact License" in first.stdout
    assert f"loaded: v1.2-nano {REPO}" in first.stdout
    assert any("weights.pth" in line for line in requests)

    requests.clear()
    offline = load(REPO, tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert "cached before: True" in offline.stdout
    assert "License" not in offline.stdout
    assert requests == []
    assert offline.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


def test_safetensors_are_taken_where_there_is_no_pth(tmp_path: Path, nano: OlmoEarthModel) -> None:
    folder = save_model(nano, tmp_path / "published")
    with hub({REPO: folder}) as (address, _):
        found = load("v1.2-nano", tmp_path / "cache", HF_ENDPOINT=address)
        assert found.returncode == 0, found.stderr
    offline = load("v1.2-nano", tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_offline_without_the_files_says_how_to_get_them(tmp_path: Path) -> None:
    found = load("v1.2-nano", tmp_path, HF_HUB_OFFLINE="1")
    assert found.returncode == 1
    assert found.stderr.startswith(f"ModelError: {REPO}: config.json is not in this machine's cache")
    assert f"hf download {REPO}" in found.stderr


@pytest.mark.slow  # the hub's client tries again for 24 s
def test_a_hub_that_is_down_is_named(tmp_path: Path) -> None:
    found = load("v1.2-nano", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert found.returncode == 1
    assert "ModelError" in found.stderr
    assert "http://127.0.0.1:9" in found.stderr


def test_a_repository_that_the_hub_does_not_know_is_named(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    found = load("v1.2-tiny", tmp_path, HF_ENDPOINT=server[0])
    assert found.returncode == 1
    assert "ModelError: allenai/OlmoEarth-v1_2-Tiny: the hub knows no such repository" in found.stderr


def test_a_repository_without_weights_is_refused(tmp_path: Path, published: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((published / "config.json").read_bytes())
    with hub({REPO: bare}) as (address, _):
        found = load("v1.2-nano", tmp_path / "cache", HF_ENDPOINT=address)
    assert "has none of weights.pth, model.safetensors" in found.stderr
