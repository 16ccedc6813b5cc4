"""Why a process waits for another one: a reply, an end, room in a mailbox, a message. And the chain behind the wait."""

from __future__ import annotations

import asyncio

import pytest

from ipc.syscalls import Limits, Send
from kernel.explain.explainer import MAX_CHAIN
from kernel.processes.limits import LimitSettings
from llmosd.context import Context
from tests.support.agents import forever, idle, listener
from tests.support.explaining import pids, why
from tests.support.system import System


async def asker(ctx: Context, to: int, timeout: float | None = None) -> None:
    await ctx.call(to, "question", timeout=timeout)


async def waiter(ctx: Context, pid: int) -> None:
    await ctx.wait(pid)


async def filler(ctx: Context, to: int) -> None:
    while True:
        await ctx.send(to, "x")


async def test_a_chain_of_waits_is_followed_to_the_process_that_must_act(system: System) -> None:
    last = system.spawn(idle)
    middle = system.spawn(asker, to=last.pid)
    first = system.spawn(waiter, pid=middle.pid)
    await asyncio.sleep(2)
    explanation = await why(system, first)
    assert (explanation.wait.kind, explanation.wait.awaits) == ("end", middle.pid)
    assert [(one.pid, one.seconds) for one in explanation.chain] == [(middle.pid, 2.0), (last.pid, 2.0)]
    assert not explanation.cycle
    assert (
        f"Process {middle.pid} (asker) has been waiting 2.0 s for a reply of process {last.pid} (idle). Process "
        f"{last.pid} (idle) has been waiting 2.0 s for code outside the kernel. The wait ends when process {middle.pid}"
        " ends." in explanation.text
    )


async def test_a_long_chain_is_cut(system: System) -> None:
    process = system.spawn(idle)
    system.program(waiter)
    for _ in range(MAX_CHAIN + 3):
        process = system.spawn("waiter", pid=process.pid)
        await system.turns()
    assert len((await why(system, process)).chain) == MAX_CHAIN


async def test_a_chain_that_leads_back_is_a_cycle(system: System) -> None:
    async def partner(ctx: Context) -> None:
        message = await ctx.receive()
        await ctx.call(message.body, "you first", timeout=40)

    one, other = system.spawn(partner), system.spawn(partner)
    for process, to in ((one, other), (other, one)):
        await system.call(Send(process.pid, to.pid))
    await asyncio.sleep(1)
    explanation = await why(system, one)
    assert (pids(explanation.chain), explanation.cycle) == ([other.pid], one.pid)  # type: ignore[arg-type]
    assert f"This chain of waits leads back to process {one.pid}." in explanation.text


async def test_a_call_says_whether_it_was_read_and_when_it_times_out(system: System) -> None:
    unread, reader = system.spawn(idle), system.spawn(listener_for_long)
    calls = [system.spawn(asker, to=to.pid, timeout=50) for to in (unread, reader)]
    await asyncio.sleep(2)
    texts = [(await why(system, call)).text for call in calls]
    assert f"Process {unread.pid} has not read the call yet." in texts[0]
    assert f"Process {reader.pid} has read the call." in texts[1]
    assert f"The wait ends when process {unread.pid} replies or ends, or in 48 s, when it times out." in texts[0]


async def listener_for_long(ctx: Context) -> None:
    await ctx.receive()
    await ctx.sleep(1000)


async def test_a_sender_learns_whose_mailbox_is_full_and_its_place(system: System) -> None:
    full = system.spawn(forever)
    senders = [system.spawn(filler, to=full.pid) for _ in range(3)]
    await asyncio.sleep(2)
    rows = [await why(system, sender) for sender in senders]
    assert {row.wait.kind for row in rows} == {"mailbox"}
    last = max(rows, key=lambda row: row.wait.place)
    assert (last.wait.place, last.wait.line, last.wait.ahead_count) == (3, 3, 2)
    assert f"for room in the mailbox of process {full.pid} (forever). It is 3rd of 3 in line." in last.text
    assert "The mailbox is full: it holds 1000 messages, the default limit." in last.text
    assert f"The wait ends when process {full.pid} has received 3 messages or has ended." in last.text
    assert pids(last.chain) == [full.pid]  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [LimitSettings(process=Limits(mailbox=2))])
async def test_a_mailbox_that_a_limit_makes_small_names_the_limit(system: System) -> None:
    full = system.spawn(forever)
    sender = system.spawn(filler, to=full.pid)
    await asyncio.sleep(1)
    assert "The mailbox is full: it holds 2 messages, the limit of the process." in (await why(system, sender)).text


async def test_a_receiver_says_which_message_it_wants_and_what_lies_in_its_mailbox(system: System) -> None:
    async def chooser(ctx: Context) -> None:
        await ctx.receive(type="wanted", timeout=9)

    anything, chosen = system.spawn(listener), system.spawn(chooser)
    await system.call(Send(chosen.pid, 1))
    await asyncio.sleep(2)
    explanation = await why(system, anything)
    assert explanation.wait.kind == "message"
    assert (
        "has been waiting 2.0 s for a message. The wait ends when any process sends it a message." in explanation.text
    )
    explanation = await why(system, chosen)
    assert (explanation.wait.kind, explanation.wait.timeout) == ("message", pytest.approx(7.0))
    assert "for a message of type wanted. Its mailbox holds 1 message that it does not want now." in explanation.text


async def test_a_receiver_of_one_sender_is_explained_by_what_that_sender_does(system: System) -> None:
    sender = system.spawn(forever)

    async def from_one(ctx: Context) -> None:
        await ctx.receive(sender=sender.pid)

    receiver = system.spawn(from_one)
    await asyncio.sleep(1)
    explanation = await why(system, receiver)
    assert pids(explanation.chain) == [sender.pid]  # type: ignore[arg-type]
    assert f"The wait ends when process {sender.pid} sends such a message." in explanation.text


async def test_a_watcher_of_a_region_names_it_and_the_version(system: System) -> None:
    async def watcher(ctx: Context) -> None:
        await ctx.shared("board").watch(7, timeout=5)

    async def sets(ctx: Context) -> None:
        await ctx.shared("board").set(1)

    await system.run(sets)
    process = system.spawn(watcher)
    await asyncio.sleep(1)
    explanation = await why(system, process)
    assert explanation.wait.kind == "region"
    assert "for a change of shared region board after version 7. The wait ends when a process sets" in explanation.text


async def test_a_supervisor_waits_for_its_children(system: System) -> None:
    async def supervisor(ctx: Context) -> None:
        await ctx.supervise(["forever"])

    system.program(forever)
    process = system.spawn(supervisor)
    await asyncio.sleep(1)
    explanation = await why(system, process)
    assert explanation.wait.kind == "children"
    assert "for its children, which it supervises. The wait ends when a supervised child ends." in explanation.text


async def test_a_connection_is_explained_by_the_request_that_it_serves(system: System) -> None:
    explanation = await why(system, system.client)
    assert explanation.wait.kind == "requests"
    assert explanation.text == "Process 1 (client) is the connection of a client, and waits for its requests."
    process = system.spawn(forever)
    waiting = asyncio.ensure_future(system.status(process))
    await asyncio.sleep(1)
    explanation = await why(system, system.client)
    assert (explanation.wait.kind, explanation.wait.awaits) == ("end", process.pid)
    system.kernel.process_exit.end(process, "killed", "the test is over")
    await waiting
