"""`olmoearth predict` as a user runs it: a fine-tuned folder, a region and a catalogue in, a map of classes out."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio

from tests.roads.conftest import checksums, command, environment, olmoearth
from tests.roads.test_embed import kill_all

CLASSES = ("water", "forest", "crops")


def save(folder: Path, kind: str = "segmentation", **task: object) -> Path:
    from olmoearth_cli.core.finetune.heads import HeadSpec, build_head
    from olmoearth_cli.core.finetune.saved import Finetuned, save_finetuned
    from olmoearth_cli.core.finetune.task import TaskDescription
    from olmoearth_cli.core.model import random_model

    names = () if kind.endswith("regression") else CLASSES
    head = HeadSpec(kind=kind, classes=max(len(names), 1), width=128, patch_px=8)
    about = {"class_names": names, "field": "cover", "modalities": ("sentinel2_l2a", "sentinel1"), "window_px": 32}
    description = TaskDescription(head=head, periods=3, **{**about, **task})
    base = {"id": "allenai/OlmoEarth-v1_2-Nano", "name": "v1.2-nano", "sha256": "0" * 64}
    model = random_model("v1.2-nano", seed=1)
    return save_finetuned(folder, Finetuned(model=model, head=build_head(head, seed=5), task=description, base=base))


@pytest.fixture(scope="module")
def cover(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("runs") / "cover")


def flags(place, model: Path, out: Path, *more: str) -> list[str]:
    given = ("--model", str(model), "--aoi", str(place.aoi), "--catalog", str(place.catalog), "--year", "2024")
    return [*given, "--tile-size", "128", "--device", "cpu", "-o", str(out), *more]


@pytest.fixture(scope="module")
def reference(place, cover, tmp_path_factory):
    """The region predicted once, undisturbed."""
    folder = tmp_path_factory.mktemp("predicted") / "map"
    done = olmoearth("predict", *flags(place, cover, folder, "--probabilities", "--json"))
    assert done.code == 0, done.err
    return folder, json.loads(done.out)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read()


def test_the_folder_holds_one_raster_tiles_and_stac(reference):
    folder, summary = reference
    assert summary["folder"] == str(folder)
    for name in ("classes.tif.aux.xml", "preview.png", "index.parquet", "run.json", "scenes.json"):
        assert (folder / name).is_file(), name
    with rasterio.open(summary["path"]) as source:
        assert source.descriptions == ("class", "confidence")
        assert (source.res, source.nodata, source.scales) == ((10.0, 10.0), 255, (1.0, 0.01))
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.colormap(1)[0] == (0, 100, 200, 255), "water is blue, from the legend beside"
        classes, confidence = source.read()
    seen = classes != 255
    assert set(np.unique(classes[seen])) <= {0, 1, 2}
    assert len(np.unique(classes[seen])) > 1
    assert confidence[seen].min() >= 33 and confidence[seen].max() <= 100
    assert summary["km2"] == pytest.approx(seen.sum() * 1e-4)
    assert summary["classes"]["water"]["km2"] == pytest.approx((classes == 0).sum() * 1e-4)
    collection = json.loads((folder / "collection.json").read_text())
    items = [link["href"] for link in collection["links"] if link["rel"] == "item"]
    assert len(items) == summary["tiles"] == len(checksums(folder))
    item = json.loads((folder / items[0]).read_text())
    band = item["assets"]["prediction"]["bands"][0]
    assert [c["title"] for c in band["classification:classes"]] == list(CLASSES)
    assert band["classification:classes"][0]["color_hint"] == "0064C8"


def test_probabilities_stand_behind_every_class(reference):
    folder, _ = reference
    classes, confidence = read(folder / "classes.tif")
    shares = read(folder / "probabilities.tif")
    seen = classes != 255
    assert np.array_equal(shares.max(axis=0)[seen], confidence[seen])
    chosen = np.take_along_axis(shares, np.where(seen, classes, 0)[None].astype(int), axis=0)[0]
    assert np.array_equal(chosen[seen], confidence[seen])
    assert np.abs(shares[:, seen].astype(int).sum(axis=0) - 100).max() <= 2, "three rounded shares"
    assert (shares[:, ~seen] == 255).all()


def test_running_again_changes_nothing_and_adds_polygons_when_asked(reference, place, cover, tmp_path):
    folder, summary = reference
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    done = olmoearth("predict", *flags(place, cover, folder, "--probabilities", "--json"))
    assert json.loads(done.out)["unchanged"] is True, done.err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    path = tmp_path / "cover.gpkg"
    done = olmoearth("predict", *flags(place, cover, folder, "--probabilities", "--vector", str(path)))
    assert done.code == 0, done.err
    assert done.out == f"{folder}\n"
    frame = geopandas.read_file(path)
    by_class = frame.groupby("class")["area_m2"].sum()
    assert by_class.to_dict() == pytest.approx({n: c["km2"] * 1e6 for n, c in summary["classes"].items() if c["km2"]})


def test_smaller_tiles_and_more_workers_change_no_pixel_although_windows_are_blended(reference, place, cover, tmp_path):
    more = ("--probabilities", "--tile-size", "64", "--workers", "2")
    done = olmoearth("predict", *flags(place, cover, tmp_path / "map", *more))
    assert done.code == 0, done.err
    assert len(checksums(tmp_path / "map")) > len(checksums(reference[0]))
    for name in ("classes.tif", "probabilities.tif"):
        with rasterio.open(tmp_path / "map" / name) as small, rasterio.open(reference[0] / name) as large:
            a = small.read(window=small.window(*large.bounds), boundless=True, fill_value=255)
            assert np.array_equal(a, large.read())


def test_killed_and_run_again_gives_the_same_bytes(place, cover, tmp_path):
    folder = tmp_path / "map"
    given = flags(place, cover, folder, "--tile-size", "64")
    process = subprocess.Popen(
        command("predict", *given),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while not list((folder / "items").glob("*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    kill_all(process)
    kept = {p.name: p.stat().st_mtime_ns for p in (folder / "items").glob("*.json")}
    assert kept and not (folder / "collection.json").exists()
    done = olmoearth("predict", *given, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["kept"] >= len(kept)
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "items").glob("*.json") if p.name in kept} == kept
    plain = olmoearth("predict", *flags(place, cover, tmp_path / "plain", "--tile-size", "64"))
    assert plain.code == 0, plain.err
    assert checksums(folder) == checksums(tmp_path / "plain")
    assert (folder / "classes.tif").read_bytes() == (tmp_path / "plain" / "classes.tif").read_bytes()
    assert not [p for p in folder.rglob("*") if p.name.endswith((".part", ".work"))]


def test_values_become_a_raster_of_values(place, here, tmp_path):
    model = save(tmp_path / "height", "pixel_regression", target=(20.0, 5.0), field="height")
    done = here("predict", *flags(place, model, tmp_path / "map", "--blend", "none", "--json"), cwd=tmp_path)
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    values = read(Path(summary["path"]))[0]
    assert Path(summary["path"]).name == "values.tif"
    assert summary["values"]["mean"] == pytest.approx(float(np.nanmean(values)), rel=1e-4)
    assert 0 < np.nanstd(values) < 20
    done = here("predict", *flags(place, model, tmp_path / "map", "--vector", "a.gpkg"), cwd=tmp_path)
    assert done.code == 2 and "predicts values" in done.err


def test_a_saved_probe_is_applied_to_a_map(place, here, model_folder, tmp_path):
    from olmoearth_cli.core.probe.knn import fit_knn
    from olmoearth_cli.core.probe.saved import SavedProbe, save_probe
    from olmoearth_cli.maps.embedding_map import EmbeddingMap

    assert here("embed", *place.flags("-o", "map", "-q"), cwd=tmp_path).code == 0
    emap = EmbeddingMap.open(tmp_path / "map")
    vectors = emap.read_window(emap.tiles[0].box)
    vectors = vectors[np.isfinite(vectors).all(axis=-1)][:60]
    save_probe(
        tmp_path / "probe.safetensors",
        SavedProbe(
            probe=fit_knn(vectors, np.arange(60) % 3, kind="classification", classes=3, k=5),
            method="knn",
            class_names=CLASSES,
            field="cover",
            temperature=1.0,
            model_id=emap.spec.model_id,
            model_name=emap.spec.model_name,
            weights_sha256=emap.spec.weights_sha256,
            demo=True,
            patch_px=8,
            labels=60,
            software={},
        ),
    )
    for flag in ("--probe", "--model"):
        done = here("predict", flag, "probe.safetensors", "--map", "map", "-o", "c.tif", "--json", cwd=tmp_path)
        assert done.code == 0, done.err
    assert json.loads(done.out)["unchanged"] is True
    assert set(np.unique(read(tmp_path / "c.tif")[0])) <= {0, 1, 2, 255}
    done = here("predict", "--probe", "probe.safetensors", "--aoi", "0,0,1,1", cwd=tmp_path)
    assert done.code == 2 and "--aoi" in done.err
    # Defaults of the other road do not stand in the way, and what is typed comes first.
    (tmp_path / "olmoearth.toml").write_text(
        '[predict]\nmodel = "runs/x"\ncatalog = "cdse"\nyear = 2024\nmap = "map"\n'
    )
    done = here("predict", "--probe", "probe.safetensors", "-o", "c.tif", cwd=tmp_path)
    assert done.code == 0 and "nothing to do" in done.err, done.err
    done = here("predict", "--model", "runs/x", "--aoi", "0,0,1,1", cwd=tmp_path)
    assert done.code == 2 and "no finetuned.json" in done.err


def test_mistakes_are_one_message(place, cover, here, model_folder, reference, tmp_path):
    cases = (
        (("--aoi", "0,0,1,1"), "either --model"),
        (("--model", str(cover)), "--aoi is missing"),
        (flags(place, model_folder, tmp_path / "map"), "learned no labels"),
        (flags(place, cover, tmp_path / "map", "--patch-size", "4"), "--patch-size 4"),
        ([*flags(place, cover, tmp_path / "map"), "--year", "2018"], "no usable"),
        (flags(place, cover, reference[0], "--overlap", "0"), "other settings"),
    )
    for given, words in cases:
        done = here("predict", *given, cwd=tmp_path)
        assert done.code == 2, done.err
        assert words in done.err, done.err
        assert "Traceback" not in done.err
    assert not (tmp_path / "map").exists()


def test_a_catalogue_without_a_learned_modality_is_refused_by_name(place, here, tmp_path):
    model = save(tmp_path / "three", modalities=("sentinel2_l2a", "landsat"))
    done = here("predict", *flags(place, model, tmp_path / "map"), cwd=tmp_path)
    assert done.code == 2 and "landsat" in done.err and "--modalities" in done.err
    assert not (tmp_path / "map").exists()
    done = here("predict", *flags(place, model, tmp_path / "map", "--modalities", "s2", "--json"), cwd=tmp_path)
    assert done.code == 0, done.err
    assert "may be worse" in done.err


def test_the_plan_says_the_cost_and_writes_nothing(place, cover, here, tmp_path):
    done = here("predict", *flags(place, cover, tmp_path / "map", "--plan", "--json"), cwd=tmp_path)
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert figures["windows"] > 0 and figures["disk_bytes"] > 0
    assert not (tmp_path / "map").exists()


def test_a_prediction_is_no_map_of_embeddings(reference):
    from olmoearth_cli.errors import InputError
    from olmoearth_cli.maps.embedding_map import EmbeddingMap

    with pytest.raises(InputError, match="holds predictions"):
        EmbeddingMap.open(reference[0])


def test_interrupting_says_how_to_go_on(place, cover, tmp_path):
    process = subprocess.Popen(
        command("predict", *flags(place, cover, tmp_path / "map", "--tile-size", "32")),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(4.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == "" and "run the same command again" in err and "Traceback" not in err
