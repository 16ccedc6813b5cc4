"""Locks and semaphores against a small model: random acquires, releases, cancellations and kills."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipc.errors import DeadlockDetected, NotHeld
from ipc.syscalls import Locks
from kernel.core.process import Thread
from llmosd.context import Context
from tests.support.boot import UNWRITABLE, boot
from tests.support.system import System
from tests.support.virtual_time import VirtualTimeLoop

PERMITS = {"a": 1, "b": 1, "s": 2}  # a lock is a semaphore of one
NAMES = st.sampled_from(sorted(PERMITS))
WORKERS = 5


class Model:
    """The workers that hold or wait, by primitive, and the outcome of each worker's last request."""

    def __init__(self) -> None:
        self.holders: dict[str, list[int]] = {name: [] for name in PERMITS}
        self.waiters: dict[str, list[int]] = {name: [] for name in PERMITS}
        self.said: dict[int, str] = {}

    def waits(self, worker: int) -> str | None:
        return next((name for name, waiters in self.waiters.items() if worker in waiters), None)

    def acquire(self, worker: int, name: str) -> None:
        if len(self.holders[name]) < PERMITS[name]:
            self.holders[name].append(worker)
            self.said[worker] = "got it"
            return
        self.waiters[name].append(worker)
        if self.is_stuck(worker):
            self.waiters[name].remove(worker)
            self.said[worker] = "deadlock"
        else:
            self.said[worker] = "waits"

    def is_stuck(self, worker: int) -> bool:
        """Remove workers that can go on from the waiting ones until none is left that can: the rest are stuck."""
        stuck = {waiter for waiters in self.waiters.values() for waiter in waiters}
        while freed := {w for w in stuck if any(h not in stuck for h in self.holders[self.waits(w) or ""])}:
            stuck -= freed
        return worker in stuck

    def release(self, worker: int, name: str) -> None:
        if worker not in self.holders[name]:
            self.said[worker] = "not held"
            return
        self.said[worker] = "released"
        self.holders[name].remove(worker)
        if self.waiters[name]:
            following = self.waiters[name].pop(0)
            self.holders[name].append(following)
            self.said[following] = "got it"

    def cancel(self, worker: int) -> None:
        name = self.waits(worker)
        if name is not None:
            self.waiters[name].remove(worker)
        self.said[worker] = "cancelled"

    def die(self, worker: int) -> None:
        self.cancel(worker)
        for name in PERMITS:
            while worker in self.holders[name]:
                self.release(worker, name)
        del self.said[worker]


class Worker:
    """An agent whose only thread carries out the orders of the test."""

    def __init__(self, system: System) -> None:
        self.orders: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.said = ""
        self.process = system.spawn("worker")
        self.pid = self.process.pid

    @property
    def thread(self) -> Thread:
        (thread,) = self.process.threads
        return thread

    async def work(self, ctx: Context) -> None:
        while True:
            what, name = await self.orders.get()
            held = ctx.lock(name) if PERMITS[name] == 1 else ctx.semaphore(name, PERMITS[name])
            self.said = "waits"
            try:
                await getattr(held, what)()
                self.said = "got it" if what == "acquire" else "released"
            except DeadlockDetected:
                self.said = "deadlock"
            except NotHeld:
                self.said = "not held"
            except asyncio.CancelledError:
                if ctx._process.dying:
                    raise
                self.said = "cancelled"


class LocksAndSemaphores(RuleBasedStateMachine):
    """Each step is applied to the model and to the kernel; then both must agree."""

    @initialize()
    def begin(self) -> None:
        self.loop = VirtualTimeLoop()
        self.model = Model()
        self.numbers: dict[int, int] = {}  # of workers by pid
        self.workers: dict[int, Worker] = {}
        self.born = 0

        async def begin() -> None:
            self.system = boot(UNWRITABLE)
            self.kernel = self.system.kernel
            self.system.program(self.worker)
            for _ in range(WORKERS):
                self.spawn()

        self.run(begin)

    async def worker(self, ctx: Context) -> None:
        await self.workers[self.numbers[ctx.pid]].work(ctx)

    def spawn(self) -> None:
        self.born += 1
        worker = self.workers[self.born] = Worker(self.system)
        self.numbers[worker.pid] = self.born

    def run(self, what: Callable[[], Any]) -> Any:
        async def running() -> Any:
            answer = what()
            if asyncio.iscoroutine(answer):
                answer = await asyncio.Task(answer)
            await self.system.turns(20)
            return answer

        return self.loop.run_until_complete(running())

    def pick(self, index: int, *, blocked: bool) -> int | None:
        """A worker that waits (`blocked`), or one that does not; None if there is none."""
        fitting = [number for number in self.workers if (self.model.waits(number) is not None) == blocked]
        return fitting[index % len(fitting)] if fitting else None

    @rule(index=st.integers(0, 9), name=NAMES, what=st.sampled_from(["acquire", "acquire", "release"]))
    def order(self, index: int, name: str, what: str) -> None:
        worker = self.pick(index, blocked=False)
        if worker is not None:
            getattr(self.model, what)(worker, name)
            self.run(lambda: self.workers[worker].orders.put_nowait((what, name)))

    @rule(index=st.integers(0, 9), name=NAMES)
    def release_what_is_held(self, index: int, name: str) -> None:
        holders = [holder for holder in self.model.holders[name] if self.model.waits(holder) is None]
        if holders:
            worker = holders[index % len(holders)]
            self.model.release(worker, name)
            self.run(lambda: self.workers[worker].orders.put_nowait(("release", name)))

    @rule(index=st.integers(0, 9))
    def cancel_a_wait(self, index: int) -> None:
        worker = self.pick(index, blocked=True)
        if worker is not None:
            self.model.cancel(worker)
            self.run(self.workers[worker].thread.cancel)

    @rule(index=st.integers(0, 9), name=NAMES)
    def release_and_cancel_who_gets_it(self, index: int, name: str) -> None:
        """Both in one turn of the loop, so that the thread has its grant and has not run since."""
        holders = [holder for holder in self.model.holders[name] if self.model.waits(holder) is None]
        if holders and self.model.waiters[name]:
            worker, granted = holders[index % len(holders)], self.model.waiters[name][0]
            self.model.release(worker, name)
            self.model.release(granted, name)
            self.model.said[granted] = "cancelled"
            # Release through the kernel: after an agent's release the granted thread would run before the cancel.
            primitive = next(iter(held for held in self.workers[worker].thread.holds or () if held.name == name))
            granted_thread = self.workers[granted].thread

            def release_and_cancel() -> None:
                primitive.release(self.workers[worker].thread)
                granted_thread.cancel()

            self.run(release_and_cancel)
            self.workers[worker].said = "released"

    @precondition(lambda self: self.born < 20)
    @rule(index=st.integers(0, 9), blocked=st.booleans())
    def kill(self, index: int, blocked: bool) -> None:
        worker = self.pick(index, blocked=blocked)
        if worker is not None:
            self.model.die(worker)
            process = self.workers.pop(worker).process
            self.run(lambda: self.kernel.process_exit.end(process, "killed", "test"))
            self.run(self.spawn)

    @invariant()
    def both_agree(self) -> None:
        rows = {row.name: row for row in self.run(lambda: self.system.call(Locks()))}
        for name in PERMITS:
            row = rows.pop(name, None)
            holders = [self.numbers[pid] for pid in row.holders] if row else []
            waiters = [self.numbers[pid] for pid in row.waiters] if row else []
            assert sorted(holders) == sorted(self.model.holders[name])
            assert waiters == self.model.waiters[name]
        assert not rows
        assert {n: w.said for n, w in self.workers.items() if w.said} == self.model.said

    def teardown(self) -> None:
        if hasattr(self, "kernel"):
            self.system.close()


TestLocksAndSemaphores = LocksAndSemaphores.TestCase
TestLocksAndSemaphores.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
