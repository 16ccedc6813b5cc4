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
    of the daemon. `processes` and `threads` are alive; `connections` are clients. `exited` counts processes by the
    reason of their end, `calls` system calls by name, `errors` failed calls by the name of the error, and `limits` the
    limits that were reached. `slow_steps` counts steps of agents that blocked the loop.

    `machine` has `cores`, `cpu` (share), `memory_total`, `memory_available`, `disk_total`, `disk_free` (of the state
    folder), `drivers_memory` (resident sets of all drivers) and `drivers_budget` (bytes that the drivers may use now).
    `scheduling` describes for each model in use its policy, its number of slots, and the reason. `unwritten` counts
    tasks that have ended and whose end is not on disk; clients learn of an end when it is on disk.
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
    """Answer `payload` unchanged, as a `Pong`."""

    payload: Body = msgspec.Raw(b"\xc0")
    returns: ClassVar[Any] = Pong


class GetStats(Syscall, tag="stats"):
    """Answers the counters of the daemon and the state of the machine."""

    returns: ClassVar[Any] = Stats


class Shutdown(Syscall, tag="shutdown"):
    """Stop the daemon. Without `now`, running tasks get the seconds of the setting `drain_seconds`. Clients only.

    Answered before the daemon stops. Tasks that still run then: detached ones run again at the next start, others end
    with `Killed`.
    """

    now: bool = False


DaemonCalls = Ping | GetStats | Shutdown
