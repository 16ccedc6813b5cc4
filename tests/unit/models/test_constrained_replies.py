"""Constrained replies: decoded to the requested type, and a bad constraint reaches no driver."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
import pytest

from ipc.errors import (
    InvalidConstraint,
    InvalidReply,
)
from ipc.syscalls import (
    Constraint,
    Generate,
    Sampling,
)
from kernel.drivers import protocol
from llmosd.context import Context
from tests.support.agents import generating
from tests.support.simulated import answer, assert_nothing_left
from tests.support.system import System


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Shape(msgspec.Struct):
    name: str
    corners: list[Point]
    colour: Literal["red", "blue"]
    first: Point


async def test_a_reply_is_decoded_to_the_type_that_was_asked_for(system: System) -> None:
    assert await answer(system, schema=Shape) == Shape("", [], "blue", Point(0))
    assert await answer(system, schema=list[int]) == []
    assert await answer(system, schema=bool) is False
    assert await answer(system, schema={"type": "object", "required": ["a"], "properties": {"a": {"const": 3}}}) == {
        "a": 3
    }
    assert await answer(system, schema='{"enum": ["x"]}') == "x"
    assert await answer(system, schema=Point, samples=2) == [Point(0), Point(0)]
    (completion,) = await answer(system, schema=Point, logprobs=True)
    assert (completion.text, completion.reason) == ('{"x":0}', "stop")


async def test_a_type_leaves_no_room_for_what_it_does_not_name(system: System) -> None:
    await answer(system, schema=Shape)
    (admit,) = system.driver.sent_of(protocol.Admit)
    schema = msgspec.json.decode(admit.sampling.constraint.value)
    assert [part["additionalProperties"] for part in schema["$defs"].values()] == [False, False]
    await answer(system, schema={"type": "object", "properties": {}})
    assert system.driver.sent_of(protocol.Admit)[1].sampling.constraint.value == '{"type":"object","properties":{}}'


async def test_a_constrained_reply_goes_on_in_a_new_driver(system: System) -> None:
    choice = "a choice that takes many a token to write"
    task = asyncio.ensure_future(answer(system, choices=[choice, "other"]))
    await asyncio.sleep(5.5)
    system.driver.die()
    assert await task == choice


async def test_a_choice_is_one_of_the_texts(system: System) -> None:
    assert await answer(system, choices=["yes", "no"]) == "yes"


async def test_a_chat_may_be_bound_as_well(system: System) -> None:
    async def agent(ctx: Context) -> Any:
        return await ctx.chat([{"role": "user", "content": "hi"}], choices=["well"])

    assert await system.run(agent) == "well"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schema": Point, "choices": ["a"]}, "schema and choices"),
        ({"regex": "a", "grammar": "b"}, "contradict"),
        ({"choices": []}, "at least one"),
        ({"choices": ["a", ""]}, "at least one"),
        ({"choices": "yes"}, "list of texts"),
        ({"choices": [1]}, "list of texts"),
        ({"schema": object}, "not a type that JSON can carry"),
        ({"schema": {"a": object()}}, "not JSON"),
        ({"schema": "{"}, "not JSON"),
        ({"regex": ""}, "empty regex"),
        ({"regex": 5}, "regex must be a text"),
        ({"schema": Point, "stop": "}"}, "stop strings"),
        ({"choices": ["a"], "stop": ["b"]}, "stop strings"),
        ({"regex": "x" * 1_000_001}, "1000001 characters"),
    ],
)
async def test_a_bad_or_contradictory_constraint_is_named_and_gets_to_no_driver(
    system: System, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidConstraint, match=words):
        await system.run(generating(**options))
    assert system.launcher.drivers == []


@pytest.mark.parametrize(
    "constraint",
    [Constraint("schema", "[1]"), Constraint("schema", "{"), Constraint("choices", "{}"), Constraint("choices", "[1]")],
)
async def test_a_client_gets_the_same_errors(system: System, constraint: Constraint) -> None:
    with pytest.raises(InvalidConstraint):
        await system.call(Generate("x", None, Sampling(constraint=constraint)))


@pytest.mark.parametrize(
    "options",
    [
        {"regex": "[0-9]+"},
        {"grammar": 'start: "a"'},
        {"schema": {"type": "string", "pattern": "a+"}},
        {"schema": {"type": "number", "multipleOf": 3}},
        {"schema": {"$ref": "#/$defs/Nothing"}},
        {"schema": {"type": "thing"}},
    ],
)
async def test_what_the_driver_cannot_enforce_it_refuses_by_name(system: System, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidConstraint):
        await system.run(generating(**options))
    await system.turns()
    assert_nothing_left(system)


async def test_a_reply_that_was_cut_is_named_and_not_passed_off_as_whole(system: System) -> None:
    with pytest.raises(InvalidReply, match="max_tokens") as caught:
        await system.run(generating(schema=Shape, max_tokens=2))
    assert caught.value.data["text"] == '{"name":'
    with pytest.raises(InvalidReply, match="max_tokens"):
        await system.run(generating(choices=["a long choice"], max_tokens=1))
    assert await answer(system, choices=["four", "five"], max_tokens=1) == "four"


async def test_a_reply_that_does_not_fit_the_type_is_named(system: System) -> None:
    class Narrow(msgspec.Struct):
        x: int

        def __post_init__(self) -> None:
            if self.x < 5:
                raise ValueError("too small")

    with pytest.raises(InvalidReply, match="too small"):
        await system.run(generating(schema=Narrow))


async def test_an_unknown_keyword_is_a_plain_mistake(system: System) -> None:
    async def agent(ctx: Context) -> str:
        try:
            await ctx.generate("x", shcema=Point)  # type: ignore[call-arg]
        except TypeError as error:
            return str(error)
        return ""

    assert "shcema" in await system.run(agent)
