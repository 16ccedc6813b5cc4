"""The link subsystem: who dies with whom, and who is told of an end.

Its handlers are called by the gate. Both are told of every way a process can end; neither outlives its holder.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TypeVar

from ipc.errors import InvalidCall
from ipc.syscalls import DOWN, Demonitor, Down, Link, Monitor, Spawn, Unlink
from kernel.core.process import Process
from kernel.core.process_table import ProcessTable
from kernel.gate import Gate
from kernel.messages.messaging import Messaging
from kernel.processes.exit import ProcessExit

Key = TypeVar("Key")
Item = TypeVar("Item")

ABNORMAL = "linked"  # reason of an end that came over a link
NO_CLIENTS = "the connection of a client cannot be linked; let it monitor or wait"


class Links:
    """Links go both ways, monitors one way. Processes without either cost nothing.

    `expected`: pids of processes that are to begin again.

    One of the admissions of the lifecycle, as a process may begin with a link to its parent.
    """

    of_all = False

    def __init__(
        self, table: ProcessTable, gate: Gate, messaging: Messaging, process_exit: ProcessExit, expected: Container[int]
    ) -> None:
        self._table = table
        self._messaging = messaging
        self._process_exit = process_exit
        self._links: dict[Process, dict[Process, None]] = {}
        self._monitors: dict[int, tuple[Process, Process]] = {}  # by reference: who is told, of whom
        self._held: dict[Process, dict[int, None]] = {}  # references, by who is told
        self._watched: dict[Process, dict[int, None]] = {}  # references, by whom they are of
        self._last_ref = 0
        self._expected = expected
        gate.register(
            {Link: self.link, Unlink: self.unlink, Monitor: self.monitor, Demonitor: self.demonitor},
        )

    def link(self, process: Process, call: Link) -> None:
        self._tie(process, self._table.get(call.pid))

    def unlink(self, process: Process, call: Unlink) -> None:
        peer = self._table.alive.get(call.pid)
        if peer is not None:
            _drop(self._links, process, peer)
            _drop(self._links, peer, process)

    def monitor(self, process: Process, call: Monitor, ref: int = 0) -> int:
        """With a `ref` of its own if that is not 0."""
        if call.pid == process.pid:
            raise InvalidCall(f"process {process.pid} monitors itself, and could not be told")
        target = self._table.alive.get(call.pid) or self._table.ended.get(call.pid)
        known = type(call.pid) is int and 0 < call.pid <= self._table.last_pid and call.pid not in self._expected
        if target is None and not known:
            raise self._table.unknown(call.pid)
        if not ref:
            self._last_ref += 1
            ref = self._last_ref
        if target is None:
            self._tell(process, Down(ref, call.pid, "", "unknown"))
        elif target.status is not None:
            self._tell(process, _down(ref, target))
        else:
            self._monitors[ref] = process, target
            self._held.setdefault(process, {})[ref] = None
            self._watched.setdefault(target, {})[ref] = None
        return ref

    def demonitor(self, process: Process, call: Demonitor) -> None:
        holder, target = self._monitors.get(call.ref, (None, None))
        if holder is process and target is not None:
            del self._monitors[call.ref]
            _drop(self._held, process, call.ref)
            _drop(self._watched, target, call.ref)
        self._messaging.take_back(process, DOWN, call.ref)

    # ---- for the lifecycle

    def admit(self, parent: Process, call: Spawn) -> None:
        """Whether a new process can be linked to `parent`, if it is to be. Raises `InvalidCall`."""
        if call.link and parent.is_client:
            raise InvalidCall(NO_CLIENTS)

    def begun(self, process: Process, parent: Process, call: Spawn) -> None:
        """Link a new process to `parent`, if it is to be."""
        if call.link:
            self._tie(parent, process)

    def process_ended(self, process: Process) -> None:
        status = process.status
        assert status is not None
        for ref in self._held.pop(process, ()):
            _drop(self._watched, self._monitors.pop(ref)[1], ref)
        for ref in self._watched.pop(process, ()):
            holder, _ = self._monitors.pop(ref)
            _drop(self._held, holder, ref)
            self._tell(holder, _down(ref, process))
        for peer in self._links.pop(process, ()):
            _drop(self._links, peer, process)
            if status.reason != "done":
                # Only begins its end: a long line of links is no deep recursion, unless it has no thread at all.
                self._process_exit.end(
                    peer,
                    ABNORMAL,
                    f"process {process.pid} ({process.program}), to which it was linked, {_how(process)}",
                )

    # ---- inside

    def _tie(self, process: Process, peer: Process) -> None:
        if process is peer:
            raise InvalidCall(f"process {process.pid} cannot be linked to itself")
        if process.is_client or peer.is_client:
            raise InvalidCall(NO_CLIENTS)
        self._links.setdefault(process, {})[peer] = None
        self._links.setdefault(peer, {})[process] = None

    def _tell(self, process: Process, news: Down) -> None:
        self._messaging.notify(process, DOWN, news, sender=news.pid, correlation=news.ref)


def _down(ref: int, process: Process) -> Down:
    status = process.status
    assert status is not None
    return Down(ref, process.pid, process.program, status.reason, status.error)


def _how(process: Process) -> str:
    status = process.status
    assert status is not None
    why = "" if status.error is None else f": {status.error.message}"
    return f"ended ({status.reason}{why})"


def _drop(table: dict[Key, dict[Item, None]], key: Key, item: Item) -> None:
    """Take `item` out of the row of `key`, and the row out of `table` when it is empty."""
    row = table.get(key)
    if row is not None:
        row.pop(item, None)
        if not row:
            del table[key]
