"""Agents that tests in several files run, and `make_call`, with which an agent makes any system call.

Each agent does one thing that a test needs a process for. An agent that only one test needs is in that test, never
here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ipc.syscalls import (
    Syscall,
)
from kernel.core.process import Process
from llmosd.context import Context


async def make_call(ctx: Context, call: Syscall, process: Process | None = None) -> Any:
    """Make exactly this system call as an agent, or in the name of another process."""
    return await ctx._gate.call(process or ctx._process, call)


async def forever(ctx: Context) -> None:
    """Sleeps for as long as any test lasts."""
    await ctx.sleep(1e9)


async def idle(ctx: Context) -> None:
    """Waits on a future that the kernel does not know, so no timer and no message wakes it."""
    await asyncio.get_running_loop().create_future()


async def listener(ctx: Context) -> None:
    """Ends when it has received a message."""
    await ctx.receive()


async def echo(ctx: Context) -> None:
    """Replies to each message with its body."""
    while True:
        message = await ctx.receive()
        await ctx.reply(message, message.body)


async def adder(ctx: Context, a: int, b: int = 2) -> int:
    return a + b


async def teller(ctx: Context, tokens: int = 20, seed: int = 1, model: str | None = None) -> str:
    """Generates a text, which `tests.support.simulated.text_of` predicts."""
    return await ctx.generate("one two three", model=model, max_tokens=tokens, seed=seed)


def generating(**options: Any) -> Any:
    async def agent(ctx: Context) -> Any:
        return await ctx.generate("one two three", **options)

    return agent
