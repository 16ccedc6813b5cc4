"""The dispatcher against lists: which thread is next, which are held back, and no wait exceeds the aging bound."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kernel.core.fiber import BLOCKED, PARK, READY, SUSPENDED
from kernel.core.process import Process, Thread
from kernel.dispatch.dispatcher import Dispatcher

AGING = 4  # so that a short run sees it
PRIORITIES = st.sampled_from([-20, 0, 0, 5])
PICK = st.integers(0, 9)


class Waiting:
    """A ready thread of the model: its place in the queue when it became ready, and the steps of others since then."""

    def __init__(self, thread: int, place: int) -> None:
        self.thread = thread
        self.place = place  # in its queue, counted from 1
        self.steps = 0
        self.priorities = 1  # the most that were ready at one time since then

    @property
    def bound(self) -> int:
        """The bound that the dispatcher promises, and a step for each thread before it in the queue."""
        return self.place * max(self.priorities - 1, 1) * AGING + self.place


class Model:
    """Ready threads by priority, in the order in which they became ready; threads held back, by process."""

    def __init__(self) -> None:
        self.ready: dict[int, list[Waiting]] = {}
        self.held: dict[int, list[int]] = {0: [], 1: [], 2: []}
        self.suspended: set[int] = set()  # processes
        self.stopped: set[int] = set()  # threads
        self.priority: dict[int, int] = {}
        self.process: dict[int, int] = {}

    def is_held(self, thread: int) -> bool:
        return thread in self.stopped or self.process[thread] in self.suspended

    def push(self, thread: int) -> None:
        if self.is_held(thread):
            self.held[self.process[thread]].append(thread)
            return
        queue = self.ready.setdefault(self.priority[thread], [])
        queue.append(Waiting(thread, len(queue) + 1))

    def release(self, process: int) -> None:
        waiting, self.held[process] = self.held[process], []
        for thread in waiting:
            self.push(thread)

    def hold(self, process: int) -> None:
        """Take the threads that may not run out of the queues."""
        for priority in sorted(self.ready, reverse=True):
            queue = self.ready[priority]
            for waiting in tuple(queue):
                if self.process[waiting.thread] == process and self.is_held(waiting.thread):
                    queue.remove(waiting)
                    self.held[process].append(waiting.thread)

    def nice(self, thread: int, priority: int) -> None:
        for queue in self.ready.values():
            for waiting in queue:
                if waiting.thread == thread and priority != self.priority[thread]:
                    queue.remove(waiting)
                    self.priority[thread] = priority
                    self.push(thread)
                    return
        self.priority[thread] = priority

    @property
    def queues(self) -> dict[int, list[Waiting]]:
        return {priority: queue for priority, queue in self.ready.items() if queue}

    def heads(self) -> dict[int, int]:
        """The first thread of each queue, by priority."""
        return {priority: queue[0].thread for priority, queue in self.queues.items()}

    def stepped(self, thread: int) -> None:
        """`thread` has left its queue for a step."""
        priorities = len(self.queues)
        queue = self.ready[self.priority[thread]]
        assert queue.pop(0).thread == thread
        for waiting in [waiting for queue in self.queues.values() for waiting in queue]:
            waiting.steps += 1
            waiting.priorities = max(waiting.priorities, priorities)
            assert waiting.steps <= waiting.bound, f"thread {waiting.thread} starves"


class Dispatching(RuleBasedStateMachine):
    """The dispatcher and the model make each step, and must agree on the thread that runs."""

    @initialize()
    def boot(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("kernel.dispatch.dispatcher.STEPS_PER_TURN", 1)
        self.patch.setattr("kernel.dispatch.dispatcher.TURN_SECONDS", math.inf)
        self.patch.setattr("kernel.dispatch.dispatcher.AGING", AGING)
        self.loop = asyncio.new_event_loop()  # never run: the test takes the turns itself
        self.dispatcher = Dispatcher(self.loop)
        self.model = Model()
        self.processes = [Process(n, None, f"p{n}", {}, owner="", priority=0) for n in range(3)]
        self.threads: dict[int, Thread] = {}
        self.log: list[int] = []
        self.last: set[int] = set()  # threads whose next step is their last
        self.contested = 0
        self.born = 0

    async def body(self, number: int) -> None:
        while number not in self.last:
            self.log.append(number)
            await PARK
        self.log.append(number)

    @precondition(lambda self: len(self.threads) < 9)
    @rule(process=st.integers(0, 2), priority=PRIORITIES)
    def start(self, process: int, priority: int) -> None:
        self.born += 1
        self.processes[process].priority = priority
        self.model.process[self.born], self.model.priority[self.born] = process, priority
        self.model.push(self.born)
        thread = Thread(self.processes[process], self.body(self.born), self.dispatcher)
        self.processes[process].add_thread(thread)
        self.threads[self.born] = thread

    def parked(self) -> Iterator[int]:
        return (number for number, thread in self.threads.items() if thread._parked)

    @rule(pick=PICK, last=st.booleans())
    def wake(self, pick: int, last: bool) -> None:
        for number in [*self.parked()][pick : pick + 1]:
            if last:
                self.last.add(number)
            self.model.push(number)
            self.threads[number].wake()

    @rule()
    def wake_all(self) -> None:
        for number in [*self.parked()]:
            self.model.push(number)
            self.threads[number].wake()

    @rule(pick=PICK, priority=PRIORITIES)
    def nice(self, pick: int, priority: int) -> None:
        for number in [*self.threads][pick : pick + 1]:
            self.model.nice(number, priority)
            self.dispatcher.reprioritise(self.threads[number], priority)

    @rule(process=st.integers(0, 2))
    def hold(self, process: int) -> None:
        self.model.suspended.add(process)
        self.model.hold(process)
        self.dispatcher.hold(self.processes[process])

    @rule(process=st.integers(0, 2))
    def release(self, process: int) -> None:
        self.model.suspended.discard(process)
        self.model.release(process)
        self.dispatcher.release(self.processes[process])

    @rule(pick=PICK, hold=st.booleans())
    def hold_or_release_a_thread(self, pick: int, hold: bool) -> None:
        for number in [*self.threads][pick : pick + 1]:
            process, thread = self.model.process[number], self.threads[number]
            if hold:
                self.model.stopped.add(number)
                self.model.hold(process)
                self.dispatcher.hold(self.processes[process], thread)
            else:
                self.model.stopped.discard(number)
                self.model.release(process)
                self.dispatcher.release(self.processes[process], thread)

    @rule(turns=st.integers(1, 30), busy=st.booleans())
    def run(self, turns: int, busy: bool) -> None:
        """Take so many turns of one step each; if `busy`, a thread is ready again right after its step."""
        for _ in range(turns):
            if not self.model.queues:
                return
            heads, before = self.model.heads(), len(self.log)
            self.dispatcher._run()
            thread = self.dispatcher.running
            number = next(number for number, one in self.threads.items() if one is thread)
            urgent = heads[max(heads)]
            assert number in heads.values(), "not the first of its queue"
            self.contested = self.contested + 1 if len(heads) > 1 else self.contested
            if number != urgent:
                assert self.contested >= AGING, "a lower one ran before its time"
                self.contested = 0
            self.model.stepped(number)
            assert not self.model.is_held(number), "stepped although it is held"
            assert self.log[before:] == [number]
            if number in self.last:
                del self.threads[number]
                self.processes[self.model.process[number]].drop_thread(thread)
            elif busy:
                self.model.push(number)
                thread.wake()

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        waiting = {one.thread for queue in self.model.queues.values() for one in queue}
        held = {thread for threads in self.model.held.values() for thread in threads}
        for number, thread in self.threads.items():
            wanted = READY if number in waiting else SUSPENDED if number in held else BLOCKED
            assert thread.state == wanted
            assert thread.priority == self.model.priority[number]
        queues = {p: [self.threads[one.thread] for one in queue] for p, queue in self.model.queues.items()}
        assert {p: list(queue) for p, queue in self.dispatcher._ready.items() if queue} == queues
        for number, process in enumerate(self.processes):
            assert [self.threads[one] for one in self.model.held[number]] == (process.held_back or [])

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            for thread in self.threads.values():
                thread.get_coro().close()
            self.loop.close()
            self.patch.undo()


TestDispatching = Dispatching.TestCase
TestDispatching.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
