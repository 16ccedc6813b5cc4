"""Whatever a field of a call holds, the call answers or raises a named error, and the kernel and the journal go on.

The calls are generated: every field of every system call gets every value of `tests.support.odd_values`, over each of
the two roads, by an agent in the loop, durable or not, and by a client's frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, get_args

import msgspec
import pytest
import structlog

from ipc.codec import decode, encode
from ipc.errors import InvalidCall, LlmosError
from ipc.foreign import class_name, text_by
from ipc.frames import FrameDecoder, frame
from ipc.protocol import VERSION, Failure, FromDaemon, Hello, RawAnswer
from ipc.syscalls import (
    Checkpoint,
    Crashes,
    DeadLetters,
    Kill,
    Link,
    Locks,
    Names,
    Ps,
    Regions,
    SetPolicy,
    Shutdown,
    StartThread,
    Suspend,
    Syscall,
    SystemCall,
    TaskCalls,
)
from kernel.connection import Connection
from kernel.durable.recording_rules import RULES
from kernel.kernel import Kernel
from kernel.lib.call_checks import check_call
from llmosd.context import Context
from tests.support.agents import make_call
from tests.support.durable_world import World
from tests.support.fake_transport import FakeTransport
from tests.support.fuzzing import MISTAKES
from tests.support.odd_values import KINDS, ODD, PLAIN, calls, fields
from tests.support.system import System

# In a frame, these fields stay encoded, or, for the predicate, cannot be sent.
OPEN = {field.name for kind in KINDS for field in fields(kind) if isinstance(field.type, msgspec.inspect.RawType)}
OPEN |= {"where", "coro", "args", "positional", "fields"}
FEW = ("Decimal", "10**400", "NaN", "half a letter", "StrEnum", "hostile int", "deep", "numpy int64", "a sealed object")
HARMFUL = (Shutdown, SetPolicy, Suspend, Kill, Link)  # to the test itself, if the odd field is no pid
OF_TASKS = get_args(TaskCalls)  # a kernel without a journal has none of these calls


def verdict(call: Syscall) -> str:
    try:
        check_call(call)
    except InvalidCall as error:
        return error.message
    return ""


def decoded(call: Syscall) -> Any:
    """The call as the decoder of a connection makes it; None if it refuses."""
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(call), type=SystemCall)
    except (msgspec.ValidationError, UnicodeEncodeError, TypeError, OverflowError, RecursionError):
        return None


def test_the_gate_takes_exactly_what_the_decoder_of_a_connection_takes() -> None:
    """So a value means the same to agents and to clients. A number may be any float, and a text a StrEnum."""
    kinds = [kind for kind in KINDS if kind not in (StartThread, SetPolicy)]  # no agent may call `SetPolicy`
    for what, field, call in calls(kinds, ODD):
        value = getattr(call, field)
        refusal = verdict(call)
        if field in OPEN:
            continue
        if refusal:
            assert refusal.startswith(f"{type(call).__struct_config__.tag}: {field}"), what
            assert class_name(value) in refusal or "[" in refusal, what
            assert "pass " in refusal, what
        if what.split(" = ")[1] in PLAIN and "of type dict" not in refusal:  # a frame has a dict in place of a Struct
            assert (decoded(call) is None) == bool(refusal), what
        if not refusal:
            taken = getattr(call, field)
            assert type(taken) in (int, float, str, bool, type(None), list, tuple, dict), what
            same = getattr(decoded(call), field)
            assert same == (float(taken) if type(same) is float else taken), what


@pytest.fixture
async def harmed(system: System) -> AsyncIterator[list[str]]:
    """Errors of the kernel; at the end there must be none, and all lists must still work."""
    found: list[str] = []
    with structlog.testing.capture_logs() as lines:
        yield found
    assert [line for line in lines if any(mistake in line["event"] for mistake in MISTAKES)] == []
    assert found == [], "\n".join(found)
    for call in (
        Ps(clients=True),
        Names(),
        Locks(),
        Regions(),
        DeadLetters(),
        Crashes(),
    ):
        answer = await system.call(call)
        assert decode(encode(answer), call.returns) is not None


async def test_an_agent_gets_an_answer_or_a_named_error(system: System, harmed: list[str]) -> None:
    async def careless(ctx: Context, kind: int) -> int:
        count = 0
        for what, _, call in calls([kinds[kind]], ODD):
            count += 1
            try:
                async with asyncio.timeout(1):
                    await make_call(ctx, call)
            except (LlmosError, TimeoutError):
                pass
            except Exception as error:
                harmed.append(f"{what}: {class_name(error)}: {text_by(str, error)}")
        return count

    kinds = [kind for kind in KINDS if kind not in OF_TASKS]
    assert sum([await system.run(careless, place) for place in range(len(kinds))]) > 5_000


NO_CALL: dict[str, Callable[[Context, Any], Any]] = {
    "receive": lambda ctx, odd: ctx.receive(type=odd, timeout=0),
    "reply": lambda ctx, odd: ctx.reply(odd, None),
    "tool": lambda ctx, odd: ctx.tool("none", odd),
    "spawn": lambda ctx, odd: ctx.spawn(odd),
    "spawn, args": lambda ctx, odd: ctx.spawn("none", odd),
    "supervise": lambda ctx, odd: ctx.supervise(odd),
    "supervise, child": lambda ctx, odd: ctx.supervise([odd]),
    "chat": lambda ctx, odd: ctx.chat(odd, model="none"),
    "stop": lambda ctx, odd: ctx.generate("a", stop=odd, model="none"),
    "choices": lambda ctx, odd: ctx.generate("a", choices=odd, model="none"),
    "schema": lambda ctx, odd: ctx.generate("a", schema=odd, model="none"),
    "seed": lambda ctx, odd: ctx.generate("a", seed=odd, model="none"),
    "score": lambda ctx, odd: ctx.score("a", odd, model="none"),
    "embed": lambda ctx, odd: ctx.embed(odd, model="none"),
    "start_thread": lambda ctx, odd: ctx.start_thread(odd),
}


async def test_arguments_that_the_context_converts_raise_named_errors(system: System, harmed: list[str]) -> None:
    async def careless(ctx: Context) -> None:
        for what, use in NO_CALL.items():
            for name, odd in ODD.items():
                if "object" in name or "hostile" in name:  # their traps raise in the agent's own code
                    continue
                try:
                    answer = use(ctx, odd)
                    if asyncio.iscoroutine(answer):
                        await answer
                except LlmosError:
                    pass
                except Exception as error:
                    harmed.append(f"{what}, {name}: {class_name(error)}: {text_by(str, error)}")

    await system.run(careless)


@pytest.mark.real_time
async def test_a_durable_agent_gets_the_same_errors_at_its_replay_and_the_journal_goes_on(world: World) -> None:
    outcomes: list[dict[str, str]] = []
    finished: list[bool] = []
    kinds = [kind for kind in RULES if kind not in (*HARMFUL, Checkpoint)]
    values = {name: ODD[name] for name in FEW if name in ODD}

    async def careless(ctx: Context) -> None:
        seen: dict[str, str] = {}
        outcomes.append(seen)
        for what, field, call in calls(kinds, values, timeout=0.0, seconds=0.0, model="unknown"):
            if field != "where":
                try:
                    seen[what] = class_name(await make_call(ctx, call))
                except LlmosError as error:
                    seen[what] = class_name(error)
        finished.append(True)
        await ctx.event("never").wait()

    async def next_one(ctx: Context) -> float:
        return await ctx.time()

    program, other, folder = world.agent(careless), world.agent(next_one), world.folder / "one"
    folder.mkdir()
    for _ in range(2):
        async with world.life(folder) as life:
            if not outcomes:
                await life.submit(program)
            await life.until(lambda: finished)
            finished.clear()
            assert await life.run(other)
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) > 500


async def test_a_client_gets_an_answer_or_a_named_error(kernel: Kernel, system: System, harmed: list[str]) -> None:
    connection, transport = Connection(kernel, set()), FakeTransport()
    connection.connection_made(transport)
    connection.data_received(frame(encode(Hello(VERSION, "someone"))))
    asked: dict[int, str] = {}
    left_out = (*HARMFUL, *OF_TASKS, StartThread)
    for what, _, call in calls((kind for kind in KINDS if kind not in left_out), PLAIN):
        try:
            payload = encode(call)
        except LlmosError:
            continue
        asked[len(asked) + 1] = what
        connection.data_received(frame(encode(["request", len(asked), msgspec.Raw(payload)])))
    await asyncio.sleep(10)
    connection.flush()
    messages = [decode(payload, FromDaemon) for payload in FrameDecoder().feed(b"".join(transport.writes))]
    answered = {message.id for message in messages if isinstance(message, RawAnswer | Failure)}
    unnamed = [message for message in messages if isinstance(message, Failure) and message.error.code == "LlmosError"]
    assert unnamed == []
    waiting = {asked[number] for number in asked.keys() - answered}
    assert {what.split(".")[0] for what in waiting} <= {"Sleep", "Receive", "SharedWatch"}
    assert not transport.closing
    connection.connection_lost(None)
