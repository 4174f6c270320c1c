"""How much of a local run is not encoding: `python -m benchmarks.pipeline --model v1.2-nano --size 504`.

Makes a synthetic region, maps it as a user would (`olmoearth embed` in a process of its own) and prints the share of
wall time in which the encoder did not run: start-up, reading, compositing, writing, describing. Random weights: the
arithmetic is that of trained ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from olmoearth_cli.core.model import random_model, save_model
from olmoearth_pipelines.synthetic import Scenery, make_region


def measure(name: str, size_px: int, flags: list[str]) -> dict[str, object]:
    """One run; the figures of its summary."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_region(folder, Scenery(seed=5, size_px=size_px))
        save_model(random_model(name, seed=1), folder / "model", demo={})
        asked = ["--aoi", "region.geojson", "--catalog", "catalog/catalog.json", "--model", "model", "--year", "2024"]
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "olmoearth_cli.app", "embed", *asked, "-o", "map", "--json", "-q", *flags],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        wall = time.perf_counter() - begin
        summary = json.loads(done.stdout)
        tiles = json.loads((folder / "map" / "run.json").read_text())["tiles"].values()
        encode = sum(tile["encode_s"] for tile in tiles)
        read = sum(tile["read_s"] for tile in tiles)
    return {
        "model": name,
        "km2": summary["km2"],
        "flags": " ".join(flags),
        "wall_s": round(wall, 1),
        "encoder_s": round(encode, 1),
        "reading_s": round(read, 1),
        "overhead": round(1 - encode / wall, 4),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="v1.2-nano")
    parser.add_argument("--size", type=int, default=504, help="side of the imagery in 10 m pixels, multiple of 12")
    parser.add_argument("--json", type=Path)
    asked, flags = parser.parse_known_args()
    row = measure(asked.model, asked.size, flags)
    row |= {"cores": len(os.sched_getaffinity(0)), "machine": platform.processor() or platform.machine()}
    print(json.dumps(row))
    if asked.json:
        rows = json.loads(asked.json.read_text()) if asked.json.exists() else []
        asked.json.write_text(json.dumps([*rows, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
