"""The time axis: consecutive periods of 30 days, one composite each (spec/inputs.md section 3).

Real datetimes here; the models' zero-based months appear only in `stamps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from olmoearth_cli.errors import InputError

PERIOD_DAYS = 30
DEFAULT_PERIODS = 12
MOST_PERIODS = 24
"""Twice what the models saw in pretraining; more would be far outside it."""
FIRST_IMAGERY = date(2015, 6, 23)
"""Launch of Sentinel-2A; Landsat 8 and Sentinel-1A are a little older, but no stack is complete before."""


@dataclass(frozen=True, order=True)
class Period:
    """[start, end) of one composite."""

    index: int
    """0 = oldest."""
    start: datetime
    """Timezone aware, UTC midnight."""
    end: datetime


def periods(start: date, count: int) -> tuple[Period, ...]:
    """`count` periods of 30 days from `start`, oldest first."""
    first = datetime.combine(start, time(), UTC)
    step = timedelta(days=PERIOD_DAYS)
    return tuple(Period(k, first + k * step, first + (k + 1) * step) for k in range(count))


def resolve_periods(
    start: date | None, end: date | None, year: int | None, count: int | None, today: date
) -> tuple[Period, ...]:
    """Turn `--start --end --year --periods` into periods; the last complete calendar year where all are None.

    Raises:
        InputError: flags that contradict each other, or dates without imagery.
    """
    if year is not None and (start is not None or end is not None):
        raise InputError("--year and --start/--end contradict each other. Give either the year or the dates.")
    if end is not None and start is None:
        raise InputError("--end needs --start: give both, or --year.")
    if end is not None and count is not None:
        raise InputError("--end and --periods both fix the last day. Give one of them.")
    if year is not None and not FIRST_IMAGERY.year <= year <= today.year:
        raise InputError(f"--year {year}: imagery exists from {FIRST_IMAGERY.year} to {today.year}.")
    first = start or date(year if year is not None else today.year - 1, 1, 1)
    if end is not None:
        if end <= first:
            raise InputError(f"--end {end} must be later than --start {first}.")
        count = max(1, -(-(end - first).days // PERIOD_DAYS))
    count = DEFAULT_PERIODS if count is None else count
    if not 1 <= count <= MOST_PERIODS:
        raise InputError(
            f"{count} periods of {PERIOD_DAYS} days: the models take 1 to {MOST_PERIODS} (they were trained with 12). "
            "Map several years one by one."
        )
    first = max(first, FIRST_IMAGERY) if year == FIRST_IMAGERY.year else first
    if first < FIRST_IMAGERY:
        raise InputError(f"--start {first}: imagery begins on {FIRST_IMAGERY}. Choose a later day.")
    if first >= today:
        raise InputError(f"--start {first} lies in the future (today is {today}). Choose an earlier day.")
    return periods(first, count)


def stamps(chosen: Sequence[Period]) -> list[tuple[int, int, int]]:
    """The models' time stamps: (day 1-31, month 0-11, year) of each period's first day."""
    return [(p.start.day, p.start.month - 1, p.start.year) for p in chosen]
