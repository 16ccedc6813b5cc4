"""Paging: parked generations go to disk when memory for keys and values is short, and come back as if nothing was."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ipc.errors import to_wire
from ipc.messages import Log
from ipc.syscalls import Kill, Resume, Slots, Suspend
from kernel import faults
from kernel.drivers import protocol
from kernel.scheduling import Scheduling
from kernel.slots.model import ModelSpec
from kernel.slots.pager import Candidate, choose
from kernel.slots.swap import SwapArea
from tests.support.agents import teller
from tests.support.simulated import text_of

TOKEN = 1000  # bytes
PROMPT = 3  # tokens of every prompt here
# Memory for two sequences of 20 tokens and their prompts.
TIGHT = {
    "step_seconds": 1.0,
    "sequence_seconds": 0.0,
    "prompt_seconds": 0.0,
    "token_bytes": TOKEN,
    "kv_memory": 50 * TOKEN,
    "swap_seconds": 0.5,
}
FOUR_SLOTS = {"sim": ModelSpec(driver="simulated", slots=4, lease=4, options=TIGHT)}
TWO_SLOTS = {"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=TIGHT)}
ONE_SLOT = {"sim": ModelSpec(driver="simulated", slots=1, lease=4, options=TIGHT | {"kv_memory": 30 * TOKEN})}
ROOMY = {"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=TIGHT | {"kv_memory": 10**9})}


def files(system: Any, pattern: str = "*.kv") -> list[str]:
    folder: Path = system.swap
    return sorted(path.name for path in folder.rglob(pattern))


def write(path: str) -> None:
    Path(path).write_text("something")


async def row(system: Any) -> Any:
    (row,) = await system.call(Slots())
    return row


@pytest.fixture(autouse=True)
def programs(system: Any) -> None:
    system.program(teller)


# ---- when


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_suspended_generation_goes_to_disk_when_another_wants_its_memory(system: Any) -> None:
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
async def test_nothing_is_written_while_there_is_memory(system: Any) -> None:
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
async def test_a_preempted_generation_makes_room_for_the_urgent_one(system: Any) -> None:
    calm = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    before = system.loop.time()
    urgent = system.spawn("teller", seed=3, tokens=5, priority=5)
    assert await system.result(urgent) == text_of(3, 5)
    assert system.loop.time() - before < 9
    for seed, process in zip((1, 2), calm, strict=True):
        assert await system.result(process) == text_of(seed)


@pytest.mark.parametrize("models", [FOUR_SLOTS])
async def test_an_urgent_call_with_a_slot_and_no_memory_gets_that_of_a_less_urgent_one(system: Any) -> None:
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
async def test_equals_wait_for_memory_without_pushing_each_other_out(system: Any) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in range(6)]
    for seed, process in enumerate(processes):
        assert await system.result(process) == text_of(seed)
    assert system.driver.sent_of(protocol.SwapOut) == []


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_a_driver_that_waits_for_memory_in_silence_is_helped_as_well(system: Any) -> None:
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
async def test_who_waits_for_another_reason_than_memory_pushes_nobody_out(system: Any) -> None:
    first = system.spawn("teller", seed=1)
    await asyncio.sleep(4.5)
    await system.call(Suspend(first.pid))
    system.driver.memory.reserve = lambda sequence: False  # such as a quota
    second = system.spawn("teller", seed=2)
    await asyncio.sleep(5)
    assert system.driver.sent_of(protocol.SwapOut) == []
    await system.call(Kill(second.pid))
    await system.call(Kill(first.pid))


LONG = TIGHT | {"kv_memory": 200 * TOKEN, "swap_seconds": 0.0}


@pytest.mark.parametrize("models", [{"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=LONG)}])
async def test_a_small_one_behind_a_large_one_that_has_no_memory_does_not_hide_that(system: Any) -> None:
    """There were memory for the small one; but the driver gives it in the order of coming, and a parked one has it."""
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
async def test_a_preemption_costs_nothing_while_there_is_memory_and_else_the_time_on_disk(system: Any) -> None:
    process = system.spawn("teller")
    await asyncio.sleep(5.5)
    (sequence,) = process.sequences
    work = system.runtime().work
    assert sequence.switch_cost == work.pager.switch_cost(sequence, 100.0) == 0.0
    work.pager.kv = protocol.KVUsage(used=50 * TOKEN, waiting=1)
    work.pager._rate = TOKEN * 16.0  # 16 tokens a second: its 8 are there and back in a second, besides the overhead
    assert sequence.length == 8
    assert work.pager.switch_cost(sequence, 100.0) == pytest.approx(101.0)
    await system.result(process)


@pytest.mark.parametrize("models", [ONE_SLOT])
@pytest.mark.parametrize("scheduling", [Scheduling(policy="round_robin", quantum=2)])
async def test_turns_are_longer_where_each_goes_to_disk_and_nobody_loses_a_token(system: Any) -> None:
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


# ---- what can go wrong


async def parked_on_disk(system: Any) -> list[Any]:
    """Three tellers, of which the first is suspended and on disk."""
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    await asyncio.sleep(3)
    assert files(system) == ["1.kv"]
    return processes


async def finish(system: Any, processes: list[Any]) -> None:
    await system.call(Resume(processes[0].pid))
    for seed, process in enumerate(processes, 1):
        assert await system.result(process) == text_of(seed)
    await system.turns(20)
    assert files(system) == []


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_damaged_file_is_refused_and_told_and_the_text_is_the_same(system: Any) -> None:
    processes = await parked_on_disk(system)
    (path,) = system.swap.rglob("*.kv")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    await system.call(Resume(processes[0].pid))
    await system.status(processes[1])
    await asyncio.sleep(1.5)
    info = await row(system)
    marks = [one.recomputed for one in info.sequences if one.sequence == 1]
    assert marks == ["the swap file is damaged: its checksum is wrong"]
    assert [line.event for line in processes[0].log] == ["the state of a generation was lost and is computed anew"]
    assert processes[0].log[0].fields["why"] == marks[0]
    await finish(system, processes)
    assert (await row(system)).recomputations == 1


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_what_lies_on_disk_survives_the_death_of_the_driver(system: Any) -> None:
    processes = await parked_on_disk(system)
    system.driver.die()
    await asyncio.sleep(1.5)
    assert files(system) == ["1.kv"]
    await finish(system, processes)
    assert (await row(system)).restores == 1


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_driver_that_dies_while_it_writes_costs_no_text(system: Any) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    while not system.driver.sent_of(protocol.SwapOut):
        await asyncio.sleep(0.1)
    assert "swapping" in next(iter(processes[0].sequences)).holds
    system.driver.die()
    await asyncio.sleep(1.5)
    assert files(system) == []
    await finish(system, processes)


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_resume_while_it_is_written_waits_for_the_end_of_that(system: Any) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    while not system.driver.sent_of(protocol.SwapOut):
        await asyncio.sleep(0.1)
    await finish(system, processes)


@pytest.mark.parametrize("models", [TWO_SLOTS])
@pytest.mark.parametrize("after", [0.0, 0.2, 0.6, 3.0])
async def test_a_kill_before_during_and_after_the_writing_leaves_no_file(system: Any, after: float) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    while not system.driver.sent_of(protocol.SwapOut):
        await asyncio.sleep(0.1)
    await asyncio.sleep(after)
    await system.call(Kill(processes[0].pid))
    await asyncio.sleep(3)
    assert files(system) == []
    for seed, process in enumerate(processes[1:], 2):
        assert await system.result(process) == text_of(seed)


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_disk_that_refuses_leaves_the_generation_where_it_is(system: Any) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    area = system.kernel.resources.area
    own, area._own = area._own, Path("/nowhere/at/all")
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    await asyncio.sleep(4)
    info = await row(system)
    assert [one.kept for one in info.sequences] == ["memory", "memory", "memory"]
    assert len(system.driver.sent_of(protocol.SwapOut)) == 1  # it is not asked again and again
    area._own = own
    await finish(system, processes)


@pytest.mark.parametrize("models", [TWO_SLOTS])
@pytest.mark.parametrize("step", ["swap.write", "swap.rename"])
async def test_a_swap_that_finds_no_space_leaves_the_sequence_where_it_is_and_is_named(
    system: Any, step: str, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(faults.disarm)
    faults.arm({faults.VARIABLE: f"{step}=ENOSPC@1"})
    first, second = system.spawn("teller", seed=1), system.spawn("teller", seed=2)
    await asyncio.sleep(4.5)
    await system.call(Suspend(first.pid))
    third = system.spawn("teller", seed=3)
    await asyncio.sleep(3)
    info = await row(system)
    assert "No space left" in info.swap_refused
    assert (info.swapped, info.swap_outs) == (0, 0)
    assert info.sequences[0].kept == "memory"
    assert await system.result(second) == text_of(2)
    await system.call(Resume(first.pid))
    assert await system.result(first) == text_of(1)
    assert await system.result(third) == text_of(3)
    info = await row(system)
    assert (info.restores, info.recomputations) == (info.swap_outs, 0)
    await system.turns(20)
    assert files(system, "*.*") == []


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_one_that_is_suspended_before_its_first_token_gives_its_memory_to_who_waits(system: Any) -> None:
    processes = [system.spawn("teller", seed=1)]
    await asyncio.sleep(0.5)
    await system.call(Suspend(processes[0].pid))
    assert [said for said in system.driver.said if isinstance(said, protocol.Bundle)] == []
    processes += [system.spawn("teller", seed=seed) for seed in (2, 3)]
    await asyncio.sleep(4)
    assert files(system) == ["1.kv"]
    await finish(system, processes)


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_nothing_is_written_to_a_disk_that_is_nearly_full(system: Any) -> None:
    system.machine.disk_free = 10**8
    system.look()
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    await asyncio.sleep(4)
    assert system.driver.sent_of(protocol.SwapOut) == []
    system.machine.disk_free = 10**11
    system.look()
    await finish(system, processes)


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_an_answer_about_a_sequence_that_is_gone_removes_its_file(system: Any) -> None:
    process = system.spawn("teller", tokens=2)
    await asyncio.sleep(1.5)
    area = system.kernel.resources.area
    write(area.path(99))
    system.driver.on_message(protocol.SwappedOut(99, 5, 0.1))
    system.driver.on_message(protocol.SwappedOut(98, 0, 0.1, to_wire(OSError("full"))))
    system.driver.on_message(protocol.Restored(99, True, "why"))
    await system.result(process)
    await asyncio.sleep(1)
    assert files(system) == []


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_driver_that_restarts_tells_the_process_once(system: Any) -> None:
    recorder = system.recorder()
    process = system.spawn("teller", seed=1, stream=recorder.stream)
    await asyncio.sleep(4.5)
    system.driver.die()
    await asyncio.sleep(2.5)
    (one,) = (await row(system)).sequences
    assert one.recomputed == "the driver died (killed by the test)"
    await system.result(process)
    assert [event.event for event in recorder.of(Log)] == ["driver died; the generation goes on in a new one"]


# ---- the folder


@pytest.mark.real_time
async def test_files_of_dead_daemons_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    alive, other = SwapArea(tmp_path / "swap"), SwapArea(tmp_path / "swap")
    write(alive.path(1))
    dead = tmp_path / "swap" / "123-dead"
    dead.mkdir()
    (dead / "1.kv").write_text("old")
    assert other.remove_old() == 1
    assert not dead.exists()
    assert len(list((tmp_path / "swap").rglob("1.kv"))) == 1
    alive.remove(1)
    await alive.close()
    await alive.close()
    assert list((tmp_path / "swap").iterdir()) == []
    write(other.path(2))
    await other.close()
    assert list((tmp_path / "swap").iterdir()) == []
