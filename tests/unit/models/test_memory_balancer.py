"""Free memory and processors of the machine: resident models, slots and KV memory adapt to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.errors import ModelLoadFailed
from ipc.syscalls import GetStats, Resume, Slots, Suspend
from kernel.drivers import protocol
from kernel.models.footprint import Footprint, MeasuredSize
from kernel.models.memory_balancer import allot
from kernel.models.settings import ResourceSettings
from llmosd.context import Context
from tests.support.many_models import (
    GB,
    HOLDS_ONE,
    TWO,
    alive,
    loads,
    settle_sizes,
    simulated,
    states,
)
from tests.support.simulated import text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("with_sizes")
MB = 10**6


ADAPTIVE = {"one": simulated(slots=8, token_bytes=10_000, context=1000, kv_memory=6 * GB)}


async def only_row(system: System) -> Any:
    (row,) = await system.call(Slots())
    return row


@pytest.mark.parametrize("models", [ADAPTIVE])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=9 * GB)])
async def test_slots_and_memory_shrink_when_the_machine_is_short_and_grow_again(system: System) -> None:
    system.machine.available = 12 * GB
    await system.run("teller", model="one")
    system.look()
    before = await only_row(system)
    assert (before.given, before.slots, before.cause) == (8, 8, "")
    system.machine.available = 2 * GB  # another program took it
    for _ in range(8):
        system.look()
        await asyncio.sleep(1)
    short = await only_row(system)
    assert 1 <= short.given < 4
    assert short.kv_memory < before.kv_memory / 2
    assert "2 GB of 16 GB are free" in short.cause
    assert system.driver.memory.budget == short.kv_memory
    processes = [system.spawn("teller", model="one", seed=seed) for seed in range(8)]
    await asyncio.sleep(1)
    assert (await only_row(system)).used == short.given
    for seed, process in enumerate(processes):
        assert await system.result(process) == text_of(seed)
    system.machine.available = 12 * GB
    given = []
    for _ in range(40):
        system.look()
        given.append((await only_row(system)).given)
        await asyncio.sleep(1)
    assert given == sorted(given)
    assert len({short.given, *given}) > 2  # it grows in steps
    after = await only_row(system)
    assert (after.given, after.cause) == (8, "")
    assert after.kv_memory > 0.8 * before.kv_memory


@pytest.mark.parametrize("models", [ADAPTIVE])
async def test_a_short_dip_changes_nothing(system: System) -> None:
    await system.run("teller", model="one")
    system.look()
    system.machine.available -= GB // 2
    system.look()
    system.machine.available += GB // 2
    system.look()
    assert system.driver.sent_of(protocol.Resize) == []


@pytest.mark.parametrize("models", [TWO])
async def test_idle_models_are_unloaded_when_the_machine_is_short(system: System) -> None:
    for model in ("one", "two"):
        await system.run("teller", model=model)
        await asyncio.sleep(1)
    busy = system.spawn("teller", model="two", tokens=100)
    await asyncio.sleep(1)
    system.machine.available = 0
    for _ in range(5):
        system.look()
        await asyncio.sleep(0.1)
    assert await states(system) == {"one": "unloaded", "two": "ready"}
    rows = {row.model: row for row in await system.call(Slots())}
    assert rows["one"].detail.startswith("memory is short by")
    assert await system.result(busy) == text_of(1, 100)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_lone_model_that_grows_a_little_beyond_the_budget_stays(system: System) -> None:
    await system.run("teller", model="one")
    system.machine.sizes["one"] = 16 * GB // 10
    for _ in range(5):
        system.look()
        await asyncio.sleep(1)
    assert alive(system) == ["one"]


@pytest.mark.parametrize("models", [TWO])
async def test_what_a_failed_model_took_is_counted_no_more(system: System) -> None:
    await system.run("teller", model="one")
    system.look()
    assert (await system.call(GetStats())).machine["drivers_memory"] == GB
    system.kernel.resources.runtime("one").fail(ModelLoadFailed("of the test"))
    await asyncio.sleep(1)
    assert (await system.call(GetStats())).machine["drivers_memory"] == 0


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_nothing_is_loaded_for_a_call_that_was_suspended_meanwhile(system: System) -> None:
    await settle_sizes(system)
    first = system.spawn("teller", model="one", tokens=50)
    await asyncio.sleep(3)
    second = system.spawn("teller", model="two")
    await asyncio.sleep(1)
    await system.call(Suspend(second.pid))
    assert await states(system) == {"one": "ready", "two": "unloaded"}
    await system.status(first)
    await asyncio.sleep(20)
    assert loads(system) == ["one"]
    await system.call(Resume(second.pid))
    assert await system.result(second) == text_of(1)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_of_two_busy_models_that_turn_out_too_large_one_has_to_wait(system: System) -> None:
    first = system.spawn("teller", model="one", tokens=200, seed=1)
    await asyncio.sleep(3)
    second = system.spawn("teller", model="two", tokens=200, seed=2)  # of unknown size
    await asyncio.sleep(6)
    for _ in range(5):
        system.look()
        await asyncio.sleep(1)
    assert len(alive(system)) == 1
    assert await system.result(first) == text_of(1, 200)
    assert await system.result(second) == text_of(2, 200)


@pytest.mark.parametrize("models", [{"one": simulated(load_timeout=20.0)}])
async def test_memory_that_others_take_is_waited_for_and_then_named(system: System) -> None:
    await system.run("teller", model="one")
    system.kernel.resources.runtime("one").unload("the test begins")
    await asyncio.sleep(1)
    system.machine.available = 0
    for _ in range(20):
        system.look()
    process = system.spawn("teller", model="one")
    await asyncio.sleep(10)
    row = await only_row(system)
    assert (row.state, row.detail) == (
        "waiting",
        "for memory: it needs 1 GB, but other programs on this machine leave less than that free",
    )
    with pytest.raises(ModelLoadFailed, match="waited 20 s for memory: it needs 1 GB"):
        await system.result(process)
    system.machine.available = 12 * GB
    process = system.spawn("teller", model="one")
    await asyncio.sleep(5)
    for _ in range(20):
        system.look()
    assert await system.result(process) == text_of(1)


@pytest.mark.parametrize("models", [TWO])
async def test_processors_are_divided_among_drivers(system: System) -> None:
    for model in ("one", "two"):
        await system.run("teller", model=model)
    first, second = (driver.sent_of(protocol.Load)[0] for driver in system.launcher.drivers)
    assert (first.cores, second.cores) == ([], [2, 3])
    assert [row.cores for row in await system.call(Slots())] == [4, 2]


def a_footprint(size: int, kv_used: int) -> Footprint:
    """A loaded model whose longest sequence takes 100 MB of KV memory."""
    footprint = Footprint(None)
    footprint.loaded(MeasuredSize(size, 1.0, token_bytes=10 * MB, context=10), 0, kv_limit=None, kv_on_device=False)
    footprint.kv_used = kv_used
    return footprint


def test_drivers_give_up_what_is_missing_in_proportion_to_what_they_can_spare() -> None:
    footprints = [a_footprint(GB, used * MB) for used in (50, 300, 500)]  # each needs 100 MB
    needed = sum(footprint.minimum for footprint in footprints)
    assert allot(needed - 300 * MB, footprints) == [100 * MB, 200 * MB, 300 * MB]
    assert allot(needed - GB, footprints) == [100 * MB] * 3
    assert allot(needed + 300 * MB, footprints) == [200 * MB, 400 * MB, 600 * MB]


SHARING = {name: simulated(token_bytes=1000, kv_memory=8 * GB, context=99 + len(name)) for name in ("one", "other")}


@pytest.mark.parametrize("models", [SHARING])
async def test_keys_and_values_are_shared_out_among_drivers(system: System) -> None:
    system.machine.available = 9 * GB
    for _ in range(20):
        system.look()
    await system.run("teller", model="one", tokens=2)
    (load,) = system.driver.sent_of(protocol.Load)
    assert load.kv_memory is None  # a driver that is alone decides this itself
    await system.run("teller", model="other", tokens=2)
    (load,) = system.driver.sent_of(protocol.Load)
    rows = {row.model: row for row in await system.call(Slots())}
    assert load.kv_memory == pytest.approx(rows["other"].kv_memory, rel=0.2)
    assert rows["one"].kv_memory == pytest.approx(rows["other"].kv_memory, rel=0.2)
    assert [message.kv_memory for message in system.launcher.drivers[0].sent_of(protocol.Resize)]
    assert rows["one"].kv_memory + rows["other"].kv_memory < 9 * GB


@pytest.mark.parametrize("models", [TWO])
async def test_drivers_are_told_of_processes_that_ended_once_a_turn(system: System) -> None:
    processes = [system.spawn("teller", model="one", tokens=3) for _ in range(2)]
    for process in processes:
        await system.status(process)
    await system.turns()
    reported = [message.processes for message in system.driver.sent_of(protocol.Ended)]
    assert reported == [[process.pid for process in processes]]


async def scorer(ctx: Context) -> None:
    await ctx.score("one two", ["three"], model="one")


@pytest.mark.parametrize("models", [TWO])
async def test_drivers_are_told_of_processes_that_only_asked_for_scores(system: System) -> None:
    system.program(scorer)
    process = system.spawn("scorer")
    await system.status(process)
    await system.turns()
    assert [message.processes for message in system.driver.sent_of(protocol.Ended)] == [[process.pid]]
    assert system.kernel.resources.runtime("one").active.think_times._last_end == {}


async def test_stats_show_the_machine(system: System) -> None:
    stats = await system.call(GetStats())
    assert stats.machine == {
        "cores": stats.machine["cores"],
        "cpu": 0.5,
        "memory_total": 16e9,
        "memory_available": 16e9,
        "disk_total": 1e12,
        "disk_free": 1e11,
        "drivers_memory": 0.0,
        "drivers_budget": 0.7 * 16e9,
    }
    assert stats.gpus == []


@pytest.mark.parametrize("models", [ADAPTIVE])
async def test_the_balancer_holds_no_model_that_has_left_memory(system: System) -> None:
    await system.run("teller", model="one", tokens=1)
    system.machine.available = 2 * GB
    for _ in range(8):
        system.look()
        await asyncio.sleep(1)
    runtime = system.runtime("one")
    balancer = runtime._balancer
    assert runtime in {one for one, _ in balancer._last_change}
    runtime.unload("the test is over")
    await system.until(lambda: not runtime.takes_memory)
    system.look()
    assert not balancer._last_change
