"""Programs of the load of the fault trials: the outcome of each is a function of its arguments, whatever happens."""

from __future__ import annotations

from llmosd import Context, agent


@agent
async def work(ctx: Context, number: int, file: str, tokens: int) -> list:
    """Generates, and writes a line to the file in each attempt that gets to its end."""
    text = await ctx.generate(f"number {number}", max_tokens=tokens, seed=number, temperature=0.0)
    _append(file, f"{number} {text.encode().hex()}\n")
    return [number, text]


def _append(file: str, line: str) -> None:
    with open(file, "a") as lines:
        lines.write(line)


@agent
async def family(ctx: Context, number: int, file: str, tokens: int) -> list:
    """Runs `work` in three children and returns their values in order."""
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
    """Receives from two senders at the same time; returns the bodies of each in order."""
    senders = [await ctx.spawn("sender", {"to": ctx.pid, "count": count}) for _ in range(2)]
    received: dict[int, list[int]] = {pid: [] for pid in senders}
    for _ in range(2 * count):
        message = await ctx.receive()
        received[message.sender].append(message.body)
    return list(received.values())


@agent
async def waiting(ctx: Context, number: int) -> None:
    """Ends by its deadline, or is killed."""
    await ctx.sleep(3600)
