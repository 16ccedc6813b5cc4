"""Listings: a bounded number of rows in one answer, each of a bounded size, and all rows page by page."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.codec import encode
from ipc.errors import LimitExceeded, LlmosError
from ipc.foreign import MAX_NAME
from ipc.frames import MAX_FRAME
from ipc.syscalls import (
    GetStats,
    Locks,
    MemoryKeys,
    MemorySet,
    Names,
    PeekMailbox,
    Programs,
    Ps,
    Regions,
    Register,
    Send,
    SetEvent,
    SharedSet,
    Syscall,
    Threads,
)
from kernel.lib.pages import MAX_TEXT
from kernel.processes.lifecycle import MAX_PROGRAM
from llmosd.client.pages import pages
from llmosd.context import Context
from tests.support.agents import idle
from tests.support.system import System


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in Syscall.__subclasses__():
        if kind.page:
            monkeypatch.setattr(kind, "page", 3)


async def whole(system: System, call: Syscall) -> list[Any]:
    """The listing, as a client reads it."""
    listing = pages(call)
    assert listing is not None
    while listing.call is not None:
        rows = await system.call(listing.call)
        assert len(rows) <= 3
        listing.add(rows)
    return listing.rows


async def test_processes_are_listed_page_by_page(system: System) -> None:
    pids = [system.spawn(idle).pid for _ in range(8)]
    assert len(await system.call(Ps())) == 3
    assert [row.pid for row in await whole(system, Ps())] == pids
    assert [row.pid for row in await whole(system, Ps(limit=5))] == pids[:5]


@pytest.mark.parametrize("start", [100, 2**63 - 1, 2**64 - 1])
async def test_a_page_far_behind_the_last_row_is_empty(system: System, start: int) -> None:
    pid = system.spawn(idle).pid
    for call in (Threads(pid, start), PeekMailbox(pid, start=start), MemoryKeys(start=start), Programs(start)):
        assert await system.call(call) == []
    assert await system.call(Ps(start)) == []


async def make_names(system: System) -> Syscall:
    for name in "hfdbgeca":
        await system.call(Register(name, system.spawn(idle).pid))
    return Names()


async def make_regions(system: System) -> Syscall:
    for name in "hfdbgeca":
        await system.call(SharedSet(name, 1))
    return Regions()


async def make_events(system: System) -> Syscall:
    async def setter(ctx: Context) -> None:
        for name in "hfdbgeca":
            await ctx._gate.call(ctx._process, SetEvent(name))

    await system.run(setter)
    return Locks()


async def make_keys(system: System) -> Syscall:
    for name in "abcdefgh":
        await system.call(MemorySet(name, 1))
    return MemoryKeys()


async def make_threads(system: System) -> Syscall:
    async def main(ctx: Context) -> None:
        for name in "bcdefgh":
            ctx.start_thread(ctx.sleep(1e6), name=name)
        await ctx.sleep(1e6)

    process = system.spawn(main)
    await system.until(lambda: len(process.threads) == 8)
    next(iter(process.threads)).set_name("a")
    return Threads(process.pid)


async def make_programs(system: System) -> Syscall:
    for name in "hfdbgeca":
        system.program(idle, name)
    system.kernel.programs.refresh = lambda since: None  # type: ignore[method-assign]
    return Programs()


@pytest.mark.parametrize("make", [make_names, make_regions, make_events, make_keys, make_threads, make_programs])
async def test_a_whole_listing_is_refused_if_it_is_long_and_read_in_pages(system: System, make: Any) -> None:
    call = await make(system)
    with pytest.raises(
        LimitExceeded, match=r"would answer 8 rows, and one answer has at most 3; .* with (after|start)="
    ):
        await system.call(call)
    rows = await whole(system, call)
    assert [row if isinstance(row, str) else row.name for row in rows] == list("abcdefgh")


async def test_an_agent_gets_all_its_keys_at_once(system: System) -> None:
    async def agent(ctx: Context) -> list[str]:
        for number in range(10):
            await ctx.memory.set(str(number), number)
        return await ctx.memory.keys()

    assert len(await system.run(agent)) == 10


async def test_a_mailbox_is_read_in_pages_up_to_the_limit(system: System) -> None:
    process = system.spawn(idle)
    for number in range(8):
        await system.call(Send(process.pid, number, type="t"))
    rows = await whole(system, PeekMailbox(process.pid, 7))
    assert len({row.id for row in rows}) == 7


async def test_one_huge_field_breaks_no_listing(system: System) -> None:
    huge = "x" * 9_000_000

    async def agent(ctx: Context) -> None:
        asyncio.create_task(ctx.sleep(1e6)).set_name(huge)
        await ctx.sleep(1e6)

    process = system.spawn(system.program(agent, "x" * MAX_PROGRAM))
    await system.until(lambda: len(process.threads) == 2)
    system.kernel.programs.refresh = lambda since: None  # type: ignore[method-assign]
    await system.call(Register("named", process.pid))
    for call in (Ps(), Threads(process.pid), Names(), Programs(), Programs(0)):
        assert len(encode(await system.call(call))) < 6 * MAX_TEXT < MAX_FRAME


async def test_names_of_errors_are_counted_up_to_a_bound(system: System) -> None:
    for number in range(3_000):
        system.kernel.gate.count_error(type(f"Error{number}" * 1000, (LlmosError,), {})())
    errors = (await system.call(GetStats())).errors
    assert len(errors) <= 1_001
    assert errors["others"] == 2_000
    assert max(map(len, errors)) < MAX_NAME + 50  # with the number of characters left out
