"""The rule of turns: how long calls wait for models in memory, and what is done before a model is unloaded."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from ipc.syscalls import Kill, Slots
from kernel.drivers import protocol
from kernel.models.settings import ResourceSettings
from kernel.models.turns import names
from llmosd.context import Context
from tests.support.many_models import (
    GB,
    HOLDS_ONE,
    HOLDS_TWO,
    TWO,
    loads,
    settle_sizes,
    simulated,
    states,
)
from tests.support.simulated import text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("with_sizes")

MB = 10**6
SLOW = {"one": simulated(load_seconds=32.0), "two": simulated(context=8191, load_seconds=32.0)}
FOUR = {**TWO, "three": simulated(context=8190), "other": simulated(context=8189)}
HOLDS_TWO_EXACTLY = ResourceSettings(memory=2 * GB, collate=3.0)


async def row_of(system: System, model: str) -> Any:
    return next(row for row in await system.call(Slots()) if row.model == model)


async def until_state(system: System, model: str, state: str) -> float:
    """Wait until a model is in a state; return the seconds that this took, to a tenth."""
    began = system.loop.time()
    while (await states(system))[model] != state:
        await asyncio.sleep(0.1)
    return system.loop.time() - began


# ---- idle models


@pytest.mark.parametrize("models", [SLOW])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=15 * GB // 10, collate=3.0)])
async def test_no_call_waits_for_an_idle_model_for_longer_than_half_of_collate(system: System) -> None:
    await settle_sizes(system)
    await system.run("teller", model="one", tokens=1)
    call = system.spawn("teller", model="two", tokens=1)
    await asyncio.sleep(0.1)
    assert (await row_of(system, "two")).detail == (
        "for memory: waits for one, idle, as the next call may be near (32 s at most)"
    )
    assert await until_state(system, "one", "unloaded") <= 1.5
    assert await system.result(call) == text_of(1, 1)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_model_that_is_idle_most_of_the_time_does_not_hold_its_memory_until_collate_is_over(
    system: System,
) -> None:
    await settle_sizes(system)

    async def looping(ctx: Context) -> None:
        while True:
            await ctx.generate("x", model="one", max_tokens=1)
            await ctx.sleep(0.9)  # just less than an idle model may stay

    process = system.spawn(looping)
    await asyncio.sleep(5)
    before = system.loop.time()
    await system.run("teller", model="two", tokens=1)
    assert system.loop.time() - before <= 1.0 + 0.5 + 2 + 0.5  # idle time, work, the load, the call
    await system.call(Kill(process.pid))


@pytest.mark.parametrize("models", [SLOW])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_model_that_is_being_loaded_for_nobody_gives_way_at_once(system: System) -> None:
    await settle_sizes(system)
    process = system.spawn("teller", model="one")
    await asyncio.sleep(1)
    await system.call(Kill(process.pid))
    assert (await states(system))["one"] == "loading"
    before = system.loop.time()
    await system.run("teller", model="two", tokens=1)
    assert system.loop.time() - before <= 32 + 1
    assert loads(system) == ["one", "two"]


@pytest.mark.parametrize("models", [TWO])
async def test_the_listing_says_when_an_idle_model_leaves(system: System) -> None:
    await system.run("teller", model="one")
    await asyncio.sleep(3)
    assert (await row_of(system, "one")).detail == "idle 3 s, leaves when another model needs memory"


# ---- small shortages


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_TWO_EXACTLY])
async def test_a_model_is_not_unloaded_for_a_few_megabytes(system: System) -> None:
    await settle_sizes(system)
    calls = [system.spawn("teller", model=model, tokens=100) for model in TWO]
    await asyncio.sleep(2.5)
    system.machine.sizes["one"] += 8 * MB
    for _ in range(12):
        system.look()
        await asyncio.sleep(1)
    for call in calls:
        assert await system.result(call) == text_of(1, 100)
    assert loads(system) == ["one", "two"]


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=2 * GB, collate=3.0)])
@pytest.mark.parametrize(("growth", "most"), [(8 * MB, 2), (80 * MB, 12)])
async def test_models_that_grow_after_their_loads_do_not_unload_each_other_again_and_again(
    system: System, growth: int, most: int
) -> None:
    await settle_sizes(system)
    calls = 0

    async def looping(ctx: Context, model: str) -> None:
        nonlocal calls
        while True:
            await ctx.generate("x", model=model, max_tokens=5)
            calls += 1
            await ctx.sleep(1.5)

    system.program(looping)
    processes = [system.spawn("looping", model=model) for model in TWO]
    sizes = system.machine.sizes
    for _ in range(40):
        await asyncio.sleep(1)
        for model in TWO:  # at its load, a driver has not grown yet
            sizes[model] = GB + growth
        system.look()
        for model in TWO:
            sizes[model] = GB
    for process in processes:
        await system.call(Kill(process.pid))
    assert calls >= 10
    assert len(loads(system)) <= most


LARGE = {  # a sequence of full length needs 100 MB
    "one": simulated(slots=4, token_bytes=MB // 4, context=400, kv_memory=400 * MB),
    "two": simulated(context=8191),
}


@pytest.mark.parametrize("models", [LARGE])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=24 * GB // 10, collate=10.0)])
async def test_a_model_is_loaded_into_memory_that_sequences_of_another_one_can_spare(system: System) -> None:
    await settle_sizes(system)
    calls = [system.spawn("teller", model="one", tokens=350, seed=seed) for seed in range(4)]
    await asyncio.sleep(22)
    system.machine.sizes["one"] += 270 * MB
    system.look()
    assert system.runtime("one").footprint.minimum + GB > 1.02 * 24 * GB // 10  # `two` does not fit beside it
    call = system.spawn("teller", model="two", tokens=100)
    for _ in range(60):
        system.look()
        await asyncio.sleep(1)
    assert await system.result(call) == text_of(1, 100)
    for seed, process in enumerate(calls):
        assert await system.result(process) == text_of(seed, 350)
    assert loads(system) == ["one", "two"]
    assert system.launcher.drivers[0].sent_of(protocol.SwapOut)


# ---- turns


@pytest.mark.parametrize(
    "models", [{"one": simulated(load_seconds=8.0), "two": simulated(context=8191, load_seconds=8.0)}]
)
@pytest.mark.parametrize("resources", [ResourceSettings(memory=2 * GB, collate=4.0)])
async def test_a_model_with_calls_is_not_unloaded_before_it_has_served_as_long_as_its_load_took(
    system: System,
) -> None:
    await settle_sizes(system)
    calls = [system.spawn("teller", model=model, tokens=200) for model in TWO]
    await asyncio.sleep(8.5)
    system.machine.sizes.update(one=GB + 60 * MB, two=GB + 60 * MB)
    for _ in range(7):
        system.look()
        await asyncio.sleep(1)
        assert await states(system) == {"one": "ready", "two": "ready"}
    for process in calls:
        assert await system.result(process) == text_of(1, 200)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_the_listing_says_how_long_a_turn_takes_at_most(system: System) -> None:
    await settle_sizes(system)
    call = system.spawn("teller", model="one", tokens=300)
    await asyncio.sleep(5)
    waiting = system.spawn("teller", model="two")
    await asyncio.sleep(4)
    assert (await row_of(system, "two")).detail == "for memory: waits for one to finish its turn (6 s at most)"
    assert (await row_of(system, "one")).detail == "leaves for two in 6 s at most"
    assert await until_state(system, "two", "ready") <= 6 + 2 + 0.2
    await system.call(Kill(call.pid))
    assert await system.result(waiting) == text_of(1)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_an_urgent_call_waits_for_the_least_turn_of_a_less_urgent_model_and_not_for_collate(
    system: System,
) -> None:
    await settle_sizes(system)
    call = system.spawn("teller", model="one", tokens=200)
    await asyncio.sleep(3)  # the load, and a second of its turn
    urgent = system.spawn("teller", model="two", tokens=1, priority=5)
    assert 3.5 <= await until_state(system, "two", "loading") <= 4.2  # the rest of half of `collate`
    assert await system.result(urgent) == text_of(1, 1)
    assert await system.result(call) == text_of(1, 200)


@pytest.mark.parametrize("models", [FOUR])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_of_several_models_that_wait_the_one_with_the_most_urgent_call_is_next(system: System) -> None:
    await settle_sizes(system)
    calls = [system.spawn("teller", model="one", tokens=100)]
    await asyncio.sleep(5)
    calls += [system.spawn("teller", model=model, tokens=1) for model in ("two", "three")]
    await asyncio.sleep(1)
    calls.append(system.spawn("teller", model="other", tokens=1, priority=3))
    for process in calls:
        await system.status(process)
    assert [model for model in loads(system) if model != "one"] == ["other", "two", "three"]


# ---- overtaking


@pytest.mark.parametrize("models", [FOUR])
@pytest.mark.parametrize("resources", [HOLDS_TWO])
async def test_a_small_model_does_not_wait_for_the_turn_that_a_large_one_waits_for(system: System) -> None:
    system.machine.sizes["three"] = 2 * GB
    await settle_sizes(system)
    long = system.spawn("teller", model="one", tokens=300)
    await system.run("teller", model="two", tokens=1)
    await asyncio.sleep(5)
    large = system.spawn("teller", model="three", tokens=1)  # it needs the memory of both
    await asyncio.sleep(0.1)
    before = system.loop.time()
    await system.run("teller", model="other", tokens=1)
    assert system.loop.time() - before <= 2 + 0.2
    for process in (large, long):
        await system.status(process)


@pytest.mark.parametrize("models", [FOUR])
@pytest.mark.parametrize("resources", [HOLDS_TWO])
async def test_small_models_that_overtake_a_large_one_delay_it_by_one_turn_at_most(system: System) -> None:
    system.machine.sizes["three"] = 2 * GB
    await settle_sizes(system)

    async def looping(ctx: Context, model: str) -> None:
        while True:
            await ctx.generate("x", model=model, max_tokens=5)
            await ctx.sleep(0.1)

    system.program(looping)
    small = [system.spawn("looping", model=model) for model in ("one", "two", "other")]
    await asyncio.sleep(20)
    before = system.loop.time()
    await system.run("teller", model="three", tokens=1)
    # `collate`, then one that was just loaded: its load, its least turn, the time of its unload; then the own load.
    assert system.loop.time() - before <= 10 + 2 + 5 + 1 + 2 + 0.2
    for process in small:
        await system.call(Kill(process.pid))


@pytest.mark.parametrize("models", [{f"m{number}": simulated(context=8000 + number) for number in range(12)}])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_the_memory_is_read_once_for_all_models_that_wait(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.machine.sizes.update({f"m{number}": GB for number in range(12)})
    await settle_sizes(system)
    calls = [system.spawn("teller", model=f"m{number}", tokens=50) for number in range(12)]
    await asyncio.sleep(3)
    assert Counter((await states(system)).values()) == {"ready": 1, "waiting": 11}
    residency, reads = system.runtime("m0").residency, Counter[str]()
    residents = residency.residents

    def counted() -> list[Any]:
        reads["residents"] += 1
        return residents()

    monkeypatch.setattr(residency, "residents", counted)
    residency.reschedule()
    assert 0 < reads["residents"] <= 4
    for process in calls:
        await system.call(Kill(process.pid))


# ---- other programs


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=12 * GB, collate=3.0)])
async def test_a_model_that_waits_for_other_programs_holds_up_no_model_that_fits(system: System) -> None:
    system.machine.sizes["one"] = 10 * GB
    await settle_sizes(system)
    system.machine.available = 4 * GB
    for _ in range(12):
        system.look()
        await asyncio.sleep(1)
    large = system.spawn("teller", model="one", tokens=1)
    await asyncio.sleep(1)
    before = system.loop.time()
    await system.run("teller", model="two", tokens=1)
    assert system.loop.time() - before <= 2.2  # its load, and its token
    assert "other programs" in (await row_of(system, "one")).detail
    system.machine.available = 13 * GB
    for _ in range(6):
        system.look()
        await asyncio.sleep(1)
    assert await system.result(large) == text_of(1, 1)


@pytest.mark.parametrize("models", [{f"m{number}{'x' * 300}": simulated(context=8000 + number) for number in range(8)}])
async def test_a_text_names_a_few_models_and_cuts_long_names(system: System, models: dict[str, Any]) -> None:
    runtimes = [system.runtime(model) for model in reversed(models)]
    assert len(names(runtimes)) < 500
    assert names(runtimes).startswith("m0xx")
    assert names(runtimes).endswith("... and 3 others")
