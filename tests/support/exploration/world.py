"""The world of one seed: a kernel on a loop of its own, its actors, its visitors, and the dice.

Made by `tests/unit/test_interleavings.py` for each seed. It holds the objects that
steps act on, and never decides a step: `play`, `cast` and `visitors` do.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

from ipc.syscalls import Limits, Spawn
from kernel.core.process import Process, Thread
from kernel.models.spec import ModelSpec
from tests.support.boot import UNWRITABLE, boot
from tests.support.exploration import inside
from tests.support.exploration.ledger import Ledger
from tests.support.exploration.schedule import SeededLoop
from tests.support.simulated import FAST

if TYPE_CHECKING:
    from tests.support.exploration.visitors import Visitor

TIMES = (0, 0, 0.5, 1, 1, 2, 3)  # few, so that much happens at the same moment
COSTS = FAST | {"step_seconds": 0.5}


class World:
    """`steps`: how many all actors together may still take. Each step is written into `traced`, if there is one."""

    def __init__(self, loop: SeededLoop, chance: Random, traced: list[str] | None) -> None:
        self.loop = loop
        self.chance = chance
        model = ModelSpec(driver="simulated", slots=chance.choice([1, 2]), lease=2, options=COSTS)
        self.system = boot(UNWRITABLE, models={"sim": model})
        self.kernel = kernel = self.system.kernel
        kernel.supervision._chance = chance.random
        self.launcher = self.system.launcher
        self.ledger = Ledger(kernel)
        self.visitors: list[Visitor] = []
        self.traced = traced
        self.steps = 0
        self.most_alive = chance.choice([5, 8, 14])
        self.playing = asyncio.Event()  # cleared while all come to rest
        self.pids = [self.system.client.pid]  # of all processes there ever were
        self.endless = chance.choice([0.05, 0.25, 0.6])  # share of the waits that have no time limit
        self.focus = chance.choice([0, 0.5, 0.9])  # share of the steps that act on the two oldest processes
        loop.set_exception_handler(self._unhandled)

    @property
    def client(self) -> Process:
        """The client that the play makes calls as, or a new one after an actor has killed it."""
        if self.system.client.dying:
            self.system.client = self.kernel.lifecycle.open_client("test")
            self.pids.append(self.system.client.pid)
        return self.system.client

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error, future = context.get("exception"), context.get("future")
        if future is not None and not isinstance(future, Thread):
            return  # an agent's own: the agent was abandoned before it read the error
        self.ledger.problems.append(f"the loop caught: {context['message']}: {error!r}")

    def problem(self, what: str) -> None:
        self.ledger.problems.append(what)

    def trace(self, *words: Any) -> None:
        if self.traced is not None:
            self.traced.append(f"{self.loop.time() - 1000:6.2f}  " + " ".join(map(str, words)))

    def in_use(self, name: str) -> bool:
        """Whether a thread holds or waits for the object of this name."""
        one = inside.named(self.kernel).get(name)
        return one is not None and not one.idle

    def was_struck(self, thread: Thread) -> bool:
        """Whether only the schedule cancelled `thread`, so that it may go on."""
        struck = inside.dispatcher(self.kernel).struck
        if thread not in struck:
            return False
        struck.discard(thread)
        thread.uncancel()
        return not thread.process.dying and not thread.cancelling()

    # ---- the dice

    def time(self) -> float:
        return self.chance.choice(TIMES)

    def patience(self) -> float | None:
        """A timeout, or sometimes none."""
        return None if self.chance.random() < self.endless else self.time()

    def maybe(self, share: float) -> bool:
        return self.chance.random() < share

    def anyone(self, but: int = 0) -> int:
        """The pid of a process, mostly of a living one other than `but`."""
        table = self.kernel.table.alive
        alive = [pid for pid, process in table.items() if not process.is_client and pid != but]
        if not alive or self.maybe(0.05):
            return self.chance.choice(self.pids)
        return self.chance.choice(alive[:2] if self.maybe(self.focus) else alive)

    # ---- for the play and the visitors

    def child(self, *, detach: bool = False, name: str | None = None, credit: int = 0, link: bool = False) -> Spawn:
        """The call that starts another actor."""
        return Spawn(
            "actor",
            {"steps": self.chance.choice([3, 10, 30])},
            priority=self.chance.choice([None, None, 0, 5, -5]),
            deadline=self.chance.choice([None, None, None, 3.0]),
            detach=detach,
            name=name,
            credit=credit,
            link=link,
            limits=Limits(mailbox=self.chance.choice([1, 2, 5])),
        )

    @property
    def crowded(self) -> bool:
        return len(self.kernel.table.alive) >= self.most_alive
