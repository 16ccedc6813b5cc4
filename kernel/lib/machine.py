"""The current state of the machine: processors, memory, disk and GPUs, and the memory of each driver process.

The model manager samples the machine in a worker thread, because a dead disk or GPU driver may hang. This module never
decides anything.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import psutil

from ipc.syscalls import GpuInfo


class MachineSample(msgspec.Struct, frozen=True):
    """The machine at one moment, in bytes. `cpu` is a share of all cores; `rss` has resident set sizes by process id.

    `oom_kills`: the number of processes that Linux, since it started, has killed because memory ran out.
    """

    cpu: float
    memory_total: int
    memory_available: int
    disk_total: int
    disk_free: int
    rss: dict[int, int] = {}
    oom_kills: int = 0
    gpus: list[GpuInfo] = []


class Machine(Protocol):
    """The view of the machine that the model manager needs."""

    cores: list[int]

    def sample(self, pids: Iterable[int]) -> MachineSample:
        """Sample the machine and the resident sets of `pids`. Blocks, possibly for long."""

    def rss(self, pid: int) -> int:
        """The resident set of process `pid` in bytes, 0 if the process has ended. Never blocks."""

    def oom_kills(self) -> int:
        """The current value of `MachineSample.oom_kills`. Never blocks."""


class ThisMachine:
    """The machine that this process runs on. `disk` is a folder on the disk to watch; it need not exist yet."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._gpus = _Gpus()
        self.cores = (
            sorted(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else list(range(psutil.cpu_count() or 1))
        )

    def sample(self, pids: Iterable[int]) -> MachineSample:
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(next(folder for folder in (self._disk, *self._disk.parents) if folder.exists())))
        return MachineSample(
            cpu=psutil.cpu_percent() / 100,
            memory_total=memory.total,
            memory_available=memory.available,
            disk_total=disk.total,
            disk_free=disk.free,
            rss={pid: self.rss(pid) for pid in pids},
            oom_kills=self.oom_kills(),
            gpus=self._gpus.sample(),
        )

    def rss(self, pid: int) -> int:
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0

    def oom_kills(self) -> int:
        try:
            lines = Path("/proc/vmstat").read_text().splitlines()
        except OSError:  # only Linux counts them
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def own_memory() -> int:
    """The bytes of this process that no other process shares and no file holds, swapped-out ones too. Never blocks."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return int(psutil.Process().memory_info().rss)
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))


def release_free_memory() -> None:
    """Give free pages that this process retains back to the system. Only glibc can; it takes milliseconds."""
    if _trim is not None:
        _trim(0)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class _Gpus:
    """The NVIDIA GPUs, if the package `pynvml` is installed. The code follows its manual, and never ran on a GPU."""

    def __init__(self) -> None:
        self._nvml: Any = None
        if importlib.util.find_spec("pynvml") is not None:
            self._nvml = importlib.import_module("pynvml")
            try:
                self._nvml.nvmlInit()
            except self._nvml.NVMLError:
                self._nvml = None

    def sample(self) -> list[GpuInfo]:
        nvml = self._nvml
        if nvml is None:
            return []
        gpus = []
        for number in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(number)
            memory = nvml.nvmlDeviceGetMemoryInfo(device)
            busy = nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
            gpus.append(GpuInfo(str(nvml.nvmlDeviceGetName(device)), memory.total, memory.used, busy))
        return gpus
