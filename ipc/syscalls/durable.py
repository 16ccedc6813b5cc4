"""Calls whose answers a durable agent gets again after a restart, and the one that cuts what is kept of it."""

from __future__ import annotations

from typing import Any, ClassVar

from ipc.syscalls.base import Body, Syscall


class GetTime(Syscall, tag="time"):
    """The time by the clock of the machine: seconds since the epoch."""

    returns: ClassVar[Any] = float


class DrawRandom(Syscall, tag="random"):
    """A random number from 0 to 1, which itself never comes."""

    returns: ClassVar[Any] = float


class Checkpoint(Syscall, tag="checkpoint"):
    """Keep `state` of a durable process in place of all its calls so far, and answer it.

    The first checkpoint that the process comes to after a restart answers what the last one kept. For any other process
    it answers `state` and does nothing. Errors: `CheckpointRefused` while it has other threads or children, and
    `NotEncodable`.
    """

    state: Body


DurableCalls = GetTime | DrawRandom | Checkpoint
