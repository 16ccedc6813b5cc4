"""A driver that dies: its generations continue in the next one, or fail with a named error."""

from __future__ import annotations

import asyncio

import pytest

from ipc.errors import DriverFailed, ModelLoadFailed, to_wire
from ipc.messages import Log, Token
from ipc.syscalls import Kill, Resume, Slots, Suspend
from kernel.drivers import protocol
from kernel.drivers.simulated.sequence import simulated_token
from kernel.models import runtime as runtime_module
from kernel.models.active_sequences import MAX_DEATHS
from tests.support.agents import teller
from tests.support.simulated import assert_nothing_left, text_of
from tests.support.system import System


@pytest.mark.parametrize("after", [0.5, 2.5, 4.0, 9.5])
async def test_generations_go_on_in_a_new_driver_with_the_text_they_would_have_had(
    system: System, after: float
) -> None:
    recorders = [system.recorder() for _ in range(4)]
    processes = [
        system.spawn(teller if not n else "teller", tokens=20, seed=n, stream=recorder.stream)
        for n, recorder in enumerate(recorders)
    ]
    await asyncio.sleep(after)
    system.driver.die()
    for n, process in enumerate(processes):
        assert await system.result(process) == text_of(n, 20)
        assert process.generated_tokens == 20
        assert process.prompt_tokens == 3
        assert "".join(event.text for event in recorders[n].of(Token)) == text_of(n, 20)
    assert len(system.launcher.drivers) == 2
    (row,) = await system.call(Slots())
    assert row.restarts == 1
    logged = [event.event for event in recorders[0].of(Log)]
    assert logged == ["driver died; the call continues in a new one"]
    assert_nothing_left(system)


async def test_an_admission_after_a_death_carries_all_that_was_made(system: System) -> None:
    process = system.spawn(teller, tokens=20, seed=9)
    await asyncio.sleep(6.5)
    made = process.generated_tokens
    system.driver.die()
    await system.result(process)
    (admit,) = system.driver.sent_of(protocol.Admit)
    assert (admit.prompt, admit.prompt_ids) == ("", [3, 3, 5])
    assert admit.generated == [simulated_token(9, n)[0] for n in range(made)]
    assert admit.released == len(text_of(9, made))


async def test_a_driver_that_dies_too_often_under_one_generation_fails_it(system: System) -> None:
    process = system.spawn(teller, tokens=1000)
    for _ in range(MAX_DEATHS + 1):
        await asyncio.sleep(10)
        system.driver.die()
        await system.turns()
    with pytest.raises(DriverFailed, match="4 times"):
        await system.result(process)
    assert await system.run("teller", tokens=5) == text_of(1, 5)


async def test_a_queued_call_does_not_pay_for_the_deaths_of_others(system: System) -> None:
    victims = [system.spawn(teller if not n else "teller", tokens=1000) for n in range(2)]
    queued = system.spawn("teller", tokens=5)
    for _ in range(MAX_DEATHS + 1):
        await asyncio.sleep(10)
        system.driver.die()
        await system.turns()
    for victim in victims:
        with pytest.raises(DriverFailed):
            await system.result(victim)
    assert await system.result(queued) == text_of(1, 5)


async def test_a_driver_that_never_gets_to_a_token_is_given_up(system: System) -> None:
    async def die_at_birth() -> None:
        while True:
            await asyncio.sleep(0.01)
            if system.launcher.drivers:
                system.driver.die("exit code 1")

    killer = asyncio.ensure_future(die_at_birth())
    with pytest.raises(DriverFailed, match=r"exit code 1"):
        await system.run(teller)
    killer.cancel()
    assert len(system.launcher.drivers) <= runtime_module.MAX_RESTARTS + 1
    assert await system.run("teller", tokens=5) == text_of(1, 5)


async def test_a_kill_while_the_driver_is_dead_leaves_nothing(system: System) -> None:
    process = system.spawn(teller, tokens=50)
    await asyncio.sleep(5.5)
    system.driver.die()
    await system.turns(1)
    await system.call(Kill(process.pid))
    await asyncio.sleep(5)
    assert_nothing_left(system)


async def test_a_kill_whose_done_never_comes_because_the_driver_dies_leaves_nothing(system: System) -> None:
    process = system.spawn(teller, tokens=50)
    await asyncio.sleep(5.5)
    system.kernel.process_exit.end(process, "killed", "test")
    system.driver.die()
    await asyncio.sleep(5)
    assert_nothing_left(system)
    assert await system.run("teller", tokens=5) == text_of(1, 5)


async def test_a_suspended_generation_survives_the_death_of_the_driver(system: System) -> None:
    process = system.spawn(teller, tokens=20, seed=2)
    await asyncio.sleep(5.5)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    system.driver.die()
    await asyncio.sleep(20)
    assert not process.ended
    assert system.driver.sent_of(protocol.Admit) == []
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(2, 20)


async def test_a_resumed_generation_in_line_is_there_once_after_the_death_of_the_driver(system: System) -> None:
    processes = [system.spawn(teller if not n else "teller", tokens=20) for n in range(3)]
    await asyncio.sleep(3)
    await system.call(Suspend(processes[0].pid))
    await asyncio.sleep(2)  # the third has its slot now
    await system.call(Resume(processes[0].pid))
    system.driver.die()
    await system.turns()
    queue = [sequence.id for sequence in system.runtime().active.leases.queue]
    assert len(set(queue)) == len(queue)
    for process in processes:
        assert await system.result(process) == text_of(1, 20)
    await asyncio.sleep(60)
    assert_nothing_left(system)


async def test_what_an_old_incarnation_still_says_is_ignored(system: System) -> None:
    process = system.spawn(teller, tokens=20, seed=2)
    await asyncio.sleep(5.5)
    old = system.driver
    old.die()
    await asyncio.sleep(2)
    for stale in (
        protocol.Bundle([protocol.Progress(1, [1], "stale")], 1, 1.0),
        protocol.Done(1, "stop"),
        protocol.SequenceFailed(1, to_wire(ModelLoadFailed("stale"))),
        protocol.Parked(1),
        protocol.LoadFailed(to_wire(ModelLoadFailed("stale"))),
    ):
        old.on_message(stale)
    old._on_exit("again")
    assert await system.result(process) == text_of(2, 20)
    assert len(system.launcher.drivers) == 2


async def test_messages_about_sequences_that_are_gone_do_no_harm(system: System) -> None:
    await system.run(teller, tokens=3)
    for stray in (
        protocol.Bundle([protocol.Progress(99, [1], "x")], 1, 1.0),
        protocol.Admitted(99, [1]),
        protocol.Done(99, "stop"),
        protocol.Parked(99),
    ):
        system.driver.on_message(stray)
    assert await system.run("teller", tokens=3) == text_of(1, 3)
