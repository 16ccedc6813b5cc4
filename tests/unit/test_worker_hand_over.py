"""Hand-overs between the loop and its executors: whichever side is late, each caller gets its outcome or gave it up."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from ipc.errors import Killed
from kernel.lib.worker_threads import DaemonThreads
from llmosd.context import Context
from tests.support.system import System

pytestmark = pytest.mark.real_time

GUARD = 60.0  # seconds; only a test that hangs takes as long


@pytest.mark.parametrize("moment", ["queued", "running", "the thread has reported, and the loop is late"])
async def test_a_caller_that_gives_up_at_any_moment_costs_no_other_its_outcome(moment: str) -> None:
    loop, pool = asyncio.get_running_loop(), DaemonThreads("test", 1)
    begun, go, ran = threading.Event(), threading.Event(), []

    def work(number: int) -> int:
        ran.append(number)
        begun.set()
        assert go.wait(GUARD)
        return number

    blocker: Future[int] | None = None
    if moment == "queued":
        blocker = pool.submit(work, 0)
        assert begun.wait(GUARD)
    futures = [loop.run_in_executor(pool, work, number) for number in (1, 2)]
    if moment != "queued":
        assert begun.wait(GUARD)
    if moment.startswith("the thread"):
        go.set()
        probe = pool.submit(int)
        assert probe.result(GUARD) == 0  # the only thread has done the work; the loop has been blocked
    futures[0].cancel()
    await asyncio.sleep(0)
    go.set()
    assert await futures[1] == 2
    assert futures[0].cancelled()
    assert ran == ([0, 2] if moment == "queued" else [1, 2])
    assert blocker is None or blocker.result(GUARD) == 0


def test_a_thread_that_ends_after_the_loop_was_closed_takes_the_next_function() -> None:
    pool, begun, go = DaemonThreads("test", 1), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go.wait(GUARD)

    async def leave() -> None:
        asyncio.get_running_loop().run_in_executor(pool, work)
        assert begun.wait(GUARD)

    with asyncio.Runner() as runner:
        runner.run(leave())
    go.set()
    assert pool.submit(lambda: "next").result(GUARD) == "next"


@pytest.mark.parametrize("moment", ["before the loop begins it", "while it waits"])
async def test_a_call_from_a_thread_of_a_process_that_is_dying_ends_with_it(system: System, moment: str) -> None:
    outcome: Future[Any] = Future()
    begun, go, cleaning, clean = threading.Event(), threading.Event(), asyncio.Event(), asyncio.Event()

    async def agent(ctx: Context) -> None:
        def work() -> None:
            begun.set()
            if moment.startswith("before"):
                assert go.wait(GUARD)
            try:
                outcome.set_result(ctx.from_thread(ctx.sleep, 600))
            except Exception as error:
                outcome.set_exception(error)

        asyncio.get_running_loop().run_in_executor(None, work)
        try:
            await ctx.receive()
        finally:
            cleaning.set()
            await clean.wait()

    process = system.spawn(agent)
    assert await asyncio.to_thread(begun.wait, GUARD)
    if moment == "while it waits":
        await system.until(lambda: len(process.threads) == 2)
    system.kernel.process_exit.end(process, "killed", "the test kills it")
    await cleaning.wait()
    go.set()
    with pytest.raises(Killed):
        await asyncio.wait_for(asyncio.wrap_future(outcome), GUARD)
    clean.set()
    assert (await system.status(process)).reason == "killed"
