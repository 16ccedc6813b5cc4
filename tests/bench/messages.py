"""Messages between agents in the loop, through the full gate, beside bare coroutines on the same loop.

Each round runs floor and kernel in turn; ratios are medians over rounds. Run by `make bench`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections import deque
from time import perf_counter

import uvloop
from inside import Inside
from peers import environments
from rich.console import Console
from rich.table import Table

ROUNDS = 7
COUNT = 20_000
BOUND = 100


async def floor_ping_pong() -> float:
    """Messages a second between two tasks, each with a deque and a future to wait on."""
    loop = asyncio.get_running_loop()
    boxes: tuple[deque[int], deque[int]] = deque(), deque()
    waiters: list[asyncio.Future[None] | None] = [None, None]

    async def side(own: int, first: bool) -> None:
        other = 1 - own
        for number in range(COUNT):
            if first:
                boxes[other].append(number)
                if (waiter := waiters[other]) is not None and not waiter.done():
                    waiter.set_result(None)
            while not boxes[own]:
                waiters[own] = waiter = loop.create_future()
                await waiter
            value = boxes[own].popleft()
            if not first:
                boxes[other].append(value)
                if (waiter := waiters[other]) is not None and not waiter.done():
                    waiter.set_result(None)

    start = perf_counter()
    await asyncio.gather(side(0, True), side(1, False))
    return 2 * COUNT / (perf_counter() - start)


async def floor_ask() -> float:
    """Requests a second to a task with a mailbox, each answered through a future."""
    loop = asyncio.get_running_loop()
    box: deque[tuple[int, asyncio.Future[int]]] = deque()
    waiter: list[asyncio.Future[None] | None] = [None]

    async def answer() -> None:
        for _ in range(COUNT):
            while not box:
                waiter[0] = loop.create_future()
                await waiter[0]
            value, reply = box.popleft()
            if not reply.done():
                reply.set_result(value)

    async def ask() -> None:
        for number in range(COUNT):
            reply = loop.create_future()
            box.append((number, reply))
            if waiter[0] is not None and not waiter[0].done():
                waiter[0].set_result(None)
            await reply

    start = perf_counter()
    await asyncio.gather(answer(), ask())
    return COUNT / (perf_counter() - start)


async def floor_stream() -> float:
    """Messages a second through an asyncio.Queue bounded at `BOUND`."""
    queue: asyncio.Queue[int] = asyncio.Queue(BOUND)

    async def produce() -> None:
        for number in range(COUNT):
            await queue.put(number)

    async def consume() -> None:
        for _ in range(COUNT):
            await queue.get()

    start = perf_counter()
    await asyncio.gather(produce(), consume())
    return COUNT / (perf_counter() - start)


async def ping_pong(inside: Inside) -> float:
    pong = await inside.spawn("pong", count=COUNT)
    return 2 * COUNT / await inside.run("ping", to=pong, count=COUNT)


async def ask(inside: Inside) -> float:
    server = await inside.spawn("server", count=COUNT)
    return COUNT / await inside.run("caller", to=server, count=COUNT)


async def stream(inside: Inside) -> float:
    consumer = await inside.spawn("consumer", mailbox=BOUND, count=COUNT)
    await inside.spawn("producer", to=consumer, count=COUNT)
    return COUNT / await inside.result(consumer)


PING_PONG = "ping-pong (send, receive), messages/s"
ASK = "call and reply with a deadline, calls/s"
AUTOGEN = "autogen-core==0.7.5"

CASES = {
    PING_PONG: (floor_ping_pong, ping_pong, "deque and future"),
    ASK: (floor_ask, ask, "mailbox and reply future"),
    "one way with back-pressure, messages/s": (floor_stream, stream, "asyncio.Queue"),
}


async def measure() -> None:
    table = Table(title=f"Messages in the loop, {os.cpu_count()} cores, medians of {ROUNDS} rounds in turn")
    for column in ("", "floor", "its rate", "llmosd", "ratio"):
        table.add_column(column, justify="right")
    rates: dict[str, float] = {}
    async with Inside() as inside:
        for name, (floor, ours, what) in CASES.items():
            rows = [(await floor(), await ours(inside)) for _ in range(ROUNDS)]
            bare, made = (statistics.median(side) for side in zip(*rows, strict=True))
            ratio = statistics.median(second / first for first, second in rows)
            table.add_row(name, what, f"{bare:,.0f}", f"{made:,.0f}", f"{ratio:.2f}")
            rates[name] = made
    theirs = statistics.median(environments.run("autogen_send.py", AUTOGEN) for _ in range(3))
    for name in (PING_PONG, ASK):
        table.add_row(
            name, f"{AUTOGEN} send_message", f"{theirs:,.0f}", f"{rates[name]:,.0f}", f"{rates[name] / theirs:.1f}"
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    uvloop.run(measure())
