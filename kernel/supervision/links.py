"""The link subsystem: linked processes end together, and a monitor reports the end of one process to another.

The gate calls its handlers, and the kernel reports every end of a process to it, whatever the reason. A link or monitor
never outlives the process that holds it.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TypeVar

from ipc.errors import InvalidCall, LimitExceeded
from ipc.syscalls import DOWN, Demonitor, Down, ExitStatus, Link, Monitor, Spawn, Unlink
from kernel.core.process import Process
from kernel.core.process_table import ProcessTable
from kernel.gate import Gate
from kernel.messages.messaging import Messaging
from kernel.processes.exit import ProcessExit

Key = TypeVar("Key")
Item = TypeVar("Item")

MOST_MONITORS = 200_000  # of one process: as many as processes can live
ABNORMAL = "linked"  # reason of an end that a link caused
NO_CLIENTS = "the connection of a client cannot be linked; use monitor or wait instead"


class Links:
    """Links go both ways, monitors one way. A process with neither costs nothing.

    `expected`: the pids of durable processes that have not restarted yet.

    `Links` is one of the admissions of the lifecycle, because `Spawn` can link a new process to its parent.
    """

    sees_all = False

    def __init__(
        self, table: ProcessTable, gate: Gate, messaging: Messaging, process_exit: ProcessExit, expected: Container[int]
    ) -> None:
        self._table = table
        self._messaging = messaging
        self._process_exit = process_exit
        self._links: dict[Process, dict[Process, None]] = {}
        self._monitors: dict[int, tuple[Process, Process]] = {}  # by reference: the holder and the target
        self._refs_of_holder: dict[Process, dict[int, None]] = {}
        self._refs_of_target: dict[Process, dict[int, None]] = {}
        self._last_ref = 0
        self._expected = expected
        gate.register(
            {Link: self.link, Unlink: self.unlink, Monitor: self.monitor, Demonitor: self.demonitor},
        )

    def link(self, process: Process, call: Link) -> None:
        self._link(process, self._table.get(call.pid))

    def unlink(self, process: Process, call: Unlink) -> None:
        peer = self._table.alive.get(call.pid)
        if peer is not None:
            _drop(self._links, process, peer)
            _drop(self._links, peer, process)

    def monitor(self, process: Process, call: Monitor, ref: int = 0) -> int:
        """Report the end of a process to `process`. Returns the monitor's reference: `ref`, or a new one if it is 0."""
        if call.pid == process.pid:
            raise InvalidCall(f"process {process.pid} cannot monitor itself: a process that ended gets no message")
        target = self._table.alive.get(call.pid) or self._table.ended.get(call.pid)
        known = type(call.pid) is int and 0 < call.pid <= self._table.pids.last and call.pid not in self._expected
        if target is None and not known:
            raise self._table.unknown(call.pid)
        unread = 0 if process.mailbox is None else process.mailbox.control_count
        if len(self._refs_of_holder.get(process, ())) + unread >= MOST_MONITORS:
            raise LimitExceeded(
                f"process {process.pid} has {MOST_MONITORS} monitors and unread messages of monitors, the limit; "
                "remove or receive some",
                limit="process monitors",
                maximum=MOST_MONITORS,
                wanted=MOST_MONITORS + 1,
            )
        if not ref:
            self._last_ref += 1
            ref = self._last_ref
        if target is None:
            outcome = self._table.outcomes.find(process.pid, call.pid)  # of a child that ended long ago
            status = ExitStatus(call.pid, "", "unknown") if outcome is None else outcome.status
            self._notify(process, _down(ref, status))
        elif target.status is not None:
            self._notify(process, _down(ref, target.status))
        else:
            self._monitors[ref] = process, target
            self._refs_of_holder.setdefault(process, {})[ref] = None
            self._refs_of_target.setdefault(target, {})[ref] = None
        return ref

    def demonitor(self, process: Process, call: Demonitor) -> None:
        holder, target = self._monitors.get(call.ref, (None, None))
        if holder is process and target is not None:
            del self._monitors[call.ref]
            _drop(self._refs_of_holder, process, call.ref)
            _drop(self._refs_of_target, target, call.ref)
        self._messaging.take_back(process, DOWN, call.ref)

    # ---- for the lifecycle

    def admit(self, parent: Process, call: Spawn) -> None:
        """Raises `InvalidCall` if `call` asks for a link to a parent that cannot have one."""
        if call.link and parent.is_client:
            raise InvalidCall(NO_CLIENTS)

    def admitted(self, process: Process, parent: Process, call: Spawn) -> None:
        """Link a new process to `parent`, if `call` asks for it."""
        if call.link:
            self._link(parent, process)

    def process_ended(self, process: Process) -> None:
        status = process.status
        assert status is not None
        for ref in self._refs_of_holder.pop(process, ()):
            _drop(self._refs_of_target, self._monitors.pop(ref)[1], ref)
        for ref in self._refs_of_target.pop(process, ()):
            holder, _ = self._monitors.pop(ref)
            _drop(self._refs_of_holder, holder, ref)
            assert process.status is not None
            self._notify(holder, _down(ref, process.status))
        for peer in self._links.pop(process, ()):
            _drop(self._links, peer, process)
            if status.reason != "done":
                # `end` does not wait for threads to end, so this recurses only along processes that have no threads.
                self._process_exit.end(
                    peer,
                    ABNORMAL,
                    f"process {process.pid} ({process.program}), to which it was linked, {_describe_end(process)}",
                )

    # ---- inside

    def _link(self, process: Process, peer: Process) -> None:
        if process is peer:
            raise InvalidCall(f"process {process.pid} cannot be linked to itself")
        if process.is_client or peer.is_client:
            raise InvalidCall(NO_CLIENTS)
        self._links.setdefault(process, {})[peer] = None
        self._links.setdefault(peer, {})[process] = None

    def _notify(self, process: Process, down: Down) -> None:
        self._messaging.notify(process, DOWN, down, sender=down.pid, correlation=down.ref)


def _down(ref: int, status: ExitStatus) -> Down:
    return Down(ref, status.pid, status.program, status.reason, status.error)


def _describe_end(process: Process) -> str:
    status = process.status
    assert status is not None
    why = "" if status.error is None else f": {status.error.message}"
    return f"ended ({status.reason}{why})"


def _drop(table: dict[Key, dict[Item, None]], key: Key, item: Item) -> None:
    """Remove `item` from the row of `key`, and the row from `table` when it is empty."""
    row = table.get(key)
    if row is not None:
        row.pop(item, None)
        if not row:
            del table[key]
