"""Policies at work in the kernel: every kind serves all calls, can change live, and schedules programs, not calls."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import Any

import pytest
from structlog.testing import capture_logs

from ipc.errors import DeadlineUnreachable, InvalidPolicy, NotPermitted, UnknownModel
from ipc.messages import Log
from ipc.syscalls import GetStats, PolicyInfo, Resume, SetPolicy, Slots, Suspend
from kernel.drivers import protocol
from kernel.models.settings import SchedulingSettings
from kernel.models.spec import ModelSpec
from kernel.policy.registry import KINDS
from llmosd.context import Context
from tests.support.simulated import FAST, text_of
from tests.support.system import System

pytestmark = pytest.mark.usefixtures("with_teller")

ONE_SLOT = {"sim": ModelSpec(driver="simulated", slots=1, lease=4, options=FAST)}


def turns(system: System) -> list[tuple[int, int]]:
    """The sequences that had the only slot, each with the number of tokens that it made in a row."""
    made = [
        progress.sequence
        for said in system.driver.said
        if isinstance(said, protocol.Bundle)
        for progress in said.progress
        for _ in progress.ids
    ]
    return [(number, len(list(group))) for number, group in groupby(made)]


def all_kinds() -> list[Any]:
    return [pytest.param(SchedulingSettings(policy=kind, quantum=6), id=kind) for kind in KINDS]


@pytest.mark.parametrize("scheduling", all_kinds())
async def test_every_kind_serves_all_calls_exactly(system: System) -> None:
    processes = [system.spawn("teller", tokens=5 + 7 * (seed % 4), seed=seed, priority=seed % 3) for seed in range(9)]
    await asyncio.sleep(4)
    await system.call(Suspend(processes[1].pid))
    await asyncio.sleep(9)
    await system.call(Resume(processes[1].pid))
    texts = [await system.result(process) for process in processes]
    assert texts == [text_of(seed, 5 + 7 * (seed % 4)) for seed in range(9)]
    sizes = [len(said.progress) for said in system.driver.said if isinstance(said, protocol.Bundle)]
    assert max(sizes) == 2
    await system.turns()
    assert system.runtime().active.leases.policy.running() == []


@pytest.mark.parametrize("models", [ONE_SLOT])
@pytest.mark.parametrize("scheduling", [SchedulingSettings(policy="round_robin", quantum=6)])
async def test_a_quantum_ends_at_its_token_though_a_lease_is_shorter_or_longer(system: System) -> None:
    for process in [system.spawn("teller", tokens=15, seed=seed) for seed in range(3)]:
        await system.status(process)
    assert [count for _, count in turns(system)] == [6, 6, 6, 6, 6, 6, 3, 3, 3]
    assert [number for number, _ in turns(system)] == [1, 2, 3] * 3


@pytest.mark.parametrize("scheduling", [SchedulingSettings(policy="round_robin", quantum=6)])
async def test_a_call_alone_runs_on_over_its_quanta_without_a_stop(system: System) -> None:
    before = system.loop.time()
    assert await system.run("teller", tokens=60) == text_of(1, 60)
    assert system.loop.time() - before <= 62
    assert system.driver.sent_of(protocol.Revoke) == []
    assert [said for said in system.driver.said if isinstance(said, protocol.Parked)] == []


async def test_a_policy_changes_live_under_load_and_nobody_loses_a_token(system: System) -> None:
    processes = [system.spawn("teller", tokens=25, seed=seed, priority=-(seed % 2)) for seed in range(8)]
    await asyncio.sleep(2.5)
    for kind in (*KINDS, *reversed(KINDS)):
        info = await system.call(SetPolicy("sim", kind, quantum=3))
        assert (info.kind, info.quantum) == (kind, 3)
        await asyncio.sleep(3)
    assert [await system.result(process) for process in processes] == [text_of(seed, 25) for seed in range(8)]
    made = sum(
        len(progress.ids)
        for said in system.driver.said
        if isinstance(said, protocol.Bundle)
        for progress in said.progress
    )
    assert made == 8 * 25
    assert max(len(said.progress) for said in system.driver.said if isinstance(said, protocol.Bundle)) == 2


async def test_a_change_is_shown_and_logged_with_who_asked_and_bad_ones_change_nothing(system: System) -> None:
    first = await system.call(SetPolicy())
    assert first == PolicyInfo("sim", "priority", 32, 0.1, {}, 20.0)
    with capture_logs() as logs:
        await system.call(SetPolicy("sim", "fair", weights={"ann": 2.0}))
        changed = await system.call(SetPolicy("sim", weights={"bob": 3.0}))
        assert (changed.kind, changed.weights) == ("fair", {"ann": 2.0, "bob": 3.0})
        for wrong in (
            SetPolicy(kind="lottery"),
            SetPolicy(quantum=0),
            SetPolicy(weights={"ann": 0.0}),
            SetPolicy(aging=-1.0),
        ):
            with pytest.raises(InvalidPolicy):
                await system.call(wrong)
        with pytest.raises(UnknownModel):
            await system.call(SetPolicy("none", "fifo"))
        assert await system.call(SetPolicy()) == changed
    changes = [line for line in logs if line["event"] == "policy changed"]
    assert [line["now"].kind for line in changes] == ["fair", "fair"]
    assert changes[0]["cause"] == f"requested by client {system.client.pid} of test"
    process = system.spawn("teller")
    with pytest.raises(NotPermitted):
        await system.call(SetPolicy("sim", "fifo"), process)
    await system.status(process)
    (row,) = await system.call(Slots())
    assert row.policy == "fair"
    assert (await system.call(GetStats())).scheduling == {"sim": "fair; 2 of 2 slots usable"}


@pytest.mark.parametrize("scheduling", [SchedulingSettings(policy="auto", quantum=6)])
async def test_auto_logs_why_it_changed_and_slots_show_it(system: System) -> None:
    with capture_logs() as logs:
        processes = [system.spawn("teller", tokens=30, seed=seed) for seed in range(8)]
        await asyncio.sleep(20)
        (row,) = await system.call(Slots())
    assert row.policy == "auto"
    assert row.policy_reason.startswith("attained with a quantum of 6, after priority")
    assert [(line["now"], line["cause"]) for line in logs if line["event"] == "policy changed"] == [
        (row.policy_reason, "the workload")
    ]
    assert [await system.result(process) for process in processes] == [text_of(seed, 30) for seed in range(8)]


@pytest.mark.parametrize("models", [ONE_SLOT])
@pytest.mark.parametrize("scheduling", [SchedulingSettings(policy="edf")])
async def test_a_call_that_cannot_meet_its_deadline_is_shed_by_name_and_costs_no_slot(system: System) -> None:
    for seed in range(12):  # from these the policy learns how much of their limits calls use, and how fast
        await system.run("teller", tokens=5, seed=seed)
    late = system.spawn("teller", tokens=40, deadline=20.0)
    in_time = system.spawn("teller", tokens=10, deadline=15.0)
    before, made = system.loop.time(), len(system.driver.sent_of(protocol.Admit))
    with pytest.raises(DeadlineUnreachable, match="before the deadline"):
        await system.result(late)
    assert system.loop.time() - before < 1
    assert [line.event for line in late.log or () if isinstance(line, Log)] == ["model call shed"]
    assert await system.result(in_time) == text_of(1, 10)
    assert len(system.driver.sent_of(protocol.Admit)) == made + 1


# ---- programs


async def test_what_a_task_spawns_is_of_its_program_and_all_is_charged_to_it(system: System) -> None:
    async def parent(ctx: Context) -> None:
        await ctx.generate("one two three", max_tokens=10)
        await ctx.wait(await ctx.spawn("teller", {"tokens": 20}))
        await ctx.wait(await ctx.spawn("teller", {"tokens": 5}, detach=True))

    due = system.loop.time() + 500.0
    task, other = system.spawn(parent, deadline=500.0), system.spawn("teller", tokens=7)
    program = task.scheduling_group()
    await system.status(task)
    await system.status(other)
    assert program.service == 10 + 20 + 5 + 3 * 1.5
    assert other.scheduling_group() is not program
    assert other.scheduling_group().service == 7 + 1.5
    assert program.deadline == due
    assert (program.owner, other.scheduling_group().deadline) == (task.owner, None)


async def test_a_path_is_the_longest_chain_of_calls_and_not_their_sum(system: System) -> None:
    async def parent(ctx: Context) -> None:
        await ctx.generate("one two three", max_tokens=10)
        children = [await ctx.spawn("teller", {"tokens": tokens}) for tokens in (4, 20, 8)]
        for child in children:
            await ctx.wait(child)

    task = system.spawn(parent)
    await system.status(task)
    assert task.critical_path == (10 + 1.5) + (20 + 1.5)
    assert task.scheduling_group().service == 10 + 4 + 20 + 8 + 4 * 1.5


@pytest.mark.parametrize("models", [ONE_SLOT])
@pytest.mark.parametrize("scheduling", [SchedulingSettings(policy="attained", quantum=8)])
async def test_a_fresh_task_passes_one_that_fans_out(system: System) -> None:
    async def fan(ctx: Context) -> None:
        for child in [await ctx.spawn("teller", {"tokens": 8, "seed": n}) for n in range(6)]:
            await ctx.wait(child)

    wide = system.spawn(fan)
    await asyncio.sleep(9)
    fresh = system.spawn("teller", tokens=6, seed=9)
    before = system.loop.time()
    assert await system.result(fresh) == text_of(9, 6)
    assert system.loop.time() - before <= 16  # so it did not wait for the five calls that were there before
    assert not wide.ended
    await system.status(wide)


@pytest.mark.parametrize("models", [ONE_SLOT])
@pytest.mark.parametrize("scheduling", [SchedulingSettings(policy="fair", quantum=4)])
async def test_shares_are_of_owners(system: System) -> None:
    other = system.kernel.lifecycle.open_client("other")
    many = [system.spawn("teller", tokens=100, seed=n) for n in range(5)]
    one = system.spawn("teller", tokens=100, seed=9, parent=other)
    await asyncio.sleep(80)
    assert abs(one.generated_tokens - sum(process.generated_tokens for process in many)) <= 8


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_who_serves_an_urgent_caller_is_as_urgent_while_it_does(system: System) -> None:
    """Also through a second server, and also if its model call began before: the urgent caller waits for that call."""

    async def server(ctx: Context, tokens: int) -> None:
        while True:
            message = await ctx.receive()
            await ctx.reply(message, await ctx.generate("one two three", max_tokens=tokens, seed=tokens))

    async def middle(ctx: Context, behind: int) -> None:
        message = await ctx.receive()
        await ctx.reply(message, await ctx.call(behind, None))

    async def caller(ctx: Context, to: int) -> str:
        return await ctx.call(to, None)

    last = system.spawn(server, tokens=12, priority=-5)
    between = system.spawn(middle, behind=last.pid, priority=-5)
    system.spawn("teller", tokens=200, seed=7)
    early = system.spawn(caller, to=last.pid, priority=-5)
    await asyncio.sleep(5)
    (waiting,) = system.sequences(last)
    assert (waiting.state, waiting.priority) == ("queued", -5)
    urgent = system.spawn("caller", to=between.pid, priority=8)
    await asyncio.sleep(2)
    assert (waiting.state, waiting.priority) == ("running", 8)
    assert await system.result(early) == text_of(12, 12)
    before = system.loop.time()
    assert await system.result(urgent) == text_of(12, 12)  # the call that the server makes for it is served next
    assert system.loop.time() - before <= 14
    await asyncio.sleep(1)
    assert not system.sequences(last)


@pytest.mark.parametrize("models", [ONE_SLOT])
async def test_urgency_ends_with_the_answer(system: System) -> None:
    async def server(ctx: Context) -> None:
        message = await ctx.receive()
        work = ctx.start_thread(ctx.generate("one two three", max_tokens=30, seed=4))
        await ctx.sleep(10)
        await ctx.reply(message, None)
        await work

    async def caller(ctx: Context, to: int) -> None:
        await ctx.call(to, None)

    calm = system.spawn("teller", tokens=60, seed=7)
    await asyncio.sleep(2)
    serving = system.spawn(server, priority=-5)
    system.spawn(caller, to=serving.pid, priority=8)
    await asyncio.sleep(5)
    (work,) = system.sequences(serving)
    assert work.state == "running"
    await asyncio.sleep(7)
    assert (work.state, work.priority) == ("queued", -5)
    assert await system.result(calm) == text_of(7, 60)
    await system.status(serving)
    assert work.finished


async def test_settings_of_a_model_go_over_those_of_all(system: System) -> None:
    scheduling = SchedulingSettings(policy="fair", quantum=9, weights={"ann": 2.0})
    spec = ModelSpec(driver="simulated", policy="mlfq", weights={"bob": 3.0})
    settings = scheduling.policy_of(spec)
    assert (settings.kind, settings.quantum, settings.weights) == ("mlfq", 9, {"ann": 2.0, "bob": 3.0})
    assert scheduling.policy_of(ModelSpec(quantum=1)).quantum == 1
