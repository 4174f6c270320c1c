"""Start-up time: `python -m benchmarks.startup`. Ratios to a bare interpreter in the same run, minimum of 15."""

from __future__ import annotations

import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "olmoearth --help": [sys.executable, "-m", "olmoearth_cli.app", "--help"],
    "olmoearth embed --help": [sys.executable, "-m", "olmoearth_cli.app", "embed", "--help"],
}


def main() -> None:
    """Interleaved runs; prints the minimum of each."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(15):
        for name, command in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - begin)
    bare = min(times["python -c pass"])
    for name, values in times.items():
        print(f"{name:<24} {min(values):.3f} s  {min(values) / bare:5.1f} x")


if __name__ == "__main__":
    main()
