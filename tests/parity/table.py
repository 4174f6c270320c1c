"""Print the parity table: `PYTHONHASHSEED=0 python -m tests.parity.table [NAME ...]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from olmoearth_cli.core.spec import RELEASED
from tests.parity.cases import DEEP, cases_for, difference, pair

LARGE = ("small", "base", "large")


def rows(names: list[str]) -> Iterator[tuple[str, int, float, str]]:
    """(model, number of cases, largest difference, case in which it occurs)."""
    for name in names:
        ours, theirs = pair(name)
        cases = DEEP if name.split("-")[1] in LARGE else cases_for(name)
        worst, where = max((difference(ours, theirs, case), case.name) for case in cases)
        yield name, len(cases), worst, where


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:] or [spec.name for spec in RELEASED if spec.supported]
    print("| model | cases | max abs difference | in |\n|---|---|---|---|")
    for name, count, worst, where in rows(names):
        print(f"| {name} | {count} | {worst:.2e} | {where} |", flush=True)


if __name__ == "__main__":
    main()
