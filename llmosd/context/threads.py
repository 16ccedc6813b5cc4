"""More threads of the process, as an agent starts them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ipc.errors import LlmosError
from ipc.syscalls import StartThread
from llmosd.context.base import Caller

if TYPE_CHECKING:  # who only talks to a daemon, or only marks agents, need not pay for asyncio
    import asyncio


class ThreadCalls(Caller):
    """Several coroutines in one process."""

    __slots__ = ()

    def start_thread(self, coro: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Future[Any]:
        """Run `coro` as one more thread of this process: same memory, same mailbox, and it ends with the process.

        What comes back can be awaited for its result, and cancelled. If the thread fails while nobody awaits it, the
        process ends with its error: no failure goes unseen.
        """
        try:
            thread: asyncio.Future[Any] = self._gate.call_now(self._process, StartThread(coro, name))
        except LlmosError:
            if isinstance(coro, Coroutine):
                coro.close()
            raise
        return thread
