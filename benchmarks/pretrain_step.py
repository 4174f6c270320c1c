"""Our pretraining step beside the reference's train module, on the same batch, in one process.

    python -m venv ref && ref/bin/pip install --no-deps olmoearth-pretrain==0.1.2 ai2-olmo-core==2.6.0
    ref/bin/pip install cached_path dataclass-extensions bettermap importlib_resources phx-class-registry
    echo "$PWD/.venv/lib/python3.11/site-packages" > ref/lib/python3.11/site-packages/ours.pth
    PYTHONHASHSEED=0 ref/bin/python -m benchmarks.pretrain_step

A step is what training repeats: two masked views forward, frozen targets, masked-negative loss and instance contrast,
backward, clipping at norm 1, AdamW. Masks are drawn beforehand, equal for both. Before anything is timed the two
losses are compared from equal weights without stochastic depth and band dropout. Then steps alternate; one thread,
process time, medians. The second part times patch embedding as a matrix product and as a strided convolution.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.encoder import machine
from olmoearth_cli.core.masking import Masking, draw_codes
from olmoearth_cli.core.modality import MODALITIES
from olmoearth_cli.core.objective import Objective
from olmoearth_cli.core.optimizer import adamw, take_step
from olmoearth_cli.core.pretrain_step import PretrainBatch, PretrainModel, accumulate, fresh_model
from olmoearth_cli.core.pretrain_weights import model_section
from olmoearth_cli.core.spec import find_spec

FOLDER = Path(__file__).parent
SHAPES = {"nano": ((8, 16, 12, 4), (4, 32, 12, 4)), "tiny": ((8, 16, 12, 4), (4, 32, 12, 4))}
"""Size -> (samples, pixels, periods, patch side) as in spec/performance.md section 6."""
LR, DECAY = 1e-4, 0.02
MAPS = tuple(name for name, modality in MODALITIES.items() if not modality.multitemporal)


def main() -> None:
    """Measure, write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="nano,tiny")
    parser.add_argument("--releases", default="v1.2,v1")
    parser.add_argument("--json", type=Path, default=FOLDER / "pretrain_step.json", help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stub_torchvision()
    warnings.simplefilter("ignore")
    rows = []
    for release in options.releases.split(","):
        for size in options.sizes.split(","):
            for shape in SHAPES[size]:
                rows.append(compare(f"{release}-{size}", shape, options.rounds))
                print(line(rows[-1]), flush=True)
    content = {"machine": machine(), "rounds": options.rounds, "steps": rows, "patches": patch_embedding()}
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.json.with_suffix(".md").write_text(page(content), encoding="utf-8")
    print(page(content))


def stub_torchvision() -> None:
    """The reference imports it for augmentation, which no step here uses; it would pull another torch."""
    functional = types.ModuleType("torchvision.transforms.v2.functional")
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules.setdefault(functional.__name__, functional)
    sys.modules["torchvision.transforms.v2"].functional = functional  # type: ignore[attr-defined]


# --- the step ---------------------------------------------------------------------------------------------------


def compare(name: str, shape: tuple[int, int, int, int], rounds: int) -> dict[str, Any]:
    """Equal loss first, then alternating steps."""
    spec = find_spec(name)
    masking = Masking(strategy="v1") if spec.release == "v1" else Masking()
    objective = Objective(twin_modalities=(), contrast_weight=0.1) if spec.release == "v1" else Objective()
    ours = fresh_model(spec.encoder, seed=1).train()
    theirs = reference(ours, spec.release)
    batch = make_batch(name, masking, shape)
    samples = tuple(their_sample(batch, dict(codes)) for codes in batch.codes)
    losses = equal_losses(ours, theirs, batch, samples, objective)
    optimizer = adamw(ours, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(3)

    def our_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        accumulate(ours, batch, objective, generator, microbatch=len(batch))
        take_step(optimizer, LR)

    def their_step() -> None:
        theirs.zero_grads()
        theirs.train_batch((batch.patch_px, *samples))
        theirs.optim_step()

    mine, other = alternate(our_step, their_step, rounds)
    visible = sum(int((codes == 0).sum()) for view in batch.codes for codes in view.values())
    return {
        "model": name,
        "shape": shape,
        "visible_tokens": visible,
        "loss_ours": losses[0],
        "loss_reference": losses[1],
        "ours_s": mine,
        "reference_s": other,
        "ratio": other / mine,
    }


def reference(ours: PretrainModel, release: str) -> Any:
    """The reference's train module over its own networks with our weights."""
    from olmo_core.optim import AdamWConfig
    from olmoearth_pretrain.config import Config
    from olmoearth_pretrain.data.transform import TransformConfig
    from olmoearth_pretrain.train.loss import LossConfig
    from olmoearth_pretrain.train.masking import MaskingConfig
    from olmoearth_pretrain.train.train_module.contrastive_latentmim import ContrastiveLatentMIMTrainModuleConfig

    section = {**model_section(ours.encoder.config, 4), "projection_only_target": True}
    model = Config.from_dict(section).build()
    missing, unexpected = model.load_state_dict(ours.state_dict(), strict=False)
    stray = [key for key in missing if not key.startswith("target_encoder.") and "pos_embed" not in key]
    if stray or unexpected:
        raise RuntimeError(f"weights that do not fit: {stray[:3]} {list(unexpected)[:3]}")
    token_loss = {"type": "modality_patch_discrimination", "tau": 0.1}
    if release != "v1":
        token_loss = {
            "type": "modality_patch_discrimination_masked_negatives",  # on a CPU 6x faster than the batched one
            "tau": 0.1,
            "same_target_threshold": 0.999,
            "mask_negatives_for_modalities": list(MAPS),
        }
    config = ContrastiveLatentMIMTrainModuleConfig(
        optim_config=AdamWConfig(lr=LR, weight_decay=DECAY, fused=True),
        rank_microbatch_size=64,
        masking_config=MaskingConfig(strategy_config={"type": "random"}),  # masks are given
        loss_config=LossConfig(loss_config=token_loss),
        contrastive_config=LossConfig(
            loss_config={"type": "InfoNCE", "weight": 0.1 if release == "v1" else 0.05, "tau": 0.1}
        ),
        token_exit_cfg=dict.fromkeys(MODALITIES, 0),
        max_grad_norm=1.0,
        ema_decay=(1.0, 1.0),
        transform_config=TransformConfig(transform_type="no_transform"),
    )
    module = config.build(model, device=torch.device("cpu"))
    module._trainer = Recorder()
    return module


class Recorder:
    """What a train module tells its trainer."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.global_step, self.step, self.max_steps, self.dp_process_group = 1, 1, 1000, None

    def record_metric(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        """Keep the newest value."""
        self.metrics[name] = float(value)


def equal_losses(
    ours: PretrainModel, theirs: Any, batch: PretrainBatch, samples: tuple[Any, Any], objective: Objective
) -> tuple[float, float]:
    """Both losses without stochastic depth and band dropout, from equal weights.

    Raises:
        RuntimeError: they differ by more than 1e-5 and 1e-6 of the value.
    """
    model = theirs.model
    rates = [(m, m.drop_prob) for m in model.modules() if type(m).__name__ == "DropPath"]
    for module, _ in rates:
        module.drop_prob = 0.0
    dropout = getattr(model.encoder.patch_embeddings, "band_dropout_rate", 0.0)
    model.encoder.patch_embeddings.band_dropout_rate = 0.0
    theirs.zero_grads()
    theirs.train_batch((batch.patch_px, *samples))
    theirs.zero_grads()
    found = next(v for k, v in theirs._trainer.metrics.items() if "Disc" in k)
    for module, rate in rates:
        module.drop_prob = rate
    model.encoder.patch_embeddings.band_dropout_rate = dropout
    mine = float(ours.loss(batch, objective).total.detach())
    if abs(mine - found) > 1e-5 + 1e-6 * abs(found):
        raise RuntimeError(f"the losses differ: ours {mine}, the reference's {found}; timing would compare unlike work")
    return mine, found


def make_batch(name: str, masking: Masking, shape: tuple[int, int, int, int]) -> PretrainBatch:
    """Normalised random images of all modalities, all present, with the masks of two views."""
    count, pixels, periods, patch_px = shape
    generator, rng = torch.Generator().manual_seed(1), np.random.default_rng(2)
    sets = {m: len(find_spec(name).band_sets(m)) for m in MODALITIES}
    inputs = {
        m: torch.randn(count, pixels, pixels, periods if d.multitemporal else 1, len(d.bands), generator=generator)
        for m, d in MODALITIES.items()
    }
    present = {m: np.ones(values.shape[3], dtype=bool) for m, values in inputs.items()}
    views = [[draw_codes(present, sets, pixels // patch_px, masking, rng) for _ in range(count)] for _ in range(2)]
    codes = [{m: torch.stack([torch.from_numpy(one[m]) for one in view]) for m in inputs} for view in views]
    dates = torch.tensor([[(1, i % 12, 2020) for i in range(periods)] for _ in range(count)])
    return PretrainBatch(inputs=(inputs,), codes=(codes[0], codes[1]), timestamps=dates, patch_px=patch_px)


def their_sample(batch: PretrainBatch, codes: dict[str, Tensor]) -> Any:
    """A view as the reference holds it: masks at pixel resolution."""
    from olmoearth_pretrain.datatypes import MaskedOlmoEarthSample

    fields: dict[str, Tensor] = {"timestamps": batch.timestamps}
    for m, values in batch.inputs[0].items():
        fields[m] = values
        fields[f"{m}_mask"] = codes[m].long().repeat_interleave(batch.patch_px, 1).repeat_interleave(batch.patch_px, 2)
    return MaskedOlmoEarthSample(**fields)


# --- patch embedding --------------------------------------------------------------------------------------------


def patch_embedding() -> list[dict[str, Any]]:
    """Time of a strided convolution over that of the same map as a matrix product, forward and with gradients."""
    rows = []
    for width, patch_px in ((128, 4), (128, 8), (768, 4), (768, 8)):
        images = torch.randn(12, 12, 64, 64, generator=torch.Generator().manual_seed(4))  # T C H W
        convolution = nn.Conv2d(12, width, patch_px, stride=patch_px)
        linear = nn.Linear(12 * patch_px**2, width)
        with torch.no_grad():
            linear.weight.copy_(convolution.weight.permute(0, 2, 3, 1).flatten(1))
            linear.bias.copy_(convolution.bias)  # type: ignore[arg-type]
        forms = {"linear": Embedding(linear, images, patch_px), "conv": Embedding(convolution, images, patch_px)}
        first, second = (form.forward() for form in forms.values())
        if not torch.allclose(first, second, atol=1e-4):
            raise RuntimeError("the two patch embeddings are not the same map")
        for what in ("forward", "step"):
            fast, slow = alternate(getattr(forms["linear"], what), getattr(forms["conv"], what), 15)
            rows.append({"width": width, "patch_px": patch_px, "what": what, "conv_over_linear": slow / fast})
    return rows


class Embedding:
    """One form of a patch embedding over fixed images, channels last as our stacks are."""

    def __init__(self, layer: nn.Module, images: Tensor, patch_px: int) -> None:
        self.layer, self.patch_px = layer, patch_px
        self.images = images.permute(0, 2, 3, 1).contiguous()  # T H W C

    def forward(self) -> Tensor:
        """[T, Y, X, D]."""
        if isinstance(self.layer, nn.Conv2d):
            return self.layer(self.images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]
        t, h, w, c = self.images.shape
        p = self.patch_px
        patches = self.images.view(t, h // p, p, w // p, p, c).transpose(2, 3).flatten(3)
        return self.layer(patches)  # type: ignore[no-any-return]

    def step(self) -> None:
        """Forward and the weights' gradients."""
        self.layer.zero_grad(set_to_none=True)
        self.forward().square().mean().backward()


def alternate(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median process time of each, in seconds, after one round that does not count."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for into, run in zip(spent, (first, second), strict=True):
            started = time.process_time()
            run()
            into.append(time.process_time() - started)
    return statistics.median(spent[0][1:]), statistics.median(spent[1][1:])


# --- the page ---------------------------------------------------------------------------------------------------


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    count, pixels, periods, patch_px = row["shape"]
    return (
        f"| {row['model']} | {count} x {pixels} px, T {periods}, p {patch_px} | {row['visible_tokens']} | "
        f"{row['loss_ours']:.5f} / {row['loss_reference']:.5f} | **{row['ratio']:.2f}x** |"
    )


def page(content: dict[str, Any]) -> str:
    """The figures as Markdown."""
    patches = [
        f"| {row['width']} | {row['patch_px']} | {row['what']} | {row['conv_over_linear']:.2f} |"
        for row in content["patches"]
    ]
    return "\n".join(
        [
            "# The pretraining step beside the reference's train module",
            "",
            "`python -m benchmarks.pretrain_step` (its docstring says how the reference installs). "
            f"{content['machine']['cpu']}; one thread, process time, medians of {content['rounds']} rounds. "
            "All nine modalities, masks of the release's recipe, target by projection alone on both sides.",
            "",
            "| model | batch | visible tokens | loss ours / reference | reference's time over ours |",
            "|---|---|---|---|---|",
            *map(line, content["steps"]),
            "",
            "## Patch embedding: time of the strided convolution over that of the matrix product",
            "",
            "| width | patch | what | convolution / linear |",
            "|---|---|---|---|",
            *patches,
            "",
        ]
    )


if __name__ == "__main__":
    main()
