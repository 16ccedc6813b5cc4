"""The outcomes of ended processes for which their parents have not waited yet.

`ProcessTable` adds the processes that it no longer remembers, and `wait` takes them out. A parent has the outcomes of
its children until it waits for them or ends. It never stores a process, only its exit status.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec

from ipc.syscalls import ExitStatus
from kernel.core.process import Process

MOST = 100_000  # outcomes of all parents together
BYTES = 128 * 1024 * 1024  # of their results and of the texts of their errors


class ChildOutcome(NamedTuple):
    """How a child ended. `critical_path` is that of the process, and `size` the bytes that count against `BYTES`."""

    parent: int
    status: ExitStatus
    critical_path: float
    size: int


class _Share:
    """The outcomes of the children of one parent, by pid and in the order of their ends, and their size in bytes."""

    __slots__ = ("pids", "size")

    def __init__(self) -> None:
        self.pids: OrderedDict[int, None] = OrderedDict()
        self.size = 0


class ChildOutcomes:
    """Outcomes by the pid of the child. If they are too many, the oldest are dropped.

    A parent that never waits thereby loses its own, not those of others: while it has more than an equal share of the
    bounds, each of its new outcomes replaces its oldest.
    """

    def __init__(self) -> None:
        self.size = 0
        self._outcomes: OrderedDict[int, ChildOutcome] = OrderedDict()
        self._shares: dict[int, _Share] = {}  # by pid of the parent

    def __len__(self) -> int:
        return len(self._outcomes)

    def add(self, process: Process) -> None:
        """Retain the outcome of `process`, which has ended and whose parent is alive."""
        status, parent = process.status, process.parent_pid
        assert status is not None
        outcome = ChildOutcome(parent, status, process.critical_path, _size(status))
        share = self._shares.get(parent)
        if share is None:
            share = self._shares[parent] = _Share()
        self._outcomes[process.pid] = outcome
        share.pids[process.pid] = None
        share.size += outcome.size
        self.size += outcome.size
        while len(self) > MOST or self.size > BYTES:
            most, size = MOST / len(self._shares), BYTES / len(self._shares)
            greedy = parent in self._shares and (len(share.pids) > most or share.size > size)
            self._drop(next(iter(share.pids if greedy else self._outcomes)))

    def find(self, parent: int, pid: int) -> ChildOutcome | None:
        """The outcome of child `pid` of process `parent`; None if there is none."""
        outcome = self._outcomes.get(pid)
        return outcome if outcome is not None and outcome.parent == parent else None

    def take(self, parent: int, pid: int) -> ChildOutcome | None:
        """The same, and remove it: the parent has waited for it."""
        outcome = self.find(parent, pid)
        if outcome is not None:
            self._drop(pid)
        return outcome

    def parent_ended(self, parent: int) -> None:
        """Drop the outcomes of the children of `parent`."""
        share = self._shares.get(parent)
        for pid in tuple(share.pids) if share is not None else ():
            self._drop(pid)

    def _drop(self, pid: int) -> None:
        outcome = self._outcomes.pop(pid)
        self.size -= outcome.size
        share = self._shares[outcome.parent]
        del share.pids[pid]
        share.size -= outcome.size
        if not share.pids:
            del self._shares[outcome.parent]


def _size(status: ExitStatus) -> int:
    """The bytes of the result and of the texts of the error."""
    value, error = status.value, status.error
    size = len(value) if isinstance(value, str | bytes | msgspec.Raw) else 0
    if error is not None:
        size += len(error.message) + sum(len(fact) for fact in error.data.values() if isinstance(fact, str))
    return size
