"""Deep mailboxes: the cost of a selective receive at their end, and of ordering as they grow deeper.

Run by `make bench`. The plot shows the time per message beside n log n, both relative to their first values.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from time import perf_counter

import plotext
from rich.console import Console
from rich.table import Table

from ipc.messages import Message
from kernel.core.mailbox import Mailbox
from kernel.core.selector import Selector

DEPTH = 100_000
ROUNDS = 5
SIZES = [10**exponent for exponent in (3, 3.5, 4, 4.5, 5, 5.5, 6)]


def message(number: int, priority: int = 0) -> Message:
    return Message(number, "", 1, 2, priority, number, None, number)


def deep() -> Mailbox:
    box = Mailbox(DEPTH)
    for number in range(1, DEPTH + 1):
        box.put(message(number))
    return box


def timed(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def selective() -> Table:
    """Receive the first and the last of many by correlation id: the first time, which builds the index, and later."""
    rows: dict[str, list[float]] = {"first": [], "last": [], "first, later": [], "last, later": []}
    for _ in range(ROUNDS):
        for name, number in (("first", 1), ("last", DEPTH)):
            box = deep()
            rows[name].append(timed(lambda box=box, number=number: box.select(Selector(correlation=number))))  # type: ignore[misc]
            other = 2 if name == "first" else DEPTH - 1
            rows[name + ", later"].append(
                timed(lambda box=box, number=other: box.select(Selector(correlation=number)))  # type: ignore[misc]
            )
    table = Table(title=f"Selective receive from {DEPTH:,} messages by correlation id, medians of {ROUNDS}")
    for column in ("which", "microseconds", "of the first"):
        table.add_column(column, justify="right")
    for name, times in rows.items():
        base = statistics.median(rows["first, later" if "later" in name else "first"])
        median = statistics.median(times)
        table.add_row(name, f"{median * 1e6:,.1f}", f"{median / base:.2f}")
    return table


def ordering() -> tuple[list[int], list[float]]:
    """The sizes, and for each the microseconds per message to put and take all in order, which is checked."""
    dice = random.Random(0)
    sizes, costs = [], []
    for size in map(int, SIZES):
        messages = [message(number, dice.randint(-20, 20)) for number in range(size)]
        rounds = []
        for _ in range(max(1, min(ROUNDS, 10**6 // size))):
            box = Mailbox(size)
            start = perf_counter()
            for one in messages:
                box.put(one)
            taken = [box.take() for _ in messages]
            rounds.append((perf_counter() - start) / size * 1e6)
        assert taken == sorted(messages, key=lambda one: -one.priority), "a stable sort by priority"
        sizes.append(size)
        costs.append(statistics.median(rounds))
    return sizes, costs


def measure() -> None:
    console = Console(width=100)
    console.print(selective())
    sizes, costs = ordering()
    grown = [math.log(size) / math.log(sizes[0]) for size in sizes]
    plotext.theme("clear")
    plotext.plot_size(90, 18)
    plotext.title("Ordering by priority: time per message, of that at 1,000 messages")
    plotext.plot([math.log10(size) for size in sizes], [cost / costs[0] for cost in costs], marker="o", label="mailbox")
    plotext.plot([math.log10(size) for size in sizes], grown, marker="x", label="n log n")
    plotext.xlabel("log10 of messages")
    plotext.ylim(0)
    plotext.show()
    console.print(", ".join(f"{size:,}: {cost:.2f} us" for size, cost in zip(sizes, costs, strict=True)))


if __name__ == "__main__":
    measure()
