"""What a benchmark run leaves: one plain JSON object with everything that section 17 of spec/evaluation.md lists."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from olmoearth_cli import __version__
from olmoearth_cli.core.model import OlmoEarthModel
from olmoearth_cli.core.probe.knn import Knn
from olmoearth_cli.core.probe.macs import encoder_macs
from olmoearth_pipelines.tasks.features import Extractor
from olmoearth_pipelines.tasks.judging import Judged
from olmoearth_pipelines.tasks.request import Plan
from olmoearth_pipelines.tasks.sweep import Candidate
from olmoearth_pipelines.tasks.task import Reader

FORMAT = 1
"""Version of the object's keys."""


def about_run(plan: Plan, model: OlmoEarthModel, reader: Reader, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Task, model, regime and settings.

    Args:
        plan: what was asked.
        model: the encoder.
        reader: the data.
        sizes: split -> samples used.
    """
    task = plan.task
    return {
        "format": FORMAT,
        "task": task.name,
        "modalities": plan.extraction.modalities,
        "column": plan.column,
        "kind": task.kind,
        "classes": task.classes,
        "split_sizes": dict(sizes),
        "model": {
            "name": model.name,
            "architecture": model.spec.name,
            "id": model.spec.id,
            "weights_sha256": model.weights_sha256,
            "demo": model.demo,
        },
        "regime": plan.method,
        "metric": plan.metric,
        "settings": plan.settings(model, reader),
        "seed": plan.request.seed,
    }


def about_choice(plan: Plan, best: Candidate, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sweep, and the run that was chosen on validation."""
    chosen: dict[str, Any] = {"normalisation": best.normalisation, "pooling": best.pooling}
    if isinstance(best.probe, Knn):
        chosen["k"] = best.probe.k
    if best.fit is not None:
        chosen["lr"] = best.fit.lr
    return {
        "chosen": chosen,
        "sweep": list(points),
        "train_rows": best.train_rows,
        "epoch": None if best.fit is None else best.fit.epoch,
        "val_last_epoch": None if best.fit is None else best.fit.val_last,
        "val": dict(best.val),
        "saturation": best.transform.saturation,
        "pca_kept_variance": best.transform.kept_variance,
    }


def about_test(plan: Plan, judged: Judged) -> dict[str, Any]:
    """Metrics of the test split, and their spread over resampled test sets."""
    test = judged.metrics()
    prefix = "f1_class_"
    return {
        "test": test,
        "class_f1": {name.removeprefix(prefix): value for name, value in test.items() if name.startswith(prefix)},
        "class_f1_by_position": judged.by_position and plan.task.kind == "classification",
        "bootstrap": _bootstrap(plan, judged),
    }


def about_work(plan: Plan, model: OlmoEarthModel, extractor: Extractor, *, seconds: float) -> dict[str, Any]:
    """Software, device and cost."""
    rate = extractor.encoded / extractor.seconds if extractor.encoded else None
    return {
        "software": {
            "olmoearth": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in ("numpy", "scikit-learn")},
        },
        "device": str(model.device),
        "seconds": seconds,
        "samples_per_second": rate,
        "macs": _macs(plan, model, extractor),
    }


def plain(value: Any) -> Any:
    """JSON values as JSON gives them back: lists for tuples, None for what is not a finite number."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _bootstrap(plan: Plan, judged: Judged) -> dict[str, Any] | None:
    """The primary metric resampled; for kNN in parity accuracy or micro mAP, as the reference has it."""
    request, metric = plan.request, plan.metric
    if request.rounds == 0:
        return None
    if request.parity and plan.method == "knn":
        metric = "micro_map" if plan.task.kind == "multilabel" else "accuracy"
    spread = judged.resampled(metric, rounds=request.rounds, seed=request.seed)
    figures = {"mean": spread.mean, "std": spread.std, "low": spread.low, "high": spread.high}
    return {"metric": metric, "rounds": request.rounds, "seed": request.seed, **figures}


def _macs(plan: Plan, model: OlmoEarthModel, extractor: Extractor) -> dict[str, int]:
    """Work of one sample, the first of train, everything visible, in both conventions (11.1)."""
    encoder, area = model.spec.encoder, plan.extraction.patch_px**2
    shapes = {name: extractor.first("train").inputs[name].shape for name in plan.extraction.modalities}
    patches = {name: h * w // area * t for name, (h, w, t, _) in shapes.items()}
    parts = [encoder_macs(encoder, count, modality=name).linear_and_norm_only for name, count in patches.items()]
    heads = encoder.num_projection_layers * encoder.embedding_size**2  # in every part, but there is one
    linear = sum(parts) - (len(parts) - 1) * heads
    tokens = sum(count * len(encoder.band_sets(name)) for name, count in patches.items())
    attention = 2 * encoder.depth * tokens**2 * encoder.embedding_size
    return {"linear_and_norm_only": linear, "with_attention": linear + attention}
