"""Priority inheritance over calls: a process is as urgent as its most urgent caller, for as long as that waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from ipc.errors import LlmosError, TimedOut
from ipc.syscalls import Call, Kill, Nice, Resume, Suspend
from kernel.core.process import Process
from kernel.dispatch.priority_inheritance import effective_priority
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.agents import idle
from tests.support.exploration.priorities import wrong_priorities
from tests.support.growth import Counted, exponent
from tests.support.system import System


def urgency(process: Process) -> int:
    return effective_priority(next(iter(process.threads)))


async def caller(ctx: Context, to: int, timeout: float | None = None) -> None:
    """Calls a process, and waits on when it gets no reply."""
    try:
        await ctx.call(to, "do", timeout=timeout)
    except TimedOut:
        await idle(ctx)


@pytest.fixture(autouse=True)
def correct(system: System) -> Iterator[None]:
    yield
    assert list(wrong_priorities(system.table.alive.values())) == []


@pytest.fixture
def server(system: System) -> Process:
    return system.spawn(idle)


async def test_a_timeout_of_the_caller_returns_the_priority(system: System, server: Process) -> None:
    system.spawn(caller, to=server.pid, timeout=5.0, priority=20)
    await system.turns()
    assert urgency(server) == 20
    await asyncio.sleep(6)
    assert urgency(server) == 0


async def test_a_reply_returns_the_priority(system: System) -> None:
    async def replier(ctx: Context) -> None:
        message = await ctx.receive()
        await ctx.sleep(5)
        await ctx.reply(message, "done")
        await idle(ctx)

    server = system.spawn(replier)
    system.spawn(caller, to=server.pid, priority=20)
    await asyncio.sleep(1)
    assert urgency(server) == 20
    await asyncio.sleep(5)
    assert urgency(server) == 0


@pytest.mark.parametrize("ends", [Kill, Suspend])
async def test_the_end_and_the_suspension_of_the_caller_return_the_priority(
    system: System, server: Process, ends: type[Kill | Suspend]
) -> None:
    urgent = system.spawn(caller, to=server.pid, priority=20)
    system.spawn(caller, to=server.pid, priority=5)
    await system.turns()
    assert urgency(server) == 20
    await system.call(ends(urgent.pid))
    assert urgency(server) == 5


async def test_a_resumed_caller_lends_its_priority_again(system: System, server: Process) -> None:
    urgent = system.spawn(caller, to=server.pid, priority=20)
    await system.turns()
    await system.call(Suspend(urgent.pid))
    await system.call(Resume(urgent.pid))
    assert urgency(server) == 20
    await system.call(Suspend(urgent.pid, "0"))
    assert urgency(server) == 0
    await system.call(Resume(urgent.pid, "0"))
    assert urgency(server) == 20


async def test_a_cancelled_call_returns_the_priority(system: System, server: Process) -> None:
    async def giving_up(ctx: Context, to: int) -> None:
        call = asyncio.create_task(ctx.call(to, "do"))
        await ctx.sleep(1)
        call.cancel()
        await idle(ctx)

    system.spawn(giving_up, to=server.pid, priority=20)
    await asyncio.sleep(0.5)
    assert urgency(server) == 20
    await asyncio.sleep(1)
    assert urgency(server) == 0


async def test_a_chain_of_calls_returns_the_priority_to_its_end(system: System, server: Process) -> None:
    middle = system.spawn(caller, to=server.pid)
    await system.turns()
    urgent = system.spawn(caller, to=middle.pid, priority=20)
    await system.turns()
    assert (urgency(middle), urgency(server)) == (20, 20)
    await system.call(Kill(urgent.pid))
    assert (urgency(middle), urgency(server)) == (0, 0)


async def test_the_end_of_the_called_process_returns_the_priority_to_what_it_called(
    system: System, server: Process
) -> None:
    middle = system.spawn(caller, to=server.pid)
    system.spawn(caller, to=middle.pid, priority=20)
    await system.turns()
    assert urgency(server) == 20
    await system.call(Kill(middle.pid))
    assert urgency(server) == 0


async def test_processes_that_call_each_other_do_not_preserve_a_priority(system: System) -> None:
    async def both(ctx: Context) -> None:
        """Calls the process that it is asked to, in a thread of its own."""
        calls = set()
        while True:
            message = await ctx.receive()
            if isinstance(message.body, int):
                calls.add(asyncio.create_task(ctx.call(message.body, "do", timeout=1e6)))

    one, two = system.spawn(both), system.spawn(both)
    for process, other in ((one, two), (two, one)):
        asking = system.thread(system.call(Call(process.pid, other.pid, 1.0)))
        with pytest.raises(TimedOut):
            await asking
    urgent = system.spawn(caller, to=one.pid, priority=20)
    await system.turns()
    assert (urgency(one), urgency(two)) == (20, 20)
    await system.call(Kill(urgent.pid))
    assert (urgency(one), urgency(two)) == (0, 0)


async def test_a_new_priority_of_a_waiting_caller_holds_for_what_it_called(system: System, server: Process) -> None:
    waiting = system.spawn(caller, to=server.pid)
    await system.turns()
    await system.call(Nice(waiting.pid, 7))
    assert urgency(server) == 7
    await system.call(Nice(waiting.pid, -3))
    assert urgency(server) == 0
    await system.call(Nice(server.pid, -10))
    assert urgency(server) == -3


@pytest.fixture
def models() -> dict[str, ModelSpec]:
    """One slot; a reply takes a minute."""
    options = {"step_seconds": 1.0, "sequence_seconds": 0.0, "prompt_seconds": 0.0, "reply_tokens": 60}
    return {"sim": ModelSpec(driver="simulated", slots=1, lease=4, options=options)}


@pytest.mark.parametrize("ends", ["timeout", "kill"])
async def test_a_process_whose_urgent_caller_has_gone_gives_its_slot_to_a_more_urgent_one(
    system: System, ends: str
) -> None:
    done = []

    async def generating(ctx: Context) -> None:
        await ctx.chat([{"role": "user", "content": "hi"}], max_tokens=60)
        done.append(ctx.pid)

    server = system.spawn(generating)
    waiting = system.spawn(generating, priority=10)
    await asyncio.sleep(5)
    urgent = system.spawn(caller, to=server.pid, timeout=10.0 if ends == "timeout" else None, priority=20)
    await asyncio.sleep(10)
    if ends == "kill":
        await system.call(Kill(urgent.pid))
    await system.status(server)
    await system.status(waiting)
    assert done == [waiting.pid, server.pid]


@pytest.mark.parametrize("seed", range(6))
async def test_the_priorities_are_those_of_all_waiting_callers_after_any_event(  # noqa: C901 - a list of what may happen
    system: System, seed: int
) -> None:
    chance = Random(seed)

    async def node(ctx: Context) -> None:
        """Makes the calls that it is sent, each in a thread of its own, and replies to calls as it is asked to."""
        held: list[Any] = []
        open_calls: list[Any] = []

        async def call(to: int, timeout: float | None) -> None:
            with contextlib.suppress(LlmosError):
                await ctx.call(to, "open", timeout=timeout)

        while True:
            message = await ctx.receive()
            if message.body == "open":
                open_calls.append(message)
            elif message.body == "reply" and open_calls:
                await ctx.reply(open_calls.pop(chance.randrange(len(open_calls))), None)
            elif isinstance(message.body, list):
                held.append(asyncio.create_task(call(*message.body)))
            elif message.body == "cancel" and held:
                chance.choice(held).cancel()

    nodes = [system.spawn(node, priority=chance.choice([-5, 0, 0, 0, 3])) for _ in range(7)]
    for _ in range(150):
        alive = [one for one in nodes if not one.dying]
        if len(alive) < 5:
            nodes.append(system.spawn(node, priority=chance.choice([0, 15])))
            continue
        one, other = chance.choice(alive), chance.choice(alive)
        what = chance.choice(["call", "call", "call", "reply", "cancel", "nice", "nice thread", "suspend", "resume"])
        if what == "call" and one is not other:
            system.kernel.messaging.notify(one, "do", [other.pid, chance.choice([1e5, 1e5, 1.0])])
        elif what in ("reply", "cancel"):
            system.kernel.messaging.notify(one, "do", what)
        elif what == "nice":
            await system.call(Nice(one.pid, chance.randint(-20, 20)))
        elif what == "nice thread":
            await system.call(Nice(one.pid, chance.randint(-20, 20), thread="0"))
        elif what == "suspend":
            await system.call(Suspend(one.pid))
        elif what == "resume":
            await system.call(Resume(one.pid))
        if chance.random() < 0.03:
            await system.call(Kill(one.pid))
        if chance.random() < 0.1:
            await asyncio.sleep(2)
        await system.turns(20)
        assert list(wrong_priorities(system.table.alive.values())) == []


async def test_the_cost_of_a_call_does_not_grow_with_the_pending_calls_of_the_server(system: System) -> None:
    async def trial(count: int) -> int:
        async def server(ctx: Context) -> None:
            async def handle(message: Any) -> None:
                await ctx.reply(message, await ctx.chat([{"role": "user", "content": "hi"}]))

            held = set()
            while True:
                held.add(asyncio.create_task(handle(await ctx.receive())))

        server.__name__ = f"server{count}"
        target = system.spawn(server)
        target.open_mailbox().capacity = count
        await system.turns()
        system.program(caller, f"caller{count}")
        with Counted("priority_inheritance.py", "models/manager.py", "policy/base.py") as counted:
            callers = [
                system.spawn(f"caller{count}", to=target.pid, timeout=1e6, priority=number % 3)
                for number in range(count)
            ]
            await system.turns(count)
            system.kill_all()
            await asyncio.sleep(10)
        system.client = system.kernel.lifecycle.open_client("test")
        assert all(one.ended for one in callers)
        return counted.lines

    assert await exponent(trial, 60, 240) < 1.2
