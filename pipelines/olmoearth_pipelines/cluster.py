"""A Dask cluster to work on: worker processes on this machine, or any scheduler by its address."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
from distributed import Client, LocalCluster

from olmoearth_cli.errors import InputError

TILES_IN_FLIGHT = 2
"""Tiles that a worker holds at once: one is encoded while the next is read."""
CONNECT_TIMEOUT = "20s"

_CONFIG = {
    # A tile that kills three workers is a gap with a reason, not an endless loop.
    "distributed.scheduler.allowed-failures": 2,
    "distributed.scheduler.work-stealing": False,
    # Thread counts must be set before a worker imports torch: encode.py says why one thread.
    "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": 1,
    "distributed.nanny.pre-spawn-environ.MKL_NUM_THREADS": 1,
    "distributed.nanny.pre-spawn-environ.OPENBLAS_NUM_THREADS": 1,
}


@contextmanager
def connect(*, workers: int, scheduler: str | None, scratch: Path) -> Iterator[Client]:
    """Start or join a cluster.

    Args:
        workers: local worker processes; ignored with a scheduler.
        scheduler: address of a running Dask scheduler, for example `tcp://10.0.0.5:8786`.
        scratch: folder for the local workers' own files.

    Yields:
        A client; on leaving, local workers are stopped and remote ones left as they were.

    Raises:
        InputError: the scheduler does not answer, or has no workers.
    """
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with dask.config.set(_CONFIG):
        if scheduler:
            with _remote(scheduler) as client:
                yield client
            return
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=TILES_IN_FLIGHT,
                processes=True,
                # None would still serve HTTP, on port 8787 of all interfaces, and warn where that is taken.
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                local_directory=str(scratch),
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client


@contextmanager
def _remote(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"--scheduler {address}: no Dask scheduler answers there ({type(error).__name__}). "
            "Check the address and the network, or leave it out to work on this machine."
        ) from None
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise InputError(f"--scheduler {address}: the scheduler has no workers. Start some: dask worker {address}")
        yield client


def check_folder(client: Client, folder: Path) -> None:
    """Refuse a cluster whose workers do not see the output folder (they write their tiles themselves).

    Raises:
        InputError: names the workers that do not see it.
    """
    seen = client.run(_exists, str(folder))
    blind = [address for address, there in seen.items() if not there]
    if blind:
        raise InputError(
            f"{folder}: not visible on {len(blind)} of {len(seen)} workers (for example {blind[0]}). "
            "Workers write their tiles themselves: use a folder on a file system that all of them share."
        )


def _exists(folder: str) -> bool:
    return Path(folder).is_dir()


def local_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_device_name(asked: str) -> None:
    """Refuse what no machine has, without looking at this one.

    Raises:
        InputError: names what is possible.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", asked):
        raise InputError(f"--device {asked}: use auto, cpu, cuda or cuda:N.")
