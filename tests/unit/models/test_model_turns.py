"""Busy models under one budget take turns, whatever their drivers do."""

from __future__ import annotations

import asyncio

import pytest

from ipc.syscalls import Kill, Resume, Slots, Suspend
from kernel.drivers import protocol
from llmosd.context import Context
from tests.support.many_models import (
    GB,
    HOLDS_ONE,
    HOLDS_TWO,
    THREE,
    TWO,
    loads,
    settle_sizes,
    simulated,
    states,
)
from tests.support.simulated import text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("with_sizes")


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_busy_model_goes_when_another_has_waited_for_its_bound_and_its_text_is_the_same(system: System) -> None:
    await settle_sizes(system)
    long = [system.spawn("teller", model="one", tokens=300, seed=seed) for seed in range(3)]
    await asyncio.sleep(10)
    before = system.loop.time()
    assert await system.run("teller", model="two", seed=9) == text_of(9)
    assert system.loop.time() - before <= 10 + 2 + 2.5  # the bound, its load, its work
    assert loads(system)[:2] == ["one", "two"]
    for seed, process in enumerate(long):
        assert await system.result(process) == text_of(seed, 300)
    assert {row.model: row.recomputations for row in await system.call(Slots())} == {"one": 0, "two": 0}
    assert system.launcher.drivers[0].sent_of(protocol.SwapOut)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_alternating_calls_are_collated_by_model_and_none_waits_beyond_its_bound(system: System) -> None:
    await settle_sizes(system)
    waits: dict[int, float] = {}

    async def measured(ctx: Context, model: str, number: int) -> None:
        asked = system.loop.time()
        await ctx.generate("x", model=model, max_tokens=20)
        waits[number] = system.loop.time() - asked

    system.program(measured)
    before = system.loop.time()
    processes = [system.spawn("measured", model=("one", "two")[n % 2], number=n) for n in range(60)]
    for process in processes:
        await system.status(process)
    ideal = 2 * (2.0 + 30 / 2 * 2.0)  # two loads, and 15 rounds of 2 s each
    assert ideal / (system.loop.time() - before) >= 0.7
    assert len(loads(system)) <= 8


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_steady_alternating_load_does_not_thrash(system: System) -> None:
    """Two agents call their models in loops, with a short think time, and the budget holds one model."""
    await settle_sizes(system)
    done = {"one": 0, "two": 0}
    longest = 0.0

    async def looping(ctx: Context, model: str) -> None:
        nonlocal longest
        while True:
            asked = system.loop.time()
            await ctx.generate("x", model=model, max_tokens=9)
            longest = max(longest, system.loop.time() - asked)
            done[model] += 1
            await ctx.sleep(0.1)

    system.program(looping)
    processes = [system.spawn("looping", model=model) for model in done]
    await asyncio.sleep(200)
    for process in processes:
        await system.call(Kill(process.pid))
    # Grouped ideally, with one load for each model, one call would end every second.
    assert sum(done.values()) >= 0.7 * (200 - 4)
    assert min(done.values()) >= 0.4 * max(done.values())
    assert longest <= 10 + 2 + 1 + 0.5  # the bound, one load, the call itself


@pytest.mark.parametrize(
    "models", [{name: simulated(load_seconds=20.0, context=c) for name, c in (("one", 9), ("two", 8))}]
)
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_models_that_take_longer_to_load_than_the_bound_still_serve_as_long_as_they_load(system: System) -> None:
    await settle_sizes(system)
    done = 0

    async def looping(ctx: Context, model: str) -> None:
        nonlocal done
        while True:
            await ctx.generate("x", model=model, max_tokens=5)
            done += 1

    system.program(looping)
    processes = [system.spawn("looping", model=model) for model in ("one", "two")]
    await asyncio.sleep(400)
    for process in processes:
        await system.call(Kill(process.pid))
    assert done >= 0.4 * 400 / 0.5


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_model_that_has_nothing_to_do_gives_way_at_once(system: System) -> None:
    await settle_sizes(system)
    await system.run("teller", model="one")
    await asyncio.sleep(5)
    before = system.loop.time()
    await system.run("teller", model="two")
    assert system.loop.time() - before <= 2 + 2.5


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_suspended_generations_do_not_keep_a_model_from_giving_way(system: System) -> None:
    await settle_sizes(system)
    process = system.spawn("teller", model="one", tokens=100, seed=5)
    await asyncio.sleep(5)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(5)
    before = system.loop.time()
    await system.run("teller", model="two")
    assert system.loop.time() - before <= 2 + 2.5
    rows = {row.model: row for row in await system.call(Slots())}
    assert (rows["one"].state, rows["one"].swapped) == ("unloaded", 1)
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(5, 100)
    rows = {row.model: row for row in await system.call(Slots())}
    assert (rows["one"].restores, rows["one"].recomputations) == (1, 0)


@pytest.mark.parametrize("models", [THREE])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_three_models_take_turns(system: System) -> None:
    processes = [system.spawn("teller", model=m, tokens=250, seed=n) for n, m in enumerate(THREE)]
    for seed, process in enumerate(processes):
        assert await system.result(process) == text_of(seed, 250)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_driver_that_cannot_write_in_time_leaves_all_the_same(system: System) -> None:
    await settle_sizes(system)
    process = system.spawn("teller", model="one", tokens=200, seed=4)
    await asyncio.sleep(5)
    system.driver.device._swap_out = lambda *_: None  # the disk hangs
    before = system.loop.time()
    await system.run("teller", model="two")
    assert system.loop.time() - before <= 10 + 5 + 2 + 2.5
    assert await system.result(process) == text_of(4, 200)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_driver_that_dies_as_it_leaves_does_no_harm(system: System) -> None:
    await settle_sizes(system)
    process = system.spawn("teller", model="one", tokens=200, seed=4)
    await asyncio.sleep(5)
    other = system.spawn("teller", model="two")
    while (await states(system))["one"] != "leaving":
        await asyncio.sleep(0.05)
    system.driver.die()
    assert await system.result(other) == text_of(1)
    assert await system.result(process) == text_of(4, 200)


@pytest.mark.parametrize("models", [{"one": simulated(hang_load=True, load_timeout=1000.0), "two": TWO["two"]}])
@pytest.mark.parametrize("resources", [HOLDS_TWO])
async def test_a_load_that_hangs_holds_up_no_call_of_another_model(system: System) -> None:
    system.spawn("teller", model="one")
    await asyncio.sleep(1)
    before = system.loop.time()
    assert await system.run("teller", model="two") == text_of(1)
    assert system.loop.time() - before <= 5


@pytest.mark.parametrize("models", [{"one": simulated(hang_load=True), "two": TWO["two"]}])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_load_that_hangs_gives_its_memory_to_another_that_waits_for_it(system: System) -> None:
    await system.run("teller", model="two")
    stuck = system.spawn("teller", model="one")
    await asyncio.sleep(5)
    system.kernel.resources.runtime("one").footprint.estimate = GB  # as its files say
    for wait in (65, 125):  # twice as long each time, so that a slow load gets through in the end
        before = system.loop.time()
        assert await system.run("teller", model="two") == text_of(1)
        assert system.loop.time() - before <= wait
        await asyncio.sleep(5)
    assert not stuck.ended


@pytest.mark.parametrize("models", [{"one": simulated(exit_after=20), "two": TWO["two"]}])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_driver_that_dies_again_and_again_keeps_no_other_from_its_turn(system: System) -> None:
    await settle_sizes(system)

    async def endless(ctx: Context) -> None:
        while True:
            await ctx.generate("x", model="one", max_tokens=30)

    process = system.spawn(endless)
    await asyncio.sleep(20)
    before = system.loop.time()
    assert await system.run("teller", model="two") == text_of(1)
    assert system.loop.time() - before <= 10 + 2 + 2.5
    await system.call(Kill(process.pid))
