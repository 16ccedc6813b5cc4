"""Promises of the engine of the transformers driver besides its rate: shared prefixes, short waits, cheap paging.

Run by `make bench`, on the embedded model, through the driver protocol. Each figure stands beside its comparison,
measured in the same run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from driver import Driver
from rich.console import Console
from rich.table import Table

from ipc.syscalls import Sampling
from kernel.drivers.protocol import Admit, Bundle, Cancel, Done, KVUsage, Parked, SwapOut, SwappedOut
from kernel.drivers.transformers.source import EMBEDDED
from llmosd.daemon.settings import load

ROUNDS = 3
AGENTS, SYSTEM, QUESTION = 64, 300, 20  # and tokens of the prompts
NEIGHBOURS, LONG = 32, 4000
MANY = 2000  # tokens: more than are made while the long prompt is read
PAGED = 2000  # tokens of a sequence that goes to disk
COUNTS = (1, 16, 64)  # sequences
VOCABULARY = 40_000
CONSOLE = Console(width=120)

numbers = iter(range(10**9))


def words(count: int) -> list[int]:
    """`count` tokens in an order that no earlier prompt had."""
    start = next(numbers)
    return [1000 + (7919 * start + 31 * place * (1 + start % 97)) % VOCABULARY for place in range(count)]


def greedy(tokens: int) -> Sampling:
    # No id ends the text: one that is not likely would, and the loads must be the same.
    return Sampling(max_tokens=tokens, temperature=0)


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    cache = load().cache_path / "models"
    with Driver(EMBEDDED, cache) as driver:
        driver.begin([words(40)], 2)
        driver.go(1)
        shared_prompt(driver)
        long_prompt(driver)
        paging(driver)
        with Driver(EMBEDDED, cache, {"deterministic": False}) as careless:
            invariance(driver, careless)


# ---- a prompt that all share


class Wave(NamedTuple):
    """Calls that arrived together. `first`: mean seconds to the first token; `computed`: prompt tokens."""

    first: float
    computed: int


async def wave(driver: Driver, prompts: list[list[int]]) -> Wave:
    global counted
    started = perf_counter()
    process = 1000 + next(driver.ids)
    after = KVUsage()
    for prompt in prompts:
        driver.send(Admit(next(driver.ids), "", greedy(1), 1, prompt_ids=prompt, process=process))
    firsts: list[float] = []
    ended = 0
    while ended < len(prompts):
        at, message = await driver.next()
        if isinstance(message, Bundle):
            firsts += [at - started for progress in message.progress if progress.ids]
            after = message.kv
        ended += isinstance(message, Done)
    before, counted = counted, after
    return Wave(statistics.mean(firsts), (after.asked - before.asked) - (after.hit - before.hit))


counted = KVUsage()  # the driver's counters after the last wave


def shared_prompt(driver: Driver) -> None:
    """The ideal computes the system prompt once, and each question."""
    driver.run(wave(driver, [words(40)]))
    table = Table(title=f"{AGENTS} calls at once, a system prompt of {SYSTEM} tokens and a question of {QUESTION}")
    for column in ("", "prompt tokens computed", "of the ideal", "mean seconds to first token", "ratio"):
        table.add_column(column, justify="right")
    ideal, rounds = SYSTEM + AGENTS * QUESTION, []
    for _ in range(ROUNDS):
        system = words(SYSTEM)
        one = driver.run(wave(driver, [system + words(QUESTION) for _ in range(AGENTS)]))
        each = driver.run(wave(driver, [words(SYSTEM) + words(QUESTION) for _ in range(AGENTS)]))
        rounds.append((one, each))
    ones, eachs = ([pair[side] for pair in rounds] for side in (0, 1))
    first = {name: statistics.median(one.first for one in waves) for name, waves in (("one", ones), ("each", eachs))}
    for title, waves, name in (("one for all", ones, "one"), ("one for each: no prefix is known", eachs, "each")):
        computed = statistics.median(one.computed for one in waves)
        row = [
            f"{computed:,.0f}",
            f"{computed / ideal:.3f}",
            f"{first[name]:.2f}",
            f"{first['each'] / first[name]:.1f}",
        ]
        table.add_row(title, *row)
    CONSOLE.print(table)


# ---- a long prompt beside others


class Reading(NamedTuple):
    """Seconds `between` the tokens of `NEIGHBOURS` sequences, and to the `first` of a prompt that is read meanwhile."""

    between: list[float]
    first: float

    def percentile(self, part: int) -> float:
        return sorted(self.between)[min(len(self.between) - 1, len(self.between) * part // 100)]


async def read(driver: Driver, prompt: list[int] | None, tokens: int) -> Reading:
    """Run neighbours for `tokens` tokens each, or until the first of `prompt`. Counts once all have their first."""
    running = {next(driver.ids) for _ in range(NEIGHBOURS)}
    for number in running:
        driver.send(Admit(number, "", greedy(tokens), tokens, prompt_ids=words(40)))
    last: dict[int, float] = {}
    between: list[float] = []
    long = next(driver.ids)
    began = first = 0.0
    ended = set[int]()
    while len(ended) < len(running) + (prompt is not None):
        at, message = await driver.next()
        if isinstance(message, Done):
            ended.add(message.sequence)
        if not isinstance(message, Bundle):
            continue
        for progress in message.progress:
            number = progress.sequence
            if number == long and not first:
                first = at - began
                for other in running:  # their further tokens are not needed
                    driver.send(Cancel(other))
            elif number in running and progress.ids:
                if began and not first:
                    between += [(at - last[number]) / len(progress.ids)] * len(progress.ids)
                last[number] = at
        if not began and len(last) == NEIGHBOURS:
            began = perf_counter()
            if prompt is not None:
                driver.send(Admit(long, "", greedy(1), 1, prompt_ids=prompt))
    return Reading(between, first)


async def first_token(driver: Driver, prompt: list[int]) -> float:
    """Seconds to the first token of `prompt`, with no neighbour."""
    started = perf_counter()
    driver.send(Admit(next(driver.ids), "", greedy(1), 1, prompt_ids=prompt))
    while not isinstance((await driver.next())[1], Done):
        pass
    return perf_counter() - started


def long_prompt(driver: Driver) -> None:
    """Both cases run at the same lengths: a step takes longer the more tokens each sequence has."""
    table = Table(title=f"Seconds between tokens of {NEIGHBOURS} sequences, medians of {ROUNDS} rounds in turn")
    for column in ("", "p50", "p99", "p99 of alone", "to the first token of the prompt"):
        table.add_column(column, justify="right")
    alone, beside, lone = [], [], []
    for _ in range(ROUNDS):
        beside.append(driver.run(read(driver, words(LONG), MANY)))
        alone.append(driver.run(read(driver, None, len(beside[-1].between) // NEIGHBOURS)))
        lone.append(driver.run(first_token(driver, words(LONG))))
    quiet = statistics.median(one.percentile(99) for one in alone)
    for title, rounds in (("alone", alone), (f"while a prompt of {LONG:,} tokens is read", beside)):
        p50, p99 = (statistics.median(one.percentile(part) for one in rounds) for part in (50, 99))
        first = statistics.median(one.first for one in rounds)
        table.add_row(title, f"{p50:.3f}", f"{p99:.3f}", f"{p99 / quiet:.2f}", f"{first:.1f}" if first else "")
    table.add_row("that prompt with no neighbour", "", "", "", f"{statistics.median(lone):.1f}")
    CONSOLE.print(table)


# ---- paging


class Paged(NamedTuple):
    """Seconds that it took to read the prompt, to park, to write to disk, and to write as many bytes plainly."""

    compute: float
    park: float
    swap: float
    plain: float
    size: int


async def page(driver: Driver, path: Path) -> Paged:
    number = next(driver.ids)
    started = perf_counter()
    driver.send(Admit(number, "", greedy(100), 1, prompt_ids=words(PAGED)))
    computed = parked = 0.0
    while not parked:
        at, message = await driver.next()
        if isinstance(message, Bundle) and any(progress.ids for progress in message.progress):
            computed = at
        if isinstance(message, Parked):
            parked = at
    before = perf_counter()
    driver.send(SwapOut(number, str(path)))
    while not isinstance(message, SwappedOut):
        at, message = await driver.next()
    return Paged(computed - started, max(parked - computed, 0.0), at - before, written(path), message.size)


def written(path: Path) -> float:
    """Seconds to write as many bytes as `path` has to a file beside it."""
    content = path.read_bytes()
    started = perf_counter()
    with path.with_suffix(".plain").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return perf_counter() - started


def paging(driver: Driver) -> None:
    with tempfile.TemporaryDirectory(prefix="llmosd-bench-", dir=load().cache_path) as folder:
        rounds = [driver.run(page(driver, Path(folder) / f"{number}.kv")) for number in range(3 * ROUNDS)]
    size = statistics.median(one.size for one in rounds)
    table = Table(title=f"A sequence of {PAGED:,} tokens, {size / 1e6:.0f} MB of KV")
    for column in ("", "milliseconds", "of a plain write"):
        table.add_column(column, justify="right")
    plain = statistics.median(one.plain for one in rounds)
    what: dict[str, Callable[[Paged], float]] = {
        "parked in memory": lambda one: one.park,
        "written to disk by the driver, fsync and checksum": lambda one: one.swap,
        "plain write and fsync of the same bytes": lambda one: one.plain,
        "its prompt recomputed": lambda one: one.compute,
    }
    for title, of in what.items():
        seconds = statistics.median(map(of, rounds))
        table.add_row(title, f"{1e3 * seconds:,.1f}", f"{seconds / plain:.2f}")
    CONSOLE.print(table)


# ---- what exactness costs


def invariance(exact: Driver, careless: Driver) -> None:
    rates: dict[tuple[int, int], list[float]] = {}
    for _ in range(ROUNDS):
        for count in COUNTS:
            for side, driver in enumerate((exact, careless)):
                driver.begin([words(40) for _ in range(count)], 24)
                made, seconds = driver.go(23)
                rates.setdefault((count, side), []).append(made / seconds)
    table = Table(title="Decode tokens/s, medians in turn: the cost of tokens that depend on no neighbour")
    for column in ("sequences", "deterministic", "deterministic = false", "ratio"):
        table.add_column(column, justify="right")
    for count in COUNTS:
        on, off = (statistics.median(rates[count, side]) for side in (0, 1))
        table.add_row(str(count), f"{on:.0f}", f"{off:.0f}", f"{on / off:.2f}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
