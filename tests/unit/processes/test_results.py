"""What an agent is given and what it answers: checked, copied, and failures told by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.errors import AgentFailed, BadArguments, NotEncodable, UnknownProcess
from ipc.syscalls import Spawn
from llmosd.context import Context
from tests.support.agents import adder, listener


@pytest.mark.parametrize(
    ("args", "positional", "what"),
    [
        ({}, (), "argument a is missing"),
        ({"a": 1, "c": 2}, (), "there is no argument c; Known: a, b"),
        ({"a": "1"}, (), "Expected `int`, got `str`"),
        ({"a": 1}, (2,), "got a twice"),
        ({}, (1, 2, 3), "takes 2 positional arguments, got 3"),
    ],
)
async def test_arguments_are_checked_before_the_agent_runs(
    system: Any, args: dict[str, Any], positional: tuple[Any, ...], what: str
) -> None:
    system.program(adder)
    with pytest.raises(BadArguments) as caught:
        await system.call(Spawn("adder", args, positional))
    assert what in caught.value.message
    assert "adder(a: int, b: int = 2)" in caught.value.message.replace("'int'", "int")
    assert len(system.table.alive) == 1


async def test_lenient_arguments_are_read_from_text(system: Any) -> None:
    system.program(adder)
    pid = await system.call(Spawn("adder", {"b": "5"}, ("4",), lenient=True))
    assert await system.result(pid) == 9


async def test_defaults_hold_where_no_argument_is_given(system: Any) -> None:
    assert await system.run(adder, 1) == 3


async def test_arguments_are_not_shared_with_the_parent(system: Any) -> None:
    async def child(ctx: Context, items: list[int]) -> list[int]:
        items.append(2)
        return items

    async def parent(ctx: Context) -> list[int]:
        items = [1]
        pid = await ctx.spawn("child", {"items": items})
        got = await ctx.wait(pid)
        got.append(3)
        assert await ctx.wait(pid) == [1, 2]
        return items

    system.program(child)
    assert await system.run(parent) == [1]


async def test_a_result_that_cannot_travel_is_a_named_failure(system: Any) -> None:
    async def strange(ctx: Context) -> object:
        return object()

    with pytest.raises(NotEncodable, match="the result of strange"):
        await system.run(strange)


async def test_an_agent_that_raises_fails_with_its_traceback(system: Any) -> None:
    async def broken(ctx: Context) -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(AgentFailed, match="broken: ZeroDivisionError: by zero") as caught:
        await system.run(broken)
    assert "test_results.py" in caught.value.data["traceback"]
    assert "in broken" in caught.value.data["traceback"]


async def test_an_agent_that_lets_a_kernel_error_pass_fails_with_that_error(system: Any) -> None:
    async def careless(ctx: Context) -> None:
        await ctx.wait(12345)

    with pytest.raises(UnknownProcess) as caught:
        await system.run(careless)
    assert caught.value.data == {"pid": 12345}


async def test_an_agent_that_cancels_itself_fails(system: Any) -> None:
    async def desperate(ctx: Context) -> None:
        raise asyncio.CancelledError

    with pytest.raises(AgentFailed, match="cancelled itself"):
        await system.run(desperate)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_an_exit_in_an_agent_ends_only_that_agent(system: Any, kind: type[BaseException]) -> None:
    async def leaver(ctx: Context) -> None:
        raise kind(3)

    other = system.spawn(listener)
    with pytest.raises(AgentFailed, match=kind.__name__):
        await system.run(leaver)
    assert not other.ended
