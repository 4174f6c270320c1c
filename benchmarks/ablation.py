"""Every switch of the report's ablations, in miniature: does a short run with it train?

    python -m olmoearth_pipelines.synthetic_samples /tmp/pretrain-set --tiles 160
    python -m benchmarks.ablation --data /tmp/pretrain-set

Each row is `olmoearth pretrain` on the same samples, seed and number of steps with one switch changed. What is stated
is the token loss over chance (2 tau ln n, the loss of predictions unrelated to their targets): 1.00 is chance, less is
learning. Runs this short do not rank the switches.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.encoder import machine

FOLDER = Path(__file__).parent
COMMON = ("--recipe", "v1.2", "--size", "nano", "--lr", "1e-3", "--modalities", "sentinel2_l2a,sentinel1,worldcover")
SWITCHES: dict[str, tuple[str, ...]] = {
    "v1.2 recipe": (),
    "masking v1": ("--masking", "v1"),
    "no time masking": ("--time-masking", "0"),
    "no band dropout": ("--band-dropout", "0"),
    "linear projection": ("--projection", "linear"),
    "loss v1 (no negatives left out)": ("--loss", "v1"),
    "ape": ("--position-encoding", "ape"),
    "2d-rope": ("--position-encoding", "2d-rope"),
    "2d-rope-mixed": ("--position-encoding", "2d-rope-mixed"),
    "3d-rope": ("--position-encoding", "3d-rope"),
    "band groups v1": ("--band-groups", "v1"),
    "no instance contrast": ("--contrast-weight", "0"),
}


def main() -> None:
    """Run every switch, write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="samples of `synthetic_samples`, or real ones")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path, default=FOLDER / "ablation.json", help="where the figures go")
    options = parser.parse_args()
    rows = []
    for name, flags in SWITCHES.items():
        rows.append({"switch": name, "flags": " ".join(flags), **trained(flags, options)})
        print(rows[-1], flush=True)
    content = {"machine": machine(), "steps": options.steps, "batch_size": options.batch_size, "rows": rows}
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.json.with_suffix(".md").write_text(page(content), encoding="utf-8")
    print(page(content))


def trained(flags: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """First and last losses of a run."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = ("--steps", str(options.steps), "--batch-size", str(options.batch_size))
        fixed = (
            "--microbatch",
            str(options.batch_size),
            "--log-every",
            "1",
            "--warmup",
            "10",
            "--seed",
            "7",
            "--quiet",
        )
        where = ("--data", str(options.data), "--out", folder + "/run")
        command = [sys.executable, "-m", "olmoearth_cli.app", "pretrain", *COMMON, *sizes, *fixed, *where, *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = map(json.loads, (Path(folder) / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines())
        losses = [line["tokens"] / line["chance"] for line in lines if "tokens" in line]
    fifth = max(1, len(losses) // 5)
    return {"first": sum(losses[:fifth]) / fifth, "last": sum(losses[-fifth:]) / fifth, "steps_logged": len(losses)}


def page(content: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        f"| {row['switch']} | `{row['flags'] or '-'}` | {row['first']:.3f} | **{row['last']:.3f}** |"
        for row in content["rows"]
    ]
    return "\n".join(
        [
            "# Every ablation switch trains",
            "",
            "`python -m benchmarks.ablation --data FOLDER` (its docstring makes the samples: made-up land). "
            f"{content['machine']['cpu']}. v1.2-nano, {content['steps']} steps of {content['batch_size']} samples, one "
            "switch changed per row; token loss over chance (2 tau ln n), means of the first and of the last fifth of "
            "the steps. 1.00 is chance. Runs this short do not rank the switches; they show that each trains.",
            "",
            "| switch | flags | first fifth | last fifth |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
