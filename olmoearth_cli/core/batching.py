"""Which samples are encoded together: dense batches of equal counts, so that no mask is ever needed.

spec/performance.md section 4, exact work elimination: a missing token is not computed at all, and samples of
equal count share a batch. The division is a function of the given samples alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Samples with equally many tokens."""

    rows: list[int]
    """Samples, in the order of the batch."""
    count: int
    """Tokens of each."""
    alike: bool
    """True where all have exactly the same tokens."""


def micro_batches(seen: Tensor, max_tokens: int) -> list[MicroBatch]:
    """Divide samples into batches of at most `max_tokens` tokens, at least one sample each.

    Args:
        seen: [B, N] bool.
        max_tokens: tokens of a batch.

    Returns:
        Batches by falling count; samples without any token are in none.
    """
    counts = seen.sum(dim=1).tolist()
    patterns = [row.numpy().tobytes() for row in seen.cpu()]
    order = sorted((r for r, c in enumerate(counts) if c), key=lambda r: (-counts[r], patterns[r], r))
    batches: list[MicroBatch] = []
    start = 0
    while start < len(order):
        count = counts[order[start]]
        stop = start + 1
        limit = start + max(1, max_tokens // count)
        while stop < min(limit, len(order)) and counts[order[stop]] == count:
            stop += 1
        rows = order[start:stop]
        alike = all(patterns[r] == patterns[rows[0]] for r in rows)
        batches.append(MicroBatch(rows=rows, count=count, alike=alike))
        start = stop
    return batches
