"""Time and random numbers, which a replay repeats, and the checkpoint, which replaces the call history."""

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
        """Replace the call history of a durable agent by `state`, and return `state`.

        An agent that is not durable gets `state` back, and nothing is stored.

        After a restart of the daemon, a durable agent runs from its first line. The calls before its first checkpoint
        are made again, because the checkpoint deleted their records. Then the first checkpoint ignores its argument and
        returns the state that was stored last. The calls that were recorded after that state are replayed. So write a
        long loop like this:

            done = await ctx.checkpoint([])
            while ...:
                ...
                done = await ctx.checkpoint(done)

        A checkpoint costs one fsync, however long the history is. Names, subscriptions and memory are not changed.
        Raises `CheckpointRefused` while the process has other threads or living children; `NotEncodable`.
        """
        return reveal(await self._gate.call(self._process, Checkpoint(state)))
