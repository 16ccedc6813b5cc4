"""Durable agents of the load: after a death of the daemon they repeat no effect that they had before."""

from __future__ import annotations

from llmosd import Context, agent, tool


@tool
def append(path: str, line: str, call_id: str) -> None:
    """Appends its line, unless a call with this id already did."""
    with open(path, "a+") as lines:
        lines.seek(0)
        if not any(known.startswith(f"{call_id} ") for known in lines):
            lines.write(f"{call_id} {line}\n")


@agent(durable=True)
async def steps(ctx: Context, number: int, count: int, path: str) -> list:
    """Generates and writes to the outside in turn."""
    texts = []
    for step in range(count):
        texts.append(await ctx.generate(f"number {number}", max_tokens=3, seed=number + step))
        await ctx.tool("append", path=path, line=str(step))
    return texts


@agent(durable=True)
async def durable_sender(ctx: Context, to: int, count: int) -> None:
    for number in range(count):
        await ctx.send(to, number)


@agent(durable=True)
async def durable_order(ctx: Context, count: int) -> list:
    """Receives from two durable senders at the same time; returns the bodies of each in order."""
    senders = [await ctx.spawn("durable_sender", {"to": ctx.pid, "count": count}) for _ in range(2)]
    received: dict[int, list[int]] = {pid: [] for pid in senders}
    for _ in range(2 * count):
        message = await ctx.receive()
        received[message.sender].append(message.body)
    return list(received.values())
