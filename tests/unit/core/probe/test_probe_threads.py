"""PyTorch's number of threads comes back, whoever leaves first."""

from __future__ import annotations

import threading

import pytest
import torch

from olmoearth_cli.core.probe.threads import in_parallel, single_threaded_operations


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_inside_there_is_one_and_afterwards_as_many_as_before() -> None:
    with single_threaded_operations() as threads:
        assert (threads, torch.get_num_threads()) == (3, 1)
        with single_threaded_operations() as nested:
            assert nested == 3
    assert torch.get_num_threads() == 3


def test_an_error_inside_gives_the_threads_back() -> None:
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda part: 1 / part, [1, 0])
    assert torch.get_num_threads() == 3


def test_callers_that_overlap_go_back_to_what_was_before_the_first() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[int] = []

    def other() -> None:
        with single_threaded_operations() as threads:
            entered.set()
            leave.wait(5)
        seen.extend([threads, torch.get_num_threads()])

    thread = threading.Thread(target=other)
    with single_threaded_operations():
        thread.start()
        assert entered.wait(5)
    leave.set()
    thread.join(5)
    assert seen == [3, 3]
    assert torch.get_num_threads() == 3


def test_results_come_in_the_order_of_their_parts_and_each_has_one_thread() -> None:
    found = in_parallel(lambda part: (part, torch.get_num_threads()), range(50))
    assert found == [(part, 1) for part in range(50)]
