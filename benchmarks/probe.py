"""The probes' speed beside scikit-learn's on the same data in the same run: `python -m benchmarks.probe`.

Two questions. Map: a million int8 vectors on disk answered by 10,000 labelled ones (exact cosine kNN), with the peak
memory of a process that does nothing else. Labels: from labelled vectors to metrics over the same five folds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.encoder import machine

FOLDER = Path(__file__).parent
DIMENSIONS = 128
CLASSES = 10
K, TEMPERATURE = 20, 0.07
BLOCK = 65_536
"""Vectors decoded at once."""
Array = npt.NDArray[Any]


def main() -> None:
    """Read the options, measure, write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--share", type=int, default=100_000, help="queries that scikit-learn answers")
    parser.add_argument("--labels", type=int, default=10_000, help="labelled vectors of the map question")
    parser.add_argument("--samples", default="1000,10000", help="labelled vectors of the label question")
    parser.add_argument("--rounds", type=int, default=3, help="of the label question; medians are stated")
    parser.add_argument("--json", type=Path, default=FOLDER / "probe.json", help="where the figures go")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # NAME:FOLDER:QUERIES, one part in a process of its own
    options = parser.parse_args()
    if options.child:
        name, folder, queries = options.child.split(":")
        print(json.dumps(PARTS[name](Path(folder), int(queries))))
        return
    content: dict[str, Any] = {"machine": machine(), "map": over_a_map(options)}
    content["labels"] = [over_labels(int(n), options.rounds) for n in options.samples.split(",")]
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.json.with_suffix(".md").write_text(page(content), encoding="utf-8")
    print(page(content))


# --- a map ----------------------------------------------------------------------------------------------------


def over_a_map(options: argparse.Namespace) -> dict[str, Any]:
    """Ours over all queries, scikit-learn over the first of them, each in a process of its own."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_map(folder, options.queries, options.labels)
        share = min(options.share, options.queries)
        ours = child("ours", folder, options.queries)
        theirs = child("sklearn", folder, share)
        agree = float((np.load(folder / "ours.npy")[:share] == np.load(folder / "sklearn.npy")).mean())
    ratio = (theirs["seconds"] / share) / (ours["seconds"] / options.queries)
    sizes = {"queries": options.queries, "share": share, "labels": options.labels}
    return {**sizes, "ours": ours, "sklearn": theirs, "ratio_per_query": ratio, "same_class": agree}


def make_map(folder: Path, queries: int, labels: int) -> None:
    """Codes on disk: int8 [N, D] to ask about, [M, D] with class ids; the rule that decodes them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, DIMENSIONS)) * 0.35  # overlapping: 10 classes, about 0.9 right
    scale = (0.5 + rng.random(DIMENSIONS)).astype(np.float32)
    quantizer = rule(scale)
    for name, count in (("queries", queries), ("labelled", labels)):
        out = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.int8, (count, DIMENSIONS))
        ids = rng.integers(0, CLASSES, count)
        for start in range(0, count, BLOCK):
            part = ids[start : start + BLOCK]
            noise = rng.standard_normal((len(part), DIMENSIONS), dtype=np.float32)
            out[start : start + BLOCK] = quantizer.encode((centres[part] + noise) * scale)
        out.flush()
        np.save(folder / f"{name}_ids.npy", ids)
    np.save(folder / "scale.npy", scale)


def rule(scale: Array) -> Any:
    """The maps' rule for a model whose last LayerNorm has this weight and no bias."""
    from olmoearth_cli.maps.quantize import Quantizer

    return Quantizer.from_layernorm(scale, np.zeros_like(scale))


def child(name: str, folder: Path, queries: int) -> dict[str, Any]:
    """One part in a fresh process, whose peak memory is its own."""
    asked = [sys.executable, "-m", "benchmarks.probe", "--child", f"{name}:{folder}:{queries}"]
    done = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=FOLDER.parent)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def timed(folder: Path, queries: int, name: str, answer: Callable[[Array], Array]) -> dict[str, Any]:
    """Decode and answer block by block; right answers, wall seconds and the process's peak memory."""
    codes, ids = np.load(folder / "queries.npy", mmap_mode="r"), np.load(folder / "queries_ids.npy")
    quantizer = rule(np.load(folder / "scale.npy"))
    found = np.empty(queries, dtype=np.int64)
    begin, cpu = time.perf_counter(), time.process_time()
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        found[start:stop] = answer(quantizer.decode(codes[start:stop]))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    np.save(folder / f"{name}.npy", found)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "accuracy": float((found == ids[:queries]).mean()),
    }


def ours_over_a_map(folder: Path, queries: int) -> dict[str, Any]:
    """`core.probe.knn`."""
    from olmoearth_cli.core.probe.knn import fit_knn

    vectors, ids = labelled(folder)
    probe = fit_knn(vectors, ids, kind="classification", classes=CLASSES, k=K, temperature=TEMPERATURE)
    return timed(folder, queries, "ours", lambda block: probe.predict(probe.scores(block)))


def sklearn_over_a_map(folder: Path, queries: int) -> dict[str, Any]:
    """scikit-learn's brute force with the same vote."""
    vectors, ids = labelled(folder)
    probe = sklearn_knn().fit(vectors, ids)
    return timed(folder, queries, "sklearn", probe.predict)


def labelled(folder: Path) -> tuple[Array, Array]:
    """Decoded vectors float32 [M, D] and class ids [M]."""
    quantizer = rule(np.load(folder / "scale.npy"))
    return quantizer.decode(np.load(folder / "labelled.npy")), np.load(folder / "labelled_ids.npy")


def sklearn_knn() -> Any:
    """Cosine distance d is 1 - cosine; the vote is exp(cosine / temperature)."""
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(
        K, algorithm="brute", metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    )


PARTS = {"ours": ours_over_a_map, "sklearn": sklearn_over_a_map}


# --- labels ---------------------------------------------------------------------------------------------------


def over_labels(count: int, rounds: int) -> dict[str, Any]:
    """Ours and theirs in turn, `rounds` times: median wall seconds, and the pooled held-out accuracy."""
    from olmoearth_pipelines.probing.splits import make_folds

    samples = make_samples(count)
    folds = make_folds(samples, how="random", folds=5)
    calls = {**our_calls(samples, folds), **their_calls(samples, folds)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    accuracy: dict[str, float] = {}
    for number in range(rounds):
        names = list(calls)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begin, used = time.perf_counter(), time.process_time()
            accuracy[name] = calls[name]()
            seconds[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - used)
    rows = {
        name: {
            "seconds": float(np.median(seconds[name])),
            "least": min(seconds[name]),
            "cpu_seconds": float(np.median(cpu[name])),
            "accuracy": accuracy[name],
        }
        for name in calls
    }
    return {"samples": count, "dimensions": DIMENSIONS, "classes": CLASSES, "rounds": rounds, "rows": rows}


def make_samples(count: int) -> Any:
    """Ten overlapping classes, without places."""
    from olmoearth_pipelines.probing.samples import Samples

    rng = np.random.default_rng(1)
    ids = rng.integers(0, CLASSES, count)
    centres = rng.normal(size=(CLASSES, DIMENSIONS)) * 0.25
    return Samples(
        kind="classification",
        class_names=tuple(f"class {c}" for c in range(CLASSES)),
        vectors=(centres[ids] + rng.normal(size=(count, DIMENSIONS))).astype(np.float32),
        targets=ids,
        lonlat=None,
        group=np.arange(count),
    )


def our_calls(samples: Any, folds: Any) -> dict[str, Callable[[], float]]:
    """As the command calls them: eight rates, 50 epochs, 1000 draws for the interval."""
    from olmoearth_cli.core.probe.recipe import LinearRecipe
    from olmoearth_pipelines.probing.evaluate import KnnMethod, LinearMethod, evaluate

    linear = LinearMethod(recipe=LinearRecipe().for_samples(len(samples)))
    return {
        "kNN, ours": lambda: evaluate(samples, folds, KnnMethod()).value,
        "linear, ours (8 rates)": lambda: evaluate(samples, folds, linear).value,
    }


def their_calls(samples: Any, folds: Any) -> dict[str, Callable[[], float]]:
    """The same folds; the regression after standardising, at its default strength, nothing chosen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, split = samples.vectors, samples.targets, PredefinedSplit(folds.fold)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))

    def judged(probe: Any) -> Callable[[], float]:
        return lambda: float((cross_val_predict(probe, x, y, cv=split) == y).mean())

    return {"kNN, scikit-learn": judged(sklearn_knn()), "logistic regression, scikit-learn": judged(logistic)}


# --- page -----------------------------------------------------------------------------------------------------


def page(content: dict[str, Any]) -> str:
    """The Markdown page."""
    about, found = content["machine"], content["map"]
    ours, theirs = found["ours"], found["sklearn"]
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# Probes: time beside scikit-learn",
        "",
        "Made by `benchmarks/probe.py` (protocol: its docstring). Made-up vectors of 128 dimensions in ten overlapping",
        f"classes. {about['cpu']}, {cores} cores, load {about['load_average'][0]} at the start.",
        "",
        f"## Exact kNN over a map (k {K}): int8 on disk, {found['labels']:,} labelled vectors",
        "",
        "| | queries | wall s | CPU s | per query us | peak memory | accuracy |",
        "|---|---|---|---|---|---|---|",
        map_row("ours", found["queries"], ours),
        map_row("scikit-learn, brute force", found["share"], theirs),
        "",
        f"Time per query, scikit-learn / ours: **{found['ratio_per_query']:.2f}**. "
        f"Same class for {found['same_class']:.3%} of the shared queries. Peak memory is the whole process's, "
        "with the imported libraries and the mapped pages of the file.",
        "",
        "## From labels to metrics: five random folds",
        "",
        "Median wall seconds of the rounds, called in turn (least; CPU). Ours include metrics, calibration and",
        "1000 bootstrap draws, and the linear probe chooses among 8 rates and 10 states of each on held-out labels;",
        "scikit-learn's only fit once per fold and predict.",
        "",
        "| samples | " + " | ".join(content["labels"][0]["rows"]) + " |",
        "|---|" + "---|" * len(content["labels"][0]["rows"]),
    ]
    for asked in content["labels"]:
        cells = [
            f"{r['seconds']:.2f} ({r['least']:.2f}; {r['cpu_seconds']:.2f}), accuracy {r['accuracy']:.3f}"
            for r in asked["rows"].values()
        ]
        lines.append(f"| {asked['samples']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def map_row(name: str, queries: int, row: dict[str, Any]) -> str:
    """One line of the map table."""
    cells = [f"{queries:,}", f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}"]
    cells += [f"{1e6 * row['seconds'] / queries:.1f}", f"{row['peak_mb']:.0f} MB", f"{row['accuracy']:.3f}"]
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
