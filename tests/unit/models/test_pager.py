"""Paging of generations: they go to disk if KV memory is short, and only if that pays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from ipc.syscalls import Kill, Resume, Suspend
from kernel.drivers import protocol
from kernel.models.pager import Candidate, choose
from kernel.models.settings import SchedulingSettings
from kernel.models.spec import ModelSpec
from tests.support.paging import (
    FOUR_SLOTS,
    LONG,
    ONE_SLOT,
    ROOMY,
    TOKEN,
    TWO_SLOTS,
    files,
    row,
)
from tests.support.simulated import text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("with_teller")


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_suspended_generation_goes_to_disk_when_another_wants_its_memory(system: System) -> None:
    first, second = system.spawn("teller", seed=1), system.spawn("teller", seed=2)
    await asyncio.sleep(4.5)
    await system.call(Suspend(first.pid))
    third = system.spawn("teller", seed=3)
    await asyncio.sleep(3)
    assert files(system) == ["1.kv"]
    (folder,) = (path for path in system.swap.iterdir())
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    info = await row(system)
    assert (info.swapped, info.swap_outs, info.kv_waiting) == (1, 1, 0)
    assert [(one.state, one.kept) for one in info.sequences] == [
        ("parked", "disk"),
        ("running", "memory"),
        ("running", "memory"),
    ]
    assert await system.result(second) == text_of(2)
    await system.call(Resume(first.pid))
    assert await system.result(first) == text_of(1)
    assert await system.result(third) == text_of(3)
    await system.turns(20)
    assert files(system) == []
    info = await row(system)
    assert (info.restores, info.recomputations, info.swapped) == (1, 0, 0)
    (admit,) = [admit for admit in system.driver.sent_of(protocol.Admit) if admit.swapped]
    assert admit.generated
    assert Path(admit.swapped).name == "1.kv"


@pytest.mark.parametrize("models", [ROOMY])
async def test_nothing_is_written_while_there_is_memory(system: System) -> None:
    first = system.spawn("teller", seed=1)
    await asyncio.sleep(4.5)
    await system.call(Suspend(first.pid))
    others = [system.spawn("teller", seed=seed) for seed in range(4)]
    for seed, other in enumerate(others):
        assert await system.result(other) == text_of(seed)
    assert system.driver.sent_of(protocol.SwapOut) == []
    await system.call(Resume(first.pid))
    assert await system.result(first) == text_of(1)


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_preempted_generation_makes_room_for_the_urgent_one(system: System) -> None:
    calm = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    before = system.loop.time()
    urgent = system.spawn("teller", seed=3, tokens=5, priority=5)
    assert await system.result(urgent) == text_of(3, 5)
    assert system.loop.time() - before < 9
    for seed, process in zip((1, 2), calm, strict=True):
        assert await system.result(process) == text_of(seed)


@pytest.mark.parametrize("models", [FOUR_SLOTS])
async def test_an_urgent_call_with_a_slot_and_no_memory_gets_that_of_a_less_urgent_one(system: System) -> None:
    calm = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    before = system.loop.time()
    urgent = system.spawn("teller", seed=3, tokens=5, priority=5)
    assert await system.result(urgent) == text_of(3, 5)
    assert system.loop.time() - before < 9
    assert [swap.sequence for swap in system.driver.sent_of(protocol.SwapOut)] == [2]
    for seed, process in zip((1, 2), calm, strict=True):
        assert await system.result(process) == text_of(seed)


@pytest.mark.parametrize("models", [FOUR_SLOTS])
async def test_equals_wait_for_memory_without_pushing_each_other_out(system: System) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in range(6)]
    for seed, process in enumerate(processes):
        assert await system.result(process) == text_of(seed)
    assert system.driver.sent_of(protocol.SwapOut) == []


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_a_driver_that_waits_for_memory_in_silence_is_helped_as_well(system: System) -> None:
    first = system.spawn("teller", seed=1)
    await asyncio.sleep(4.5)
    await system.call(Suspend(first.pid))
    await asyncio.sleep(2)
    system.driver.device._report_waiting = lambda: None
    second = system.spawn("teller", seed=2)
    await asyncio.sleep(0.5)
    system.look()
    assert system.driver.sent_of(protocol.SwapOut) == []
    await asyncio.sleep(1)
    system.look()
    assert await system.result(second) == text_of(2)
    await system.call(Resume(first.pid))
    assert await system.result(first) == text_of(1)


@pytest.mark.parametrize("models", [ROOMY])
async def test_who_waits_for_another_reason_than_memory_pushes_nobody_out(system: System) -> None:
    first = system.spawn("teller", seed=1)
    await asyncio.sleep(4.5)
    await system.call(Suspend(first.pid))
    system.driver.memory.reserve = lambda sequence: False  # such as a quota
    second = system.spawn("teller", seed=2)
    await asyncio.sleep(5)
    assert system.driver.sent_of(protocol.SwapOut) == []
    await system.call(Kill(second.pid))
    await system.call(Kill(first.pid))


@pytest.mark.parametrize("models", [{"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=LONG)}])
async def test_a_small_one_behind_a_large_one_that_has_no_memory_does_not_hide_that(system: System) -> None:
    """The small one would fit, but the driver gives memory in order of arrival, and a parked sequence holds it."""
    calm = system.spawn("teller", tokens=120, seed=1, priority=-5)
    await asyncio.sleep(4.5)
    large = system.spawn("teller", tokens=120, seed=2, priority=5)
    small = system.spawn("teller", tokens=5, seed=3, priority=5)
    before = system.loop.time()
    assert await system.result(small) == text_of(3, 5)
    assert system.loop.time() - before < 10
    assert await system.result(large) == text_of(2, 120)
    assert await system.result(calm) == text_of(1, 120)
    assert [swap.sequence for swap in system.driver.sent_of(protocol.SwapOut)] == [1]
    assert len(system.launcher.drivers) == 1


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_preemption_costs_nothing_while_there_is_memory_and_else_the_time_on_disk(system: System) -> None:
    process = system.spawn("teller")
    await asyncio.sleep(5.5)
    (sequence,) = system.sequences(process)
    active = system.runtime().active
    assert sequence.switch_cost == active.pager.switch_cost(sequence, 100.0) == 0.0
    active.pager.kv = protocol.KVUsage(used=50 * TOKEN, waiting=1)
    active.pager._rate = TOKEN * 16.0  # 16 tokens a second: a second to write and read its 8, plus the overhead
    assert sequence.length == 8
    assert active.pager.switch_cost(sequence, 100.0) == pytest.approx(101.0)
    await system.result(process)


@pytest.mark.parametrize("models", [ONE_SLOT])
@pytest.mark.parametrize("scheduling", [SchedulingSettings(policy="round_robin", quantum=2)])
async def test_turns_are_longer_where_each_goes_to_disk_and_nobody_loses_a_token(system: System) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in range(3)]
    assert [await system.result(process) for process in processes] == [text_of(seed) for seed in range(3)]
    assert (await row(system)).recomputations == 0


def test_who_costs_least_for_its_wait_goes_first_and_only_what_pays() -> None:
    def candidate(number: int, size: int, wait: float) -> Candidate:
        return Candidate(SimpleNamespace(id=number), size, wait)  # type: ignore[arg-type]

    def chosen(need: int, *, forced: bool) -> list[int]:
        return [one.id for one in choose(candidates, need, 1e6, forced=forced)]

    candidates = [
        candidate(1, 1_000_000, 100.0),  # 2 s for 100 s
        candidate(2, 100_000, 100.0),  # 0.2 s for 100 s
        candidate(3, 1_000_000, 1.0),  # does not pay
    ]
    assert chosen(1, forced=False) == [2]
    assert chosen(100_001, forced=False) == [2, 1]
    assert chosen(10**9, forced=False) == [2, 1]
    assert chosen(10**9, forced=True) == [2, 1, 3]
    assert chosen(0, forced=True) == []
