"""Whether a daemon is starting that will soon listen at a socket.

Asked by a client that finds no daemon there. Such a daemon holds the lock beside the socket or, before that, is an
`llmosd` of this user that has no such lock yet. This module never waits, and never disturbs a daemon.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from ipc import daemon_lock

COMMAND = "llmosd"
PROCESSES = Path("/proc")


def starting(socket: Path, known: int = 0) -> int | None:
    """The pid of the daemon that is starting at `socket`, 0 if unknown, or None if there is no such daemon.

    `known`: the pid that an earlier call returned, which is examined first.
    """
    pid = daemon_lock.holder(daemon_lock.lock_path(socket))
    if pid is not None:
        return pid
    if known and _may_start_at(known, socket):
        return known
    return next((pid for pid in _own_processes() if _may_start_at(pid, socket)), None)


def _own_processes() -> Iterable[int]:
    with contextlib.suppress(OSError), os.scandir(PROCESSES) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and entry.stat().st_uid == os.geteuid():
                    yield int(entry.name)


def _may_start_at(pid: int, socket: Path) -> bool:
    """Whether process `pid` is an `llmosd` that may be about to listen at `socket`."""
    try:
        arguments = os.fsdecode((PROCESSES / str(pid) / "cmdline").read_bytes()).split("\0")
        # The first argument names a program, and the second one the script of an interpreter.
        if COMMAND not in (os.path.basename(argument) for argument in arguments[:2]):
            return False
        named = _option("--socket", arguments)
        if named is not None:
            folder = os.readlink(PROCESSES / str(pid) / "cwd")
            if os.path.realpath(os.path.join(folder, named)) != os.path.realpath(socket):
                return False
        locks = _open_locks(PROCESSES / str(pid) / "fd")
    except OSError:  # it has ended
        return False
    return not locks or os.path.realpath(daemon_lock.lock_path(socket)) in locks


def _open_locks(descriptors: Path) -> list[str]:
    """The lock files that a process has open. An `llmosd` that has none of a socket has not begun to listen."""
    links = []
    for number in os.listdir(descriptors):
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(os.readlink(descriptors / number))
    return [link for link in links if link.endswith((".lock", ".lock (deleted)"))]


def _option(name: str, arguments: list[str]) -> str | None:
    """The value of an option; the last one counts."""
    value = None
    for place, argument in enumerate(arguments):
        if argument == name and place + 1 < len(arguments):
            value = arguments[place + 1]
        elif argument.startswith(name + "="):
            value = argument.removeprefix(name + "=")
    return value
