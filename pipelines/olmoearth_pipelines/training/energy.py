"""Energy of this process: measured where the machine has a counter, else estimated, and always said which.

GPUs count in NVML (needs nvidia-ml-py); CPUs in RAPL, which Linux shows to root only. A CPU counter covers the whole
package, other programs included. Cooling and memory are in none of these figures.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import torch

WATTS_PER_CORE = 6.0
"""Of a busy server core: a 96-core part of 360 W and its memory, rounded up."""
WATTS_PER_GPU = {"B200": 1000, "H200": 700, "H100": 700, "A100": 400, "L40": 300, "L4": 72, "V100": 300, "T4": 70}
GPU_UTILISATION = 0.7
"""Share of its rated power that a training GPU takes, where it does not count."""
OTHER_GPU_WATTS = 300
KWH = 3.6e6
"""Joules."""
_RAPL = Path("/sys/class/powercap")


class Meter:
    """Counts from its making on."""

    def __init__(self, device: torch.device, *, first: bool) -> None:
        """Look for counters.

        Args:
            device: what the process computes on.
            first: of the processes of this machine; it alone reads the CPU's counter.
        """
        self._gpu = _Gpu(device) if device.type == "cuda" else None
        self._packages = [_Rapl(path) for path in sorted(_RAPL.glob("intel-rapl:?"))] if first else []
        self._packages = [package for package in self._packages if package.readable]
        self._first = first
        self._cores_j = 0.0
        self._cpu_s = _cpu_seconds()

    @property
    def source(self) -> str:
        """Where the figures come from, for records."""
        cpu = "RAPL counter (whole package)" if self._packages else f"estimate: {WATTS_PER_CORE:g} W x busy cores"
        return cpu if self._gpu is None else f"GPU {self._gpu.source}; CPU {cpu}"

    def kwh(self) -> float:
        """So far."""
        joules = self._gpu.joules() if self._gpu is not None else 0.0
        if self._packages:
            return (joules + sum(package.joules() for package in self._packages)) / KWH
        # Counters of workers that ended are gone: add up what has passed between two looks.
        now = _cpu_seconds()
        self._cores_j += max(0.0, now - self._cpu_s) * WATTS_PER_CORE
        self._cpu_s = now
        return (joules + self._cores_j) / KWH


class _Gpu:
    """Joules of one GPU."""

    def __init__(self, device: torch.device) -> None:
        name = torch.cuda.get_device_name(device)
        watts = next((w for part, w in WATTS_PER_GPU.items() if part in name), OTHER_GPU_WATTS)
        self._watts = watts * GPU_UTILISATION
        self._started = time.monotonic()
        self._nvml, self._handle = _nvml_handle(device)
        self._begin = self._counter()
        self.source = "NVML counter" if self._begin is not None else f"estimate: {watts} W x {GPU_UTILISATION}"

    def joules(self) -> float:
        """Since the start."""
        now = self._counter()
        if now is None or self._begin is None:
            return self._watts * (time.monotonic() - self._started)
        return now - self._begin

    def _counter(self) -> float | None:
        if self._handle is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError:
            return None


def _nvml_handle(device: torch.device) -> tuple[Any, Any]:
    """NVML and its handle of a GPU; None twice where there is no package or no driver for it."""
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
    except pynvml.NVMLError:
        return None, None


class _Rapl:
    """Joules of one CPU package; its counter starts again at a limit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.readable = True
        self._total = 0.0
        self._last = self._read("energy_uj")
        self._limit = self._read("max_energy_range_uj")

    def joules(self) -> float:
        """Since the start; must be asked before the counter has gone round (minutes to hours)."""
        now = self._read("energy_uj")
        self._total += now - self._last if now >= self._last else now + self._limit - self._last
        self._last = now
        return self._total / 1e6

    def _read(self, name: str) -> float:
        try:
            return float((self._path / name).read_text())
        except (OSError, ValueError):
            self.readable = False
            return 0.0


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that still run."""
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        total += times.user + times.system
    return total


def memory_bytes(device: torch.device) -> int:
    """Peak of what this process holds on its device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
