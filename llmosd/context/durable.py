"""Time and random numbers that a replay repeats, and the checkpoint that replaces the call history."""

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
        """Seconds since the epoch. The replay of a durable agent returns the recorded time."""
        return self._gate.call(self._process, GetTime())

    def random(self) -> Coroutine[Any, Any, float]:
        """A random number from 0 up to, but not including, 1. The replay of a durable agent repeats it."""
        return self._gate.call(self._process, DrawRandom())

    async def checkpoint(self, state: Any = None) -> Any:
        """Replace the call history of a durable agent by `state`, and return `state`. Other agents just get it back.

        After a restart a durable agent runs from its top. Calls before its first checkpoint are made again, because
        their records are deleted. The first checkpoint returns the last stored state, whatever it is given. The calls
        after that state are replayed. So write a long loop like this:

            done = await ctx.checkpoint([])
            while ...:
                ...
                done = await ctx.checkpoint(done)

        A checkpoint costs one fsync, however long the history is. Names, subscriptions and memory are not changed.
        Raises `CheckpointRefused` while the process has other threads or living children; `NotEncodable`.
        """
        return reveal(await self._gate.call(self._process, Checkpoint(state)))
