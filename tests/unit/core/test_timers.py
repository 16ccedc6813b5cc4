"""Timers of the operating system may fire a little early; a wait must not take that for a stray wake-up.

uvloop rounds to milliseconds, so half of its timers fire before their time.
"""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from ipc.errors import TimedOut
from ipc.syscalls import Call, Receive, Sleep, Wait
from llmosd.context import Context
from tests.support.agents import idle
from tests.support.system import System

TIMES = [0.0101 + n * 0.00007 for n in range(60)]  # seconds, on all sides of a millisecond


async def long(ctx: Context) -> None:
    await ctx.sleep(1e6)


async def short(ctx: Context) -> None:
    await ctx.sleep(10)


@pytest.mark.real_time
async def test_every_sleep_ends(system: System) -> None:
    threads = [system.thread(system.kernel.gate.enter(system.client, Sleep(seconds))) for seconds in TIMES]
    _, asleep = await asyncio.wait(threads, timeout=2)
    assert not asleep


@pytest.mark.real_time
@pytest.mark.parametrize("kind", ["receive", "call", "wait"])
async def test_every_timeout_strikes(system: System, kind: str) -> None:
    target = system.spawn(idle)
    make = {
        "receive": lambda seconds: (target, Receive(seconds)),
        "call": lambda seconds: (system.client, Call(target.pid, None, seconds)),
        "wait": lambda seconds: (system.client, Wait(target.pid, seconds)),
    }[kind]
    threads = []
    for seconds in TIMES:
        process, call = make(seconds)
        threads.append(system.thread(system.kernel.gate.enter(process, call), process))
    done, waiting = await asyncio.wait(threads, timeout=2)
    assert not waiting
    assert {type(thread.exception()) for thread in done} == {TimedOut}


async def test_a_cancelled_timer_does_not_hold_its_process(system: System) -> None:
    system.spawn(long)  # whose timer remains in the heap
    ended = weakref.ref(system.spawn(long))
    await system.turns(20)
    process = ended()
    assert process is not None
    system.kernel.process_exit.end(process, "killed", "")
    del process
    await system.turns(20)
    await system.run(short)
    system.table.ended.clear()
    gc.collect()
    assert ended() is None


async def test_the_heap_is_empty_when_all_timers_are_cancelled(system: System) -> None:
    processes = [system.spawn(long) for _ in range(3)]
    await system.turns(20)
    timers = system.kernel.dispatcher.timers
    assert len(timers._heap) == 3
    for process in processes:
        system.kernel.process_exit.end(process, "killed", "")
    await system.turns(20)
    assert timers._heap == []
    await system.call(Sleep(1))  # a timer that is set later fires
