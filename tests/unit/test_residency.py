"""Which models are in memory: loaded on demand, unloaded when idle, evicted, and taking turns under one budget."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ipc.errors import ModelLoadFailed
from ipc.messages import State
from ipc.syscalls import GetStats, Kill, Models, Resume, Slots, Suspend
from kernel.drivers import protocol
from kernel.drivers.simulated import simulated_token
from kernel.slots.model import ModelSpec
from kernel.slots.settings import ResourceSettings
from llmosd.context import Context

GB = 10**9
FAST = {"step_seconds": 0.1, "sequence_seconds": 0.0, "prompt_seconds": 0.0, "load_seconds": 2.0}


def simulated(**options: Any) -> ModelSpec:
    slots = options.pop("slots", 2)
    settings = {name: options.pop(name) for name in ("keep_alive", "load_timeout") if name in options}
    return ModelSpec(driver="simulated", slots=slots, lease=4, options=FAST | options, **settings)


# The options differ, so that what is measured of one is not taken for the other.
TWO = {"one": simulated(), "two": simulated(context=8191)}
THREE = {**TWO, "three": simulated(context=8190)}
HOLDS_ONE = ResourceSettings(memory=15 * GB // 10, collate=10.0)
HOLDS_TWO = ResourceSettings(memory=25 * GB // 10, collate=10.0)


async def teller(ctx: Context, model: str, tokens: int = 20, seed: int = 1) -> str:
    return await ctx.generate("one two three", model=model, max_tokens=tokens, seed=seed)


def text_of(seed: int, tokens: int = 20) -> str:
    return "".join(simulated_token(seed, n)[1] for n in range(tokens))


async def states(system: Any) -> dict[str, str]:
    return {row.name: row.state for row in await system.call(Models())}


def alive(system: Any) -> list[str]:
    return sorted(driver.name for driver in system.launcher.alive)


def loads(system: Any) -> list[str]:
    return [driver.name for driver in system.launcher.drivers]


@pytest.fixture(autouse=True)
def programs(system: Any) -> None:
    system.program(teller)
    system.machine.sizes.update(one=GB, two=GB, three=GB, other=GB)


async def settle_sizes(system: Any) -> None:
    """Have all models measured, and none loaded."""
    names = list(await states(system))
    for model in names:
        await system.run("teller", model=model, tokens=1)
    for runtime in system.kernel.resources._runtimes.values():
        if runtime.ready_at is not None:
            runtime.leave("the test begins")
    await asyncio.sleep(5)
    system.launcher.drivers.clear()
    assert await states(system) == dict.fromkeys(names, "unloaded")


# ---- keep-alive


@pytest.mark.parametrize("models", [{"one": simulated(keep_alive=30.0)}])
async def test_a_model_is_unloaded_when_nobody_has_used_it_for_long_and_loaded_again_on_demand(system: Any) -> None:
    await system.run("teller", model="one")
    await asyncio.sleep(29)
    assert await states(system) == {"one": "ready"}
    await system.run("teller", model="one")
    await asyncio.sleep(29)
    (row,) = await system.call(Slots())
    assert row.idle == pytest.approx(29, abs=0.1)
    assert row.keep_alive == 30.0
    await asyncio.sleep(2)
    assert await states(system) == {"one": "unloaded"}
    assert alive(system) == []
    (row,) = await system.call(Slots())
    assert (row.state, row.detail, row.driver_pid, row.memory) == ("unloaded", "nobody used it for 30 s", None, 0)
    assert await system.run("teller", model="one", seed=3) == text_of(3)
    assert loads(system) == ["one", "one"]


@pytest.mark.parametrize("models", [{"one": simulated(keep_alive=0.0)}])
async def test_a_preloaded_model_that_nobody_wants_is_unloaded_too(system: Any) -> None:
    system.kernel.resources.preload()
    await asyncio.sleep(4)
    assert await states(system) == {"one": "unloaded"}


@pytest.mark.parametrize("models", [{"one": simulated(keep_alive=5.0)}])
async def test_a_suspended_generation_keeps_its_model(system: Any) -> None:
    process = system.spawn("teller", model="one")
    await asyncio.sleep(3)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(60)
    assert await states(system) == {"one": "ready"}
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(1)


# ---- the budget


@pytest.mark.parametrize("models", [THREE])
@pytest.mark.parametrize("resources", [HOLDS_TWO])
async def test_the_idle_model_of_least_use_makes_room(system: Any) -> None:
    await settle_sizes(system)
    for model in ("one", "two", "one"):
        await system.run("teller", model=model)
        await asyncio.sleep(10)
    assert await system.run("teller", model="three") == text_of(1)
    assert await states(system) == {"one": "ready", "two": "unloaded", "three": "ready"}
    rows = {row.model: row for row in await system.call(Slots())}
    assert rows["two"].detail == "made room for three"


@pytest.mark.parametrize(
    "models",
    [{"one": simulated(load_seconds=100.0, load_timeout=500.0), "two": simulated(), "three": simulated(context=8190)}],
)
@pytest.mark.parametrize("resources", [HOLDS_TWO])
async def test_what_is_dear_to_load_again_is_kept_longer(system: Any) -> None:
    await settle_sizes(system)
    await system.run("teller", model="one")
    await asyncio.sleep(60)
    await system.run("teller", model="two")
    await asyncio.sleep(10)
    await system.run("teller", model="three")
    assert await states(system) == {"one": "ready", "two": "unloaded", "three": "ready"}


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=GB // 2)])
async def test_a_model_that_never_fits_is_named_with_what_to_do(system: Any) -> None:
    for _ in range(2):  # once measured, it is not even started
        with pytest.raises(ModelLoadFailed, match=r"model one takes 1 GB.*may take 500 MB; raise resources.memory"):
            await system.run("teller", model="one")
        await asyncio.sleep(5)
    assert loads(system) == ["one"]
    assert alive(system) == []


@pytest.mark.parametrize("models", [TWO])
async def test_sizes_are_remembered_for_the_next_daemon(system: Any, tmp_path: Any) -> None:
    await system.run("teller", model="one")
    await asyncio.sleep(1)
    ((key, measured),) = json.loads((tmp_path / "cache" / "sizes.json").read_text()).items()
    assert key.startswith('["simulated",')
    assert measured["size"] == GB
    assert measured["seconds"] == pytest.approx(2.0)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_call_that_waits_for_memory_says_why_and_has_a_place_and_a_kill_ends_the_wait(system: Any) -> None:
    await settle_sizes(system)
    first = system.spawn("teller", model="one", tokens=5000)
    await asyncio.sleep(3)
    recorder = system.recorder()
    waiting = [system.spawn("teller", model="two", stream=recorder.stream) for _ in range(2)]
    await asyncio.sleep(1)
    rows = {row.model: row for row in await system.call(Slots())}
    assert (rows["two"].state, rows["two"].queued) == ("waiting", 2)
    assert rows["two"].detail == "for memory: one has its turn"
    assert [sequence.position for sequence in rows["two"].sequences] == [1, 2]
    assert ("model two waiting", rows["two"].detail) in [(event.state, event.detail) for event in recorder.of(State)]
    for process in waiting:
        await system.call(Kill(process.pid))
    assert await states(system) == {"one": "ready", "two": "unloaded"}
    await asyncio.sleep(20)
    assert loads(system) == ["one"]
    await system.call(Kill(first.pid))


# ---- turns


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_busy_model_goes_when_another_has_waited_for_its_bound_and_its_text_is_the_same(system: Any) -> None:
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
async def test_alternating_calls_are_collated_by_model_and_none_waits_beyond_its_bound(system: Any) -> None:
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
async def test_a_steady_alternating_load_does_not_thrash(system: Any) -> None:
    """Two agents, each in a loop over its model with a short thought in between, on one slot's worth of memory."""
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
    # Grouped ideally, with one load each, one of both calls a second would be done at any time.
    assert sum(done.values()) >= 0.7 * (200 - 4)
    assert min(done.values()) >= 0.4 * max(done.values())
    assert longest <= 10 + 2 + 1 + 0.5  # the bound, one load, the call itself


@pytest.mark.parametrize(
    "models", [{name: simulated(load_seconds=20.0, context=c) for name, c in (("one", 9), ("two", 8))}]
)
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_models_that_take_longer_to_load_than_the_bound_still_serve_as_long_as_they_load(system: Any) -> None:
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
async def test_a_model_that_has_nothing_to_do_gives_way_at_once(system: Any) -> None:
    await settle_sizes(system)
    await system.run("teller", model="one")
    await asyncio.sleep(5)
    before = system.loop.time()
    await system.run("teller", model="two")
    assert system.loop.time() - before <= 2 + 2.5


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_suspended_generations_do_not_keep_a_model_from_giving_way(system: Any) -> None:
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
async def test_three_models_take_turns(system: Any) -> None:
    processes = [system.spawn("teller", model=m, tokens=250, seed=n) for n, m in enumerate(THREE)]
    for seed, process in enumerate(processes):
        assert await system.result(process) == text_of(seed, 250)


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_driver_that_cannot_write_in_time_leaves_all_the_same(system: Any) -> None:
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
async def test_a_driver_that_dies_as_it_leaves_does_no_harm(system: Any) -> None:
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
async def test_a_load_that_hangs_holds_up_no_call_of_another_model(system: Any) -> None:
    system.spawn("teller", model="one")
    await asyncio.sleep(1)
    before = system.loop.time()
    assert await system.run("teller", model="two") == text_of(1)
    assert system.loop.time() - before <= 5


@pytest.mark.parametrize("models", [{"one": simulated(hang_load=True), "two": TWO["two"]}])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_load_that_hangs_gives_its_memory_to_another_that_waits_for_it(system: Any) -> None:
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
async def test_a_driver_that_dies_again_and_again_keeps_no_other_from_its_turn(system: Any) -> None:
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


# ---- the machine


ADAPTIVE = {"one": simulated(slots=8, token_bytes=10_000, context=1000, kv_memory=6 * GB)}


async def only_row(system: Any) -> Any:
    (row,) = await system.call(Slots())
    return row


@pytest.mark.parametrize("models", [ADAPTIVE])
@pytest.mark.parametrize("resources", [ResourceSettings(memory=9 * GB)])
async def test_slots_and_memory_shrink_when_the_machine_is_short_and_grow_again(system: Any) -> None:
    system.machine.available = 12 * GB
    await system.run("teller", model="one")
    system.look()
    before = await only_row(system)
    assert (before.given, before.slots, before.cause) == (8, 8, "")
    system.machine.available = 2 * GB  # somebody else took it
    for _ in range(8):
        system.look()
        await asyncio.sleep(1)
    short = await only_row(system)
    assert 1 <= short.given < 4
    assert short.kv_memory < before.kv_memory / 2
    assert "2 GB of 16 GB are free" in short.cause
    assert system.driver.device._memory.budget == short.kv_memory
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
    assert len({short.given, *given}) > 2  # in steps
    after = await only_row(system)
    assert (after.given, after.cause) == (8, "")
    assert after.kv_memory > 0.8 * before.kv_memory


@pytest.mark.parametrize("models", [ADAPTIVE])
async def test_a_short_dip_changes_nothing(system: Any) -> None:
    await system.run("teller", model="one")
    system.look()
    system.machine.available -= GB // 2
    system.look()
    system.machine.available += GB // 2
    system.look()
    assert system.driver.sent_of(protocol.Resize) == []


@pytest.mark.parametrize("models", [TWO])
async def test_idle_models_are_unloaded_when_the_machine_is_short(system: Any) -> None:
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
async def test_a_lone_model_that_grows_a_little_beyond_the_budget_stays(system: Any) -> None:
    await system.run("teller", model="one")
    system.machine.sizes["one"] = 16 * GB // 10
    for _ in range(5):
        system.look()
        await asyncio.sleep(1)
    assert alive(system) == ["one"]


@pytest.mark.parametrize("models", [TWO])
async def test_what_a_failed_model_took_is_counted_no_more(system: Any) -> None:
    await system.run("teller", model="one")
    system.look()
    assert (await system.call(GetStats())).machine["drivers_memory"] == GB
    system.kernel.resources.runtime("one").fail(ModelLoadFailed("of the test"))
    await asyncio.sleep(1)
    assert (await system.call(GetStats())).machine["drivers_memory"] == 0


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_nothing_is_loaded_for_a_call_that_was_suspended_meanwhile(system: Any) -> None:
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
async def test_of_two_busy_models_that_turn_out_too_large_one_has_to_wait(system: Any) -> None:
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
async def test_memory_that_others_take_is_waited_for_and_then_named(system: Any) -> None:
    await system.run("teller", model="one")
    system.kernel.resources.runtime("one").leave("the test begins")
    await asyncio.sleep(1)
    system.machine.available = 0
    for _ in range(20):
        system.look()
    process = system.spawn("teller", model="one")
    await asyncio.sleep(10)
    row = await only_row(system)
    assert (row.state, row.detail) == (
        "waiting",
        "for memory: 1 GB are needed, and other programs leave less than that",
    )
    with pytest.raises(ModelLoadFailed, match="waited 20 s for memory: 1 GB are needed"):
        await system.result(process)
    system.machine.available = 12 * GB
    process = system.spawn("teller", model="one")
    await asyncio.sleep(5)
    for _ in range(20):
        system.look()
    assert await system.result(process) == text_of(1)


@pytest.mark.parametrize("models", [TWO])
async def test_processors_are_divided_among_drivers(system: Any) -> None:
    for model in ("one", "two"):
        await system.run("teller", model=model)
    first, second = (driver.sent_of(protocol.Load)[0] for driver in system.launcher.drivers)
    assert (first.cores, second.cores) == ([], [2, 3])
    assert [row.cores for row in await system.call(Slots())] == [4, 2]


SHARING = {name: simulated(token_bytes=1000, kv_memory=8 * GB, context=99 + len(name)) for name in ("one", "other")}


@pytest.mark.parametrize("models", [SHARING])
async def test_keys_and_values_are_shared_out_among_drivers(system: Any) -> None:
    system.machine.available = 9 * GB
    for _ in range(20):
        system.look()
    await system.run("teller", model="one", tokens=2)
    (load,) = system.driver.sent_of(protocol.Load)
    assert load.kv_memory is None  # that is its own to say while it is alone
    await system.run("teller", model="other", tokens=2)
    (load,) = system.driver.sent_of(protocol.Load)
    rows = {row.model: row for row in await system.call(Slots())}
    assert load.kv_memory == pytest.approx(rows["other"].kv_memory, rel=0.2)
    assert rows["one"].kv_memory == pytest.approx(rows["other"].kv_memory, rel=0.2)
    assert [message.kv_memory for message in system.launcher.drivers[0].sent_of(protocol.Resize)]
    assert rows["one"].kv_memory + rows["other"].kv_memory < 9 * GB


@pytest.mark.parametrize("models", [TWO])
async def test_drivers_are_told_of_processes_that_ended_once_a_turn(system: Any) -> None:
    processes = [system.spawn("teller", model="one", tokens=3) for _ in range(2)]
    for process in processes:
        await system.status(process)
    await system.turns()
    told = [message.processes for message in system.driver.sent_of(protocol.Ended)]
    assert told == [[process.pid for process in processes]]


async def test_stats_show_the_machine(system: Any) -> None:
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
