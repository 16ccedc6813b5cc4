"""Supervision: the calls of an agent for links, monitors and supervised children."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec

from ipc.codec import reveal
from ipc.syscalls import Child, Demonitor, ExitStatus, Link, Monitor, Supervise, Unlink
from ipc.syscalls.supervision import Strategy
from llmosd.context.base import AgentFunction, Caller, list_of


class SupervisionMethods(Caller):
    """End together with another process, learn of its end, or restart it."""

    __slots__ = ()

    def link(self, pid: int) -> Coroutine[Any, Any, None]:
        """Link this process and process `pid`: if one ends for any reason but "done", the other is ended."""
        return self._gate.call(self._process, Link(pid))

    def unlink(self, pid: int) -> Coroutine[Any, Any, None]:
        """Undo `link`."""
        return self._gate.call(self._process, Unlink(pid))

    def monitor(self, pid: int) -> Coroutine[Any, Any, int]:
        """Report the end of `pid` to this process by a message. Returns a reference for `demonitor`.

        The message has the type "down", the reference as its correlation id, and a `Down` as its body: `ref`, `pid`,
        `program`, `reason`, `error`.
        """
        return self._gate.call(self._process, Monitor(pid))

    def demonitor(self, ref: int) -> Coroutine[Any, Any, None]:
        """Undo `monitor`. An unread message of this monitor is removed from the mailbox."""
        return self._gate.call(self._process, Demonitor(ref))

    async def supervise(
        self,
        children: Iterable[Child | str | AgentFunction],
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        within: float = 5.0,
        backoff: float = 0.1,
        max_backoff: float = 5.0,
    ) -> list[ExitStatus]:
        """Start `children`, and restart those that end. Returns their exit statuses.

        A child is a `Child`, the name of a program, or an agent function, as for `spawn`. The `program` of a `Child`
        may be a function, too.

        Returns when all children have ended for good. Raises `TooManyRestarts` if more than `max_restarts` restarts
        would be needed within `within` seconds; all children have ended before. If the call is cancelled, it begins to
        end them and does not wait. `ipc.syscalls.Supervise` explains `strategy` and the pauses.
        """
        specs = [self._child(child) for child in list_of(children, "children of supervise")]
        call = Supervise(specs, strategy, max_restarts, within, backoff, max_backoff)
        ends: list[ExitStatus] = await self._gate.call(self._process, call)
        return [msgspec.structs.replace(end, value=reveal(end.value)) for end in ends]

    def _child(self, child: Child | str | AgentFunction) -> Child:
        if isinstance(child, Child):
            return msgspec.structs.replace(child, program=self._program_name(child.program))
        return Child(self._program_name(child))
