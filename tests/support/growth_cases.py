"""Cases of growth: each does its work on `n` things of one kind in a fresh kernel.

A case prepares, then works inside `watch`. The bench measures the processor time that passes there, and the unit test
counts the lines of the kernel that run there. A case never measures anything itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from ipc.errors import LlmosError
from ipc.messages import Emitted, Token
from ipc.syscalls import Names, Ps, Regions, Submit
from kernel.core.event_log import EventLog
from llmosd.context import Context
from tests.support.system import System

Watch: TypeAlias = AbstractContextManager[object]
Case: TypeAlias = Callable[[System, int, Watch], Awaitable[None]]
CASES: dict[str, Case] = {}
LONG = 1e6  # seconds of virtual time


def case(name: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        CASES[name] = function
        return function

    return add


async def idle(ctx: Context) -> None:
    await ctx.sleep(LONG)


def each(name: str, timed: Callable[[Context, int], Awaitable[Any]]) -> None:
    """A case in which one agent does `timed` `n` times, in turn."""

    async def run(system: System, n: int, watch: Watch) -> None:
        async def agent(ctx: Context) -> None:
            with watch:
                for number in range(n):
                    await timed(ctx, number)

        await system.run(agent)

    CASES[name] = run


def together(name: str, wait: Callable[[Context, int], Awaitable[Any]], wake: Callable[[Context], Any] | None) -> None:
    """A case in which `n` agents wait, `wake` ends the waits, and the agents end. Without `wake` they are killed."""

    async def run(system: System, n: int, watch: Watch) -> None:
        async def agent(ctx: Context, number: int) -> None:
            await wait(ctx, number)

        async def waker(ctx: Context) -> None:
            await wake(ctx)  # type: ignore[misc]

        name, last = system.program(agent), system.program(waker)
        with watch:
            agents = [system.spawn(name, number) for number in range(n)]
            await system.turns(20)
            if wake is not None:
                await system.run(last)
                await asyncio.sleep(300)
            else:
                for process in agents:
                    system.kernel.process_exit.end(process, "killed", "")
                await asyncio.sleep(1)
        assert all(process.ended for process in agents), [p.state() for p in agents if not p.ended][:3]

    CASES[name] = run


async def two_permits(ctx: Context, number: int) -> None:
    async with ctx.semaphore("permits", 2):
        await asyncio.sleep(0)


async def holding(ctx: Context, name: str) -> None:
    async with ctx.lock(name):
        await asyncio.sleep(0)


async def notified(ctx: Context, number: int) -> None:
    async with ctx.condition("condition") as _:
        await ctx.condition("condition").wait()


async def notify(ctx: Context) -> None:
    async with ctx.condition("condition"):
        await ctx.condition("condition").notify_all()


async def meet(ctx: Context, number: int) -> None:
    await ctx.event("event").wait()


async def set_event(ctx: Context) -> None:
    await ctx.event("event").set()


async def watch_region(ctx: Context, number: int) -> None:
    await ctx.shared("region").watch(0)


async def set_region(ctx: Context) -> None:
    await ctx.shared("region").set(1)


async def hear(ctx: Context, number: int) -> None:
    await ctx.subscribe("topic")
    await ctx.receive()


async def hear_own(ctx: Context, number: int) -> None:
    await ctx.subscribe(f"topic.{number}.*")
    await ctx.receive(timeout=10)


async def region(ctx: Context, number: int) -> None:
    await ctx.shared(f"region {number}", ephemeral=True).set(number)


async def given_up(ctx: Context, number: int) -> None:
    with contextlib.suppress(TimeoutError, LlmosError):
        await ctx.receive(timeout=0.01)


async def log_line(ctx: Context, number: int) -> None:
    ctx.log("line")
    await asyncio.sleep(0)


async def unknown(ctx: Context, number: int) -> None:
    with contextlib.suppress(LlmosError):
        await ctx.send("nobody", number)


together("agents that wait and are killed", lambda ctx, number: ctx.sleep(LONG), None)
together("timers", lambda ctx, number: ctx.sleep(number % 97), lambda ctx: ctx.sleep(100))
together("waiters of one lock", lambda ctx, number: holding(ctx, "lock"), lambda ctx: ctx.sleep(1))
together("locks", lambda ctx, number: holding(ctx, f"lock {number}"), lambda ctx: ctx.sleep(1))
together("waiters of a lock that are killed", lambda ctx, number: ctx.lock("lock").acquire(), None)
together("waiters of one semaphore", two_permits, lambda ctx: ctx.sleep(1))
together("waiters of one event", meet, set_event)
together("waiters of one condition", notified, notify)
together("watchers of one region", watch_region, set_region)
together("subscribers of one topic", hear, lambda ctx: ctx.publish("topic", 1))
together("topic patterns", hear_own, lambda ctx: ctx.publish("topic.7.x", 1))
together("model calls of many agents", lambda ctx, number: ctx.generate("a", max_tokens=2), lambda ctx: ctx.sleep(1))
together("model calls that are killed", lambda ctx, number: ctx.generate("a", max_tokens=500), None)
each("sends to nobody", unknown)
each("regions", region)
each("keys in private memory", lambda ctx, number: ctx.memory.set(str(number), number))
each("names", lambda ctx, number: ctx.register(f"name {number}"))
each("waits that are given up", given_up)
each("model calls of one agent", lambda ctx, number: ctx.generate("a", max_tokens=1))
each("log lines", log_line)


@case("agents that end")
async def agents(system: System, n: int, watch: Watch) -> None:
    async def agent(ctx: Context) -> None:
        await asyncio.sleep(0)

    name = system.program(agent)
    with watch:
        for _ in range(n):
            await system.result(system.spawn(name))


@case("children of one agent")
async def children(system: System, n: int, watch: Watch) -> None:
    async def parent(ctx: Context, name: str) -> None:
        with watch:
            for _ in range(n):
                await ctx.spawn(name)
        await ctx.sleep(LONG)

    process = system.spawn(parent, system.program(idle))
    await system.until(lambda: process.ended or len(process.children) == n)
    assert not process.ended, process.status
    with watch:
        system.kernel.process_exit.end(process, "killed", "")
        await asyncio.sleep(1)


@case("threads of one agent")
async def threads(system: System, n: int, watch: Watch) -> None:
    async def agent(ctx: Context) -> None:
        with watch:
            await asyncio.gather(*(ctx.sleep(1) for _ in range(n)))

    await system.run(agent)


@case("monitors and links of one agent")
async def monitors(system: System, n: int, watch: Watch) -> None:
    process = system.spawn(idle)

    async def observer(ctx: Context) -> None:
        await ctx.monitor(process.pid)
        await ctx.link(process.pid)
        await ctx.receive()

    name = system.program(observer)
    with watch:
        for _ in range(n):
            system.spawn(name)
        await system.turns(20)
        system.kernel.process_exit.end(process, "failed", "")
        await asyncio.sleep(1)


@case("events that a reader lags behind")
async def events(system: System, n: int, watch: Watch) -> None:
    recorder = system.recorder(credit=0)
    log = EventLog(recorder.stream)
    with watch:
        for number in range(n):
            log.push(Token("x", 1, number % 3))
            log.push(Emitted(1, number))
        recorder.stream.grant(2 * n)


@case("callbacks of one reader")
async def callbacks(system: System, n: int, watch: Watch) -> None:
    """`n` agents of a task wait to emit, and give up."""
    recorder = system.recorder(credit=0)
    for number in range(300):
        recorder.stream.push(Emitted(1, number))

    async def agent(ctx: Context) -> None:
        await ctx.emit(1)

    name = system.program(agent)
    with watch:
        processes = [system.spawn(name, stream=recorder.stream) for _ in range(n)]
        await system.turns(20)
        for process in reversed(processes):
            system.kernel.process_exit.end(process, "killed", "")
        await asyncio.sleep(1)


@case("readers of one task")
async def readers(system: System, n: int, watch: Watch) -> None:
    log = EventLog(None)
    with watch:
        for _ in range(n):
            log.add(system.recorder(credit=0).stream)
        for _ in range(10):
            log.push(Token("x", 1, 1))
        for stream in log.readers:
            stream.close()


@case("pages of listings")
async def listings(system: System, n: int, watch: Watch) -> None:
    async def listed(ctx: Context, number: int) -> None:
        await ctx.register(f"name {number}")
        await ctx.shared(f"region {number}").set(1)
        await ctx.sleep(LONG)

    name = system.program(listed)
    for number in range(n):
        system.spawn(name, number)
    await system.turns(20)
    with watch:
        rows = await system.call(Ps(limit=100))
        while len(rows) == 100:
            rows = await system.call(Ps(rows[-1].pid + 1, 100))
        await system.call(Names(after=""))
        await system.call(Regions(after=""))


@case("tasks in the journal")
async def tasks(system: System, n: int, watch: Watch) -> None:
    async def task(ctx: Context) -> None:
        await asyncio.sleep(0)

    name = system.program(task)
    with watch:
        recorders = [system.recorder() for _ in range(n)]
        submissions = [
            system.thread(system.kernel.gate.enter(system.client, Submit(name, detach=True), recorder.stream))
            for recorder in recorders
        ]
        await asyncio.gather(*submissions)
        await system.until(lambda: all(recorder.ended for recorder in recorders[-5:]))
