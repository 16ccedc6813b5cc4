"""Growth: how the work on each table and loop of the kernel grows with what is in it.

Run by `make bench`. Each case does its work on n and on 2n things; the exponent is the binary logarithm of the ratio of
the times, so 1 is linear and 2 quadratic. None should be above 1.2. The last columns count the objects of Python that
remain once nothing runs any more. Case names on the command line select cases.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Self

import growth_rooms
import structlog
from crowd import processor
from rich.console import Console
from rich.table import Table

from kernel.journal.journal import Journal
from kernel.journal.settings import JournalSettings
from kernel.models.spec import ModelSpec
from kernel.policy.registry import MAKERS
from tests.support.boot import boot
from tests.support.growth_cases import Case
from tests.support.growth_messages import CASES
from tests.support.virtual_time import GuardedVirtualTimeLoop

N = 1000
ROUNDS = 3
MOST = 1.2  # the highest exponent that is linear within the noise
SIZES = {
    "threads of one agent": 500,
    "names": 500,
    "regions": 500,
    "sends to nobody": 4000,
    "keys in private memory": 4000,
    "waits that are given up": 4000,
    "log lines": 4000,
    "messages in one mailbox": 4000,
    "messages chosen from one mailbox": 4000,
    "events that a reader lags behind": 8000,
}
SPEC = ModelSpec(driver="simulated", slots=8, options={"step_seconds": 0.01, "sequence_seconds": 0.0})


class Watch:
    """Sums the seconds of processor time that pass inside it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += process_time() - self._began


def in_kernel(case: Case, n: int) -> tuple[float, int]:
    """The seconds of `case`, and the objects that are left after it."""

    async def run() -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as folder:
            clock = asyncio.Task(ticking())
            journal = Journal(Path(folder), JournalSettings(sync="normal"))
            system = boot(Path(folder), models={"sim": SPEC}, journal=journal)
            await system.until(lambda: system.kernel.opened)
            gc.collect()
            before = len(gc.get_objects())
            gc.disable()
            watch = Watch()
            await case(system, n, watch)
            gc.enable()
            system.kill_all()
            await asyncio.sleep(1000)
            gc.collect()
            left = len(gc.get_objects()) - before
            await system.kernel.drain(0)
            await system.kernel.close()
            clock.cancel()
            return watch.seconds, left

    with asyncio.Runner(loop_factory=GuardedVirtualTimeLoop) as runner:
        return runner.run(run())


async def ticking() -> None:
    """Lets virtual time pass while the journal's thread works."""
    while True:
        await asyncio.sleep(1)


def plain(work: Callable[[int, Watch], None], n: int) -> tuple[float, int]:
    gc.collect()
    gc.disable()
    watch = Watch()
    work(n, watch)
    gc.enable()
    return watch.seconds, 0


def start(n: int) -> tuple[float, int]:
    async def run() -> float:
        watch = Watch()
        with tempfile.TemporaryDirectory() as folder:
            await growth_rooms.full_journal(Path(folder), n, watch)
        return watch.seconds

    with asyncio.Runner(loop_factory=GuardedVirtualTimeLoop) as runner:
        return runner.run(run()), 0


def cases() -> dict[str, Callable[[int], tuple[float, int]]]:
    every: dict[str, Callable[[int], tuple[float, int]]] = {
        name: partial(in_kernel, case) for name, case in CASES.items()
    }
    every |= {f"policy {kind}": partial(plain, partial(growth_rooms.policy, kind)) for kind in MAKERS}
    every["prefixes that are evicted"] = partial(plain, growth_rooms.prefixes)
    every["prefixes, to a full disk"] = partial(plain, partial(growth_rooms.prefixes, on_disk=100))
    every["tasks that a start finds"] = start
    return every


def main() -> None:
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asked = sys.argv[1:]
    table = Table(title=f"Growth from n to 2n; {processor()}")
    for column in ("what", "n", "ms at n", "ms at 2n", "exponent", "left at n", "left at 2n"):
        table.add_column(column, justify="left" if column == "what" else "right")
    worst = []
    for name, measure in cases().items():
        if asked and not any(word in name for word in asked):
            continue
        n = SIZES.get(name, N)
        measure(n // 10)
        rounds = [(measure(n), measure(2 * n)) for _ in range(ROUNDS)]
        (few, left), (many, later) = (min(one[place] for one in rounds) for place in (0, 1))
        exponent = math.log2(many / few)
        shown = f"[bold red]{exponent:.2f}" if exponent > MOST else f"{exponent:.2f}"
        table.add_row(name, f"{n:,}", f"{few * 1e3:.1f}", f"{many * 1e3:.1f}", shown, f"{left:,}", f"{later:,}")
        if exponent > MOST:
            worst.append(f"{name} {exponent:.2f}")
    Console(width=120).print(table)
    print("above", MOST, "are:", ", ".join(worst) or "none")


if __name__ == "__main__":
    main()
