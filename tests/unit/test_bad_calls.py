"""Bad calls: each raises a named error in its caller, is counted, and harms no other process.

The calls of agents are not decoded, so nothing checks the types of their fields before the handlers do. Hence the tests
make these calls from inside the loop. Most of them cannot be made over a socket: see `tests/system/test_protocol.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any

import msgspec
import pytest
import structlog

from ipc.codec import decode, encode
from ipc.errors import (
    DeadlockDetected,
    FrameTooLarge,
    InvalidCall,
    InvalidPrompt,
    MessageTooLarge,
    NameTaken,
    NotACall,
    NotEncodable,
    NotHeld,
    TimedOut,
    UndeclaredType,
    UnknownName,
    UnknownProcess,
)
from ipc.foreign import class_name
from ipc.frames import MAX_FRAME
from ipc.messages import Message
from ipc.syscalls import (
    Backup,
    Call,
    ChatMessage,
    Child,
    Crashes,
    DeadLetters,
    GetStats,
    Kill,
    Limits,
    Link,
    Locks,
    Models,
    Names,
    Nice,
    PeekMailbox,
    Ps,
    Regions,
    SetPolicy,
    SharedWatch,
    Shutdown,
    Slots,
    StartThread,
    Suspend,
    Syscall,
    Threads,
)
from kernel.messages.validation import MAX_BODY
from llmosd.context import Context
from tests.support.agents import make_call
from tests.support.fuzzing import CALLS, MISTAKES, RandomCalls
from tests.support.hostile import Name, Number, odd_object
from tests.support.system import System

NEGATIVE = -1.0
NO_NUMBER = float("nan")
TOO_LARGE = "x" * (MAX_BODY + 1)
UNENCODABLE = "half a \ud800"  # a lone surrogate


class Order(msgspec.Struct, frozen=True):
    item: str


class World:
    """Processes that a bad call might harm: one sleeps, one declares its messages, one has ended."""

    def __init__(self, system: System) -> None:
        async def peer(ctx: Context) -> None:
            await ctx.register("peer")
            async with ctx.lock("taken"):
                await ctx.sleep(1e6)

        async def shop(ctx: Context) -> None:
            await ctx.sleep(1e6)

        async def dead(ctx: Context) -> None:
            pass

        self.system = system
        self.peer, self.shop, self.dead = (system.spawn(one).pid for one in (peer, shop, dead))
        system.table.alive[self.shop].accepts = {"Order": Order}

    async def everybody_can_look(self) -> None:
        """Check that all lists can be encoded, and that a client can decode them."""
        lists: list[Syscall] = [Ps(clients=True), Names(), Locks(), DeadLetters(), Crashes(), Slots(), Models()]
        lists += [call(pid) for pid in (self.peer, self.shop) for call in (Threads, PeekMailbox)]
        for call in [*lists, Regions(), GetStats()]:
            answer = await self.system.call(call)
            assert decode(encode(answer), call.returns) is not None


Use = Callable[[Context, World], Coroutine[Any, Any, Any]]


async def reply_twice(ctx: Context, world: World) -> None:
    async def ask() -> None:
        await make_call(ctx, Call(ctx.pid, "question"), world.system.client)

    world.system.thread(ask())
    message = await ctx.receive()
    await ctx.reply(message, "answer")
    await ctx.reply(message, "again")


async def reply_for_another(ctx: Context, world: World) -> None:
    async def ask() -> None:
        await make_call(ctx, Call(world.peer, "question"), world.system.client)

    world.system.thread(ask())
    await ctx.sleep(1)
    (asked,) = await world.system.call(PeekMailbox(world.peer))
    await ctx.reply(Message(asked.id, "", asked.sender, ctx.pid, 0, asked.id, None, None), "not mine to give")


async def log_a_number(ctx: Context, world: World) -> None:
    ctx.log(5)  # type: ignore[arg-type]


async def log_what_nobody_can_read(ctx: Context, world: World) -> None:
    ctx.log(UNENCODABLE)


async def start_no_coroutine(ctx: Context, world: World) -> None:
    ctx.start_thread(log_a_number)  # type: ignore[arg-type]


async def lock_twice(ctx: Context, world: World) -> None:
    await ctx.lock("mine").acquire()
    await ctx.lock("mine").acquire()


WRONG: dict[str, tuple[Use, type[Exception]]] = {
    "send to a dead process": (lambda ctx, world: ctx.send(world.dead, None), UnknownProcess),
    "call a dead process": (lambda ctx, world: ctx.call(world.dead, None), UnknownProcess),
    "send to a process that never was": (lambda ctx, world: ctx.send(999_999, None), UnknownProcess),
    "send to an unknown name": (lambda ctx, world: ctx.send("nobody", None), UnknownName),
    "reply twice": (reply_twice, NotACall),
    "reply for another": (reply_for_another, NotACall),
    "release a lock not held": (lambda ctx, world: ctx.lock("taken").release(), NotHeld),
    "release a permit not held": (lambda ctx, world: ctx.semaphore("s", 1).release(), NotHeld),
    "wait for itself": (lambda ctx, world: ctx.wait(ctx.pid), InvalidCall),
    "call itself": (lambda ctx, world: ctx.call(ctx.pid, None), InvalidCall),
    "monitor itself": (lambda ctx, world: ctx.monitor(ctx.pid), InvalidCall),
    "link to itself": (lambda ctx, world: ctx.link(ctx.pid), InvalidCall),
    "wait for a lock of its own": (lock_twice, DeadlockDetected),
    "an undeclared type": (lambda ctx, world: ctx.send(world.shop, {}, type="Parcel"), UndeclaredType),
    "a message too large": (lambda ctx, world: ctx.send(world.peer, TOO_LARGE), MessageTooLarge),
    "a call too large": (lambda ctx, world: ctx.call(world.peer, TOO_LARGE), MessageTooLarge),
    "a publication too large": (lambda ctx, world: ctx.publish("t", TOO_LARGE), MessageTooLarge),
    "register a name already taken": (lambda ctx, world: ctx.register("peer"), NameTaken),
    "spawn under a name already taken": (lambda ctx, world: ctx.spawn("dead", name="peer"), NameTaken),
    "a name for an owner": (lambda ctx, world: ctx.spawn("dead", owner=5), InvalidCall),  # type: ignore[arg-type]
    "an owner nobody can read": (lambda ctx, world: ctx.spawn("dead", owner=UNENCODABLE), InvalidCall),
    "limits of no kind": (lambda ctx, world: ctx.spawn("dead", limits={"tokens": 1}), InvalidCall),  # type: ignore[arg-type]
    "a limit that is no number": (
        lambda ctx, world: ctx.spawn("dead", limits=Limits(wall_seconds=NO_NUMBER)),
        InvalidCall,
    ),
    "a negative limit": (lambda ctx, world: ctx.spawn("dead", limits=Limits(children=-1)), InvalidCall),
    "a type that is no text": (lambda ctx, world: ctx.send(world.peer, None, type=Order), InvalidCall),  # type: ignore[arg-type]
    "a text to emit that nobody can read": (lambda ctx, world: ctx.emit(UNENCODABLE), NotEncodable),
    "more to emit than a frame holds": (lambda ctx, world: ctx.emit("x" * MAX_FRAME), FrameTooLarge),
    "a type nobody can read": (lambda ctx, world: ctx.send(world.peer, None, type=UNENCODABLE), InvalidCall),
    "a correlation that is no number": (
        lambda ctx, world: ctx.send(world.peer, None, correlation=None),  # type: ignore[arg-type]
        InvalidCall,
    ),
    "a topic nobody can read": (lambda ctx, world: ctx.publish(UNENCODABLE, None), InvalidCall),
    "a lock nobody can read": (lambda ctx, world: ctx.lock(UNENCODABLE).acquire(), InvalidCall),
    "a region nobody can read": (lambda ctx, world: ctx.shared(UNENCODABLE).set(1), InvalidCall),
    "a line of the log that is no text": (log_a_number, InvalidCall),
    "a line of the log nobody can read": (log_what_nobody_can_read, InvalidCall),
    "a thread of no coroutine": (start_no_coroutine, InvalidCall),
    "a prompt that is no text": (lambda ctx, world: ctx.generate(5), InvalidPrompt),  # type: ignore[arg-type]
    "a prompt nobody can read": (lambda ctx, world: ctx.generate(UNENCODABLE), InvalidPrompt),
    "a chat of no texts": (lambda ctx, world: ctx.chat([ChatMessage("user", None)]), InvalidPrompt),
}


TIMES: dict[str, Callable[[Context, World, float], Coroutine[Any, Any, Any]]] = {
    "receive": lambda ctx, world, time: ctx.receive(timeout=time),
    "selective receive": lambda ctx, world, time: ctx.receive(type="x", timeout=time),
    "call": lambda ctx, world, time: ctx.call(world.peer, None, time),
    "wait": lambda ctx, world, time: ctx.wait(world.peer, time),
    "lock": lambda ctx, world, time: ctx.lock("free").acquire(time),
    "semaphore": lambda ctx, world, time: ctx.semaphore("free", 1).acquire(time),
    "condition": lambda ctx, world, time: ctx.condition("free").wait(time),
    "barrier": lambda ctx, world, time: ctx.barrier("free", 2).wait(time),
    "event": lambda ctx, world, time: ctx.event("free").wait(time),
    "tool": lambda ctx, world, time: ctx.tool("any", timeout=time),
    "supervise, backoff": lambda ctx, world, time: ctx.supervise(["dead"], backoff=time),
    "supervise, within": lambda ctx, world, time: ctx.supervise(["dead"], within=time),
    "sleep": lambda ctx, world, time: ctx.sleep(time),
    "send, lifetime": lambda ctx, world, time: ctx.send(world.peer, None, lifetime=time),
    "publish, lifetime": lambda ctx, world, time: ctx.publish("t", None, lifetime=time),
    "spawn, deadline": lambda ctx, world, time: ctx.spawn("dead", deadline=time),
    "watch": lambda ctx, world, time: make_call(ctx, SharedWatch("region", 0, time)),
}

PRIORITIES: dict[str, Callable[[Context, World, Any], Coroutine[Any, Any, Any]]] = {
    "send": lambda ctx, world, priority: ctx.send(world.peer, None, priority=priority),
    "call": lambda ctx, world, priority: ctx.call(world.peer, None, priority=priority),
    "publish": lambda ctx, world, priority: ctx.publish("t", None, priority=priority),
    "spawn": lambda ctx, world, priority: ctx.spawn("dead", priority=priority),
    "nice": lambda ctx, world, priority: ctx.nice(world.peer, priority),
    "nice, one thread": lambda ctx, world, priority: make_call(ctx, Nice(world.peer, priority, thread="0")),
    "a child": lambda ctx, world, priority: ctx.supervise([Child("dead", priority=priority)]),
}


@pytest.fixture
async def world(system: System) -> World:
    made = World(system)
    await system.turns()
    return made


async def refused(world: World, use: Callable[[Context], Coroutine[Any, Any, Any]], error: type[Exception]) -> None:
    """Check that `use` fails with `error` in an agent, that the error is counted, and that no other process notices."""

    async def wrong(ctx: Context) -> None:
        await use(ctx)

    system = world.system
    alive = set(system.table.alive)
    process = system.spawn(wrong)
    with pytest.raises(error):
        await system.result(process)
    assert (await system.call(GetStats())).errors[error.__name__] == 1
    assert set(system.table.alive) == alive
    for pid in (world.peer, world.shop):
        assert process.pid not in {message.sender for message in await system.call(PeekMailbox(pid))}
    await world.everybody_can_look()


@pytest.mark.parametrize("what", WRONG)
async def test_what_makes_no_sense_is_refused_by_name_and_counted(world: World, what: str) -> None:
    use, error = WRONG[what]
    await refused(world, lambda ctx: use(ctx, world), error)


@pytest.mark.parametrize("time", [NEGATIVE, NO_NUMBER, "soon"], ids=str)
@pytest.mark.parametrize("what", TIMES)
async def test_a_time_that_is_negative_or_no_number_is_refused(world: World, what: str, time: Any) -> None:
    await refused(world, lambda ctx: TIMES[what](ctx, world, time), InvalidCall)


@pytest.mark.parametrize("priority", [21, -21, 1.5, True, "high"], ids=str)
@pytest.mark.parametrize("what", PRIORITIES)
async def test_a_priority_that_does_not_exist_is_refused(world: World, what: str, priority: Any) -> None:
    await refused(world, lambda ctx: PRIORITIES[what](ctx, world, priority), InvalidCall)


# ---- random calls


# These end a process that they name, or hold up this test: the kernel waits for no time limit of theirs.
LEFT_OUT = (Shutdown, Backup, Kill, Suspend, Link, SetPolicy, StartThread)


@pytest.mark.soak
async def test_random_calls_of_agents_harm_nobody(world: World, trial: Callable[..., int]) -> None:
    """Each call has fields of its types, and at times an object that no decoder would let in."""
    chance = random.Random(20261201)
    kinds = [kind for kind in CALLS if kind not in LEFT_OUT]
    errors: Counter[str] = Counter()

    async def agent(ctx: Context) -> None:
        calls = RandomCalls(chance, kinds, (ctx.pid, world.dead, 999_999), 0.0)
        for _ in range(20):
            kind = chance.choice(kinds)
            fields = [odd_object(chance) if chance.random() < 0.2 else value for value in calls.fields(kind)]
            try:
                async with asyncio.timeout(1):
                    await make_call(ctx, kind(*fields))
            except Exception as error:
                errors[class_name(error)] += 1

    log: list[str] = []
    with structlog.testing.capture_logs() as lines:
        for _ in range(trial(short=1_500, long=30_000) // 20):
            process = world.system.spawn(agent)
            status = await world.system.status(process)
            if status.reason not in ("done", "killed"):
                log.append(f"{status.reason}: {status.error}")
    assert log == []
    assert [line for line in lines if any(mistake in line["event"] for mistake in MISTAKES)] == []
    await world.everybody_can_look()
    assert len(errors) > 10
    assert {world.peer, world.shop} <= set(world.system.table.alive)


async def test_numbers_that_compare_in_their_own_way_do_not_get_into_the_timers(world: World) -> None:
    """The kernel compares the times of all threads: one that raises would stop the others."""

    async def wrong(ctx: Context) -> None:
        with contextlib.suppress(TimedOut):
            await ctx.receive(timeout=Number(0.5))
        await ctx.sleep(Number(0.5))

    async def sleeps(ctx: Context) -> str:
        await ctx.sleep(0.6)
        return "slept"

    processes = [world.system.spawn(one) for one in (wrong, sleeps, wrong)]
    assert await world.system.result(processes[1]) == "slept"
    for process in processes:
        await world.system.status(process)


async def test_a_name_of_an_odd_class_is_refused_and_breaks_no_list(world: World) -> None:
    class Kind(StrEnum):
        ORDER = "order"

    async def takes(ctx: Context) -> Any:
        await ctx.register(Kind.ORDER)
        await ctx.sleep(1)

    await refused(world, lambda ctx: ctx.register(Name("odd")), InvalidCall)
    process = world.system.spawn(takes)
    await world.system.turns()
    await world.everybody_can_look()
    assert await world.system.status(process)
