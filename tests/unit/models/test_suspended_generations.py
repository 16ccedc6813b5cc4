"""Generations that are killed, suspended and resumed: their slots are free immediately, and their text is the same."""

from __future__ import annotations

import asyncio

import pytest

from ipc.syscalls import Kill, Resume, Send, Suspend
from kernel.core.stream import MAX_EVENTS
from kernel.drivers import protocol
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.agents import teller
from tests.support.simulated import FAST, assert_nothing_left, text_of
from tests.support.system import System


async def test_kill_during_a_generation_sends_cancel_and_frees_the_slot_when_the_driver_has_let_go(
    system: System,
) -> None:
    victim, other, queued = (system.spawn(teller if not n else "teller", tokens=50) for n in range(3))
    await asyncio.sleep(5.5)
    run = system.runtime()
    system.kernel.process_exit.end(victim, "killed", "test")
    await asyncio.sleep(0)
    assert (await system.status(victim)).reason == "killed"
    assert [cancel.sequence for cancel in system.driver.sent_of(protocol.Cancel)] == [1]
    await system.turns()
    assert run.active.leases.taken == {2, 3}
    assert 1 not in run.active.sequences
    await system.call(Kill(other.pid))
    await system.call(Kill(queued.pid))
    await system.turns()
    assert_nothing_left(system)


async def test_a_kill_that_crosses_the_end_of_the_generation_leaves_nothing(system: System) -> None:
    process = system.spawn(teller, tokens=3)
    while not system.launcher.drivers or not any(isinstance(m, protocol.Done) for m in system.driver.said):
        await asyncio.sleep(0.001)
        if process.generated_tokens == 2:
            await asyncio.sleep(0.9)
            break
    # The last step is under way in the driver: its Done and our Cancel cross on the wire.
    system.loop.call_later(0.1, system.kernel.process_exit.end, process, "killed", "test")
    await system.status(process)
    await asyncio.sleep(3)
    assert_nothing_left(system)


async def test_kill_of_a_queued_call_tells_the_driver_nothing(system: System) -> None:
    processes = [system.spawn(teller if not n else "teller") for n in range(3)]
    await asyncio.sleep(2.5)
    await system.call(Kill(processes[2].pid))
    assert system.driver.sent_of(protocol.Cancel) == []
    assert system.runtime().active.leases.queue == []
    assert await system.result(processes[0]) == await system.result(processes[1])


async def test_kill_while_the_model_loads(system: System) -> None:
    process = system.spawn(teller)
    await system.turns(2)
    await system.call(Kill(process.pid))
    assert await system.run("teller", tokens=5) == text_of(1, 5)
    await system.turns()
    assert_nothing_left(system)


async def test_a_timeout_around_a_generation_frees_its_slot(system: System) -> None:
    async def impatient(ctx: Context) -> str:
        try:
            async with asyncio.timeout(5):
                await ctx.generate("x", max_tokens=1000)
        except TimeoutError:
            return await ctx.generate("x", max_tokens=3, seed=1)
        return ""

    assert await system.run(impatient) == text_of(1, 3)
    await system.turns()
    assert_nothing_left(system)


@pytest.mark.parametrize("after", [0, 0.5, 3.5, 4.0, 5.0, 19.5])
async def test_suspend_takes_a_generation_off_its_slot_and_resume_continues_the_same_text(
    system: System, after: float
) -> None:
    process = system.spawn(teller, tokens=20, seed=5)
    await system.turns(3)
    await asyncio.sleep(after)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    made = process.generated_tokens
    assert system.runtime().active.leases.taken == set()
    others = [system.spawn("teller", tokens=8) for _ in range(2)]
    for other in others:
        await system.status(other)
    assert process.generated_tokens == made
    assert not process.ended
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(5, 20)
    await system.turns()
    assert_nothing_left(system)


async def test_suspending_sends_revoke_and_resuming_at_once_just_goes_on(system: System) -> None:
    process = system.spawn(teller, tokens=20, seed=5)
    await asyncio.sleep(5.5)
    for _ in range(3):
        await system.call(Suspend(process.pid))
        await system.call(Resume(process.pid))
    assert len(system.driver.sent_of(protocol.Revoke)) == 3
    assert await system.result(process) == text_of(5, 20)
    await system.turns()
    assert_nothing_left(system)


async def test_a_resume_before_the_driver_has_parked_it_keeps_the_slot(system: System) -> None:
    processes = [system.spawn(teller if not n else "teller", tokens=20) for n in range(3)]
    await asyncio.sleep(5.5)
    await system.call(Suspend(processes[0].pid))
    await system.call(Resume(processes[0].pid))
    assert [sequence.id for sequence in system.runtime().active.leases.queue] == [3]
    await asyncio.sleep(3)
    assert system.runtime().active.leases.taken == {1, 2}
    for process in processes:
        assert await system.result(process) == text_of(1, 20)


@pytest.mark.parametrize(
    "models", [{"sim": ModelSpec(driver="simulated", slots=1, lease=lease, options=FAST)} for lease in (1, 2, 3)]
)
async def test_the_shortest_leases_lose_no_slot_and_no_token(system: System) -> None:
    processes = [system.spawn(teller if not n else "teller", tokens=7) for n in range(3)]
    for process in processes:
        assert await system.result(process) == text_of(1, 7)
    bundles = [said for said in system.driver.said if isinstance(said, protocol.Bundle)]
    assert max(len(bundle.progress) for bundle in bundles) == 1


async def test_a_resumed_generation_takes_its_old_place_in_line(system: System) -> None:
    first, second, third, fourth = (system.spawn(teller if not n else "teller", tokens=12) for n in range(4))
    await asyncio.sleep(2.5)
    await system.call(Suspend(first.pid))
    await asyncio.sleep(2)  # the third has its slot now
    await system.call(Resume(first.pid))
    assert [sequence.id for sequence in system.runtime().active.leases.queue] == [1, 4]
    for process in (first, second, third, fourth):
        assert await system.result(process) == text_of(1, 12)


async def test_resuming_one_thread_leaves_the_generations_of_the_others_in_line_once(system: System) -> None:
    async def two_threads(ctx: Context) -> str:
        ctx.start_thread(ctx.sleep(1000))
        return await ctx.generate("one two three", max_tokens=12, seed=1)

    running = [system.spawn(teller if not n else "teller", tokens=12) for n in range(2)]
    waiting = system.spawn(two_threads)
    await asyncio.sleep(2)
    await system.call(Suspend(waiting.pid, "0-1"))
    await system.call(Resume(waiting.pid, "0-1"))
    assert [sequence.id for sequence in system.runtime().active.leases.queue] == [3]
    for process in (*running, waiting):
        assert await system.result(process) == text_of(1, 12)
    await asyncio.sleep(60)
    assert_nothing_left(system)


async def test_a_resumed_generation_does_not_take_a_slot_while_its_reader_is_behind(system: System) -> None:
    recorder = system.recorder(credit=0)

    async def behind(ctx: Context) -> str:
        ctx.start_thread(flood(ctx))
        return await ctx.generate("one two three", max_tokens=12, seed=1)

    async def flood(ctx: Context) -> None:
        await ctx.receive()
        for number in range(MAX_EVENTS):
            await ctx.emit(number)

    process = system.spawn(behind, stream=recorder.stream)
    await asyncio.sleep(3)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    others = [system.spawn(teller if not n else "teller", tokens=30) for n in range(2)]
    await asyncio.sleep(2)
    await system.call(Resume(process.pid))  # both slots are taken: it waits in line
    await system.call(Send(process.pid, "go"))
    for other in others:
        await system.result(other)
    assert system.runtime().active.leases.taken == set()
    recorder.stream.grant(10_000)
    assert await system.result(process) == text_of(1, 12)


async def test_a_call_made_as_its_process_is_suspended_waits_for_the_resume(system: System) -> None:
    process = system.spawn(teller, tokens=4)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(20)
    assert process.calls == 0
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(1, 4)


async def test_kill_of_a_suspended_generation_frees_it_in_the_driver(system: System) -> None:
    process = system.spawn(teller, tokens=50)
    await asyncio.sleep(5.5)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    await system.call(Kill(process.pid))
    await system.turns()
    assert_nothing_left(system)
