"""Agents that the benches of messages and of many agents run: each does nothing but pass messages."""

from time import perf_counter

from llmosd import Context, agent


@agent
async def ping(ctx: Context, to: int, count: int) -> float:
    start = perf_counter()
    for number in range(count):
        await ctx.send(to, number)
        await ctx.receive()
    return perf_counter() - start


@agent
async def pong(ctx: Context, count: int) -> None:
    for _ in range(count):
        message = await ctx.receive()
        await ctx.send(message.sender, message.body)


@agent
async def caller(ctx: Context, to: int, count: int) -> float:
    start = perf_counter()
    for number in range(count):
        await ctx.call(to, number, 5.0)
    return perf_counter() - start


@agent
async def server(ctx: Context, count: int) -> None:
    for _ in range(count):
        message = await ctx.receive()
        await ctx.reply(message, message.body)


@agent
async def producer(ctx: Context, to: int, count: int) -> None:
    for number in range(count):
        await ctx.send(to, number)


@agent
async def consumer(ctx: Context, count: int) -> float:
    start = perf_counter()
    for _ in range(count):
        await ctx.receive()
    return perf_counter() - start


@agent
async def idle(ctx: Context) -> None:
    await ctx.receive()
