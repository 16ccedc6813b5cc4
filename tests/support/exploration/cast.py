"""The cast of one seed: the kinds of steps that its actors take, and how often they take each.

Called by `play`, once for each world.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from llmosd.context import Context
from tests.support.exploration import lives, locks, messages, work
from tests.support.exploration.world import World

SHARES = {**messages.SHARES, **locks.SHARES, **lives.SHARES, **work.SHARES}
ALWAYS = ("start_thread", "end_thread", "gather", "limited", "kill", "suspend", "resume", "nice", "sleep", "give_way")
THEMES = [
    set(SHARES),
    {*messages.SHARES, *ALWAYS},
    {*locks.SHARES, *ALWAYS},
    {"generate", "emit", "send", *ALWAYS},
    {*lives.SHARES, "stubborn", "register", "subscribe", *ALWAYS},
]


class Player(messages.Messages, locks.Locks, lives.Lives, work.Work):
    """An actor that can do everything."""


def program(world: World) -> Callable[..., Coroutine[Any, Any, int]]:
    """The program that all actors of `world` run.

    Each seed has a theme: its actors take some kinds of steps often and others never, because otherwise they would
    seldom meet (Groce et al., "Swarm Testing", 2012).
    """
    theme = world.chance.choice(THEMES)
    kinds = [kind for kind in SHARES if kind in theme]
    liked = [SHARES[kind] * world.chance.choice([0, 1, 1, 4]) for kind in kinds]
    shares = list(itertools.accumulate(liked if any(liked) else (SHARES[kind] for kind in kinds)))

    async def actor(ctx: Context, steps: int) -> int:
        world.pids.append(ctx.pid)
        await Player(world, ctx, kinds, shares).live(steps)
        if ctx.pid % 3:
            await asyncio.Event().wait()  # stays alive, so that the invariants can inspect it
        return ctx.pid

    return actor
