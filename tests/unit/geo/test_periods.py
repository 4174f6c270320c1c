import itertools
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olmoearth_cli.errors import InputError
from olmoearth_cli.geo.periods import periods, resolve_periods, stamps

TODAY = date(2026, 11, 24)


def test_the_check_values_of_the_specification():
    chosen = periods(date(2018, 6, 8), 12)
    starts = [p.start.strftime("%m-%d") for p in chosen]
    assert starts == [
        "06-08",
        "07-08",
        "08-07",
        "09-06",
        "10-06",
        "11-05",
        "12-05",
        "01-04",
        "02-03",
        "03-05",
        "04-04",
        "05-04",
    ]
    assert [month for _, month, _ in stamps(chosen)] == [5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4]
    assert chosen[7].start == datetime(2019, 1, 4, tzinfo=UTC)


def test_a_leap_year_repeats_and_skips_months():
    assert [month for _, month, _ in stamps(periods(date(2024, 1, 1), 12))] == [0, 0, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10]


@given(start=st.dates(date(2016, 1, 1), date(2030, 1, 1)), count=st.integers(1, 24))
def test_periods_touch_and_never_overlap(start, count):
    chosen = periods(start, count)
    assert [p.index for p in chosen] == list(range(count))
    assert all(a.end == b.start for a, b in itertools.pairwise(chosen))
    assert (chosen[-1].end - chosen[0].start).days == 30 * count


def test_the_default_is_the_last_complete_calendar_year():
    chosen = resolve_periods(None, None, None, None, TODAY)
    assert (chosen[0].start.date(), len(chosen)) == (date(2025, 1, 1), 12)


def test_an_end_gives_as_many_periods_as_cover_the_span():
    chosen = resolve_periods(date(2024, 3, 1), date(2024, 5, 1), None, None, TODAY)
    assert len(chosen) == 3
    assert chosen[-1].end.date() >= date(2024, 5, 1)


@pytest.mark.parametrize(
    ("start", "end", "year", "count", "words"),
    [
        (date(2024, 1, 1), None, 2024, None, "contradict"),
        (None, date(2024, 1, 1), None, None, "--end needs --start"),
        (date(2024, 1, 1), date(2024, 3, 1), None, 2, "--end and --periods"),
        (date(2024, 3, 1), date(2024, 1, 1), None, None, "must be later"),
        (None, None, 2009, None, "--year 2009"),
        (None, None, 2031, None, "--year 2031"),
        (date(2012, 1, 1), None, None, None, "imagery begins"),
        (date(2027, 1, 1), None, None, None, "future"),
        (date(2024, 1, 1), None, None, 25, "1 to 24"),
        (date(2020, 1, 1), date(2024, 1, 1), None, None, "1 to 24"),
    ],
)
def test_dates_that_cannot_be_meant_are_refused(start, end, year, count, words):
    with pytest.raises(InputError, match=words):
        resolve_periods(start, end, year, count, TODAY)
