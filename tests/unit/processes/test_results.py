"""The results of agents: a value, or a failure with a name."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import msgspec
import pytest

from ipc.codec import encode
from ipc.errors import AgentFailed, InvalidCall, LlmosError, NotEncodable, UnknownProcess
from ipc.syscalls import Crashes
from llmosd.context import Context
from tests.support.agents import listener
from tests.support.naming import without_addresses
from tests.support.system import System


async def test_a_result_that_cannot_travel_is_a_named_failure(system: System) -> None:
    async def strange(ctx: Context) -> object:
        return object()

    with pytest.raises(NotEncodable, match="the result of strange"):
        await system.run(strange)


async def test_an_agent_that_raises_fails_with_its_traceback(system: System) -> None:
    async def broken(ctx: Context) -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(AgentFailed, match="broken: ZeroDivisionError: by zero") as caught:
        await system.run(broken)
    assert "test_results.py" in caught.value.data["traceback"]
    assert "in broken" in caught.value.data["traceback"]


async def test_an_agent_that_lets_a_kernel_error_pass_fails_with_that_error(system: System) -> None:
    async def careless(ctx: Context) -> None:
        await ctx.wait(12345)

    with pytest.raises(UnknownProcess) as caught:
        await system.run(careless)
    facts = dict(caught.value.data)
    assert facts.pop("place") == f"{__file__}:{careless.__code__.co_firstlineno + 1}"
    assert "await ctx.wait(12345)" in facts.pop("traceback")
    assert facts == {"pid": 12345, "crash": 2}


async def test_the_message_of_a_failure_begins_with_the_place_in_the_agent_and_not_in_a_library(system: System) -> None:
    async def parser(ctx: Context) -> None:
        json.loads("{")

    with pytest.raises(AgentFailed, match="parser: JSONDecodeError: Expecting property name") as caught:
        await system.run(parser)
    line = parser.__code__.co_firstlineno + 1
    assert caught.value.message.startswith(f"test_results.py:{line}: ")
    assert caught.value.data["place"] == f"{__file__}:{line}"
    assert "decoder.py" in caught.value.data["traceback"]
    assert "/kernel/" not in caught.value.data["traceback"]


async def test_a_group_of_errors_shows_each_of_its_causes_with_its_place(system: System) -> None:
    async def one(ctx: Context) -> None:
        raise ValueError("the first cause")

    async def two(ctx: Context) -> None:
        await ctx.wait(12345)

    async def grouped(ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(one(ctx))
            group.create_task(two(ctx))

    with pytest.raises(AgentFailed, match="grouped: ExceptionGroup: unhandled errors in a TaskGroup") as caught:
        await system.run(grouped)
    lines = [function.__code__.co_firstlineno + 1 for function in (one, two)]
    assert f"test_results.py:{lines[0]}: ValueError: the first cause" in caught.value.message
    assert f"test_results.py:{lines[1]}: UnknownProcess: process 12345 never existed" in caught.value.message
    for text in ("error 1 of 2", "ValueError: the first cause", "error 2 of 2", "UnknownProcess: process 12345"):
        assert text in caught.value.data["traceback"]


async def test_groups_in_groups_that_name_more_errors_than_anyone_can_list_end_their_process(system: System) -> None:
    async def nested(ctx: Context) -> None:
        error: Exception = ValueError("the cause")
        for _ in range(5):
            error = ExceptionGroup("again", [error] * 1_000)
        raise error

    with pytest.raises(AgentFailed, match="ValueError: the cause; more than 995 more") as caught:
        await system.run(nested)
    assert "error 1 of 1000" in caught.value.data["traceback"]


async def test_an_agent_that_raises_stop_iteration_fails_with_its_place(system: System) -> None:
    async def stopped(ctx: Context) -> None:
        raise StopIteration

    with pytest.raises(AgentFailed, match="RuntimeError: coroutine raised StopIteration") as caught:
        await system.run(stopped)
    assert caught.value.data["place"] == f"{__file__}:{stopped.__code__.co_firstlineno + 1}"


async def test_an_error_that_passes_through_a_parent_keeps_its_place_and_shows_both_tracebacks(system: System) -> None:
    async def child(ctx: Context) -> None:
        raise ValueError("of the child")

    async def parent(ctx: Context) -> None:
        await ctx.wait(await ctx.spawn("child"))

    system.program(child)
    process = system.spawn(parent)
    with pytest.raises(AgentFailed, match="child: ValueError: of the child") as caught:
        await system.result(process)
    assert caught.value.data["place"] == f"{__file__}:{child.__code__.co_firstlineno + 1}"
    assert caught.value.data["crash"] == process.pid
    traceback = caught.value.data["traceback"]
    assert traceback.index("in child") < traceback.index("in parent")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("this error has no text")


class Careless(LlmosError):
    def __init__(self) -> None:  # sets neither a text nor the facts
        pass


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("x" * 50_000_000), "x… \\(49998000 more characters\\)"),
        (ValueError("half \ud83d"), "ValueError: half .ud83d"),
        (Mute(), "Mute: .its text cannot be computed."),
        (Mute("in a group"), "Mute"),
        (ExceptionGroup("all", [ValueError(str(n)) for n in range(9)]), "ValueError: 4; 4 more$"),
        (Careless(), "Careless|^$"),
        (LlmosError("long" * 1_000_000), "more characters"),
        (LlmosError("facts", blob=b"x" * 5_000_000, text="y" * 5_000_000), "facts"),
        (LlmosError(Mute()), "cannot be computed"),
    ],
    ids=[
        "50 MB",
        "half a surrogate",
        "no text",
        "no text with arguments",
        "large group",
        "no facts",
        "long",
        "5 MB",
        "mute",
    ],
)
async def test_a_failure_does_not_depend_on_the_text_of_its_error(system: System, error: Exception, text: str) -> None:
    async def odd(ctx: Context) -> None:
        raise error

    status = await system.status(system.spawn(odd))
    assert status.reason == "failed"
    assert status.error is not None
    assert re.search(text, status.error.message)
    assert len(encode(status)) < 100_000
    (report,) = await system.call(Crashes(status.pid))
    assert "in odd" in report.error.data["traceback"]


async def test_a_chain_of_causes_that_leads_back_to_itself_has_an_end(system: System) -> None:
    async def knotted(ctx: Context) -> None:
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    with pytest.raises(AgentFailed, match="ValueError: first") as caught:
        await system.run(knotted)
    assert caught.value.data["traceback"].count("ValueError: second") == 1


class Named(msgspec.Struct, frozen=True):
    name: str


@pytest.mark.parametrize(
    "value",
    [
        "half \ud83d",
        {"key": ["half \ud83d"]},
        {"\ud83d": 1},
        object(),
        [object()],
        1 << 64,
        Named("\ud83d"),
        {1: {2: Mute}},
    ],
    ids=without_addresses,
)
async def test_a_result_that_cannot_be_encoded_is_a_failure_of_the_agent_with_a_report(
    system: System, value: object
) -> None:
    async def strange(ctx: Context) -> object:
        return value

    status = await system.status(system.spawn(strange))
    assert (status.reason, status.value) == ("failed", None)
    assert status.error is not None
    assert status.error.code == "NotEncodable"
    assert status.error.message.startswith("the result of strange: ")
    assert status.error.data["place"] == f"{__file__}:{strange.__code__.co_firstlineno}"
    (report,) = await system.call(Crashes(status.pid))
    assert "in strange" in report.error.data["traceback"]


@pytest.mark.parametrize("value", ["x" * 2_000, [["x" * 2_000]]], ids=["text", "list"])
async def test_a_result_of_a_task_that_no_frame_can_hold_is_a_failure_with_a_report(
    system: System, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    monkeypatch.setattr("kernel.processes.outcome.MAX_RESULT", 1_000)

    async def large(ctx: Context) -> object:
        return value

    status = await system.status(system.spawn(large, stream=system.recorder().stream))
    assert status.error is not None
    assert status.error.code == "FrameTooLarge"
    (report,) = await system.call(Crashes(status.pid))
    assert report.error.data["place"].startswith(__file__)
    assert (await system.status(system.spawn(large))).value is not None  # nothing sends it to a client


HALF = "half \ud83d"


@pytest.mark.parametrize(
    "way",
    [
        lambda ctx: ctx.emit(HALF),
        lambda ctx: ctx.send(ctx.pid, HALF),
        lambda ctx: ctx.call(ctx.pid, HALF),
        lambda ctx: ctx.publish("topic", HALF),
        lambda ctx: ctx.spawn("listener", {"x": HALF}),
        lambda ctx: ctx.shared("region").set(HALF),
        lambda ctx: ctx.memory.set("key", HALF),
        lambda ctx: ctx.log("event", field=HALF),
        lambda ctx: ctx.log(HALF),
    ],
    ids=["emit", "send", "call", "publish", "spawn", "shared", "memory", "log field", "log"],
)
async def test_a_text_that_cannot_be_encoded_leaves_an_agent_by_no_way(system: System, way: Any) -> None:
    async def leaky(ctx: Context) -> str:
        try:
            if (waiting := way(ctx)) is not None:
                await waiting
        except InvalidCall as error:
            return type(error).__name__
        return "passed"

    system.program(listener)
    assert await system.run(leaky) in {"NotEncodable", "InvalidCall"}


async def test_an_agent_that_cancels_itself_fails(system: System) -> None:
    async def desperate(ctx: Context) -> None:
        raise asyncio.CancelledError

    with pytest.raises(AgentFailed, match=r"test_results\.py:\d+: desperate cancelled itself") as caught:
        await system.run(desperate)
    assert caught.value.data["place"] == f"{__file__}:{desperate.__code__.co_firstlineno}"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_an_exit_in_an_agent_ends_only_that_agent(system: System, kind: type[BaseException]) -> None:
    async def leaver(ctx: Context) -> None:
        raise kind(3)

    other = system.spawn(listener)
    with pytest.raises(AgentFailed, match=kind.__name__):
        await system.run(leaver)
    assert not other.ended
