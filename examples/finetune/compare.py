"""One table of finished runs, their baselines first: `python3 compare.py RUN [RUN ...] --to compare.md`.

Prints the run that was best on validation; the table's figures are those of the test split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the runs' reports, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--to", type=Path, default=Path("compare.md"))
    asked = parser.parse_args()
    reports = [json.loads((run / "report.json").read_text(encoding="utf-8")) for run in asked.runs]
    asked.to.write_text(table(reports), encoding="utf-8")
    best = max(reports, key=lambda report: report["val"]["value"] * (1 if report["higher_is_better"] else -1))
    print(asked.runs[reports.index(best)])


def table(reports: list[dict[str, Any]]) -> str:
    """Markdown."""
    first = reports[0]
    if any(other["settings"]["data"] != first["settings"]["data"] for other in reports):
        raise SystemExit("these runs learned from different windows or splits: their figures cannot be compared")
    rows = [(score["name"], score) for report in reports for score in report["baselines"]]
    rows += [(f"fine-tuned, {report['recipe']}", report["test"] or report["val"]) for report in reports]
    lines = [f"| {name} | {number(score['value'])} | {interval(score)} |" for name, score in rows]
    weights = ", DEMO WEIGHTS (without learned meaning)" if first["demo"] else ""
    return "\n".join(
        [
            f"{first['data']}, field {first['field']}: {first['metric']} on the {first['judged_on']} split; "
            f"{', '.join(f'{count} {split}' for split, count in first['windows'].items())} windows; "
            f"model {first['model']}{weights}.",
            "",
            f"| method | {first['metric']} | 95 % interval |",
            "|---|---|---|",
            *lines,
            "",
        ]
    )


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def interval(score: dict[str, Any]) -> str:
    """Low to high, or a dash."""
    return "-" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"


if __name__ == "__main__":
    main()
