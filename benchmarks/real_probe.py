"""Raw bands against encoders under the probes, on real labels: `python -m benchmarks.real_probe`.

Every figure comes from the road of `olmoearth probe` on a map that `olmoearth embed` made (Corsica: on a file of
vectors). Trained weights are added with `--encoder NAME=FOLDER`, several times if need be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_sets import SCENERIES, Question, Scenery, corsica, encoded, raw_features
from olmoearth_cli import __version__
from olmoearth_cli.core.model import load_model, random_model, save_model
from olmoearth_cli.core.probe.recipe import LinearRecipe
from olmoearth_pipelines.probe import ProbeReport, ProbeRequest, run
from olmoearth_pipelines.probing.evaluate import KnnMethod, LinearMethod, Method

FOLDER = Path(__file__).parent
DEMO = FOLDER.parent / "examples" / "demo" / "demo-weights"
METHODS: dict[str, Method] = {"kNN": KnnMethod(), "linear": LinearMethod(recipe=LinearRecipe())}
METRICS = ("accuracy", "macro_f1")
CORSICA_SERIES = {"12 months": ("2022-01", "2022-12"), "17 months": ("2021-09", "2023-01")}
CORSICA_QUESTIONS = {"README's cells": "field:block", "spatial folds": "spatial"}
LR_RF = "logistic regression {}, random forest {}"
BESIDE = (
    ("Haspengouw cropland", "west to east", LR_RF.format("0.967", "0.843") + " (accuracy)"),
    ("TerraMesh Chile", "west to east", LR_RF.format("0.374 / 0.344", "0.452 / 0.363")),
    ("Leipzig points, 10 m cells", "random folds", LR_RF.format("0.876 / 0.880", "0.907 / 0.909")),
    (
        "Corsica parcels, 17 months",
        "README's cells",
        LR_RF.format("0.686 / 0.612", "0.690 / 0.556") + ", kNN (5) 0.656 / 0.486",
    ),
)
"""Data, split, and what the data's README states for it: accuracy / macro F1."""
WORDS = """# Raw bands, random encoders, real labels

Made by `benchmarks/real_probe.py`: the roads of `olmoearth embed` and `olmoearth probe` over the labelled data of
`../shared/data`. **No encoder here has learned anything**: "random nano" and "demo weights" are two draws of random
weights (v1.2-nano), so the table says what a trained encoder has to beat, not what OlmoEarth can do.

Value and 95 % interval. The bootstrap draws blocks of land, or the README's cells; with random folds or fixed sides it
draws single cells, takes neighbours for independent, and is too narrow. kNN: k 20, temperature 0.07. Linear: 50 epochs,
8 rates, rate and epoch chosen on held-out labels by the column's metric. Raw bands: the same cells' mean reflectance
and backscatter in every period, centred, same folds. A majority answer ignores the vectors; it stands in the kNN
columns. Macro F1 averages over the classes that occur, so a draw without a rare class scores higher: an interval that
reaches far above its value comes from that.

{table}

## Beside the baselines that the data state

Accuracy / macro F1.

| data | README's figure (single pixels) | here (raw bands of map cells) |
|---|---|---|
{beside}

They are not the same question: cells of 40 m carry the label of most of their pixels (Leipzig here: 10 m cells), "west
to east" takes whole cells of the README's columns, the README's folds were drawn otherwise, and the linear probe gives
up a fold to choose its rate. The README's majority of 0.623 in Chile is the commonest class of the tested east itself;
the answer learnt in the west is another class. The labels of Haspengouw and TerraMesh are outputs of classifiers,
those of Haspengouw made from these very bands: raw bands are bound to do well there. Leipzig's scene has no date
(midsummer assumed), and its map lies in UTM zone 33 while the scene is in zone 32. Corsica has no surroundings to look
at: windows of one pixel.
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One metric of one probe on one kind of vectors."""

    data: str
    split: str
    vectors: str
    """`raw bands`, `majority class` or an encoder's name."""
    probe: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    samples: int
    tested: int
    units: int
    """What the interval draws whole, training side of a fixed split included."""
    block_km: float | None
    """Side of the blocks of land held out."""


def main() -> None:
    """Read the options, measure, write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", action="append", default=[], metavar="NAME=FOLDER", help="a model to compare")
    parser.add_argument("--only", default=",".join([*SCENERIES, "corsica"]), help="data sets, with commas")
    parser.add_argument("--json", type=Path, default=FOLDER / "real_probe.json", help="where the figures go")
    parser.add_argument("--keep", type=Path, help="folder for maps and the class map of Haspengouw; a scratch one else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        encoders = {**own_encoders(folder), **dict(given.split("=", 1) for given in options.encoder)}
        figures = []
        for figure in measured(options.only.split(","), {k: Path(v) for k, v in encoders.items()}, folder):
            figures.append(figure)
            print(f"{figure.data}, {figure.split}: {figure.probe} {figure.vectors} {text(figure)}", file=sys.stderr)
    content = {"version": __version__, "figures": [asdict(figure) for figure in figures]}
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.json.with_suffix(".md").write_text(page(figures), encoding="utf-8")
    print(page(figures))


def own_encoders(folder: Path) -> dict[str, Path]:
    """Two encoders that learned nothing."""
    save_model(random_model("v1.2-nano", seed=1), folder / "random-nano", demo={"seed": 1})
    return {"random nano": folder / "random-nano", "demo weights": DEMO}


def measured(names: list[str], encoders: dict[str, Path], folder: Path) -> Iterator[Figure]:
    """All figures of some data sets."""
    for name in names:
        if name == "corsica":
            yield from over_pixels(encoders, folder)
        else:
            for scenery in SCENERIES[name](folder / name):
                yield from over_maps(scenery, encoders, folder)


def over_maps(scenery: Scenery, encoders: dict[str, Path], folder: Path) -> Iterator[Figure]:
    """Map the scenery with every encoder, and probe each map; the raw bands are judged once."""
    for number, (encoder, weights) in enumerate(encoders.items()):
        out = folder / f"{scenery.name} {encoder}".replace(" ", "-").replace(",", "")
        embed(scenery, weights, out)
        for question in scenery.questions:
            asked: dict[str, Any] = {
                "map": out,
                "labels": question.labels,
                "field": question.field,
                "split": question.split,
            }
            yield from judged(scenery.name, question, encoder, raw="no" if number else "yes", **asked)


def embed(scenery: Scenery, weights: Path, out: Path) -> None:
    """`olmoearth embed`; windows blended, for random weights mix a whole window into every cell."""
    flags = ["--aoi", scenery.aoi, "--catalog", str(scenery.catalog), "--model", str(weights), "-o", str(out)]
    flags += ["--blend", "hann", "--guard", "warn", "--device", "cpu", "--quiet", *scenery.embed]
    subprocess.run([sys.executable, "-m", "olmoearth_cli.app", "embed", *flags], check=True, stdout=sys.stderr)


def over_pixels(encoders: dict[str, Path], folder: Path) -> Iterator[Figure]:
    """Corsica: vectors of single pixels in a file."""
    for length, (first, last) in CORSICA_SERIES.items():
        series = corsica(first, last)
        features = {"raw bands": raw_features(series)}
        features |= {name: encoded(series, load_model(weights)) for name, weights in encoders.items()}
        for name, vectors in features.items():
            file = folder / "corsica.npz"
            arrays: dict[str, Any] = {"vectors": vectors, **series.columns}
            np.savez(file, **arrays)
            for split_name, split in CORSICA_QUESTIONS.items():
                question = Question(name=split_name, labels=file, split=split)
                asked: dict[str, Any] = {"vectors": file, "field": "landcover", "split": split, "raw": "no"}
                for figure in judged(f"Corsica parcels, {length}", question, name, **asked):
                    if figure.vectors != "majority class" or name == "raw bands":
                        yield figure


def judged(data: str, question: Question, encoder: str, *, raw: str, **asked: Any) -> Iterator[Figure]:
    """Both probes by both metrics; with `raw` the baselines too."""
    for probe, method in METHODS.items():
        for metric in METRICS:
            request = ProbeRequest(method=method, metric=metric, grow_batch=True, raw=raw, **asked)
            report = next(step for step in run(request, lambda line: None) if isinstance(step, ProbeReport))
            found: list[dict[str, Any]] = [
                {"name": encoder, "value": report.value, "low": report.low, "high": report.high}
            ]
            if raw == "yes" or "vectors" in asked:
                found += [b for b in report.baselines if b["name"] != "majority class" or probe == "kNN"]
            for row in found:
                yield Figure(
                    data=data,
                    split=question.name,
                    vectors=row["name"],
                    probe="-" if row["name"] == "majority class" else probe,
                    metric=metric,
                    value=row["value"],
                    low=row["low"],
                    high=row["high"],
                    samples=report.samples,
                    tested=int(np.sum(report.confusion or [])),
                    units=report.split["units"],
                    block_km=report.split["block_km"],
                )


def page(figures: list[Figure]) -> str:
    """The Markdown page."""
    lines = [
        "| data | split | vectors | kNN accuracy | linear accuracy | kNN macro F1 | linear macro F1 |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((f.data, f.split) for f in figures)
    for data, split in keys:
        group = [f for f in figures if (f.data, f.split) == (data, split)]
        names = list(dict.fromkeys(f.vectors for f in group))
        names.sort(key=lambda name: {"majority class": 0, "raw bands": 1}.get(name, 2))
        for name in names:
            cells = [cell(group, name, probe, metric) for metric in METRICS for probe in METHODS]
            first = (data, f"{split}: {size(group[0])}") if name == names[0] else ("", "")
            lines.append("| " + " | ".join([*first, name, *cells]) + " |")
    stated = [f"| {data}, {split} | {readme} | {raw_bands(figures, data, split)} |" for data, split, readme in BESIDE]
    return WORDS.format(table="\n".join(lines), beside="\n".join(stated))


def raw_bands(figures: list[Figure], data: str, split: str) -> str:
    """Both probes' values, for the second table."""
    group = [f for f in figures if (f.data, f.split) == (data, split)]
    values = {probe: [cell(group, "raw bands", probe, metric).split(" ")[0] for metric in METRICS] for probe in METHODS}
    return ", ".join(f"{probe} {' / '.join(pair)}" for probe, pair in values.items())


def size(figure: Figure) -> str:
    """Samples, and what was held out."""
    if figure.tested < figure.samples:
        return f"{figure.samples} samples, {figure.tested} tested"
    if figure.block_km:
        return f"{figure.samples} samples, {figure.units} blocks of {figure.block_km:.2g} km"
    return f"{figure.samples} samples, {figure.units} units"


def cell(group: list[Figure], vectors: str, probe: str, metric: str) -> str:
    """Value and interval; a majority answer stands in the column of kNN."""
    for figure in group:
        blind = figure.vectors == "majority class" and probe == "kNN"
        if (figure.vectors, figure.metric) == (vectors, metric) and (figure.probe == probe or blind):
            return text(figure)
    return ""


def text(figure: Figure) -> str:
    """For tables."""
    if figure.value is None:
        return "-"
    interval = f" ({figure.low:.3f} to {figure.high:.3f})" if figure.low is not None else ""
    return f"{figure.value:.3f}{interval}"


if __name__ == "__main__":
    main()
