"""Model slots through the whole system: the cost of the daemon, the wait of an urgent call, two models in turn.

Run by `make bench`, on the embedded model. Each figure stands beside its comparison, measured in the same run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

from daemon import daemon
from driver import Driver
from rich.console import Console
from rich.table import Table

from ipc.syscalls import Sampling
from kernel.drivers.protocol import Admit, Bundle, Done
from kernel.drivers.transformers.source import EMBEDDED
from llmosd import AsyncClient, Token
from llmosd.daemon.settings import load

ROUNDS = 5
AGENTS, TOKENS = 64, 48
BUSY, LONG = 32, 900  # slots, and tokens of each generation on them
URGENT = 9  # calls, one after another
CALLS, APART = 80, 0.1  # for two models: calls in turn, and seconds between two
ONE_MODEL = 2_000_000_000  # bytes: room for one of two
CONSOLE = Console(width=120)

numbers = iter(range(10**9))


def series() -> str:
    """The beginning of a series that the model continues; no two are the same."""
    start = next(numbers)
    return ", ".join(str(start + step * (2 + start % 7)) for step in range(8)) + ","


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    cache = load().cache_path / "models"
    with daemon() as socket, Driver(EMBEDDED, cache) as driver:
        asyncio.run(warm(socket))
        driver.run(through_the_driver(driver, [series()]))
        cost_of_the_daemon(socket, driver)
    with daemon(f"[models.smollm2]\nslots = {BUSY}\n") as socket:
        asyncio.run(urgent(socket))
    two_models(next(cache.glob("SmolLM2*/")))


async def warm(socket: Path) -> None:
    async with AsyncClient(socket) as llmos:
        await llmos.run("generate", {"prompt": series(), "max_tokens": 4})


# ---- what the daemon costs


async def through_the_driver(driver: Driver, prompts: list[str]) -> float:
    """Tokens per second, from the first call to the end of the last."""
    started = perf_counter()
    sampling = Sampling(max_tokens=TOKENS, temperature=0)
    for prompt in prompts:
        driver.send(Admit(next(driver.ids), prompt, sampling, TOKENS))
    left = len(prompts)
    tokens = 0
    while left:
        at, message = await driver.next()
        if isinstance(message, Bundle):
            tokens += sum(len(progress.ids) for progress in message.progress)
        left -= isinstance(message, Done)
    return tokens / (at - started)


async def through_the_daemon(socket: Path, prompts: list[str]) -> float:
    """The same for agents that stream their tokens to a client."""
    async with AsyncClient(socket) as llmos:
        before = (await llmos.slots())[0].tokens
        started = perf_counter()
        tasks = [await llmos.submit("generate", {"prompt": prompt, "max_tokens": TOKENS}) for prompt in prompts]
        await asyncio.gather(*(task.result() for task in tasks))
        seconds = perf_counter() - started
        return ((await llmos.slots())[0].tokens - before) / seconds


def cost_of_the_daemon(socket: Path, driver: Driver) -> None:
    bare, whole = [], []
    for _ in range(ROUNDS):
        prompts = [series() for _ in range(AGENTS)]
        bare.append(driver.run(through_the_driver(driver, prompts)))
        whole.append(asyncio.run(through_the_daemon(socket, prompts)))
    table = Table(title=f"{AGENTS} agents at once, {TOKENS} tokens each, prompts included, medians of {ROUNDS} in turn")
    for column in ("", "tokens/s", "ratio"):
        table.add_column(column, justify="right")
    floor, ours = statistics.median(bare), statistics.median(whole)
    table.add_row("the driver alone", f"{floor:.0f}", "")
    table.add_row("client, socket, kernel, agents, driver", f"{ours:.0f}", f"{ours / floor:.2f}")
    CONSOLE.print(table)


# ---- an urgent call


async def first_token(llmos: AsyncClient, priority: int) -> float:
    started = perf_counter()
    task = await llmos.submit("generate", {"prompt": series(), "max_tokens": 4}, priority=priority)
    seconds = 0.0
    async for event in task.events():
        if isinstance(event, Token) and not seconds:
            seconds = perf_counter() - started
    return seconds


async def urgent(socket: Path) -> None:
    async with AsyncClient(socket) as llmos:
        await llmos.run("generate", {"prompt": series(), "max_tokens": 4})
        alone = statistics.median([await first_token(llmos, 0) for _ in range(URGENT)])
        tasks = [await llmos.submit("generate", {"prompt": series(), "max_tokens": LONG}) for _ in range(2 * BUSY)]
        while (await llmos.slots())[0].used < BUSY or (await llmos.slots())[0].tokens < 3 * BUSY:
            await asyncio.sleep(0.1)
        steps, started = (await llmos.slots())[0].steps, perf_counter()
        await asyncio.sleep(3)
        step = (perf_counter() - started) / ((await llmos.slots())[0].steps - steps)
        found = statistics.median([await first_token(llmos, 10) for _ in range(URGENT)])
        queued = (await llmos.slots())[0].queued
        for task in tasks:
            await task.cancel()
    bound = 3 * step + alone
    table = Table(title=f"An urgent call, {BUSY} slots taken by long generations, {queued} more queued")
    for column in ("", "seconds", "of the bound"):
        table.add_column(column, justify="right")
    table.add_row("a step of the busy machine", f"{step:.3f}", "")
    table.add_row("first token on the idle machine", f"{alone:.3f}", "")
    table.add_row("bound: three busy steps and the idle first token", f"{bound:.3f}", "1.00")
    table.add_row("first token on the busy machine", f"{found:.3f}", f"{found / bound:.2f}")
    CONSOLE.print(table)


# ---- two models in the memory of one


async def calls(socket: Path, models: list[str], apart: float) -> tuple[float, float]:
    """Seconds until all are answered, and the seconds of the longest call."""
    async with AsyncClient(socket) as llmos:
        started = perf_counter()

        async def call(model: str, after: float) -> float:
            await asyncio.sleep(after)
            begun = perf_counter()
            await llmos.run("generate", {"prompt": series(), "max_tokens": TOKENS, "model": model})
            return perf_counter() - begun

        times = await asyncio.gather(*(call(model, number * apart) for number, model in enumerate(models)))
        return perf_counter() - started, max(times)


def two_models(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="llmosd-bench-", dir=folder.parent) as name:
        other = shutil.copytree(folder, Path(name) / "other")
        settings = (
            f"preload = false\n[resources]\nmemory = {ONE_MODEL}\n"
            f"[models.one]\npath = '{folder}'\n[models.other]\npath = '{other}'\n"
        )
        half = CALLS // 2
        with daemon(settings) as socket:
            asyncio.run(calls(socket, ["one", "other"], 0.0))
            asyncio.run(calls(socket, ["one"], 0.0))  # so that both measurements begin with model `one` in memory
            grouped, _ = asyncio.run(calls(socket, ["one"] * half, 0.0))
            grouped += asyncio.run(calls(socket, ["other"] * half, 0.0))[0]
            asyncio.run(calls(socket, ["one"], 0.0))
            mixed, longest = asyncio.run(calls(socket, ["one", "other"] * half, APART))
    table = Table(
        title=f"Two models in the memory of one: {CALLS} calls of {TOKENS} tokens, one model and the other in turn"
    )
    for column in ("", "seconds", "of the ideal rate", "longest call, seconds"):
        table.add_column(column, justify="right")
    table.add_row("ideal: all calls of one, then all of the other", f"{grouped:.1f}", "1.00", "")
    table.add_row(f"in turn, {APART} s apart", f"{mixed:.1f}", f"{grouped / mixed:.2f}", f"{longest:.1f}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
