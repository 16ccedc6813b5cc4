"""What a durable agent gets again after a restart, and the checkpoint that cuts what is kept of it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from ipc.codec import reveal
from ipc.syscalls import Checkpoint, DrawRandom, GetTime
from llmosd.context.base import Caller


class DurableMethods(Caller):
    """Time, random numbers and checkpoints."""

    __slots__ = ()

    def time(self) -> Coroutine[Any, Any, float]:
        """Seconds since the epoch. A durable agent is told the same again when it is replayed."""
        return self._gate.call(self._process, GetTime())

    def random(self) -> Coroutine[Any, Any, float]:
        """A random number from 0 to 1, 1 excluded. A durable agent is given the same again when it is replayed."""
        return self._gate.call(self._process, DrawRandom())

    async def checkpoint(self, state: Any = None) -> Any:
        """Keep `state` in place of all calls so far, and return it; for an agent that is not durable, just return it.

        After a restart a durable agent runs from its top, and calls before its first checkpoint are made anew, as those
        of then are forgotten. That checkpoint returns the state that was kept last, whatever it is given, and what was
        called after that is replayed. So a loop that may be long goes

            done = await ctx.checkpoint([])
            while ...:
                ...
                done = await ctx.checkpoint(done)

        Costs one fsync, whatever the size of what it cuts. Names, subscriptions and memory stay. Raises
        `CheckpointRefused` while the process has other threads, or children that run; `NotEncodable`.
        """
        return reveal(await self._gate.call(self._process, Checkpoint(state)))
