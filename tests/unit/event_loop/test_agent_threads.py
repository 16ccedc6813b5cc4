"""The default executor: agents share its threads, and one that blocks them or ends takes none away from the others."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

import pytest

from kernel.core.process import Process
from kernel.event_loop.agent_threads import AgentThreads
from kernel.lib import worker_threads
from kernel.lib.worker_threads import DaemonThreads
from kernel.programs.origin import ORIGIN
from llmosd.context import Context
from tests.support.system import System, lone_process

GUARD = 60  # seconds after which a test has failed


class Gate:
    """Functions that run until the gate is opened."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self._open = threading.Event()

    def wait(self) -> None:
        self.inside.release()
        assert self._open.wait(GUARD)

    def entered(self, count: int) -> None:
        for _ in range(count):
            assert self.inside.acquire(timeout=GUARD)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def submit(pool: AgentThreads, process: Process, function: Callable[[], Any]) -> Future[Any]:
    """Submit `function` as code of `process` does."""
    variables = copy_context()
    variables.run(ORIGIN.set, process)
    return variables.run(pool.submit, function)


def test_one_process_does_not_take_all_threads(gate: Gate) -> None:
    pool, hog, other = AgentThreads(most=4, each=3), lone_process(1), lone_process(2)
    hogging = [submit(pool, hog, gate.wait) for _ in range(20)]
    gate.entered(3)
    assert submit(pool, other, lambda: "free").result(GUARD) == "free"
    assert not gate.inside.acquire(blocking=False)
    gate.open()
    for future in hogging:
        future.result(GUARD)


def test_the_functions_of_a_process_begin_in_order(gate: Gate) -> None:
    pool, process, order = AgentThreads(most=1, each=1), lone_process(1), list[int]()
    submit(pool, process, gate.wait)
    futures = [submit(pool, process, lambda number=number: order.append(number)) for number in range(20)]  # type: ignore[misc]
    gate.open()
    futures[-1].result(GUARD)
    assert order == list(range(20))


@pytest.mark.parametrize("each", [1, 2, 5])
def test_what_a_process_left_in_line_is_dropped_when_it_ends(gate: Gate, each: int) -> None:
    pool, process, other, ran = AgentThreads(most=2, each=each), lone_process(1), lone_process(2), list[int]()
    blocking = [submit(pool, process, gate.wait) for _ in range(2)]
    gate.entered(min(each, 2))
    left = [submit(pool, process, lambda: ran.append(1)) for _ in range(5)]
    others = submit(pool, other, lambda: "done")
    pool.process_ended(process)
    assert [future.cancelled() for future in left] == [True] * 5
    assert others.result(GUARD) == "done"
    gate.open()
    blocking[0].result(GUARD)
    assert submit(pool, other, lambda: list(ran)).result(GUARD) == []
    assert process not in pool._active
    assert process not in pool._held


def test_functions_of_an_ended_process_that_still_run_take_no_thread_from_others(gate: Gate) -> None:
    pool, hog, other = AgentThreads(most=2, each=2), lone_process(1), lone_process(2)
    hogging = [submit(pool, hog, gate.wait) for _ in range(2)]
    gate.entered(2)
    waiting = submit(pool, other, lambda: "before")
    assert not waiting.done()
    pool.process_ended(hog)
    assert waiting.result(GUARD) == "before"
    assert submit(pool, other, lambda: "after").result(GUARD) == "after"
    gate.open()
    for future in hogging:
        future.result(GUARD)


def test_the_threads_in_their_place_are_bounded_and_go_when_they_are_not_needed(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.event_loop.agent_threads.MOST_ABANDONED", 3)
    monkeypatch.setattr(worker_threads, "MAX_IDLE", 0)
    pool = AgentThreads(most=2, each=2)
    for pid in range(1, 4):
        hog = lone_process(pid)
        running = [submit(pool, hog, gate.wait) for _ in range(2)]
        gate.entered(2 if pid < 3 else 1)
        pool.process_ended(hog)
    assert pool._threads == 5
    assert running[1].cancelled()
    gate.open()
    while pool._threads:
        os.sched_yield()
    assert (pool._abandoned, pool._most) == ({}, 2)


def test_functions_without_a_process_are_not_counted(gate: Gate) -> None:
    pool = AgentThreads(most=3, each=1)
    futures = [pool.submit(gate.wait) for _ in range(3)]
    gate.entered(3)
    gate.open()
    for future in futures:
        future.result(GUARD)
    assert pool._active == {}


def test_a_pool_remembers_no_function_that_has_ended() -> None:
    class Big:
        pass

    pool, ended = DaemonThreads("test", 1), threading.Event()
    big = Big()
    gone = weakref.finalize(big, ended.set)
    pool.submit(lambda thing: None, big).result(GUARD)
    del big
    assert ended.wait(GUARD)
    assert not gone.alive


async def test_what_an_agent_left_to_threads_never_runs_after_its_end(
    system: System, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, ran = AgentThreads(most=1, each=1), list[str]()
    for name in ("_default_executor", "_agent_threads"):  # `set_default_executor` of asyncio takes no other class
        monkeypatch.setattr(system.loop, name, pool)

    async def leaver(ctx: Context) -> None:
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, gate.wait)
        loop.run_in_executor(None, ran.append, "late")
        while not gate.inside.acquire(blocking=False):
            await asyncio.sleep(0)

    async def user(ctx: Context) -> str:
        return await asyncio.to_thread(lambda: "served")

    await system.run(leaver)
    assert await system.run(user) == "served"
    gate.open()
    while pool._abandoned:
        os.sched_yield()
    assert ran == []
