"""The belongings of processes: servers, connections, watched descriptors and subprocesses.

The guarded loop and the guard of `subprocess` add to them. When a process has ended, its servers and connections are
closed, and its subprocesses get SIGTERM, and SIGKILL after a grace period. Only processes that open something have an
entry. It never closes anything of a process that runs.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from contextlib import suppress
from typing import Any

import structlog

from kernel.core.process import Process
from kernel.event_loop.subprocesses import GRACE, Subprocess

CHECK = 0.02  # seconds between two looks at subprocesses that got SIGTERM, at the end of the daemon

log = structlog.get_logger("kernel.event_loop")


class _Entry:
    """The belongings of one process."""

    def __init__(self) -> None:
        self.open: weakref.WeakSet[Any] = weakref.WeakSet()  # servers and transports
        self.subprocesses: list[Subprocess] = []
        self.look_at = 16  # when there are so many subprocesses, those that have ended are dropped
        self.descriptors: set[tuple[str, int]] = set()


class Belongings:
    """The belongings of all processes. Tools add to them from their own threads."""

    def __init__(self) -> None:
        self.entries: dict[Process, _Entry] = {}
        self._protocols: weakref.WeakKeyDictionary[Any, Process] = weakref.WeakKeyDictionary()
        self._descriptors: dict[tuple[str, int], Process] = {}
        self._ending: list[Subprocess] = []
        self._lock = threading.Lock()

    # ---- additions

    def add(self, process: Process, thing: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Add a server or a transport. If the process has ended, close it."""
        if hasattr(thing, "get_pid"):
            self.add_subprocess(process, Subprocess(thing), loop)
        elif process.status is not None:
            _close(thing)
        else:
            with self._lock, suppress(TypeError):  # what cannot be referred to weakly
                self._entry(process).open.add(thing)
            self._check_alive(process, loop)

    def add_subprocess(self, process: Process, started: Subprocess, loop: asyncio.AbstractEventLoop | None) -> None:
        """Add a subprocess of `process`. If the process has ended, end the subprocess."""
        if process.status is not None:
            self._end([started], loop)
            return
        with self._lock:
            entry = self._entry(process)
            entry.subprocesses.append(started)
            if len(entry.subprocesses) >= entry.look_at:
                entry.subprocesses = [each for each in entry.subprocesses if each.running]
                entry.look_at = 2 * len(entry.subprocesses) + 16
        self._check_alive(process, loop)

    def add_descriptor(self, process: Process, kind: str, number: int) -> None:
        """Add a descriptor that the loop watches for `process`. `kind` is "reader" or "writer"."""
        self.forget(kind, number)
        self._descriptors[kind, number] = process
        self._entry(process).descriptors.add((kind, number))

    def forget(self, kind: str, number: int) -> None:
        """The loop watches a descriptor no longer."""
        process = self._descriptors.pop((kind, number), None) if self._descriptors else None
        if process is not None and (entry := self.entries.get(process)) is not None:
            entry.descriptors.discard((kind, number))

    def own(self, protocol: Any, process: Process) -> None:
        """Remember the owner of a protocol."""
        with suppress(TypeError):  # one that cannot be referred to weakly
            self._protocols[protocol] = process

    def owner_of(self, protocol: Any) -> Process | None:
        """The owner of a protocol."""
        try:
            return self._protocols.get(protocol)
        except TypeError:
            return None

    # ---- the end

    def process_ended(self, process: Process, loop: asyncio.AbstractEventLoop | None) -> None:
        """Close the servers and connections of the process, and begin to end its subprocesses."""
        with self._lock:
            entry = self.entries.pop(process, None)
        if entry is None:
            return
        for kind, number in tuple(entry.descriptors):
            with suppress(OSError, ValueError):
                assert loop is not None  # only the loop adds descriptors
                loop.remove_reader(number) if kind == "reader" else loop.remove_writer(number)
            self._descriptors.pop((kind, number), None)
        for thing in tuple(entry.open):
            _close(thing)
        self._end([each for each in entry.subprocesses if each.running], loop)

    async def close(self) -> None:
        """Kill the subprocesses that have not ended after their grace period."""
        until = time.monotonic() + GRACE
        while (ending := [each for each in self._ending if each.running]) and time.monotonic() < until:
            await asyncio.sleep(CHECK)
        self._kill(ending)

    def _check_alive(self, process: Process, loop: asyncio.AbstractEventLoop | None) -> None:
        """A tool may add something in its thread just while its process ends."""
        if process.status is not None:
            self.process_ended(process, loop)

    def _end(self, ending: list[Subprocess], loop: asyncio.AbstractEventLoop | None) -> None:
        if not ending:
            return
        for each in ending:
            each.terminate()
        with self._lock:  # a tool may end a subprocess in its own thread
            self._ending += ending
        with suppress(RuntimeError):  # the loop is closed
            if loop is not None:
                loop.call_soon_threadsafe(loop.call_later, GRACE, self._kill, ending)

    def _kill(self, ended: list[Subprocess]) -> None:
        for each in ended:
            each.kill()
        with self._lock:
            self._ending = [each for each in self._ending if each not in ended and each.running]

    def _entry(self, process: Process) -> _Entry:
        entry = self.entries.get(process)
        if entry is None:
            entry = self.entries[process] = _Entry()
        return entry


def _close(thing: Any) -> None:
    """Close a server, or abort a connection."""
    close = getattr(thing, "abort", None) or getattr(thing, "close", None)
    try:
        if close is not None:
            close()
    except Exception as error:
        log.warning("cannot close what an ended process had opened", what=repr(thing), error=repr(error))


BELONGINGS = Belongings()  # one for all kernels: the guard of `subprocess` has no other way to it
