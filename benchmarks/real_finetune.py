"""Fine-tuning on real labels beside raw bands, kNN and a linear probe: examples/finetune/compare.sh on ../shared/data.

    python -m benchmarks.real_finetune --out /tmp/real-finetune [--encoder FOLDER]

For each set a static catalogue, the labels and an olmoearth.toml are laid out in a folder; the script runs there as a
user would run it. What is measured is the road and the comparison on equal windows and splits: no published weights
are to be had here, so the encoders are those that the project ships or that `--encoder` names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.encoder import machine
from benchmarks.real_sets import CHILE, CHIP_START, pixel_points
from tests import real_catalogs as real

FOLDER = Path(__file__).parent
EXAMPLE = FOLDER.parent / "examples" / "finetune"
ENCODER = FOLDER.parent / "examples" / "demo" / "demo-weights"
SETTINGS = """[finetune]
catalog = "{catalog}"
labels = "{labels}"
model = "{model}"
{lines}
[predict]
catalog = "{catalog}"
{dates}
"""


def main() -> None:
    """Lay out and run every set, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for catalogues, windows, runs and maps")
    parser.add_argument("--encoder", type=Path, default=ENCODER, help="model to begin with")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--page", type=Path, default=FOLDER / "real_finetune.md", help="where the tables go")
    options = parser.parse_args()
    parts = []
    for name in options.sets.split(","):
        folder = (options.out / name).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        SETS[name](folder, options.encoder.absolute(), options.epochs)
        run(folder)
        parts += [f"## {name}", "", (folder / "compare.md").read_text(encoding="utf-8")]
    head = (
        "# Fine-tuning on real labels\n\n`python -m benchmarks.real_finetune --out FOLDER` runs "
        f"`examples/finetune/compare.sh` on real imagery and labels. {machine()['cpu']}. The same windows, splits and "
        "labelled places for every row; spatial blocks held out.\n"
    )
    options.page.write_text("\n".join([head, *parts]), encoding="utf-8")
    print(options.page.read_text(encoding="utf-8"))


def run(folder: Path) -> None:
    """The example's script in a folder."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([str(EXAMPLE / "compare.sh")], cwd=folder, env=env, check=True)


def haspengouw(folder: Path, model: Path, epochs: int) -> None:
    """Cropland in Belgium, twelve months; the columns of the data's README: west trains, east is tested."""
    catalog, region = real.haspengouw(folder / "catalog")
    sides = {"train": (0, 44), "test": (56, 100)}
    labels = pixel_points(real.HASPENGOUW_LABELS, sides, folder / "cropland.csv", field="cropland")
    lines = ['start = "2020-11-01"', "window = 16", 'split = "field:side"', 'field = "cropland"', f"epochs = {epochs}"]
    settings(folder, catalog, labels, model, [*lines, "seed = 1"], 'start = "2020-11-01"')
    shutil.copy(region, folder / "heldout.geojson")


def terramesh(folder: Path, model: Path, epochs: int) -> None:
    """Land cover of a chip in Chile, one date, every pixel labelled."""
    catalog, _ = real.terramesh(folder / "catalog", CHILE)
    labels = folder / "lulc.tif"
    shutil.copy(real.TERRAMESH / CHILE / "LULC.tif", labels)
    dates = f'start = "{CHIP_START[CHILE]}"\nperiods = 1'
    lines = [*dates.splitlines(), "window = 32", f"epochs = {epochs}", "seed = 1"]
    settings(folder, catalog, labels, model, lines, dates)


def settings(folder: Path, catalog: Path, labels: Path, model: Path, lines: list[str], dates: str) -> None:
    """The folder's olmoearth.toml."""
    text = SETTINGS.format(catalog=catalog, labels=labels, model=model, lines="\n".join(lines), dates=dates)
    (folder / "olmoearth.toml").write_text(text, encoding="utf-8")


SETS: dict[str, Callable[[Path, Path, int], None]] = {"haspengouw": haspengouw, "terramesh": terramesh}


if __name__ == "__main__":
    main()
