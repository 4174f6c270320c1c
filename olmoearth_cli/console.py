"""The only writer to the terminal: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

LINE_EVERY_S = 30.0
"""Without a terminal, one plain progress line in this time."""


class Console:
    """Where a command writes. `quiet` keeps progress and notes back, never warnings or errors."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json

    def result(self, text: str, facts: dict[str, Any]) -> None:
        """The command's one result: plain text, or with `--json` one JSON object."""
        sys.stdout.write((json.dumps(facts, default=str) if self.as_json else text) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark about what happens; on stderr."""
        if not self.quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        """Something that the user should look at; on stderr, also when quiet."""
        self._line(f"warning: {text}")

    def _line(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned plain text; numbers (all but the first column) to the right."""
    widths = [max(len(str(row[k])) for row in [header, *rows]) for k in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def error(text: str) -> None:
    """Why the command failed; on stderr."""
    sys.stderr.write(f"olmoearth: {text}\n")
    sys.stderr.flush()


class Counted(Protocol):
    """What a road reports of one tile."""

    @property
    def status(self) -> str:
        """`done` or `gap`."""

    @property
    def km2(self) -> float:
        """Area of this tile."""

    @property
    def tiles_to_do(self) -> int:
        """Tiles of the whole run."""

    @property
    def km2_to_do(self) -> float:
        """Area of the whole run."""


class Progress:
    """Tiles done, km2/s and time left: one live line on a terminal, a plain line every 30 s otherwise."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done, self._done_km2, self._gaps = 0, 0.0, 0
        self._started = self._last = time.monotonic()
        self._live = sys.stderr.isatty() and not console.quiet
        self._dirty = False

    def advance(self, tile: Counted) -> None:
        """One more tile is finished."""
        self._done += 1
        self._done_km2 += tile.km2
        self._gaps += tile.status == "gap"
        now = time.monotonic()
        if self._live:
            sys.stderr.write("\r\x1b[K" + self._text(tile, now))
            sys.stderr.flush()
            self._dirty = True
        elif now - self._last >= LINE_EVERY_S:
            self._console.note(self._text(tile, now))
            self._last = now

    def close(self) -> None:
        """End the live line."""
        if self._dirty:
            sys.stderr.write("\n")
            self._dirty = False

    def _text(self, tile: Counted, now: float) -> str:
        rate = self._done_km2 / max(now - self._started, 1e-6)
        left = (tile.km2_to_do - self._done_km2) / rate if rate > 0 else float("inf")
        gaps = f", {self._gaps} gaps" if self._gaps else ""
        return f"{self._done}/{tile.tiles_to_do} tiles{gaps}, {rate:.3g} km2/s, {duration(left)} left"


class TaskLine:
    """What a long step is at: one live line on a terminal, a plain line when the step changes or 30 s have passed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = sys.stderr.isatty() and not console.quiet
        self._dirty, self._step, self._last = False, "", 0.0

    def show(self, task: str, step: str, done: int, total: int) -> None:
        """Say how far `step` of `task` is."""
        text, now = f"{task}: {step}, {done} of {total}", time.monotonic()
        if self._live:
            sys.stderr.write("\r\x1b[K" + text)
            sys.stderr.flush()
            self._dirty = True
        elif now - self._last >= LINE_EVERY_S or f"{task} {step}" != self._step:
            self._console.note(text)
            self._last = now
        self._step = f"{task} {step}"

    def close(self) -> None:
        """End the live line."""
        if self._dirty:
            sys.stderr.write("\n")
            self._dirty = False


def duration(seconds: float) -> str:
    """Seconds as a person says them: `45 s`, `12 min`, `3.5 h`."""
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
