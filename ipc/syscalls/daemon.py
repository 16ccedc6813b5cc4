"""The daemon itself: check that it answers, read its counters, stop it."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from ipc.syscalls.base import Body, Syscall


class GpuInfo(msgspec.Struct, frozen=True):
    """A GPU. Memory is in bytes; `busy` is the share of time in use, from 0 to 1."""

    name: str
    memory_total: int
    memory_used: int
    busy: float


class Stats(msgspec.Struct, frozen=True):
    """Counters since the daemon started, and the present state of the machine.

    Sizes are in bytes, times in seconds, shares from 0 to 1. `pid`, `memory` (resident set) and `cpu_seconds` are those
    of the daemon. `processes` and `threads` count the living ones; `connections` counts connected clients. `exited`
    counts ended processes by reason; `calls` counts system calls by name; `errors` counts errors that answered a call
    or ended a process, by class name; `limits` counts `LimitExceeded` by the name of the limit. `slow_steps` counts how
    often an agent blocked the loop.

    `machine` has `cores`, `cpu` (share), `memory_total`, `memory_available`, `disk_total`, `disk_free` (of the state
    folder), `drivers_memory` (resident sets of all drivers) and `drivers_budget` (bytes that the drivers may use now).
    `scheduling` states for each model that was used its policy and how many of its slots may be used, with the reasons.
    `unwritten` counts ended tasks whose end is not on disk yet; clients learn of an end only when it is on disk.
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
    """Answers a `Pong` with the same `payload`."""

    payload: Body = msgspec.Raw(b"\xc0")
    returns: ClassVar[Any] = Pong


class GetStats(Syscall, tag="stats"):
    """Answers the counters of the daemon and the state of the machine."""

    returns: ClassVar[Any] = Stats


class Shutdown(Syscall, tag="shutdown"):
    """Stop the daemon. Without `now`, running tasks get the seconds of the setting `drain_seconds`. Clients only.

    The call is answered before the daemon stops. When that time is over, tasks that still run are ended: an attached
    task fails with `Killed`, and a detached task runs again at the next start of the daemon.
    """

    now: bool = False


DaemonCalls = Ping | GetStats | Shutdown
