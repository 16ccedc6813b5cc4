"""Arguments of an agent are bound to its parameters, checked, converted, and copied for a child."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import pytest

from ipc.abi import AgentMark
from ipc.errors import BadArguments
from ipc.syscalls import Spawn
from kernel.programs.arguments import parameters
from kernel.programs.loader import Program
from llmosd.context import ChatOptions, Context
from tests.support.agents import adder
from tests.support.system import System


class Options(TypedDict, total=False):
    depth: int
    label: str


async def example(ctx: Context, text: str, count: int = 1, *, flag: bool = False, **options: Unpack[Options]) -> None:
    pass


@pytest.fixture
def program() -> Program:
    return Program(example, AgentMark("example", ""), "test")


def test_only_what_was_given_is_bound(program: Program) -> None:
    assert program.bind({"text": "a"}) == {"text": "a"}
    assert program.bind({"flag": True, "depth": 2}, ["a", 3]) == {"text": "a", "count": 3, "flag": True, "depth": 2}


@pytest.mark.parametrize(
    ("args", "positional", "what"),
    [
        ({}, [], "text"),
        ({"text": 1}, [], "expected a text; got 1"),
        ({"text": "a", "depth": "deep"}, [], "depth"),
        ({"text": "a", "width": 1}, [], "width"),
        ({}, ["a", 1, True], "takes 2 positional"),
        ({"text": "a"}, ["b"], "got text twice"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    program: Program, args: dict[str, Any], positional: list[Any], what: str
) -> None:
    with pytest.raises(BadArguments, match=what) as caught:
        program.bind(args, positional)
    assert caught.value.message.startswith("example(")
    assert caught.value.data == {"program": "example"}


def test_lenient_reads_numbers_and_flags_from_text(program: Program) -> None:
    bound = program.bind({"flag": "true", "depth": "4"}, ["5", "6"], lenient=True)
    assert bound == {"text": "5", "count": 6, "flag": True, "depth": 4}
    with pytest.raises(BadArguments, match="count"):
        program.bind({"count": "many"}, ["x"], lenient=True)


def test_a_parameter_without_a_type_takes_anything() -> None:
    async def free(ctx, value, other=None):  # type: ignore[no-untyped-def]
        pass

    bind = Program(free, AgentMark("free", ""), "test").bind
    assert bind({"value": {"a": [1]}}) == {"value": {"a": [1]}}
    assert bind({"value": None, "other": 2}) == {"value": None, "other": 2}


def test_the_options_of_a_chat_are_arguments() -> None:
    async def asks(ctx: Context, prompt: str, **options: Unpack[ChatOptions]) -> None:
        pass

    program = Program(asks, AgentMark("asks", ""), "test")
    assert program.bind({"prompt": "x", "stop": "y", "max_tokens": 3}) == {"prompt": "x", "stop": "y", "max_tokens": 3}
    with pytest.raises(BadArguments):
        program.bind({"prompt": "x", "max_tokens": "three"})


def test_parameters_that_cannot_be_named_are_refused() -> None:
    async def positional_only(ctx: Context, a: int, /) -> None: ...
    async def variadic(ctx: Context, *a: int) -> None: ...
    async def untyped_options(ctx: Context, **a: int) -> None: ...

    for function in (positional_only, variadic, untyped_options):
        with pytest.raises(TypeError, match="cannot be given by name"):
            parameters(function, ("ctx",))


@pytest.mark.parametrize(
    ("args", "positional", "what"),
    [
        ({}, (), "argument a is missing"),
        ({"a": 1, "c": 2}, (), "no argument c; known arguments: a, b"),
        ({"a": "1"}, (), 'expected a whole number, such as 1; got "1"'),
        ({"a": 1}, (2,), "got a twice"),
        ({}, (1, 2, 3), "takes 2 positional arguments, got 3"),
    ],
)
async def test_arguments_are_checked_before_the_agent_runs(
    system: System, args: dict[str, Any], positional: tuple[Any, ...], what: str
) -> None:
    system.program(adder)
    with pytest.raises(BadArguments) as caught:
        await system.call(Spawn("adder", args, positional))
    assert what in caught.value.message
    assert "adder(a: int, b: int = 2)" in caught.value.message.replace("'int'", "int")
    assert len(system.table.alive) == 1


async def test_lenient_arguments_are_read_from_text(system: System) -> None:
    system.program(adder)
    pid = await system.call(Spawn("adder", {"b": "5"}, ("4",), lenient=True))
    assert await system.result(pid) == 9


async def test_defaults_hold_where_no_argument_is_given(system: System) -> None:
    assert await system.run(adder, 1) == 3


async def test_arguments_are_not_shared_with_the_parent(system: System) -> None:
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
