"""Jobs over a cluster: bounded submission, results as they come, a worker's death survived."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from distributed import Client, Future, KilledWorker, as_completed

Job = TypeVar("Job")
Result = TypeVar("Result")

QUEUED_PER_SLOT = 2
"""Jobs handed to the scheduler per free slot: enough that no worker waits, few enough to stop quickly."""


class Lost(Exception):  # noqa: N818 - a fact about a job, reported and not raised
    """A job that killed every worker that tried it."""


def fan_out(
    client: Client, function: Callable[[Job], Result], jobs: Iterable[Job], *, slots: int
) -> Iterator[tuple[Job, Result | Lost]]:
    """Run `function` on every job.

    A worker that dies takes all its jobs with it, and the scheduler cannot tell which of them killed it. So jobs whose
    workers died again and again are tried once more at the end, one at a time: only the guilty is lost.

    Args:
        client: the cluster.
        function: importable on the workers; its exceptions end the run and are raised here.
        jobs: taken one by one, never all at once.
        slots: jobs that the cluster can run at the same time.

    Yields:
        (job, result) in order of completion; `Lost` where the job's workers died again and again.
    """
    suspects: list[Job] = []
    for job, result in _run(client, function, iter(jobs), at_once=slots * QUEUED_PER_SLOT):
        if isinstance(result, Lost):
            suspects.append(job)
        else:
            yield job, result
    yield from _run(client, function, iter(suspects), at_once=1)


def _run(
    client: Client, function: Callable[[Job], Result], waiting: Iterator[Job], *, at_once: int
) -> Iterator[tuple[Job, Result | Lost]]:
    """As `fan_out`, with `at_once` jobs handed to the scheduler at a time and no second try."""
    running: dict[Future, Job] = {}
    for job in islice(waiting, at_once):
        running[client.submit(function, job, pure=False)] = job
    done = as_completed(list(running))
    try:
        for future in done:
            job = running.pop(future)
            try:
                result: Result | Lost = future.result()
            except KilledWorker as error:
                result = Lost(f"the worker died {error.allowed_failures + 1} times on this tile (out of memory?)")
            future.release()
            following = next(waiting, None)
            if following is not None:
                new = client.submit(function, following, pure=False)
                running[new] = following
                done.add(new)
            yield job, result
    finally:
        client.cancel(list(running), force=True)
