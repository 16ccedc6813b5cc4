"""Agents of the load that do what libraries do to a daemon: odd values, tasks of callbacks, threads that block."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from llmosd import Context, LlmosError, agent

SURROGATE = "half \ud83d of a pair"
PATIENCE = 60.0  # seconds for a call that has to end by itself


class Index:
    """Like an integer of numpy: it is equal to an int and converts to one, and is none."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value

    __int__ = __index__

    def __eq__(self, other: object) -> bool:
        return self._value == other

    def __hash__(self) -> int:
        return hash(self._value)


class Whole(int):
    """An int of a class of its own."""


class Text(str):
    """A str of a class of its own."""

    __slots__ = ()


def odd_calls(ctx: Context) -> list[Callable[[], Awaitable[Any]]]:
    """System calls with values that are no ints, no texts and no times, or hardly so."""
    pid = ctx.pid
    pids: list[Any] = [Decimal(pid), Fraction(pid), Index(pid), Whole(pid), float(pid), True, -pid, 1 << 70, math.nan]
    times: list[Any] = [math.nan, -1.0, Decimal("0.01"), Fraction(1, 100), Index(0), "soon"]
    texts: list[Any] = [SURROGATE, Text("text"), b"bytes", "\0", 7]
    return [
        *(lambda to=to: ctx.monitor(to) for to in pids),
        *(lambda to=to: ctx.send(to, "odd") for to in pids),
        *(lambda to=to: ctx.wait(to, timeout=0.01) for to in pids[:4]),
        *(lambda seconds=seconds: ctx.sleep(seconds) for seconds in times),
        *(lambda seconds=seconds: ctx.receive(lambda message: False, timeout=seconds) for seconds in times),
        *(lambda text=text: ctx.memory.set(text, text) for text in texts),
        *(lambda text=text: ctx.send(pid, text) for text in texts),
        *(lambda value=value: ctx.memory.set("value", value) for value in (Decimal(1), Whole(1), math.nan, 1 << 70)),
    ]


async def _odd(ctx: Context) -> int:
    calls = odd_calls(ctx)
    for call in calls:
        try:
            async with asyncio.timeout(PATIENCE):
                await call()
        except (LlmosError, TypeError, ValueError, OverflowError):
            pass
    return len(calls)


@agent
async def odd(ctx: Context, number: int) -> list:
    """Each odd call is answered or raises an error; the agent and the daemon go on."""
    return [number, await _odd(ctx)]


@agent(durable=True)
async def durable_odd(ctx: Context, number: int) -> list:
    """The same, with a journal that records the calls."""
    return [number, await _odd(ctx)]


@agent
async def answering(ctx: Context, count: int) -> None:
    for _ in range(count):
        message = await ctx.receive()
        await ctx.reply(message, message.body)


@agent
async def callbacks(ctx: Context, number: int, count: int) -> list:
    """Makes tasks in callbacks of the loop, which call another process; returns the answers in order."""
    server = await ctx.spawn("answering", {"count": 2 * count})
    loop, answers = asyncio.get_running_loop(), [loop_future() for _ in range(count)]

    async def ask(step: int) -> None:
        answers[step].set_result(await ctx.call(server, number + step, PATIENCE))

    for step in range(count):
        loop.call_later(0.001 * step, lambda step=step: asyncio.ensure_future(ask(step)))
    own = [await ctx.call(server, number - step, PATIENCE) for step in range(count)]
    return [own, [await answer for answer in answers]]


def loop_future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


@agent
async def threads(ctx: Context, number: int, count: int, left: float) -> list:
    """Blocks threads, and leaves some blocked, and some functions in line, when it ends."""
    loop = asyncio.get_running_loop()
    for _ in range(2 * count):
        loop.run_in_executor(None, time.sleep, left)
    return [number, await asyncio.gather(*(asyncio.to_thread(_slowly, number + step) for step in range(count)))]


def _slowly(value: int) -> int:
    time.sleep(0.01)
    return value
