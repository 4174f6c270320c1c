"""When gradients explode."""

from __future__ import annotations

from olmoearth_pipelines.training.watch import GradientWatch


def test_five_steps_in_a_row_over_a_hundred_times_the_median_are_an_explosion() -> None:
    watch = GradientWatch([1.0] * 20)
    assert [watch.complaint(101.0) is None for _ in range(5)] == [True] * 4 + [False]


def test_single_spikes_and_less_than_a_hundred_times_are_not() -> None:
    watch = GradientWatch([1.0] * 20)
    for _ in range(10):
        assert all(watch.complaint(norm) is None for norm in (1e6, 1e6, 1e6, 1e6, 99.0, 1.0))


def test_the_first_steps_have_no_median_to_be_judged_by() -> None:
    watch = GradientWatch()
    assert all(watch.complaint(10.0**k) is None for k in range(15))


def test_an_explosion_does_not_raise_the_median_that_judges_it() -> None:
    watch = GradientWatch([1.0] * 20)
    watch.complaint(500.0)
    assert not watch.calm and watch.state() == {"norms": [1.0] * 20, "strikes": 1}


def test_no_number_is_wrong_at_once() -> None:
    assert "not finite" in str(GradientWatch().complaint(float("nan")))


def test_a_watch_goes_on_where_another_stopped() -> None:
    watch = GradientWatch([2.0] * 30)
    for _ in range(4):
        watch.complaint(1000.0)
    again = GradientWatch(**watch.state())  # type: ignore[arg-type]
    assert again.complaint(1000.0) is not None
