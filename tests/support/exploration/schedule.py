"""A seeded schedule: the seed decides which ready thread is next, how long a turn is, and when a call yields the loop.

Used by `tests/unit/test_interleavings.py`. It replaces the kernel's dispatcher by a random one, and runs the work of
worker threads inline, so that a seed always takes the same steps.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

import pytest

from kernel.core.fiber import BLOCKED, READY
from kernel.core.process import Thread
from kernel.dispatch.dispatcher import Dispatcher
from tests.support.virtual_time import VirtualTimeLoop

OUT_OF_LINE = 0.3  # share of the steps that go to any ready thread, whatever its priority
LATE = (0.0, 0.5)  # seconds by which a delayed thread is stepped later


class SeededLoop(VirtualTimeLoop):
    """Virtual time without threads of the operating system, which would bring in the real clock.

    `before_jump` is called when nothing is left to do at this time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before_jump: Callable[[], None] = lambda: None
        select = self._jumping.select

        def observed(timeout: float | None = None) -> Any:
            if timeout == 0:
                return []  # there are no sockets
            self.before_jump()
            return select(timeout)

        self._jumping.select = observed  # type: ignore[method-assign]

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class SeededDispatcher(Dispatcher):
    """Steps ready threads in random order, and delays some of them, as a busy machine would.

    It strikes some: it cancels them between their wake-up and their step, when most can go wrong. An actor that finds
    itself among the `struck` goes on.
    """

    def __init__(self, chance: Random, *args: Any) -> None:
        super().__init__(*args)
        self._chance = chance
        self._late: set[Thread] = set()
        self._lateness = chance.choice([0, 0.1, 0.3])  # share of the threads that are delayed
        self._strikes = chance.choice([0, 0.03, 0.15])  # share of those woken that are struck
        self.struck: set[Thread] = set()

    def push(self, thread: Thread) -> None:
        woken = thread.state is BLOCKED and not thread.process.is_client and not thread.process.dying
        self._push_or_delay(thread)
        if woken and self._chance.random() < self._strikes and not thread.about_to_be_cancelled:
            self.struck.add(thread)
            thread.cancel()

    def _push_or_delay(self, thread: Thread) -> None:
        if self._chance.random() < self._lateness and not (thread.process.suspended or thread.suspended):
            thread.state = READY
            self._late.add(thread)
            self.loop.call_later(self._chance.choice(LATE), self._push_late, thread)
        else:
            self._push(thread)

    @property
    def anyone_ready(self) -> bool:
        return bool(self._late or self._gave_way) or any(self._ready.values())

    def reprioritise(self, thread: Thread, priority: int) -> None:
        if thread in self._late:
            thread.priority = priority
        else:
            super().reprioritise(thread, priority)

    def _push_late(self, thread: Thread) -> None:
        self._late.discard(thread)
        if not thread.done():
            self._push(thread)

    def _push(self, thread: Thread) -> None:
        super().push(thread)
        queue = self._ready.get(thread.priority)
        if thread.state is READY and queue is not None and len(queue) > 1 and queue[-1] is thread:
            place = self._chance.randrange(len(queue))
            queue[place], queue[-1] = queue[-1], queue[place]

    def _next_queue(self) -> deque[Thread] | None:
        queue = super()._next_queue()
        if queue is not None and self._chance.random() < OUT_OF_LINE:
            return self._chance.choice([other for other in self._ready.values() if other])
        return queue


@contextmanager
def seeded(chance: Random) -> Iterator[None]:
    """Kernels made meanwhile run on a seeded schedule, with bounds small enough to be reached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernel.kernel.Dispatcher", partial(SeededDispatcher, chance))
        patch.setattr("kernel.dispatch.dispatcher.TURN_SECONDS", math.inf)
        patch.setattr("kernel.dispatch.dispatcher.STEPS_PER_TURN", chance.choice([1, 2, 5, 64]))
        patch.setattr("kernel.gate.CALLS_PER_TURN", chance.choice([2, 3, 7, 128]))
        in_slices = chance.choice([0.0, math.inf])  # else the speed of the machine decides
        patch.setattr("kernel.processes.exit.SLICE", in_slices)
        patch.setattr("kernel.messages.publications.SLICE", in_slices)
        patch.setattr("kernel.core.stream.MAX_EVENTS", 3)
        patch.setattr("kernel.core.answers.LATE_REPLIES", 2)
        yield
