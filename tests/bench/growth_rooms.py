"""Cases of the bench of growth that need no kernel: the policies, the prefix cache and the start on a full journal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ipc.syscalls import Submit
from kernel.journal.journal import Journal
from kernel.journal.settings import JournalSettings
from kernel.policy.group import SchedulingGroup
from kernel.policy.registry import PolicySettings, make_policy
from llmosd.context import Context
from tests.support.boot import boot
from tests.support.growth_cases import Watch
from tests.support.policy_desk import Job

SLOTS = 16


def policy(kind: str, n: int, watch: Watch) -> None:
    """`n` jobs arrive, wait, and run to their ends; each turn makes one token for each job on a slot."""
    decider = make_policy(PolicySettings(kind=kind, quantum=4))
    jobs = {
        number: Job(
            number,
            1 + number % 7,
            group=SchedulingGroup(number, f"owner {number % 50}", deadline=1e9 + number if number % 2 else None),
            priority=number % 5,
        )
        for number in range(1, n + 1)
    }
    with watch:
        for job in jobs.values():
            decider.arrive(job, 0.0)
        now = 0.0
        while jobs:
            now += 0.1
            decider.decide(SLOTS, now)
            for job in decider.running():
                number = job.id
                decider.charge_tokens(job, 1, now)
                jobs[number].tokens -= 1
                jobs[number].group.service += 1
                if not jobs[number].tokens:
                    decider.leave(jobs.pop(number), now)


def prefixes(n: int, watch: Watch, on_disk: int = 0) -> None:
    """Room for half of `n` prefixes is made at once, and for the others one at a time."""
    from tests.support.prefix_cache import Cache

    cache = Cache(pages=100 * n, on_disk=on_disk)
    for process in range(1, n + 1):
        cache.keep([process % 250, process // 250, *[1] * 30], process)
    with watch:
        cache.tree.make_room(cache.memory.free_bytes + cache.memory.cached // 2)
        for _ in range(n // 2):
            cache.tree.make_room(cache.memory.free_bytes + 1)


async def full_journal(folder: Path, n: int, watch: Watch) -> None:
    """A daemon starts on a journal with `n` unfinished tasks, and restarts all of them."""

    async def task(ctx: Context) -> None:
        await ctx.sleep(1e6)

    async def tick() -> None:
        while True:
            await asyncio.sleep(1)  # lets time pass while the journal's thread works

    clock = asyncio.Task(tick())
    first = boot(folder, journal=Journal(folder, JournalSettings(sync="normal")))
    await first.until(lambda: first.kernel.opened)
    name = first.program(task)
    calls: list[Any] = [
        first.thread(first.kernel.gate.enter(first.client, Submit(name, detach=True))) for _ in range(n)
    ]
    await asyncio.gather(*calls)
    await first.kernel.drain(0)
    await first.kernel.close()
    with watch:
        second = boot(folder, journal=Journal(folder, JournalSettings(sync="normal")))
        second.program(task)
        await second.until(lambda: second.kernel.opened and len(second.table.alive) > n)
    await second.kernel.drain(0)
    await second.kernel.close()
    clock.cancel()
