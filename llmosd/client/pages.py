"""Reads listings page by page, for both clients: an answer of the daemon has a bounded number of rows.

A client asks `pages` for each of its requests. A call that sets the cursor of its listing itself gets one page, as it
asked. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ipc.syscalls import (
    FinishedCalls,
    History,
    Locks,
    MemoryKeys,
    Names,
    PeekMailbox,
    Programs,
    Ps,
    Regions,
    Syscall,
    Threads,
    Tools,
)

# How to ask for the rows after `rows`: the fields of the call that change.
Cursor = Callable[[list[Any]], dict[str, Any]]
NEXT: dict[type[Syscall], Cursor] = {
    Ps: lambda rows: {"start": rows[-1].pid + 1},
    History: lambda rows: {"before": rows[-1].id},
    FinishedCalls: lambda rows: {"after": rows[-1].number},
    PeekMailbox: lambda rows: {"start": len(rows)},
}
NEXT |= dict.fromkeys((Locks, Names, Regions), lambda rows: {"after": rows[-1].name})
NEXT |= dict.fromkeys((MemoryKeys, Programs, Threads, Tools), lambda rows: {"start": len(rows)})

# The fields of the first page, for calls that otherwise ask for all rows in one answer.
FIRST: dict[type[Syscall], dict[str, Any]] = {kind: {"after": ""} for kind in (Locks, Names, Regions)}
FIRST |= {kind: {"start": 0} for kind in (MemoryKeys, Programs, Threads, Tools)}


class Pages:
    """The pages of one listing. `call` asks for the next page; None after the last one. `rows`: all rows so far."""

    def __init__(self, call: Syscall) -> None:
        self.rows: list[Any] = []
        self._last: list[Any] = []  # the rows of the last page
        self._limit: int | None = getattr(call, "limit", None)
        self._next = NEXT[type(call)]
        self.call: Syscall | None = self._ask(call, FIRST.get(type(call), {}))

    def add(self, rows: list[Any]) -> None:
        """Take the answer to `call`."""
        asked = self.call
        assert asked is not None
        if rows == self._last:  # a daemon of an earlier version answers the same to any cursor
            self.call = None
            return
        self._last = rows
        self.rows += rows
        full = len(rows) >= getattr(asked, "limit", asked.page)
        done = not full or not rows or (self._limit is not None and len(self.rows) >= self._limit)
        self.call = None if done else self._ask(asked, self._next(self.rows))

    def _ask(self, call: Syscall, changes: dict[str, Any]) -> Syscall:
        if self._limit is not None:
            changes = changes | {"limit": min(self._limit - len(self.rows), call.page)}
        return msgspec.structs.replace(call, **changes)


def pages(call: Syscall) -> Pages | None:
    """The pages of the listing that `call` asks for; None if it asks for no listing, or for one page of it."""
    kind = type(call)
    if kind not in NEXT:
        return None
    if kind in FIRST:
        return Pages(call) if all(getattr(call, field) is None for field in FIRST[kind]) else None
    limit = getattr(call, "limit", None)
    return Pages(call) if limit is None or (isinstance(limit, int) and limit > 0) else None
