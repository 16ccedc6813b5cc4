"""Shared regions: versions only grow, a compare-and-set is linearisable, no watcher misses a change, nothing leaks."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.codec import encode, reveal
from ipc.errors import (
    Busy,
    InvalidCall,
    LimitExceeded,
    NotEncodable,
    RegionDeleted,
    TimedOut,
    UnknownRegion,
    VersionConflict,
)
from ipc.frames import MAX_FRAME
from ipc.syscalls import Regions, SharedDelete, SharedGet, SharedSet, SharedWatch
from kernel.gate import Gate
from kernel.memory.bounds import MemoryBounds
from kernel.memory.shared import SharedMemory
from kernel.process import Process
from llmosd.context import Context
from tests.support.system import System


def process(pid: int, owner: str = "me") -> Process:
    return Process(pid, None, "test", {}, owner=owner, priority=0)


# ---- values and versions


async def test_what_one_process_sets_another_reads(system: System) -> None:
    async def reader(ctx: Context) -> Any:
        return await ctx.shared("plan").get()

    async def program(ctx: Context) -> Any:
        version = await ctx.shared("plan").set(["think", "act"])
        return [version, await ctx.wait(await ctx.spawn(system.program(reader)))]

    version, read = await system.run(program)
    assert read == [["think", "act"], version]


async def test_large_bytes_pass_by_reference_and_what_can_change_is_copied(system: System) -> None:
    blob, seen = bytes(1_000_000), []

    async def program(ctx: Context) -> Any:
        region = ctx.shared("region")
        await region.set(blob)
        seen.append((await region.get()).value)
        buffer = bytearray(b"before")
        await region.set(memoryview(buffer))
        buffer[:] = b"after!"
        (await ctx.shared("list").update(lambda _: [1])).value.append(2)
        (await ctx.shared("list").get()).value.append(3)
        return [(await region.get()).value, (await ctx.shared("list").get()).value]

    assert await system.run(program) == [b"before", [1]]
    assert seen[0] is blob


async def test_what_a_client_sent_stays_encoded_until_an_agent_reads_it(system: System) -> None:
    raw = msgspec.Raw(encode({"a": [1]}))
    await system.call(SharedSet("region", raw))
    assert (await system.call(SharedGet("region"))).value is raw

    async def program(ctx: Context) -> Any:
        return (await ctx.shared("region").get()).value

    assert await system.run(program) == {"a": [1]}


async def test_versions_of_a_name_grow_even_over_its_deletion(system: System) -> None:
    async def program(ctx: Context) -> list[int]:
        region = ctx.shared("region")
        first, second = await region.set(1), await region.set(2)
        await region.delete()
        third = await region.compare_and_set(3, 0)
        return [first, second, third]

    versions = await system.run(program)
    assert versions == sorted(set(versions))


async def test_a_compare_and_set_against_an_old_version_names_both(system: System) -> None:
    old = await system.call(SharedSet("region", 1))
    new = await system.call(SharedSet("region", 2, old))
    with pytest.raises(VersionConflict) as error:
        await system.call(SharedSet("region", 3, old))
    assert error.value.data == {"name": "region", "expected": old, "found": new}
    with pytest.raises(VersionConflict) as error:
        await system.call(SharedSet("none", 3, old))
    assert error.value.data["found"] == 0
    assert await system.call(SharedGet("region")) == (2, new)


async def test_updates_from_many_processes_are_all_counted(system: System) -> None:
    async def adder(ctx: Context) -> None:
        for _ in range(20):
            await ctx.shared("sum").update(lambda value: value + 1, initial=0)
            await asyncio.sleep(0)

    name = system.program(adder)
    agents = [system.spawn(name) for _ in range(20)]
    for agent in agents:
        await system.result(agent)
    assert (await system.call(SharedGet("sum"))).value == 400


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (SharedGet("none"), UnknownRegion),
        (SharedDelete("none"), UnknownRegion),
        (SharedWatch("none", 3), RegionDeleted),
        (SharedGet(""), InvalidCall),
        (SharedSet("", 1), InvalidCall),
        (SharedSet("tool:1", 1), InvalidCall),
        (SharedSet("region", object()), NotEncodable),
        (SharedWatch("region", -1), InvalidCall),
        (SharedWatch("region", 0, -1.0), InvalidCall),
    ],
)
async def test_bad_calls_are_refused_and_change_nothing(system: System, call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await system.call(call)
    assert await system.call(Regions()) == []


# ---- watching


async def test_a_watcher_sees_a_change_that_came_before_it_looked(system: System) -> None:
    async def program(ctx: Context) -> Any:
        region = ctx.shared("region")
        version = await region.set("old")
        await region.set("new")
        return (await region.watch(version, timeout=0)).value

    assert await system.run(program) == "new"


async def test_all_watchers_see_a_change_in_the_order_of_their_coming(system: System) -> None:
    order: list[int] = []

    async def watcher(ctx: Context, number: int) -> None:
        await ctx.shared("region").watch(0)
        order.append(number)

    name = system.program(watcher)
    agents = [system.spawn(name, number) for number in range(5)]
    await system.turns()
    assert agents[0].state() == ("blocked", "change of region")
    await system.call(SharedSet("region", 1))
    for agent in agents:
        await system.result(agent)
    assert order == [0, 1, 2, 3, 4]
    assert system.kernel.shared._watchers == {}


async def test_a_watch_ends_at_its_timeout_at_a_deletion_and_at_a_kill_and_leaves_nothing(system: System) -> None:
    version = await system.call(SharedSet("region", 1))

    async def watcher(ctx: Context, timeout: float | None) -> Any:
        return await ctx.shared("region").watch(version, timeout)

    name = system.program(watcher)
    late, killed, deleted = system.spawn(name, 5.0), system.spawn(name, None), system.spawn(name, 100.0)
    start = system.loop.time()
    with pytest.raises(TimedOut):
        await system.result(late)
    assert system.loop.time() - start == 5.0
    system.kernel.ending.end(killed, "killed", "by the test")
    await system.turns()
    assert [row.watchers for row in await system.call(Regions())] == [1]
    await system.call(SharedDelete("region"))
    with pytest.raises(RegionDeleted):
        await system.result(deleted)
    assert system.kernel.shared._watchers == {}


async def test_a_region_deleted_and_made_again_is_a_change(system: System) -> None:
    version = await system.call(SharedSet("region", 1))
    watch = system.thread(system.kernel.shared._watch(system.client, SharedWatch("region", version)))
    await system.turns()
    await system.call(SharedDelete("region"))
    await system.call(SharedSet("region", 2))
    assert (await watch).value == 2


# ---- bounds, owners and ends


async def test_an_ephemeral_region_ends_with_its_maker_and_another_stays(system: System) -> None:
    async def maker(ctx: Context) -> None:
        await ctx.shared("mine", ephemeral=True).set(1)
        await ctx.shared("ours").set(2)
        await ctx.shared("gone", ephemeral=True).set(3)
        await ctx.shared("gone").delete()

    await system.run(maker)
    assert [row.name for row in await system.call(Regions())] == ["ours"]
    assert system.kernel.shared._ephemeral == {}


def test_what_goes_over_a_bound_is_refused_by_name_and_changes_nothing() -> None:
    bounds = MemoryBounds(regions=2, region_bytes=100, shared_bytes=150)
    shared, mine, other = SharedMemory(Gate(), bounds), process(1), process(2, "other")
    shared.set(mine, SharedSet("a", bytes(90)))
    with pytest.raises(LimitExceeded) as error:
        shared.set(other, SharedSet("a", bytes(100)))  # the region's owner is charged, whoever lets it grow
    assert error.value.data["limit"] == "bytes"
    shared.set(mine, SharedSet("b", 1))
    with pytest.raises(LimitExceeded) as error:
        shared.set(mine, SharedSet("c", 1))
    assert error.value.data == {"limit": "regions", "maximum": 2, "wanted": 3}
    with pytest.raises(Busy):
        shared.set(other, SharedSet("c", bytes(80)))
    assert [(row.name, row.size) for row in shared.list(mine, Regions())] == [("a", 93), ("b", 2)]


async def test_a_client_is_told_of_a_region_that_fits_no_frame(system: System) -> None:
    async def program(ctx: Context) -> int:
        await ctx.shared("huge").set(bytes(MAX_FRAME))
        return len((await ctx.shared("huge").get()).value)

    assert await system.run(program) == MAX_FRAME
    with pytest.raises(LimitExceeded, match="a client can be sent"):
        await system.call(SharedGet("huge"))


# ---- against models

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "compare", "stale", "delete", "end"]),
        st.integers(1, 3),  # the process: 1 and 3 have one owner
        st.sampled_from(["a", "bb", "é"]),
        st.binary(max_size=60) | st.lists(st.integers(0, 9), max_size=5),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(OPERATIONS)
def test_regions_and_their_accounts_are_those_of_a_simple_model(operations: list[Any]) -> None:
    shared = SharedMemory(Gate(), MemoryBounds(regions=2, region_bytes=90, shared_bytes=140))
    processes = {1: process(1), 2: process(2, "other"), 3: process(3)}
    model: dict[str, tuple[Any, int, str, int]] = {}  # value, version, owner, creator
    last = 0

    def sizes(regions: dict[str, tuple[Any, int, str, int]], owner: str | None = None) -> list[int]:
        kept = [(name, region) for name, region in regions.items() if owner in (None, region[2])]
        return [len(name.encode()) + len(encode(region[0])) for name, region in kept]

    for what, pid, name, value, ephemeral in operations:
        caller, before = processes[pid], model.get(name)
        if what == "end":
            shared.process_ended(caller)
            model = {key: region for key, region in model.items() if region[3] != pid}
        elif what == "delete":
            if before is None:
                with pytest.raises(UnknownRegion):
                    shared.delete(caller, SharedDelete(name))
            else:
                shared.delete(caller, SharedDelete(name))
                del model[name]
        elif what == "stale":
            with pytest.raises(VersionConflict):
                shared.set(caller, SharedSet(name, value, last + 1))
        else:
            expected = None if what == "set" else before[1] if before else 0
            call = SharedSet(name, value, expected, ephemeral)
            owner, creator = (before[2], before[3]) if before else (caller.owner, pid if ephemeral else 0)
            after = {**model, name: (value, 0, owner, creator)}
            grows = sum(sizes(after)) > sum(sizes(model))
            if (before is None and len(sizes(after, owner)) > 2) or (grows and sum(sizes(after, owner)) > 90):
                with pytest.raises(LimitExceeded):
                    shared.set(caller, call)
            elif grows and sum(sizes(after)) > 140:
                with pytest.raises(Busy):
                    shared.set(caller, call)
            else:
                version = shared.set(caller, call)
                assert version > last
                last = version
                model[name] = value, version, owner, creator
        assert shared._size == sum(sizes(model))
        assert {owner: (account.entries, account.size) for owner, account in shared._accounts.items()} == {
            owner: (len(sizes(model, owner)), sum(sizes(model, owner)))
            for owner in {region[2] for region in model.values()}
        }
        for key, (kept, version, *_) in model.items():
            read = shared.get(caller, SharedGet(key))
            assert (reveal(read.value), read.version) == (kept, version)


@pytest.mark.parametrize("seed", range(10))
async def test_concurrent_compare_and_sets_form_one_chain(system: System, seed: int) -> None:
    """Linearisable: each that succeeded replaced exactly the version that it had read, with no other in between."""
    chain: list[tuple[int, int]] = []

    async def racer(ctx: Context, number: int) -> int:
        choice, lost = random.Random(seed * 100 + number), 0
        for _ in range(15):
            try:
                _, version = await ctx.shared("race").get()
            except UnknownRegion:
                version = 0
            for _ in range(choice.randrange(3)):
                await asyncio.sleep(0)
            try:
                chain.append((version, await ctx.shared("race").compare_and_set(number, version)))
            except VersionConflict:
                lost += 1
        return lost

    name = system.program(racer)
    agents = [system.spawn(name, number) for number in range(6)]
    lost = sum([await system.result(agent) for agent in agents])
    assert lost > 0
    assert len(chain) + lost == 90
    assert [expected for expected, _ in chain] == [0, *(made for _, made in chain[:-1])]
