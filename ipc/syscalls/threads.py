"""Threads: more coroutines of a process; and how processes and threads are held and ranked."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ipc.syscalls.base import Syscall


class ThreadInfo(msgspec.Struct, frozen=True):
    """A thread. `path` says who started it: "0" is the first one, "0-2" the second one that that one started."""

    path: str
    name: str
    state: str
    waits_for: str
    priority: int
    cpu_seconds: float


class StartThread(Syscall, tag="start_thread"):
    """Run `coro` as one more thread of the caller; answers the thread. Errors: `InvalidCall`.

    Inside the daemon only, and in no union: a coroutine cannot be encoded.
    """

    coro: Any
    name: str | None = None
    returns: ClassVar[Any] = Any


class Threads(Syscall, tag="threads"):
    """The threads of process `pid`, oldest first. Errors: `UnknownProcess`."""

    pid: int
    returns: ClassVar[Any] = list[ThreadInfo]


class Suspend(Syscall, tag="suspend"):
    """Stop process `pid`, or one `thread` of it, at its next system call, and take its sequences off their slots.

    Errors: `UnknownProcess`, `UnknownThread`.
    """

    pid: int
    thread: str | None = None


class Resume(Syscall, tag="resume"):
    """Let what was suspended go on. A thread goes on when both it and its process may. Errors: as of `Suspend`."""

    pid: int
    thread: str | None = None


class Nice(Syscall, tag="nice"):
    """Set the priority of process `pid` with all its threads, or of one `thread`, to -20 (lowest) to 20; answers it.

    `relative`: change it by `priority`, kept within these bounds. Errors: `UnknownProcess`, `UnknownThread`.
    """

    pid: int
    priority: Annotated[int, Meta(ge=-40, le=40)]
    relative: bool = False
    thread: str | None = None
    returns: ClassVar[Any] = int


ThreadCalls = Threads | Suspend | Resume | Nice
