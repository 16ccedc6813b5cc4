"""Subprocesses of agents and tools, which are programs of Linux: how to end one, with all that it has started itself.

The belongings of processes call it. A subprocess gets SIGTERM first, as from a shell, and SIGKILL after a grace period.
This module never sends a signal to a pid that was given to another program.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

GRACE = 2.0  # seconds between SIGTERM and SIGKILL
MOST = 10_000  # descendants of one subprocess that end with it


class Subprocess:
    """A subprocess: a `subprocess.Popen`, or a transport of the loop."""

    __slots__ = ("_started", "_tree")

    def __init__(self, started: Any) -> None:
        self._started = started
        self._tree: list[psutil.Process] = []  # once it was terminated: what it had started

    @property
    def running(self) -> bool:
        """Whether it runs, or something that it had started before it was terminated."""
        return self._runs() or any(_is_running(below) for below in self._tree)

    def terminate(self) -> None:
        """Send SIGTERM to it and to all that it has started."""
        if self._runs():
            self._tree = list(descendants(self._pid))
            self._signal("terminate")

    def kill(self) -> None:
        """Send SIGKILL to those that still run."""
        if self._runs():
            self._tree += descendants(self._pid)
        self._signal("kill")
        if isinstance(self._started, subprocess.Popen):
            self._started.poll()  # otherwise it would stay a zombie

    @property
    def _pid(self) -> int:
        started = self._started
        return int(started.pid if isinstance(started, subprocess.Popen) else started.get_pid())

    def _runs(self) -> bool:
        started = self._started
        if isinstance(started, subprocess.Popen):
            return started.poll() is None
        return started.get_returncode() is None

    def _signal(self, method: str) -> None:
        if self._runs():
            with suppress(ProcessLookupError, PermissionError):
                getattr(self._started, method)()
        for below in self._tree:
            with suppress(psutil.Error):
                getattr(below, method)()


def descendants(pid: int) -> Iterator[psutil.Process]:
    """All subprocesses below `pid`, at any depth."""
    found, parents = 0, [pid]
    while parents and found < MOST:
        for child in _children(parents.pop()):
            parents.append(child)
            found += 1
            with suppress(psutil.Error):
                yield psutil.Process(child)


def _children(pid: int) -> list[int]:
    # psutil would read the state of every process of the machine.
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, path.read_text().split())
    return children


def _is_running(below: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(below.is_running() and below.status() != psutil.STATUS_ZOMBIE)
    return False
