"""Our encoder against the reference: time ratios on one thread, distance to the floor, parity first.

    PYTHONHASHSEED=0 OMP_NUM_THREADS=1 python -m benchmarks.encoder --sizes nano,base --configs B

The protocol is spec/performance.md section 7: variants are called in turn and in rotated order, a call's
cost is the process's CPU time, and a result is the median of the ratios of single rounds, with the ratio of
the minima beside it. Milliseconds do not travel between machines; ratios, and time over floor, do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from olmoearth_cli.core.linear import Linear, Workspace
from olmoearth_cli.core.model import OlmoEarthModel, load_model
from olmoearth_cli.core.plan import EmbedPlan
from olmoearth_cli.core.spec import ModelSpec, gmacs_per_window
from tests.parity import oracle

S2 = "sentinel2_l2a"
FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Config:
    """A batch of windows."""

    batch: int
    """Windows."""
    side: int
    """Window side in pixels."""
    periods: int
    """T."""
    patch_px: int
    """p."""

    @property
    def tokens(self) -> int:
        """Tokens of one window."""
        return (self.side // self.patch_px) ** 2 * self.periods

    @property
    def text(self) -> str:
        """For tables."""
        return f"T{self.periods} p{self.patch_px}, {self.batch} x {self.side} px"


CONFIGS = {
    "A": Config(batch=8, side=64, periods=1, patch_px=8),
    "B": Config(batch=1, side=64, periods=12, patch_px=8),
    "C": Config(batch=1, side=64, periods=12, patch_px=4),
    "D": Config(batch=16, side=16, periods=12, patch_px=4),
}


@dataclass(kw_only=True)
class Row:
    """One size, one configuration."""

    size: str
    config: str
    text: str
    rounds: int
    reference_ms: float
    floor_ms: dict[str, float]
    ratio: dict[str, float] = field(default_factory=dict)
    """Variant -> median of (reference time / variant time) over rounds."""
    ratio_of_minima: dict[str, float] = field(default_factory=dict)
    over_floor: dict[str, float] = field(default_factory=dict)
    max_abs: dict[str, float] = field(default_factory=dict)
    """Variant -> largest difference from the reference's float32."""
    rms_share: dict[str, float] = field(default_factory=dict)


def build(size: str, folder: Path, release: str = "v1.2") -> tuple[Any, OlmoEarthModel]:
    """The reference with random weights, and ours reading them from a published folder."""
    name = f"{release}-{size}"
    theirs = oracle.build(name)
    return theirs, load_model(oracle.save_published(theirs, name, folder))


def windows(config: Config) -> tuple[dict[str, Tensor], Tensor]:
    """Normalised noise and monthly dates."""
    generator = torch.Generator().manual_seed(0)
    values = 0.5 + 0.25 * torch.randn(config.batch, config.side, config.side, config.periods, 12, generator=generator)
    stamps = torch.tensor([[(1, t, 2023) for t in range(config.periods)]]).repeat(config.batch, 1, 1)
    return {S2: values}, stamps


def check_parity(theirs: Any, ours: OlmoEarthModel, folder: Path) -> dict[str, float]:
    """Distance of both from float64, on the weights as they are and with sharper attention.

    Raises:
        SystemExit: ours is more than twice as far as the reference's own float32.
    """
    config = Config(batch=1, side=32, periods=12, patch_px=8)
    inputs, stamps = windows(config)
    found: dict[str, float] = {}
    for label, factor in (("plain", 1.0), ("q,k x2", 2.0)):
        scale_attention(theirs, factor)
        oracle.save_published(theirs, ours.spec.name, folder)
        exact = load_model(folder, dtype=torch.float64)
        truth = exact.pool(exact.encode(inputs, stamps, None, config.patch_px))
        reference = oracle.encode(theirs, inputs, stamps, None, config.patch_px)[S2].mean(dim=(3, 4))
        mine = plan_call(load_model(folder), config, "float32")()
        errors = {"reference": (reference - truth).abs().max(), "ours": (mine - truth).abs().max()}
        rms = {"reference": (reference - truth).square().mean(), "ours": (mine - truth).square().mean()}
        found |= {f"{label}, {who}": float(error) for who, error in errors.items()}
        if errors["ours"] > 2 * errors["reference"] or rms["ours"] > 4 * rms["reference"]:
            raise SystemExit(f"{ours.spec.name}: parity failed before timing ({label}): {errors}")
        scale_attention(theirs, 1 / factor)
    return found


@torch.no_grad()
def scale_attention(theirs: Any, factor: float) -> None:
    """Scale the query and key projections of every encoder block."""
    for block in theirs.encoder.blocks:
        for layer in (block.attn.q, block.attn.k):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)


def plan_call(model: OlmoEarthModel, config: Config, precision: str) -> Callable[[], Tensor]:
    """Ours, as the map road runs it."""
    inputs, stamps = windows(config)
    cells = config.side // config.patch_px
    seen = {S2: torch.ones(config.batch, cells, cells, config.periods, 1, dtype=torch.bool)}
    plan = EmbedPlan(model, stamps[0].numpy(), (S2,), config.side, config.patch_px, precision=precision)
    return lambda: plan.embed(inputs, seen)


def reference_call(theirs: Any, config: Config, *, autocast: bool) -> Callable[[], Tensor]:
    """The reference's fast pass and its pooling."""
    inputs, stamps = windows(config)

    def call() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return oracle.encode(theirs, inputs, stamps, None, config.patch_px)[S2].mean(dim=(3, 4)).float()

    return call


def interleaved(calls: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, np.ndarray]:
    """CPU seconds of every call in every round; the order turns from round to round."""
    names = list(calls)
    seconds = {name: np.zeros(rounds) for name in names}
    for i in range(rounds):
        k = i % len(names)
        for name in names[k:] + names[:k]:
            start = time.process_time()
            calls[name]()
            seconds[name][i] = time.process_time() - start
    return seconds


def floor_seconds(spec: ModelSpec, config: Config, dtype: torch.dtype) -> float:
    """Matrix products at the encoder's shapes, plus attention's multiplications at the same rate.

    No exponentials, norms or copies: nothing that computes these products gets below it.
    """
    d, hidden = spec.embedding_size, int(spec.embedding_size * spec.encoder.mlp_ratio)
    rows = min(config.tokens * config.batch, 3072)
    batches = config.tokens * config.batch / rows
    pixel = spec.encoder.pixel_hidden[0]
    shapes = [(rows, d, 3 * d), (rows, d, d), (rows, d, hidden), (rows, hidden, d)]
    blocks = sum(product_seconds(*shape, dtype) for shape in shapes)
    macs = sum(m * k * n for m, k, n in shapes)
    attention = 2 * config.tokens**2 * d * config.batch
    embedding = product_seconds(rows, pixel * 64, d, dtype) + product_seconds(rows * 64, 12, pixel, torch.float32)
    return batches * (spec.depth * blocks + embedding) + spec.depth * attention * blocks / macs


def product_seconds(rows: int, inner: int, outer: int, dtype: torch.dtype) -> float:
    """CPU seconds of one linear layer: the least of some calls."""
    layer = Linear(torch.randn(outer, inner) * 0.05, torch.zeros(outer), dtype)
    x, workspace, best = torch.randn(rows, inner).to(dtype), Workspace(), float("inf")
    with torch.inference_mode():
        for _ in range(max(4, min(30, int(3e8 / (rows * inner * outer))))):
            start = time.process_time()
            layer(x, workspace)
            best = min(best, time.process_time() - start)
    return best


def measure(size: str, label: str, theirs: Any, ours: OlmoEarthModel, rounds: int | None) -> Row:
    """Time one size at one configuration."""
    config = CONFIGS[label]
    calls = {
        "reference": reference_call(theirs, config, autocast=False),
        "float32": plan_call(ours, config, "float32"),
        "bfloat16": plan_call(ours, config, "bfloat16"),
        "reference autocast": reference_call(theirs, config, autocast=True),
    }
    outputs = {name: call() for name, call in calls.items()}  # also the warm-up
    start = time.process_time()
    calls["reference"]()
    rounds = rounds or (20 if time.process_time() - start < 0.1 else 7)
    seconds = interleaved(calls, rounds)
    floors = {p: floor_seconds(ours.spec, config, getattr(torch, p)) for p in ("float32", "bfloat16")}
    row = Row(
        size=size,
        config=label,
        text=config.text,
        rounds=rounds,
        reference_ms=1e3 * float(np.median(seconds["reference"])),
        floor_ms={p: 1e3 * s for p, s in floors.items()},
    )
    scale = outputs["reference"].square().mean().sqrt()
    for name in list(calls)[1:]:
        row.ratio[name] = float(np.median(seconds["reference"] / seconds[name]))
        row.ratio_of_minima[name] = float(seconds["reference"].min() / seconds[name].min())
        difference = outputs[name] - outputs["reference"]
        row.max_abs[name] = float(difference.abs().max())
        row.rms_share[name] = float(difference.square().mean().sqrt() / scale)
        if name in floors:
            row.over_floor[name] = float(np.median(seconds[name])) / floors[name]
    row.over_floor["reference"] = row.reference_ms / row.floor_ms["float32"]
    return row


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    flags, model = "", platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        table = {key.strip(): value.strip() for key, value in lines.items()}
        flags, model = table.get("flags", ""), table.get("model name", model)
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile")
    packages = ("torch", "numpy", "olmoearth-pretrain-minimal")
    return {
        "cpu": model,
        "isa": [flag for flag in wanted if flag in flags.split()],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "versions": {name: version(name) for name in packages},
    }


def table(rows: list[Row], parity: dict[str, dict[str, float]], about: dict[str, Any]) -> str:
    """The Markdown page."""
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines = [
        "# Encoder: time against the reference",
        "",
        "Made by `benchmarks/encoder.py` (protocol: its docstring). Sentinel-2, v1.2, random weights,",
        "nothing missing. Ratios are reference float32 time / ours: median of rounds (ratio of minima).",
        "",
        f"{about['cpu']} ({', '.join(about['isa'])}), {about['threads']} thread, {versions}.",
        "",
        "| size | windows | float32 | bfloat16 | reference's own autocast | float32 / floor "
        "| bfloat16 / floor | reference / floor | max abs float32 | rms bfloat16 | rms autocast |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        pairs = [
            f"**{row.ratio[n]:.2f}** ({row.ratio_of_minima[n]:.2f})"
            for n in ("float32", "bfloat16", "reference autocast")
        ]
        floors = [f"{row.over_floor[n]:.2f}" for n in ("float32", "bfloat16", "reference")]
        errors = [f"{row.max_abs['float32']:.1e}"]
        errors += [f"{100 * row.rms_share[n]:.2f} %" for n in ("bfloat16", "reference autocast")]
        lines.append("| " + " | ".join([row.size, f"{row.config}: {row.text}", *pairs, *floors, *errors]) + " |")
    lines += ["", "Parity before timing, largest distance from float64 (T12 p8, 32 px):", ""]
    lines += [f"- {size}: " + "; ".join(f"{k} {v:.1e}" for k, v in found.items()) for size, found in parity.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the options, measure, write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="nano,tiny,small,base")
    parser.add_argument("--configs", default="A,B,C,D")
    parser.add_argument("--rounds", type=int, default=None, help="default: 20 below 100 ms, else 7")
    parser.add_argument("--json", type=Path, default=FOLDER / "encoder.json", help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    parity = {}
    about = machine()
    for size in options.sizes.split(","):
        with TemporaryDirectory() as temporary:
            theirs, ours = build(size, Path(temporary) / "model")
            parity[size] = check_parity(theirs, ours, Path(temporary) / "parity")
            for label in options.configs.split(","):
                row = measure(size, label, theirs, ours, options.rounds)
                rows.append(row)
                gmacs = gmacs_per_window(ours.spec, CONFIGS[label].tokens) * CONFIGS[label].batch
                print(
                    f"{size} {label}: float32 {row.ratio['float32']:.2f}x, "
                    f"bfloat16 {row.ratio['bfloat16']:.2f}x, reference {row.reference_ms:.0f} ms for {gmacs:.1f} GMAC",
                    file=sys.stderr,
                )
    content = {"machine": about, "parity": parity, "rows": [asdict(row) for row in rows]}
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    page = table(rows, parity, about)
    options.json.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
