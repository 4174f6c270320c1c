"""What a short pretraining learned: kNN on tiles of land that it never saw, checkpoint by checkpoint.

    python -m olmoearth_pipelines.synthetic_samples /tmp/held-out --tiles 24 --seed 9000
    python -m benchmarks.demo_encoder --run RUN --data /tmp/held-out

RUN is the folder of an `olmoearth pretrain` run. The figures on the page are of

    python -m olmoearth_pipelines.synthetic_samples /tmp/pretrain-set --tiles 160
    olmoearth pretrain --data /tmp/pretrain-set --recipe v1.2 --size nano --batch-size 16 --microbatch 16 --steps 1600
        --warmup 100 --lr 3e-4 --modalities sentinel2_l2a,sentinel1,worldcover --save-every 200 --keep 12 --seed 7

Every checkpoint encodes the same windows; half of the tiles give labelled cells, the other half the queries; a cell's
label is the land cover that holds most of it. Random weights of the same architecture and raw bands are judged on the
same cells. Intervals by bootstrap over query tiles. All land is made up.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.encoder import machine
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.model import OlmoEarthModel, load_model
from olmoearth_cli.core.normalize import normalize
from olmoearth_cli.core.pretrain_step import fresh_model
from olmoearth_cli.core.probe.knn import fit_knn
from olmoearth_pipelines.samples.layout import SampleFolder, open_folder
from olmoearth_pipelines.samples.sample_file import PERIODS, Crop, Window, open_sample

FOLDER = Path(__file__).parent
READ = ("sentinel2_l2a", "sentinel1")
LABELS = "worldcover"
WINDOW_PX, PATCH_PX = 32, 4
CELLS = 24
"""Cells drawn per sample."""
PURE = 0.75
"""Share of a cell that its class must hold."""
Array = npt.NDArray[Any]


def main() -> None:
    """Judge every checkpoint, write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--data", type=Path, required=True, help="samples of tiles that it was not trained on")
    parser.add_argument("--json", type=Path, default=FOLDER / "demo_encoder.json", help="where the figures go")
    options = parser.parse_args()
    cells = Cells(open_folder(options.data))
    checkpoints = sorted((options.run / "checkpoints").glob("step-*"))
    rows = [{"step": 0, **cells.judge(cells.encoded(untrained(checkpoints[0])))}]
    for folder in checkpoints:
        rows.append({"step": int(folder.name.split("-")[1]), **cells.judge(cells.encoded(load_model(folder)))})
        print(rows[-1], flush=True)
    content = {
        "machine": machine(),
        "cells": len(cells.labels),
        "tiles": len(np.unique(cells.tile)),
        "majority": cells.majority(),
        "raw": cells.judge(cells.raw),
        "curve": rows,
        "loss": losses(options.run),
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.json.with_suffix(".md").write_text(page(content), encoding="utf-8")
    print(page(content))


class Cells:
    """Labelled cells of held-out tiles."""

    def __init__(self, folder: SampleFolder) -> None:
        rng = np.random.default_rng(0)
        self.crops: list[Crop] = []
        self.chosen: list[Array] = []
        labels, tiles, raw = [], [], []
        for index in range(len(folder)):
            with open_sample(folder.sample(index), (*READ, LABELS)) as sample:
                corner = (sample.side_px - WINDOW_PX) // 2
                crop = sample.read(Window(row=corner, column=corner, side_px=WINDOW_PX, start=0, periods=PERIODS))
            found, pure = majority_of_cells(crop.values[LABELS][..., 0, 0])
            places = np.flatnonzero((pure >= PURE) & (found > 0))
            places = np.sort(rng.permutation(places)[:CELLS])
            self.crops.append(crop)
            self.chosen.append(places)
            labels.append(found.ravel()[places])
            tiles.append(np.full(len(places), index // 4))  # four samples are one tile
            raw.append(raw_cells(crop).reshape(-1, raw_width())[places])
        self.classes, self.labels = np.unique(np.concatenate(labels), return_inverse=True)
        self.tile = np.concatenate(tiles)
        self.raw = standardised(np.concatenate(raw))
        self.train = self.tile % 2 == 0

    @torch.inference_mode()
    def encoded(self, model: OlmoEarthModel) -> Array:
        """[N, D]."""
        vectors = []
        for crop, places in zip(self.crops, self.chosen, strict=True):
            inputs, masks = tensors(crop, model)
            stamps = torch.from_numpy(crop.timestamps)[None]
            tokens = model.encode(inputs, stamps, masks, PATCH_PX)
            vectors.append(model.pool(tokens, masks)[0].flatten(0, 1).numpy()[places])
        return np.concatenate(vectors)

    def judge(self, vectors: Array) -> dict[str, float]:
        """Accuracy of kNN (k 20, cosine) on the query tiles, with a 95 % interval over them."""
        probe = fit_knn(vectors[self.train], self.labels[self.train], kind="classification", classes=len(self.classes))
        right = probe.predict(probe.scores(vectors[~self.train])) == self.labels[~self.train]
        tile = self.tile[~self.train]
        names = np.unique(tile)
        rng = np.random.default_rng(42)
        hits = np.array([right[tile == name].sum() for name in names])
        sizes = np.array([(tile == name).sum() for name in names])
        draws = rng.integers(0, len(names), (1000, len(names)))
        shares = hits[draws].sum(axis=1) / sizes[draws].sum(axis=1)
        low, high = np.percentile(shares, [2.5, 97.5])
        return {"accuracy": float(right.mean()), "low": float(low), "high": float(high)}

    def majority(self) -> float:
        """Accuracy of the labelled cells' most frequent class."""
        return float((self.labels[~self.train] == np.bincount(self.labels[self.train]).argmax()).mean())


def majority_of_cells(codes: Array) -> tuple[Array, Array]:
    """[H, W] codes to the most frequent one of each cell and its share, [Y, X] both."""
    side = codes.shape[0] // PATCH_PX
    flat = codes.reshape(side, PATCH_PX, side, PATCH_PX).transpose(0, 2, 1, 3).reshape(side, side, -1)
    names = np.unique(codes)
    shares = np.stack([(flat == name).mean(axis=-1) for name in names], axis=-1)
    return names[shares.argmax(axis=-1)], shares.max(axis=-1)


def tensors(crop: Crop, model: OlmoEarthModel) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Normalised [1, H, W, T, C] and codes [1, H, W, T, S]."""
    inputs, masks = {}, {}
    for name in READ:
        values = filled(crop, name)
        codes = np.where(crop.present[name], 0, 3).astype(np.uint8)
        shape = (1, *values.shape[:3], len(model.spec.band_sets(name)))
        inputs[name] = torch.from_numpy(values)[None]
        masks[name] = torch.from_numpy(np.broadcast_to(codes[:, None], shape).copy())
    return inputs, masks


def filled(crop: Crop, name: str) -> Array:
    """Normalised [H, W, T, C], zeros in missing periods."""
    present = crop.present[name]
    values = np.zeros((WINDOW_PX, WINDOW_PX, len(present), len(MODALITIES[name].bands)), dtype=np.float32)
    values[:, :, present] = normalize(name, crop.values[name], release="v1.2")
    return values


def raw_width() -> int:
    """Bands x periods."""
    return PERIODS * sum(len(MODALITIES[name].bands) for name in READ)


def raw_cells(crop: Crop) -> Array:
    """Mean normalised bands of every period and cell, [Y, X, T * C]; missing periods take the mean of the others."""
    parts = []
    for name in READ:
        values, present = filled(crop, name), crop.present[name]
        values[:, :, ~present] = values[:, :, present].mean(axis=2, keepdims=True)
        side = WINDOW_PX // PATCH_PX
        cells = values.reshape(side, PATCH_PX, side, PATCH_PX, *values.shape[2:]).mean(axis=(1, 3))  # Y X T C
        parts.append(cells.reshape(side, side, -1))
    return np.concatenate(parts, axis=-1)


def standardised(values: Array) -> Array:
    """Columns of mean 0 and deviation 1."""
    return ((values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)).astype(np.float32)


def untrained(checkpoint: Path) -> OlmoEarthModel:
    """The checkpoint's architecture with the weights that training starts from."""
    model = load_model(checkpoint)
    model.encoder.load_state_dict(fresh_model(model.spec.encoder, seed=7).encoder.state_dict())
    return model


def losses(run: Path) -> list[dict[str, float]]:
    """Mean token loss over chance in ten parts of the run, where the log has it."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [(line["step"], line["tokens"] / line["chance"]) for line in lines if "chance" in line]
    parts = np.array_split(np.array(steps), 10) if len(steps) >= 10 else []
    return [{"step": float(part[-1, 0]), "tokens_over_chance": float(part[:, 1].mean())} for part in parts]


def page(content: dict[str, Any]) -> str:
    """The figures as Markdown."""
    loss = {row["step"]: row["tokens_over_chance"] for row in content["loss"]}

    def shown(row: dict[str, float]) -> str:
        return f"{row['accuracy']:.3f} | {row['low']:.3f} to {row['high']:.3f}"

    rows = []
    for row in content["curve"]:
        near = [value for step, value in loss.items() if step <= row["step"]]
        rows.append(f"| {row['step']} | {shown(row)} | {f'{near[-1]:.3f}' if near else '-'} |")
    return "\n".join(
        [
            "# The demo encoder over its training",
            "",
            "`python -m benchmarks.demo_encoder` (its docstring makes the data). "
            f"{content['cells']} cells of {content['tiles']} tiles of made-up land that training "
            "never saw; kNN (k 20) from one half of the tiles to the other; accuracy.",
            "",
            f"Most frequent class: {content['majority']:.3f}. Raw bands of all periods: {shown(content['raw'])}.",
            "",
            "| step | kNN accuracy | 95 % interval | token loss over chance before it |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
