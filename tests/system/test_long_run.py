"""Very many tasks: the daemon's memory stays flat, whatever they leave, and its journal is bounded by retention."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from llmosd import AsyncClient

CLIENTS, AT_ONCE = 8, 16
ROUNDS = 10  # memory and journal are measured after each
FLAT = 24 * 1024 * 1024  # bytes by which memory may differ between the first round and the last
KEEP = 1.0  # seconds for which results are retained
CYCLES = 60  # tasks that each leave a cycle of objects
LEFT = 5_000_000  # bytes that each of them leaves
AGENTS = """
from llmosd import agent

class Node:
    def __init__(self, size):
        self.me = self
        self.data = b"x" * size

@agent
async def cycle(ctx, size: int):
    node = Node(size)
    await ctx.sleep(0.01)
    return len(node.data)
"""


async def tasks(socket, count):
    """Run `count` tasks from several connections, and check the result of each."""
    left = iter(range(count))

    async def lane(llmos):
        for number in left:
            assert await llmos.run("echo", {"value": number}) == number

    async def client():
        async with AsyncClient(socket) as llmos, asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(lane(llmos))

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())


def size(state):
    """Bytes of the journal and its log."""
    total = 0
    for path in state.glob("journal.sqlite*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_memory_is_flat_and_the_journal_bounded_by_retention(start, folder, trial, eventually):
    settings = folder / "llmosd.toml"
    settings.write_text(f"[journal]\nkeep = {KEEP}\n")
    daemon = start("--config", str(settings))
    state = folder / "state"
    per_round = trial(short=300, long=100_000)
    asyncio.run(tasks(daemon.socket, max(per_round // 2, 500)))  # fills the tables that remember recent tasks
    memory, sizes = [], []
    for _ in range(ROUNDS):
        asyncio.run(tasks(daemon.socket, per_round))
        memory.append(daemon.memory())
        sizes.append(size(state))
    print(f"{per_round * ROUNDS} tasks: memory {memory}, journal {sizes}")
    assert memory[-1] - memory[0] < FLAT
    assert max(sizes[ROUNDS // 2 :]) < 2 * max(sizes[: ROUNDS // 2]) + 1024 * 1024
    with daemon.client() as client:
        eventually(lambda: not client.history(), "no result is retained for longer than it has to be", 60)
        eventually(lambda: (state / "journal.sqlite").stat().st_size < 1024 * 1024, "its space is given back", 60)
        assert [row.program for row in client.ps()] == []


def test_few_objects_in_cycles_do_not_fill_the_memory(launch, eventually):
    daemon = launch()

    async def leave_cycles():
        async with AsyncClient(daemon.socket) as llmos:
            for _ in range(CYCLES // 10):
                await asyncio.gather(*(llmos.run("cycle", {"size": LEFT}) for _ in range(10)))

    asyncio.run(leave_cycles())
    before = daemon.memory()
    asyncio.run(leave_cycles())
    eventually(lambda: daemon.memory() < before + CYCLES * LEFT // 3, "their memory is free", 60)
