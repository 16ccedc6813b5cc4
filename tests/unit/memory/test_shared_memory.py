"""Shared regions: versions only grow, quotas hold, and an ephemeral region ends with its creator."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from ipc.codec import encode
from ipc.errors import (
    Busy,
    InvalidCall,
    LimitExceeded,
    NotEncodable,
    RegionDeleted,
    UnknownRegion,
    VersionConflict,
)
from ipc.frames import MAX_FRAME
from ipc.syscalls import Regions, SharedDelete, SharedGet, SharedSet, SharedWatch
from kernel.gate import Gate
from kernel.memory.quotas import MemoryQuotas
from kernel.memory.shared import SharedMemory
from llmosd.context import Context
from tests.support.system import System, lone_process

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


# ---- quotas, owners and ends


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
    bounds = MemoryQuotas(regions=2, region_bytes=100, shared_bytes=150)
    shared, mine, other = SharedMemory(Gate(), bounds), lone_process(1), lone_process(2, "other")
    shared.set(mine, SharedSet("a", bytes(90)))
    with pytest.raises(LimitExceeded) as error:
        shared.set(
            other, SharedSet("a", bytes(100))
        )  # the owner of the region is charged, not the process that extends it
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
    with pytest.raises(LimitExceeded, match="a client can receive"):
        await system.call(SharedGet("huge"))
