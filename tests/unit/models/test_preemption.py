"""Priority on the slots of a model: urgent sequences preempt others, and no sequence loses a token."""

from __future__ import annotations

import asyncio

import pytest

from ipc.syscalls import EmbedTexts, Generate, Kill, Nice, Resume, Sampling, Slots, Suspend
from kernel.drivers import protocol
from kernel.models.settings import SchedulingSettings
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.simulated import FAST, text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("with_teller")

ONE_SLOT = {"sim": ModelSpec(driver="simulated", slots=1, lease=4, options=FAST)}


def taken(system: System) -> set[int]:
    taken: set[int] = system.runtime().active.leases.taken
    return taken


async def test_an_urgent_call_takes_a_slot_at_once_and_the_other_goes_on_where_it_was(system: System) -> None:
    calm = [system.spawn("teller", seed=n) for n in range(2)]
    await asyncio.sleep(5.5)
    urgent = system.spawn("teller", tokens=3, seed=9, priority=10)
    await system.turns(20)
    assert taken(system) == {1, 3}
    made = calm[1].generated_tokens
    (row,) = await system.call(Slots())
    assert [(each.state, each.priority, each.preemptions) for each in row.sequences] == [
        ("running", 0, 0),
        ("queued", 0, 1),
        ("running", 10, 0),
    ]
    before = system.loop.time()
    assert await system.result(urgent) == text_of(9, 3)
    assert system.loop.time() - before <= 4
    # The step that was under way when the slot was revoked still counts.
    assert calm[1].generated_tokens <= made + 1
    assert [await system.result(process) for process in calm] == [text_of(0, 20), text_of(1, 20)]


async def test_the_driver_never_runs_more_than_the_slots_while_they_change_hands(system: System) -> None:
    processes = [system.spawn("teller", tokens=9, priority=number % 5) for number in range(12)]
    for process in processes:
        assert await system.result(process) == text_of(1, 9)
    sizes = [len(said.progress) for said in system.driver.said if isinstance(said, protocol.Bundle)]
    assert max(sizes) == 2
    assert sum(sizes) == 12 * 9


async def test_urgent_calls_go_first_among_those_that_wait(system: System) -> None:
    system.spawn("teller", tokens=4), system.spawn("teller", tokens=4)
    await asyncio.sleep(1.5)
    waiting = {}
    for priority in (-3, 0, -1):
        waiting[priority] = system.spawn("teller", tokens=4, priority=priority)
        await system.turns()
    await asyncio.sleep(30)
    order = [admit.process for admit in system.driver.sent_of(protocol.Admit)][2:]
    assert order == [waiting[priority].pid for priority in (0, -1, -3)]


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_a_long_line_of_urgent_calls_starves_no_other(system: System) -> None:
    patient = system.spawn("teller", tokens=40, seed=5, priority=-1)
    await asyncio.sleep(2)
    system.spawn("teller", tokens=400, priority=2)
    await asyncio.sleep(35)
    made = patient.generated_tokens
    await asyncio.sleep(10)  # 4 priorities at 0.1 a second
    assert patient.generated_tokens > made
    assert await system.result(patient) == text_of(5, 40)


@pytest.mark.parametrize("models", [ONE_SLOT])
@pytest.mark.parametrize("scheduling", [SchedulingSettings(aging=0.5, quantum=16)])
async def test_aging_exchanges_a_slot_once_in_a_quantum_and_not_every_few_tokens(system: System) -> None:
    low, high = system.spawn("teller", tokens=100, priority=0), system.spawn("teller", tokens=100, priority=1)
    await system.status(low)
    await system.status(high)
    revoked = len(system.driver.sent_of(protocol.Revoke))
    assert 2 <= revoked <= 2 * 200 / 16


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_nice_moves_a_call_that_waits_and_one_that_runs(system: System) -> None:
    first, second, third = (system.spawn("teller", seed=seed) for seed in range(3))
    await asyncio.sleep(2.5)
    await system.call(Nice(third.pid, 5))
    assert taken(system) == {3}
    await asyncio.sleep(2)
    await system.call(Nice(third.pid, -5))
    assert taken(system) == {1}
    await system.call(Nice(second.pid, 1, relative=True))
    assert taken(system) == {2}
    for seed, process in enumerate((first, second, third)):
        assert await system.result(process) == text_of(seed, 20)


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_nice_of_one_thread_moves_its_calls_alone(system: System) -> None:
    order: list[int] = []

    async def agent(ctx: Context) -> None:
        async def work(n: int) -> None:
            await ctx.generate("x", max_tokens=6, seed=n)
            order.append(n)

        for thread in [ctx.start_thread(work(n)) for n in range(3)]:
            await thread

    process = system.spawn(agent)
    await asyncio.sleep(2.5)
    await system.call(Nice(process.pid, 3, thread="0-3"))
    await system.status(process)
    assert order == [2, 0, 1]


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_a_preempted_call_survives_suspension_and_a_kill_leaves_nothing(system: System) -> None:
    calm = system.spawn("teller", seed=3)
    await asyncio.sleep(4.5)
    urgent = system.spawn("teller", priority=1)
    await asyncio.sleep(2)
    await system.call(Suspend(calm.pid))
    assert await system.result(urgent) == text_of(1, 20)
    await asyncio.sleep(5)
    assert taken(system) == set()
    await system.call(Resume(calm.pid))
    await asyncio.sleep(2)
    again = system.spawn("teller", priority=1)
    await asyncio.sleep(2)
    assert taken(system) == {3}
    await system.call(Kill(calm.pid))
    await system.turns()
    assert [cancel.sequence for cancel in system.driver.sent_of(protocol.Cancel)] == [1]
    assert await system.result(again) == text_of(1, 20)


async def test_preempted_calls_survive_the_death_of_the_driver(system: System) -> None:
    calm = [system.spawn("teller", seed=n) for n in range(2)]
    await asyncio.sleep(4.5)
    urgent = [system.spawn("teller", seed=n, priority=1) for n in range(2, 4)]
    await asyncio.sleep(2)
    system.driver.die()
    for seed, process in enumerate(calm + urgent):
        assert await system.result(process) == text_of(seed, 20)


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_a_query_runs_to_its_end_once_begun(system: System) -> None:
    asked = system.thread(system.kernel.gate.call(system.client, EmbedTexts(["one two", "three"])))
    await asyncio.sleep(1.5)
    urgent = system.spawn("teller", tokens=2, priority=20)
    assert len(await asked) == 2
    assert system.driver.sent_of(protocol.Revoke) == []
    assert await system.result(urgent) == text_of(1, 2)


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_a_reader_who_falls_behind_while_a_call_waits_costs_no_slot(system: System) -> None:
    recorder = system.recorder(credit=0)
    paused = system.spawn("teller", seed=4, stream=recorder.stream)
    await asyncio.sleep(2.5)
    urgent = system.spawn("teller", tokens=6, priority=1)
    await system.turns(20)
    assert taken(system) == {2}
    recorder.stream._text = 10**9  # the reader is far behind from now on
    other = system.spawn("teller", tokens=5)
    await system.result(urgent)
    assert await system.result(other) == text_of(1, 5)
    recorder.stream._text = 0
    recorder.stream.grant(10**6)
    assert await system.result(paused) == text_of(4, 20)


async def test_clients_may_be_niced_too(system: System) -> None:
    await system.call(Nice(system.client.pid, 7))
    for _ in range(2):
        system.spawn("teller", tokens=30, priority=0)
    await asyncio.sleep(2.5)
    before = system.loop.time()
    assert await system.call(Generate("x y", None, Sampling(max_tokens=2, seed=3))) == text_of(3, 2)
    assert system.loop.time() - before <= 4
