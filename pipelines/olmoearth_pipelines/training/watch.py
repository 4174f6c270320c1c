"""When a run has gone wrong: a loss that is no number, or gradients that explode."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

LIMIT = 100.0
"""Gradient norm over its running median that counts as an explosion."""
PATIENCE = 5
"""Steps in a row that it takes: a single one is harmless, for gradients are clipped."""
WINDOW = 200
"""Steps of the median."""
FEWEST = 20
"""Steps that a median needs."""


class GradientWatch:
    """Gradient norms of the last steps."""

    def __init__(self, norms: Iterable[float] = (), strikes: int = 0) -> None:
        """Begin, or go on with what `state` gave."""
        self._norms: deque[float] = deque(norms, maxlen=WINDOW)
        self._strikes = strikes

    @property
    def calm(self) -> bool:
        """False in the middle of what may become an explosion."""
        return self._strikes == 0

    def state(self) -> dict[str, object]:
        """Plain data that makes the same watch again."""
        return {"norms": list(self._norms), "strikes": self._strikes}

    def complaint(self, norm: float) -> str | None:
        """Take a step's norm; says what is wrong, None where nothing is."""
        if not math.isfinite(norm):
            return f"the gradient is not finite ({norm})"
        median = statistics.median(self._norms) if len(self._norms) >= FEWEST else math.inf
        if norm > LIMIT * median:
            # Left out of the median: an explosion must not become the measure of the next one.
            self._strikes += 1
            if self._strikes >= PATIENCE:
                return (
                    f"{PATIENCE} steps' gradient norms ({norm:.3g}) exceed {LIMIT:.0f} times their median {median:.3g}"
                )
            return None
        self._strikes = 0
        self._norms.append(norm)
        return None
