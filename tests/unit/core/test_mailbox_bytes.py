"""Mailboxes are bounded in bytes: large bodies wait for room, alone and all together, and nothing is counted twice."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.errors import Busy, LlmosError, MailboxFull, TimedOut
from ipc.messages import Message
from ipc.syscalls import Call, Kill, Limits, Publish, Receive, Send, Spawn, Subscribe
from kernel.core.mailbox import Mailbox
from kernel.core.process import Process, Thread
from kernel.messages.body_size import counted_size
from llmosd.context import Context
from tests.support.agents import echo, forever
from tests.support.boot import UNWRITABLE, boot
from tests.support.system import System
from tests.support.virtual_time import VirtualTimeLoop

KIB = 1024
LARGE = "x" * (10 * KIB)  # ASCII, so its length is its size


class Part(msgspec.Struct, frozen=True):
    text: str


class Order(msgspec.Struct, frozen=True):
    number: int
    parts: tuple[Part, ...]


@pytest.fixture
def target(system: System) -> Process:
    """A process whose mailbox has room for three large bodies."""
    process = system.spawn(forever)
    process.open_mailbox().byte_capacity = 3 * len(LARGE)
    return process


@pytest.fixture
def box(target: Process) -> Mailbox:
    return target.open_mailbox()


def sending(system: System, target: Process, body: Any) -> Thread:
    async def send() -> None:
        await system.kernel.gate.call(system.client, Send(target.pid, body))

    return system.thread(send())


async def received(system: System, target: Process) -> Any:
    message = await system.call(Receive(0), target)
    return message.body


def test_what_a_body_counts() -> None:
    small: list[object] = [7, "x" * KIB, b"x" * KIB, None, Order(1, ())]
    assert [counted_size(body) for body in small] == [0] * 5
    assert counted_size("é" * KIB) == 2 * KIB
    assert counted_size(msgspec.Raw(b"x" * 5000)) == 5000
    assert counted_size(Order(1, (Part("x" * 9000), Part("y" * 9000)))) in range(18_000, 19_000)
    assert counted_size(Order(1, (Part("x"),) * 1_000_000)) > 1_000_000


async def test_a_mailbox_is_full_when_its_bytes_are_used(system: System, target: Process, box: Mailbox) -> None:
    for _ in range(3):
        await system.call(Send(target.pid, LARGE, wait=False))
    with pytest.raises(MailboxFull, match=f"{3 * len(LARGE)} of {3 * len(LARGE)} bytes"):
        await system.call(Send(target.pid, LARGE, wait=False))
    await system.call(Send(target.pid, "small", wait=False))
    assert await received(system, target) == LARGE
    await system.call(Send(target.pid, LARGE, wait=False))
    assert box.bytes == system.kernel.messaging.memory.used == 3 * len(LARGE)


async def test_senders_of_large_bodies_wait_and_no_small_one_overtakes_them(system: System, target: Process) -> None:
    for number in range(3):
        await system.call(Send(target.pid, f"{number}{LARGE[1:]}"))
    waiting = [sending(system, target, f"{number}{LARGE[1:]}") for number in (3, 4)]
    waiting += [sending(system, target, "5")]
    await system.turns()
    assert [thread.done() for thread in waiting] == [False] * 3
    order = []
    for _ in range(6):
        order.append((await received(system, target))[0])
        await system.turns()
    assert order == list("012345")
    assert system.kernel.messaging.memory.used == 0


async def test_a_body_above_the_limit_fits_into_a_mailbox_without_large_bodies(
    system: System, target: Process, box: Mailbox
) -> None:
    await system.call(Send(target.pid, "small"))
    await system.call(Send(target.pid, LARGE * 9, wait=False))
    with pytest.raises(MailboxFull):
        await system.call(Send(target.pid, LARGE, wait=False))
    await system.call(Receive(0), target)
    assert await received(system, target) == LARGE * 9
    assert box.bytes == 0


async def test_a_sender_that_gives_up_lets_the_next_ones_in(system: System, target: Process) -> None:
    await system.call(Send(target.pid, LARGE * 2))
    large, small = sending(system, target, LARGE * 2), sending(system, target, "small")
    await system.turns()
    assert not small.done()
    large.cancel()
    await system.turns()
    assert small.done()
    assert system.kernel.messaging.memory.used == 2 * len(LARGE)


async def test_the_limit_of_a_process_can_be_set(system: System) -> None:
    system.program(forever)
    pid = await system.call(Spawn("forever", limits=Limits(mailbox_bytes=2 * len(LARGE))))
    for _ in range(2):
        await system.call(Send(pid, LARGE, wait=False))
    with pytest.raises(MailboxFull):
        await system.call(Send(pid, LARGE, wait=False))


async def test_all_mailboxes_together_have_a_limit(system: System) -> None:
    system.kernel.messaging.memory.maximum = 2 * len(LARGE)
    one, other = system.spawn(forever), system.spawn(forever)
    await system.call(Send(one.pid, LARGE))
    await system.call(Send(other.pid, LARGE))
    for wait in (True, False):
        with pytest.raises(Busy, match="unread messages of all processes"):
            await system.call(Send(other.pid, LARGE, wait=wait))
    with pytest.raises(Busy):
        await system.call(Call(other.pid, LARGE))
    with pytest.raises(Busy):
        await system.call(Publish("topic", LARGE))
    await system.call(Send(other.pid, "small"))
    await system.call(Kill(one.pid))
    await system.call(Send(other.pid, LARGE))
    assert system.kernel.messaging.memory.used == 2 * len(LARGE)


async def test_a_body_that_waits_for_room_counts_in_the_memory_of_all(
    system: System, target: Process, box: Mailbox
) -> None:
    await system.call(Send(target.pid, LARGE * 3))
    waiting = sending(system, target, LARGE)
    await system.turns()
    assert (box.bytes, system.kernel.messaging.memory.used) == (3 * len(LARGE), 4 * len(LARGE))
    await system.call(Kill(target.pid))
    await system.turns()
    assert isinstance(waiting.exception(), Exception)
    assert system.kernel.messaging.memory.used == 0


async def test_a_published_body_counts_once_however_many_get_it(system: System) -> None:
    subscribers = [system.spawn(forever) for _ in range(100)]
    for process in subscribers:
        await system.call(Subscribe("topic"), process)
    assert await system.call(Publish("topic", LARGE)) == 100
    assert len(LARGE) <= system.kernel.messaging.memory.used < len(LARGE) + 100
    assert {process.open_mailbox().bytes for process in subscribers} == {len(LARGE)}
    for process in subscribers:
        await system.call(Kill(process.pid))
    assert system.kernel.messaging.memory.used == 0


async def test_messages_of_the_kernel_fit_into_a_mailbox_full_of_bytes(
    system: System, target: Process, box: Mailbox
) -> None:
    await system.call(Send(target.pid, LARGE * 3))
    system.kernel.messaging.notify(target, "down", LARGE)
    assert (await system.call(Receive(0), target)).type == "down"
    assert box.bytes == 3 * len(LARGE)


async def test_a_call_with_a_large_body_waits_for_room_and_frees_it(system: System) -> None:
    async def caller(ctx: Context, to: int) -> int:
        answers = await asyncio.gather(*(ctx.call(to, f"{number}{LARGE}") for number in range(9)))
        return len(set(answers))

    process = system.spawn(echo)
    process.open_mailbox().byte_capacity = 2 * len(LARGE)
    assert await system.result(system.spawn(caller, to=process.pid)) == 9
    assert system.kernel.messaging.memory.used == 0


STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "send", "receive", "cancel", "offer"]), st.integers(0, 5)), max_size=40
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_no_byte_is_lost_or_counted_twice_whatever_happens(steps: list[tuple[str, int]]) -> None:
    async def trial() -> None:
        system = boot(UNWRITABLE)
        process = system.spawn(forever)
        box, memory = process.open_mailbox(), system.kernel.messaging.memory
        box.byte_capacity, box.capacity, memory.maximum = 3 * len(LARGE), 5, 8 * len(LARGE)
        senders: list[Thread] = []
        for position, (kind, number) in enumerate(steps):
            if kind == "send":
                senders.append(sending(system, process, LARGE * number if number else "small"))
            elif kind == "offer":
                system.kernel.publication.offer(
                    process, Message(1_000_000 + position, "", 1, process.pid, 0, 0, None, LARGE * number), 2
                )
            elif kind == "receive" and box.count:
                await system.call(Receive(0), process)
            elif kind == "cancel" and senders:
                senders[number % len(senders)].cancel()
            if number % 2:
                await system.turns()
            assert box.bytes <= max(box.byte_capacity, 5 * len(LARGE))
        await system.turns()
        inside = sum(counted_size(message.body) for message in box.peek())
        assert box.bytes == inside
        if box.senders:
            assert box.taken >= box.capacity or box.bytes
        while box.count or box.senders:
            if box.count:
                await system.call(Receive(0), process)
            await system.turns()
        for sender in senders:
            if sender.done() and not sender.cancelled():
                assert sender.exception() is None or isinstance(sender.exception(), Busy)
        assert (box.bytes, memory.used, box.taken) == (0, 0, 0)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(trial())


ENDS = st.lists(
    st.tuples(
        st.sampled_from(["send", "expire", "call", "publish", "receive", "cancel", "wait", "kill"]), st.integers(0, 5)
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(ENDS)
def test_no_byte_stays_counted_when_messages_expire_and_processes_end(steps: list[tuple[str, int]]) -> None:
    async def trial() -> None:
        system = boot(UNWRITABLE)
        memory = system.kernel.messaging.memory
        memory.maximum = 12 * len(LARGE)
        alive: list[Process] = []
        threads: list[Thread] = []

        def begin(call: Any) -> None:
            async def make() -> None:
                with suppress(LlmosError):
                    await system.kernel.gate.call(system.client, call)

            threads.append(system.thread(make()))

        for kind, number in steps:
            while len(alive) < 3:
                process = system.spawn(forever)
                process.open_mailbox().byte_capacity = 3 * len(LARGE)
                process.open_mailbox().capacity = 4
                await system.call(Subscribe("news"), process)
                alive.append(process)
            target, body = alive[number % 3], LARGE * number if number else "small"
            calls = {
                "send": Send(target.pid, body),
                "expire": Send(target.pid, body, lifetime=float(number)),
                "call": Call(target.pid, body, timeout=float(number)),
                "publish": Publish("news", body),
            }
            if kind in calls:
                begin(calls[kind])
            elif kind == "receive":
                with suppress(TimedOut):  # all messages may have expired
                    await system.call(Receive(0), target)
            elif kind == "cancel" and threads:
                threads[number % len(threads)].cancel()
            elif kind == "wait":
                await asyncio.sleep(number)
            elif kind == "kill":
                alive.remove(target)
                await system.call(Kill(target.pid))
            if number % 2:
                await system.turns()
        for process in alive:
            await system.call(Kill(process.pid))
        await system.turns()
        assert all(thread.done() for thread in threads)
        assert memory.used == 0

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(trial())
