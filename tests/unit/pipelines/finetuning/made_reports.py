"""Reports of fine-tuning as a road would give them, for every kind of target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from olmoearth_pipelines.finetuning.report import Epoch, Leg, Score, Shown, TrainReport

EVIL = "<script>alert('1')</script>"
NAMES = ("water", "crop & field", EVIL)
CONFUSION = ((30, 2, 0), (1, 20, 4), (0, 0, 0))
METRIC = {
    "classification": "accuracy",
    "multilabel": "f1",
    "segmentation": "overall_acc",
    "regression": "neg_rmse",
    "pixel_regression": "neg_rmse",
}
VALUES = {"neg_rmse": (-20.25, -22.0, -19.0, -40.0), "other": (0.8125, 0.75, 0.875, 0.5)}


def made_leg(lr: float, *, epochs: int = 4, frozen: int = 1, best: int = 3, sign: float = 1.0) -> Leg:
    rows = tuple(
        Epoch(
            epoch=k,
            loss=2.0 / k if k > 1 else None,
            value=sign * (0.5 + 0.1 * (best - abs(best - k))),
            lr=lr / k,
            lr_encoder=0.0 if k <= frozen else lr / 10,
            seconds=2.0,
            samples_per_s=50.0,
        )
        for k in range(1, epochs + 1)
    )
    return Leg(lr=lr, epochs=rows, best_epoch=best, best_value=rows[best - 1].value, stopped=epochs < 5)


def made_report(kind: str = "segmentation", **changes: Any) -> TrainReport:
    metric = METRIC[kind]
    value, low, high, other = VALUES.get(metric, VALUES["other"])
    regresses = metric == "neg_rmse"
    metrics = {
        metric: value,
        **({"rmse": -value, "r2": 0.875} if regresses else {"macro_f1": 0.7654, "f1_class_0": 0.1}),
    }
    report = TrainReport(
        out="runs/fields",
        kind=kind,
        class_names=() if regresses else NAMES,
        field="land <i>cover</i>",
        data="fields",
        model="v1.2-tiny",
        demo=False,
        recipe="layer-wise rates x 0.65",
        decoder="linear",
        metric=metric,
        higher_is_better=True,
        windows={"train": 1200, "val": 40, "test": 50},
        labelled={"train": 2400, "val": 80, "test": 57},
        parameters=6_200_000,
        legs=(made_leg(1e-4, sign=-20 if regresses else 1),),
        lr=1e-4,
        best_epoch=3,
        val=Score(name="fine-tuned", value=value, low=low, high=high, metrics=metrics),
        test=Score(name="fine-tuned", value=value, low=low, high=high, metrics=metrics),
        baselines=(
            Score(name="raw bands, kNN", value=other, low=None, high=None, metrics={metric: other}),
            Score(name="kNN", value=float("nan"), low=None, high=None),
        ),
        judged_on="test",
        confusion=CONFUSION if kind in {"classification", "segmentation"} else None,
        seconds=123.4,
        samples_per_s=31.4,
        notes=("12 of 60 train windows have no imagery under a label: left out",),
        warnings=(f"no val label of `{EVIL}`: not judged there",),
        settings={
            "data": "abc",
            "modalities": ["sentinel2_l2a"],
            "recipe": {"llrd": 0.65, "patience": None, "x<y": EVIL},
        },
        command=f"olmoearth finetune --llrd 0.65 --labels '{EVIL}'",
    )
    return replace(report, **changes)


def made_shown(kind: str, count: int = 2, side: int = 8) -> list[Shown]:
    rng = np.random.default_rng(0)
    per_pixel = {
        "segmentation": (np.full((side, side), -1), np.full((side, side), 1)),
        "pixel_regression": (np.full((side, side), np.nan, np.float32), np.full((side, side), 5.0, np.float32)),
    }
    whole = {
        "classification": (np.array(0), np.array(2)),
        "multilabel": (np.array([1, 0, 1], np.uint8), np.array([0, 0, 0], np.uint8)),
        "regression": (np.array(12.5, np.float32), np.array(13.25, np.float32)),
    }
    truth, predicted = (per_pixel | whole)[kind]
    if kind in per_pixel:
        truth[:4, :4] = 0 if kind == "segmentation" else 4.0
        truth[4:, 4:] = 2 if kind == "segmentation" else 6.0
    return [
        Shown(
            id=f"window <{k}>",
            picture=rng.integers(0, 256, (side, side, 3), dtype=np.uint8),
            truth=truth,
            predicted=predicted,
        )
        for k in range(count)
    ]
