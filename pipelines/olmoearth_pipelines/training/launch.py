"""`--devices N`: start the processes of a run on this machine. `torchrun` does the same on several."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from olmoearth_cli.errors import InputError, OlmoEarthError, RunError
from olmoearth_pipelines.training.devices import check_accelerate

PATIENCE_S = 3.0
"""How long the others leave the word to the first process."""
Work = Callable[[], None]


def launch(work: Work, report: Callable[[str], None], *, devices: int, device: str) -> int:
    """Run `work` in so many processes, which find their place with `devices.place`.

    Where one fails, the others are ended.

    Args:
        work: picklable; raises OlmoEarthError for what the user should read.
        report: picklable; says such an error, in the process that met it.
        devices: processes.
        device: `cpu` or `cuda`, without a number.

    Returns:
        Exit code: 0, or that of the process that failed, which has said why.

    Raises:
        InputError: fewer GPUs than processes, or accelerate is missing.
        RunError: a process met an error that is not the user's.
    """
    import torch
    from torch import multiprocessing

    check_accelerate()
    if device.startswith("cuda") and (":" in device or torch.cuda.device_count() < devices):
        raise InputError(
            f"--devices {devices} --device {device}: this machine has {torch.cuda.device_count()} GPU(s). Give fewer "
            "devices, and --device cuda without a number."
        )
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it reports whom it ends
    context = multiprocessing.start_processes(
        _run, (work, report, devices, _free_port()), nprocs=devices, join=False, start_method="spawn"
    )
    try:
        while not context.join():
            pass
    except multiprocessing.ProcessExitedException as ended:
        return ended.exit_code if ended.exit_code > 0 else 1
    except multiprocessing.ProcessRaisedException as error:
        raise RunError(f"a process failed: {error}") from None
    finally:
        for process in context.processes:
            if process.is_alive():
                process.terminate()
    return 0


def _run(rank: int, work: Work, report: Callable[[str], None], size: int, port: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the first process alone says that it was stopped
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        work()
    except OlmoEarthError as problem:
        if rank:  # most errors are met by all: the first says so, and that ends the others
            time.sleep(PATIENCE_S)
        report(str(problem))
        sys.exit(problem.exit_code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
