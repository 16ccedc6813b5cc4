"""Time and random numbers, recorded for durable agents, and the checkpoint that replaces their call history."""

from __future__ import annotations

from typing import Any, ClassVar

from ipc.syscalls.base import Body, Syscall


class GetTime(Syscall, tag="time"):
    """Answers the machine's time, in seconds since the epoch."""

    returns: ClassVar[Any] = float


class DrawRandom(Syscall, tag="random"):
    """Answers a random number from 0 up to, but not including, 1."""

    returns: ClassVar[Any] = float


class Checkpoint(Syscall, tag="checkpoint"):
    """Replace the call history of a durable process by `state`; answers `state` once it is on disk.

    After a restart of the daemon, the first `Checkpoint` of the process ignores its own `state`, and answers the state
    that was stored last. A process that is not durable gets `state` back, and nothing is stored. Errors:
    `CheckpointRefused` while the process has other threads or living children; `NotEncodable`.
    """

    state: Body


DurableCalls = GetTime | DrawRandom | Checkpoint
