"""What the load of the fault trials runs: each program's outcome is a function of its arguments, whatever happens."""

from __future__ import annotations

from llmosd import Context, agent


@agent
async def work(ctx: Context, number: int, file: str, tokens: int) -> list:
    """Generates, and leaves a line in the file for each attempt that came to its end."""
    text = await ctx.generate(f"number {number}", max_tokens=tokens, seed=number, temperature=0.0)
    _append(file, f"{number} {text.encode().hex()}\n")
    return [number, text]


def _append(file: str, line: str) -> None:
    with open(file, "a") as lines:
        lines.write(line)


@agent
async def family(ctx: Context, number: int, file: str, tokens: int) -> list:
    """Three children in a row of places."""
    arguments = {"number": number, "file": file, "tokens": tokens}
    children = [await ctx.spawn("work", arguments) for _ in range(3)]
    return [await ctx.wait(child) for child in children]


@agent
async def broken(ctx: Context, number: int) -> None:
    await ctx.sleep(0.01)
    raise ValueError(f"broken on purpose, number {number}")


@agent
async def sender(ctx: Context, to: int, count: int) -> None:
    for number in range(count):
        await ctx.send(to, number)


@agent
async def order(ctx: Context, count: int) -> list:
    """What two senders sent at the same time, as it came from each."""
    senders = [await ctx.spawn("sender", {"to": ctx.pid, "count": count}) for _ in range(2)]
    came: dict[int, list[int]] = {pid: [] for pid in senders}
    for _ in range(2 * count):
        message = await ctx.receive()
        came[message.sender].append(message.body)
    return list(came.values())


@agent
async def waiting(ctx: Context, number: int) -> None:
    """Ends by its deadline, or is killed."""
    await ctx.sleep(3600)
