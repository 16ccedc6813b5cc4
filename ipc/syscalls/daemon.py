"""The daemon itself: is it there, how is it, stop it."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from ipc.syscalls.base import Body, Syscall


class GpuInfo(msgspec.Struct, frozen=True):
    """A GPU: its memory and how much of it is used (bytes), and how busy it is (a share of 1)."""

    name: str
    memory_total: int
    memory_used: int
    busy: float


class Stats(msgspec.Struct, frozen=True):
    """Counters since the start, and the machine as it is now (bytes, seconds, shares of 1).

    `machine` has `cores`, `cpu`, `memory_total`, `memory_available`, `disk_total`, `disk_free` (of the state folder),
    `drivers_memory` (resident sets of all drivers) and `drivers_budget` (what these may take now).
    `scheduling` says of each model in use by which policy its slots are given, how many of them, and why.
    `unwritten` counts the tasks that have ended and wait for the disk: their ends are told once they are on it.
    """

    version: str
    pid: int
    uptime: float
    processes: int
    threads: int
    connections: int
    exited: dict[str, int]
    calls: dict[str, int]
    errors: dict[str, int]
    limits: dict[str, int]
    dead_letters: int
    slow_steps: int
    memory: int
    cpu_seconds: float
    machine: dict[str, float]
    gpus: list[GpuInfo] = []
    scheduling: dict[str, str] = {}
    unwritten: int = 0


class Pong(msgspec.Struct, frozen=True, array_like=True):
    """The answer to `Ping`."""

    payload: Any


class Ping(Syscall, tag="ping"):
    """Answers the payload."""

    payload: Body = msgspec.Raw(b"\xc0")
    returns: ClassVar[Any] = Pong


class GetStats(Syscall, tag="stats"):
    """Counters of the daemon and the state of the machine."""

    returns: ClassVar[Any] = Stats


class Shutdown(Syscall, tag="shutdown"):
    """Stop the daemon: drain first, or end all processes at once with `now`. Clients only."""

    now: bool = False


DaemonCalls = Ping | GetStats | Shutdown
