"""Synchronisation: locks and their kin, named and shared by all processes."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from ipc.syscalls.base import Syscall


class LockInfo(msgspec.Struct, frozen=True):
    """A lock, semaphore, condition, barrier or event (`kind`): its state in words, who holds it, who waits (pids)."""

    kind: str
    name: str
    state: str
    holders: list[int]
    waiters: list[int]


class Locks(Syscall, tag="locks"):
    """All of them that are held or waited for."""

    returns: ClassVar[Any] = list[LockInfo]


SyncCalls = Locks
