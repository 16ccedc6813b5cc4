"""Selective receive: by type, sender, correlation id and predicate. An unclaimed message goes to the next receiver."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.errors import InvalidCall, TimedOut
from ipc.syscalls import Kill, Nice, Send
from llmosd.context import Context
from tests.support.system import System


async def test_by_type_sender_and_correlation_and_the_rest_stays_in_order(system: System) -> None:
    async def agent(ctx: Context) -> list[Any]:
        await ctx.sleep(1)
        first = [
            (await ctx.receive(type="b")).body,
            (await ctx.receive(correlation=7)).body,
            (await ctx.receive(where=lambda message: message.priority < 0)).body,
            (await ctx.receive(sender=system.client.pid, type="a")).body,
        ]
        return [*first, *[(await ctx.receive()).body for _ in range(2)]]

    target = system.spawn(agent)
    for body, options in (
        ("one", {"type": "x"}),
        ("two", {"type": "b"}),
        ("three", {"priority": -3}),
        ("four", {"correlation": 7}),
        ("five", {"type": "a"}),
        ("six", {}),
    ):
        await system.call(Send(target.pid, body, **options))
    assert await system.result(target) == ["two", "four", "three", "five", "one", "six"]


async def test_a_selective_receiver_waits_for_its_message_and_lets_others_pass(system: System) -> None:
    got: list[Any] = []

    async def agent(ctx: Context) -> None:
        got.append((await ctx.receive(type="wanted")).body)
        got.append((await ctx.receive()).body)

    target = system.spawn(agent)
    await system.turns()
    assert str(next(iter(target.threads)).waits_for) == "message of type wanted"
    await system.call(Send(target.pid, "other"))
    await system.turns()
    assert got == []
    await system.call(Send(target.pid, "right", type="wanted"))
    await system.status(target)
    assert got == ["right", "other"]


async def test_several_receivers_each_get_what_they_wait_for(system: System) -> None:
    got: dict[str, Any] = {}

    async def agent(ctx: Context) -> None:
        async def one(key: str, **selection: Any) -> None:
            got[key] = (await ctx.receive(**selection)).body

        async with asyncio.TaskGroup() as group:
            group.create_task(one("b", type="b"))
            group.create_task(one("any"))
            group.create_task(one("a", type="a"))

    target = system.spawn(agent)
    await system.turns()
    for kind in ("c", "a", "b"):
        await system.call(Send(target.pid, kind, type=kind))
        await system.turns()
    await system.status(target)
    assert got == {"any": "c", "a": "a", "b": "b"}


async def test_a_selective_receiver_times_out_and_its_message_is_there_later(system: System) -> None:
    async def agent(ctx: Context) -> Any:
        with pytest.raises(TimedOut, match="no message of type late within 2"):
            await ctx.receive(type="late", timeout=2)
        await ctx.sleep(2)
        return (await ctx.receive(type="late")).body

    target = system.spawn(agent)
    system.loop.call_later(3, lambda: system.thread(system.call(Send(target.pid, "here", type="late"))))
    assert await system.result(target) == "here"


async def test_a_predicate_that_raises_fails_its_receiver_and_not_the_sender(system: System) -> None:
    async def agent(ctx: Context) -> str:
        try:
            await ctx.receive(where=lambda message: message.body["missing"])
        except TypeError:
            return (await ctx.receive()).body
        return "no error"

    target = system.spawn(agent)
    await system.turns()
    await system.call(Send(target.pid, "plain"))
    assert await system.result(target) == "plain"


async def test_a_predicate_that_raises_leaves_its_message_to_the_next_receiver(system: System) -> None:
    async def agent(ctx: Context) -> Any:
        failing = ctx.start_thread(ctx.receive(where=lambda message: message.body["missing"]))
        waiting = ctx.start_thread(ctx.receive())
        with pytest.raises(TypeError):
            await failing
        return (await waiting).body

    target = system.spawn(agent)
    await system.turns()
    await system.call(Send(target.pid, "plain"))
    assert await system.result(target) == "plain"


async def test_a_message_whose_receiver_took_another_goes_to_the_next_who_wants_it(system: System) -> None:
    """The first is woken for x and the second for y. The second runs first and takes x, so y is left for the third."""

    async def agent(ctx: Context) -> list[Any]:
        first = ctx.start_thread(ctx.receive(type="x"))
        second = ctx.start_thread(ctx.receive())
        third = ctx.start_thread(ctx.receive(type="y"))
        answers = [(await second).body, (await third).body]
        first.cancel()
        return answers

    target = system.spawn(agent)
    await system.turns()
    await system.call(Nice(target.pid, -5, thread="0-1"))  # so that the second runs first
    await system.call(Send(target.pid, "for the first", type="x"))
    await system.call(Send(target.pid, "for the second", type="y"))
    assert await system.result(target) == ["for the first", "for the second"]


async def test_a_woken_and_cancelled_receiver_lets_the_next_one_look(system: System) -> None:
    got: list[Any] = []

    async def receive(ctx: Context) -> None:
        got.append((await ctx.receive(type="x")).body)

    contexts: list[Context] = []

    async def agent(ctx: Context) -> None:
        contexts.append(ctx)
        await ctx.sleep(100)

    target = system.spawn(agent)
    await system.turns()
    first, second = (system.thread(receive(contexts[0]), target) for _ in range(2))
    await system.turns()
    await system.call(Send(target.pid, "once", type="x"))
    first.cancel()
    await system.turns()
    assert (got, second.done()) == (["once"], True)
    await system.call(Kill(target.pid))


@pytest.mark.parametrize("call", ["receive", "call", "send"])
async def test_a_negative_time_is_refused(system: System, call: str) -> None:
    async def agent(ctx: Context, to: int) -> None:
        if call == "receive":
            await ctx.receive(timeout=-1)
        elif call == "call":
            await ctx.call(to, None, -1)
        else:
            await ctx.send(to, None, lifetime=float("nan"))

    async def idle(ctx: Context) -> None:
        await ctx.receive()

    target = system.spawn(idle)
    with pytest.raises(InvalidCall, match=r"at least 0|cannot be negative"):
        await system.run(agent, to=target.pid)
    assert system.kernel.gate.errors["InvalidCall"] == 1
