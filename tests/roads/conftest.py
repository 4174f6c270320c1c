"""A tiny synthetic region with its catalogue and a random model, made once per test run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Finished:
    """What a command left on its streams."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """A region to map."""

    folder: Path
    aoi: Path
    catalog: Path
    model: Path

    def flags(self, *extra: str) -> list[str]:
        """The flags of a small, fast map of the whole region."""
        return [
            *("--aoi", str(self.aoi), "--catalog", str(self.catalog), "--model", str(self.model)),
            *("--start", "2024-01-01", "--periods", "3", "--patch-size", "8", "--window", "32"),
            *("--overlap", "16", "--tile-size", "128", "--device", "cpu", *extra),
        ]


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "pipelines"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "olmoearth_cli.app", *args]


def olmoearth(*args: str, cwd: Path | None = None, timeout: float = 240) -> Finished:
    """Run the program as a user does."""
    done = subprocess.run(
        command(*args), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def here(capsys, monkeypatch) -> Callable[..., Finished]:
    """Runs the program in this process, where what it imports is imported once: for many small runs."""
    from olmoearth_cli import app

    def run(*args: str, cwd: Path) -> Finished:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["olmoearth", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
        found = capsys.readouterr()
        return Finished(int(ended.value.code or 0), found.out, found.err)

    return run


def checksums(folder: Path, kind: str = "tiles") -> dict[str, str]:
    """Tile file -> SHA-256."""
    import hashlib

    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((folder / kind).glob("*.tif"))}


def write_region(path: Path, *polygons: object) -> Path:
    """A GeoJSON file of shapely polygons in lon/lat."""
    import shapely

    features = [
        {"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(polygon))}
        for polygon in polygons
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    from olmoearth_cli.core.model import random_model, save_model

    folder = tmp_path_factory.mktemp("model") / "random-nano"
    save_model(random_model("v1.2-nano", seed=1), folder, demo={"seed": 1})
    return folder


@pytest.fixture(scope="session")
def place(tmp_path_factory, model_folder) -> Place:
    from olmoearth_pipelines.synthetic import Scenery, make_region

    folder = tmp_path_factory.mktemp("place")
    make_region(folder, Scenery(seed=3, size_px=216, year=2024, periods=3))
    return Place(folder, folder / "region.geojson", folder / "catalog" / "catalog.json", model_folder)
