"""Agents whose tasks the recorded journals of `tests/system/journals` hold, at every stage that a stop can leave.

Never change an agent here: a journal that was recorded with it replays it. Add another agent instead.
"""

from __future__ import annotations

import os

from llmosd import Context, agent, tool


@tool
def append(line: str) -> str:
    """Append `line` to the file that the environment names, each time that this is called."""
    with open(os.environ["LEDGER"], "a") as lines:
        lines.write(f"{line}\n")
    return line


@agent(durable=True)
async def archivist(ctx: Context) -> dict:
    """Makes one call of each kind, and then waits for a message of type "close"."""
    started = await ctx.time()
    await ctx.register("archivist")
    await ctx.subscribe("news.*")
    await ctx.memory.set("first", [1, "two", 3.0])
    await ctx.shared("catalogue", durable=True).set({"pages": 7})
    title = await ctx.generate("a title", max_tokens=4, seed=5)
    await ctx.tool("append", line="before the stop")
    page = await ctx.wait(await ctx.spawn("page", {"number": 1}))
    await ctx.receive(type="close")
    question = await ctx.receive(type="question")
    await ctx.reply(question, "page 7")
    news = await ctx.receive(type="news")
    await ctx.tool("append", line="after the stop")
    return {
        "title": title,
        "page": page,
        "first": await ctx.memory.get("first"),
        "catalogue": await ctx.shared("catalogue", durable=True).get(),
        "news": news.body,
        "time passed": await ctx.time() > started,
    }


@agent(durable=True)
async def page(ctx: Context, number: int) -> str:
    return f"page {number}, drawn {await ctx.random() < 1}"


@agent(durable=True)
async def asker(ctx: Context) -> str:
    """Waits for the reply of an archivist that does not reply yet."""
    return await ctx.call("archivist", "which page?", type="question")


@agent(durable=True)
async def counter(ctx: Context) -> int:
    """Adds up the numbers that are sent to it, with a checkpoint after each, until their sum is 6."""
    await ctx.register("counter")
    total = await ctx.checkpoint(0)
    while total < 6:
        total = await ctx.checkpoint(total + (await ctx.receive()).body)
    return total


@agent(durable=True)
async def story(ctx: Context, tokens: int) -> str:
    return await ctx.generate("Tell me a story.", max_tokens=tokens, seed=7)


@agent(durable=True)
async def sleeper(ctx: Context) -> str:
    await ctx.sleep(5)
    return "slept"


@agent(durable=True)
async def halted(ctx: Context) -> str:
    """Is suspended while it waits."""
    await ctx.register("halted")
    return (await ctx.receive()).body


@agent
async def echo(ctx: Context) -> list:
    """Is not durable: it starts again from its beginning."""
    await ctx.register("echo")
    return [ctx.attempt, (await ctx.receive()).body]


@agent
async def quick(ctx: Context, number: int) -> int:
    return number + 1


@agent
async def broken(ctx: Context) -> None:
    raise ValueError("broken on purpose")
