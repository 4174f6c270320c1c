"""Threads for many small tensor operations.

PyTorch's threads meet after every operation and wait for each other busily. Where operations take microseconds, or
other processes use the cores, that costs several times the work itself: on 2 busy cores kNN over 10,000 vectors took
220 us a query with two threads per operation and 60 us with one (probe fits: five times). So operations run on one
thread each, and independent parts of the work run beside each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass
class _Users:
    """Callers that are inside `single_threaded_operations` at this moment."""

    count: int = 0
    threads: int = 1
    """What PyTorch was set to before the first of them came in."""
    lock: threading.Lock = field(default_factory=threading.Lock)


_users = _Users()


@contextmanager
def single_threaded_operations() -> Iterator[int]:
    """Run every CPU operation on one thread; gives the number of threads that the caller may use instead.

    PyTorch has one such number per process, so callers that overlap share the value to go back to.
    """
    with _users.lock:
        if _users.count == 0:
            _users.threads = torch.get_num_threads()
        _users.count += 1
        threads = _users.threads
        torch.set_num_threads(1)
    try:
        yield threads
    finally:
        with _users.lock:
            _users.count -= 1
            torch.set_num_threads(threads)  # a setting of this thread: the others keep theirs


def in_parallel(work: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """`work` of every part, in order, as many at a time as PyTorch has threads."""
    with single_threaded_operations() as threads, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))
