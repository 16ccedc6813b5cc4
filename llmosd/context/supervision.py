"""Links, monitors and supervised children, as an agent uses them."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec

from ipc.codec import reveal
from ipc.syscalls import Child, Demonitor, ExitStatus, Link, Monitor, Supervise, Unlink
from ipc.syscalls.supervision import Strategy
from llmosd.context.base import Caller


class SupervisionMethods(Caller):
    """Share another's fate, be told of it, or answer for it."""

    __slots__ = ()

    def link(self, pid: int) -> Coroutine[Any, Any, None]:
        """If this process or `pid` ends other than well, so does the other."""
        return self._gate.call(self._process, Link(pid))

    def unlink(self, pid: int) -> Coroutine[Any, Any, None]:
        """Undo `link`."""
        return self._gate.call(self._process, Unlink(pid))

    def monitor(self, pid: int) -> Coroutine[Any, Any, int]:
        """Be told of the end of `pid` by a message of type "down" whose correlation id is the number answered here.

        Its body is a `Down`: ref, pid, program, reason, error.
        """
        return self._gate.call(self._process, Monitor(pid))

    def demonitor(self, ref: int) -> Coroutine[Any, Any, None]:
        """Undo `monitor`; a message of it that was not read yet is taken back."""
        return self._gate.call(self._process, Demonitor(ref))

    async def supervise(
        self,
        children: Iterable[Child | str],
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        within: float = 5.0,
        backoff: float = 0.1,
        max_backoff: float = 5.0,
    ) -> list[ExitStatus]:
        """Start `children` (programs, or `Child` with arguments), restart those that end; how they ended for good.

        Raises `TooManyRestarts`. See `ipc.syscalls.Supervise`; none of them outlives the call.
        """
        specs = [Child(child) if isinstance(child, str) else child for child in children]
        call = Supervise(specs, strategy, max_restarts, within, backoff, max_backoff)
        ends: list[ExitStatus] = await self._gate.call(self._process, call)
        return [msgspec.structs.replace(end, value=reveal(end.value)) for end in ends]
