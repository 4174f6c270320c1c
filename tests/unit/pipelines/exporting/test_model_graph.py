"""Encoders as ONNX and torch.export files, run by others and compared with the plain encoder."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from model_checkpoints import LANDSAT, S1, S2, checkpoint, export, pooled, window

from olmoearth_cli.core.model import OlmoEarthModel, load_model
from olmoearth_cli.core.normalize import band_range
from olmoearth_cli.errors import InputError, OutputError, RunError
from olmoearth_pipelines.export_model import ModelReport
from olmoearth_pipelines.exporting import model_graph

SIDE, PATCH, PERIODS = 8, 4, 2
SHAPE = {"window_px": SIDE, "patch_px": PATCH, "periods": PERIODS}
QUICK = [("v1", True, ".onnx"), ("v1.2", False, ".onnx"), ("v1.2", True, ".pt2"), ("v1", False, ".pt2")]
SLOW = [("v1", False, ".onnx"), ("v1.2", True, ".onnx"), ("v1.2", False, ".pt2"), ("v1", True, ".pt2")]


@dataclass(frozen=True)
class Files:
    """Exports, made when they are first asked for."""

    home: Path
    runs: dict[str, Path]
    reports: dict[Path, ModelReport]

    def of(self, release: str, masks: bool, ending: str) -> Path:
        path = self.home / f"{release}-{masks}{ending}"
        if path not in self.reports:
            self.reports[path] = export(self.runs[release], path, modalities=(S2, S1), masks=masks, **SHAPE)
        return path


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"), runs, {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    return {release: checkpoint(home / release, release, depth=1) for release in ("v1", "v1.2")}


def vectors_of(path: Path, images, stamps, seen) -> torch.Tensor:
    """What the file makes of inputs, in the program that it is for."""
    if path.suffix == ".pt2":
        with torch.no_grad():
            return torch.export.load(path).module()(stamps, images, *([seen] if seen else []))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {"timestamps": stamps, **images, **{f"{m}_seen": mask for m, mask in (seen or {}).items()}}
    assert [entry.name for entry in session.get_inputs()] == list(feed)
    return torch.from_numpy(session.run(["embeddings"], {name: value.numpy() for name, value in feed.items()})[0])


def wanted_with_gaps(model: OlmoEarthModel, images, stamps, seen) -> torch.Tensor:
    """The plain encoder's vectors where patches have no data."""
    masks = {}
    for m, mask in seen.items():
        codes = torch.where(mask, 0, 3).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        masks[m] = codes[..., None].expand(*codes.shape, len(model.spec.band_sets(m)))
    return model.pool(model.encode(images, stamps, masks, patch_size=PATCH), masks)


def gaps(samples: int) -> dict[str, torch.Tensor]:
    """Random gaps; the second sample has no Sentinel-1, the last one nothing."""
    generator = torch.Generator().manual_seed(2)
    seen = {m: torch.rand(samples, 2, 2, PERIODS, generator=generator) < 0.6 for m in (S2, S1)}
    seen[S1][1] = False
    for mask in seen.values():
        mask[-1] = False
    return seen


def compare(run: Path, path: Path, *, masks: bool) -> None:
    model = load_model(run)
    for samples in (5, 2):
        images, stamps = window((S2, S1), samples=samples, side=SIDE, periods=PERIODS)
        seen = gaps(samples) if masks else None
        found = vectors_of(path, images, stamps, seen)
        if seen is None:
            wanted = pooled(model, images, stamps, PATCH)
        else:
            wanted = wanted_with_gaps(model, images, stamps, seen)
            assert (found[-1] == 0).all(), "a sample without data"
            assert float((wanted - pooled(model, images, stamps, PATCH))[0].abs().max()) > 0.05, "the gaps matter"
        assert found.shape == (samples, 2, 2, 32) and float(wanted.abs().max()) > 0.5
        assert float((found - wanted).abs().max()) <= 1e-4


@pytest.mark.parametrize(("release", "masks", "ending"), QUICK)
def test_a_file_gives_the_encoders_vectors_for_any_number_of_samples(files, release, masks, ending) -> None:
    compare(files.runs[release], files.of(release, masks, ending), masks=masks)


@pytest.mark.slow
@pytest.mark.parametrize(("release", "masks", "ending"), SLOW)
def test_the_other_files_do_too(files, release, masks, ending) -> None:
    compare(files.runs[release], files.of(release, masks, ending), masks=masks)


def test_a_file_says_which_bands_it_wants_and_how_they_are_scaled(files) -> None:
    import onnx

    path = files.of("v1.2", False, ".onnx")
    report, program = files.reports[path], onnx.load(path)
    onnx.checker.check_model(program, full_check=True)
    told = json.loads({entry.key: entry.value for entry in program.metadata_props}["olmoearth"])
    assert (told["window_px"], told["patch_px"], told["periods"]) == (SIDE, PATCH, PERIODS)
    assert told["inputs"][S1]["bands"] == ["vv", "vh"]
    np.testing.assert_array_equal(told["inputs"][S1]["zero"], band_range(S1).lo)
    assert told["name"] == report.model == "trial" and report.inputs == ("timestamps", S2, S1)
    assert report.difference is not None and report.difference <= 1e-4
    assert set(report.files) == {path.name, f"{path.name}.md", f"{path.name}.stac.json"}
    assert all((path.parent / name).stat().st_size == count for name, count in report.files.items())
    with pytest.raises(OutputError, match="--overwrite"):
        export(files.runs["v1.2"], path, modalities=(S2, S1), **SHAPE)


def test_a_file_that_gives_other_vectors_is_not_written(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(model_graph, "TOLERANCE", 0.0)
    with pytest.raises(RunError, match=r"differ by .* from the encoder's own \(allowed: 0\)"):
        export(runs["v1.2"], tmp_path / "model.pt2", modalities=(S1,), **SHAPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_package_that_is_not_installed_is_named_with_what_to_do(runs, tmp_path, monkeypatch, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=package) as caught:
        export(runs["v1"], tmp_path / "model.onnx", **SHAPE)
    assert "pip install 'olmoearth[onnx]'" in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"window_px": 10}, "--window 10: give a multiple of --patch-size 4"),
        ({"patch_px": 9, "window_px": 18}, "--patch-size 9: the model takes 1 to 8"),
        ({"modalities": ("worldcover",)}, "--modalities worldcover: trial was not trained to read that"),
        ({"periods": 0}, "--periods 0"),
        ({"dtype": "float16"}, "--dtype: no meaning for .onnx files"),
        ({"encoder_only": True, "weights": "pth"}, "--weights, --encoder-only: no meaning"),
    ],
)
def test_options_that_do_not_fit_are_refused(runs, tmp_path, options, text) -> None:
    with pytest.raises(InputError) as caught:
        export(runs["v1"], tmp_path / "model.onnx", **{**SHAPE, **options})
    assert text in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("out", {"masks": True, "periods": 3}, "--periods, --masks: no meaning for a model folder"),
        ("weights.pth", {}, "give a folder"),
        ("model.safetensors", {}, "give a folder"),
    ],
)
def test_a_folder_takes_no_options_of_graphs_and_no_files_name(runs, tmp_path, name, options, text) -> None:
    with pytest.raises(InputError, match=text):
        export(runs["v1"], tmp_path / name, **options)


def test_large_windows_are_told_what_they_take(runs) -> None:
    model = load_model(runs["v1"])
    shape = model_graph.GraphShape(modalities=(S2, S1, LANDSAT), window_px=64, periods=12, patch_px=4, masks=False)
    tokens = 16 * 16 * 12 * (3 + 1 + 2)  # v1 groups Sentinel-2's bands in 3 sets, Landsat's in 2
    assert shape.attention_bytes(model) == tokens**2 * 2 * 4
