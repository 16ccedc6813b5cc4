"""Files of paged generations: whatever happens to them, to the disk or to the driver, no text is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ipc.errors import to_wire
from ipc.messages import Log
from ipc.syscalls import Kill, Resume, Suspend
from kernel.drivers import protocol
from kernel.lib import failpoints as faults
from kernel.models.swap import SwapArea
from tests.support.paging import (
    TWO_SLOTS,
    files,
    finish,
    parked_on_disk,
    row,
)
from tests.support.simulated import text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("with_teller")


def write(path: str) -> None:
    Path(path).write_text("something")


# ---- what can go wrong


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_damaged_file_is_refused_and_told_and_the_text_is_the_same(system: System) -> None:
    processes = await parked_on_disk(system)
    (path,) = system.swap.rglob("*.kv")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    await system.call(Resume(processes[0].pid))
    await system.status(processes[1])
    await asyncio.sleep(1.5)
    info = await row(system)
    marks = [one.recomputed for one in info.sequences if one.sequence == 1]
    assert marks == ["the swap file is damaged: its checksum is wrong"]
    assert [line.event for line in processes[0].log] == [
        "the swapped KV of a generation was lost and is computed again"
    ]
    assert processes[0].log[0].fields["why"] == marks[0]
    await finish(system, processes)
    assert (await row(system)).recomputations == 1


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_what_lies_on_disk_survives_the_death_of_the_driver(system: System) -> None:
    processes = await parked_on_disk(system)
    system.driver.die()
    await asyncio.sleep(1.5)
    assert files(system) == ["1.kv"]
    await finish(system, processes)
    assert (await row(system)).restores == 1


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_driver_that_dies_while_it_writes_costs_no_text(system: System) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    while not system.driver.sent_of(protocol.SwapOut):
        await asyncio.sleep(0.1)
    assert "swapping" in system.sequences(processes[0])[0].block_reasons
    system.driver.die()
    await asyncio.sleep(1.5)
    assert files(system) == []
    await finish(system, processes)


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_resume_while_it_is_written_waits_for_the_end_of_that(system: System) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    while not system.driver.sent_of(protocol.SwapOut):
        await asyncio.sleep(0.1)
    await finish(system, processes)


@pytest.mark.parametrize("models", [TWO_SLOTS])
@pytest.mark.parametrize("after", [0.0, 0.2, 0.6, 3.0])
async def test_a_kill_before_during_and_after_the_writing_leaves_no_file(system: System, after: float) -> None:
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
async def test_a_disk_that_refuses_leaves_the_generation_where_it_is(system: System) -> None:
    processes = [system.spawn("teller", seed=seed) for seed in (1, 2)]
    await asyncio.sleep(4.5)
    area = system.kernel.resources.area
    own, area._own = area._own, Path("/proc/self")  # where not even root can write
    await system.call(Suspend(processes[0].pid))
    processes.append(system.spawn("teller", seed=3))
    await asyncio.sleep(4)
    info = await row(system)
    assert [one.kept for one in info.sequences] == ["memory", "memory", "memory"]
    assert len(system.driver.sent_of(protocol.SwapOut)) == 1  # the kernel does not ask it again and again
    area._own = own
    await finish(system, processes)


@pytest.mark.parametrize("models", [TWO_SLOTS])
@pytest.mark.parametrize("step", ["swap.write", "swap.rename"])
async def test_a_swap_that_finds_no_space_leaves_the_sequence_where_it_is_and_is_named(
    system: System, step: str, request: pytest.FixtureRequest
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
async def test_one_that_is_suspended_before_its_first_token_gives_its_memory_to_who_waits(system: System) -> None:
    processes = [system.spawn("teller", seed=1)]
    await asyncio.sleep(0.5)
    await system.call(Suspend(processes[0].pid))
    assert [said for said in system.driver.said if isinstance(said, protocol.Bundle)] == []
    processes += [system.spawn("teller", seed=seed) for seed in (2, 3)]
    await asyncio.sleep(4)
    assert files(system) == ["1.kv"]
    await finish(system, processes)


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_nothing_is_written_to_a_disk_that_is_nearly_full(system: System) -> None:
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
async def test_an_answer_about_a_sequence_that_is_gone_removes_its_file(system: System) -> None:
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
async def test_a_driver_that_restarts_tells_the_process_once(system: System) -> None:
    recorder = system.recorder()
    process = system.spawn("teller", seed=1, stream=recorder.stream)
    await asyncio.sleep(4.5)
    system.driver.die()
    await asyncio.sleep(2.5)
    (one,) = (await row(system)).sequences
    assert one.recomputed == "the driver died (killed by the test)"
    await system.result(process)
    assert [event.event for event in recorder.of(Log)] == ["driver died; the call continues in a new one"]


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


async def test_a_removed_folder_of_swap_files_is_made_again_in_the_same_place(tmp_path: Path) -> None:
    area = SwapArea(tmp_path / "swap")
    folder = Path(area.path(1)).parent
    folder.rmdir()
    assert Path(area.path(2)).parent == folder
    write(area.path(2))  # a driver that knows the folder can go on writing there
    assert folder.stat().st_mode & 0o777 == 0o700
    assert SwapArea(tmp_path / "swap").remove_old() == 0  # it is locked as before
    await area.close()
    assert not folder.exists()
