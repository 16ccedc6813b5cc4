"""What a model call can ask for: several samples, probabilities, constrained replies, scores and vectors."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Literal

import msgspec
import pytest

from ipc.errors import (
    DriverFailed,
    InvalidCall,
    InvalidConstraint,
    InvalidPrompt,
    InvalidReply,
    LimitExceeded,
    to_wire,
)
from ipc.syscalls import (
    Completion,
    Constraint,
    EmbedTexts,
    Generate,
    Kill,
    Limits,
    Sampling,
    ScoreText,
    Slots,
    Spawn,
)
from kernel.drivers import protocol
from kernel.drivers.simulated import simulated_token
from kernel.slots.model import ModelSpec
from llmosd.context import Context
from tests.support.simulated import FAST, assert_nothing_left, text_of


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Shape(msgspec.Struct):
    name: str
    corners: list[Point]
    colour: Literal["red", "blue"]
    first: Point


def generating(**options: Any) -> Any:
    async def agent(ctx: Context) -> Any:
        return await ctx.generate("one two three", **options)

    return agent


async def answer(system: Any, **options: Any) -> Any:
    """What `ctx.generate` answers with these keywords, as the agent sees it."""
    seen: list[Any] = []

    async def agent(ctx: Context) -> None:
        seen.append(await ctx.generate("one two three", **options))

    await system.run(agent)
    return seen[0]


# ---- samples and probabilities


async def test_samples_are_drawn_with_one_seed_after_the_other_and_all_are_charged(system: Any) -> None:
    status = await system.status(system.spawn(generating(samples=3, seed=7, max_tokens=5)))
    completions = msgspec.msgpack.decode(status.value, type=list[Completion])
    assert [completion.text for completion in completions] == [text_of(seed, 5) for seed in (7, 8, 9)]
    assert completions[0].ids == [simulated_token(7, n)[0] for n in range(5)]
    assert [(completion.reason, completion.logprobs) for completion in completions] == [("length", [])] * 3
    assert (status.usage.generated_tokens, status.usage.prompt_tokens) == (15, 9)
    await system.turns()
    assert_nothing_left(system)


async def test_probabilities_come_with_each_token(system: Any) -> None:
    (completion,) = await answer(system, seed=1, max_tokens=4, logprobs=True)
    assert completion.text == text_of(1, 4)
    assert len(completion.logprobs) == len(completion.ids) == 4
    assert all(-2 < logprob < 0 for logprob in completion.logprobs)


async def test_probabilities_survive_the_death_of_the_driver(system: Any) -> None:
    calm = await answer(system, seed=1, max_tokens=12, logprobs=True)
    task = asyncio.ensure_future(answer(system, seed=1, max_tokens=12, logprobs=True))
    await asyncio.sleep(5.5)
    system.driver.die()
    assert await task == calm


@pytest.mark.parametrize("samples", [0, -1, 1025])
async def test_a_strange_number_of_samples_is_refused(system: Any, samples: int) -> None:
    with pytest.raises(InvalidCall, match="samples"):
        await system.run(generating(samples=samples))
    with pytest.raises(InvalidCall, match="samples"):
        await system.call(Generate("x", samples=samples))


async def test_one_sample_that_fails_takes_the_others_with_it(system: Any) -> None:
    task = asyncio.ensure_future(system.run(generating(samples=4, max_tokens=50)))
    await asyncio.sleep(5.5)
    system.driver._say(protocol.Failed(2, to_wire(InvalidPrompt("this one"))))
    with pytest.raises(InvalidPrompt, match="this one"):
        await task
    await system.turns()
    del system.driver.sequences[2]
    assert_nothing_left(system)


async def test_a_kill_ends_all_samples(system: Any) -> None:
    process = system.spawn(generating(samples=5, max_tokens=50))
    await asyncio.sleep(4.5)
    await system.call(Kill(process.pid))
    await system.turns()
    assert_nothing_left(system)


# ---- constrained replies


async def test_a_reply_is_decoded_to_the_type_that_was_asked_for(system: Any) -> None:
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


async def test_a_type_leaves_no_room_for_what_it_does_not_name(system: Any) -> None:
    await answer(system, schema=Shape)
    (admit,) = system.driver.sent_of(protocol.Admit)
    schema = msgspec.json.decode(admit.sampling.constraint.value)
    assert [part["additionalProperties"] for part in schema["$defs"].values()] == [False, False]
    await answer(system, schema={"type": "object", "properties": {}})
    assert system.driver.sent_of(protocol.Admit)[1].sampling.constraint.value == '{"type":"object","properties":{}}'


async def test_a_constrained_reply_goes_on_in_a_new_driver(system: Any) -> None:
    choice = "a choice that takes many a token to write"
    task = asyncio.ensure_future(answer(system, choices=[choice, "other"]))
    await asyncio.sleep(5.5)
    system.driver.die()
    assert await task == choice


async def test_a_choice_is_one_of_the_texts(system: Any) -> None:
    assert await answer(system, choices=["yes", "no"]) == "yes"


async def test_a_chat_may_be_bound_as_well(system: Any) -> None:
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
        ({"schema": object}, "no type that JSON can carry"),
        ({"schema": {"a": object()}}, "not JSON"),
        ({"schema": "{"}, "not JSON"),
        ({"regex": ""}, "empty regex"),
        ({"regex": 5}, "a regex is a text"),
        ({"schema": Point, "stop": "}"}, "stop strings"),
        ({"choices": ["a"], "stop": ["b"]}, "stop strings"),
        ({"regex": "x" * 1_000_001}, "1000001 characters"),
    ],
)
async def test_a_bad_or_contradictory_constraint_is_named_and_gets_to_no_driver(
    system: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidConstraint, match=words):
        await system.run(generating(**options))
    assert system.launcher.drivers == []


@pytest.mark.parametrize(
    "constraint",
    [Constraint("schema", "[1]"), Constraint("schema", "{"), Constraint("choices", "{}"), Constraint("choices", "[1]")],
)
async def test_a_client_gets_the_same_errors(system: Any, constraint: Constraint) -> None:
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
async def test_what_the_driver_cannot_enforce_it_refuses_by_name(system: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidConstraint):
        await system.run(generating(**options))
    await system.turns()
    assert_nothing_left(system)


async def test_a_reply_that_was_cut_is_named_and_not_passed_off_as_whole(system: Any) -> None:
    with pytest.raises(InvalidReply, match="max_tokens") as caught:
        await system.run(generating(schema=Shape, max_tokens=2))
    assert caught.value.data["text"] == '{"name":'
    with pytest.raises(InvalidReply, match="max_tokens"):
        await system.run(generating(choices=["a long choice"], max_tokens=1))
    assert await answer(system, choices=["four", "five"], max_tokens=1) == "four"


async def test_a_reply_that_does_not_fit_the_type_is_named(system: Any) -> None:
    class Narrow(msgspec.Struct):
        x: int

        def __post_init__(self) -> None:
            if self.x < 5:
                raise ValueError("too small")

    with pytest.raises(InvalidReply, match="too small"):
        await system.run(generating(schema=Narrow))


async def test_an_unknown_keyword_is_a_plain_mistake(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        try:
            await ctx.generate("x", shcema=Point)  # type: ignore[call-arg]
        except TypeError as error:
            return str(error)
        return ""

    assert "shcema" in await system.run(agent)


# ---- scores and vectors


async def test_scores_and_vectors_are_functions_of_the_texts_and_are_charged(system: Any) -> None:
    async def agent(ctx: Context) -> Any:
        scores = await ctx.score("is it", ["yes", "no it is not", "yes"])
        again = await ctx.score([{"role": "user", "content": "is it"}], ["yes"])
        return scores, again, await ctx.embed(["one two", "three"])

    status = await system.status(system.spawn(agent))
    scores, again, vectors = msgspec.msgpack.decode(status.value)
    assert scores[0] == scores[2] == again[0] != scores[1]
    assert all(score < 0 for score in scores)
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1.0, 1.0])
    assert vectors[0] != vectors[1]
    assert status.usage.prompt_tokens == (2 + 1 + 4 + 1) + (2 + 1) + 3
    assert status.usage.generated_tokens == 0
    await system.turns()
    assert_nothing_left(system)


async def test_a_query_holds_a_slot_while_it_runs(system: Any) -> None:
    async def agent(ctx: Context) -> int:
        return len(await ctx.embed(["x"]))

    for _ in range(2):
        system.spawn(generating(max_tokens=6))
    await asyncio.sleep(2.5)
    process = system.spawn(agent)
    await asyncio.sleep(1.5)
    (row,) = await system.call(Slots())
    assert [(one.state, one.position) for one in row.sequences] == [("running", 0), ("running", 0), ("queued", 1)]
    assert process.state()[1] == "sim: queued"
    assert system.driver.sent_of(protocol.Embed) == []
    assert await system.result(process) == 1


@pytest.mark.parametrize(
    "call",
    [
        ScoreText("x", []),
        ScoreText("x", [""]),
        EmbedTexts([]),
        EmbedTexts(["a", ""]),
        EmbedTexts(["a"] * 5000),
    ],
)
async def test_empty_or_endless_lists_are_refused(system: Any, call: Any) -> None:
    with pytest.raises(InvalidCall, match=r"texts|continuations"):
        await system.call(call)
    assert system.launcher.drivers == []


async def test_a_single_text_is_not_taken_for_a_list_of_letters(system: Any) -> None:
    async def agent(ctx: Context) -> Any:
        return await ctx.embed("text")

    with pytest.raises(InvalidCall, match="not one text"):
        await system.run(agent)


async def test_a_query_that_the_driver_refuses_is_named(system: Any) -> None:
    with pytest.raises(InvalidPrompt):
        await system.call(ScoreText("  ", ["a"]))
    await system.turns()
    assert_nothing_left(system)


async def test_queries_count_against_limits(system: Any) -> None:
    async def agent(ctx: Context) -> None:
        await ctx.embed(["a b c d"])
        await ctx.embed(["a b c d"])

    system.program(agent)
    pid = await system.call(Spawn("agent", limits=Limits(tokens=6)))
    with pytest.raises(LimitExceeded, match="6 tokens"):
        await system.result(pid)
    await system.turns()
    assert_nothing_left(system)


async def test_a_query_whose_driver_dies_is_asked_again_and_one_that_is_killed_leaves_nothing(system: Any) -> None:
    async def agent(ctx: Context) -> Any:
        return await ctx.score("a", ["b"])

    process = system.spawn(agent)
    await asyncio.sleep(0.5)
    system.driver.die()
    assert len(await system.result(process)) == 1
    assert len(system.launcher.drivers) == 2
    process = system.spawn("agent")
    await asyncio.sleep(0.5)
    await system.call(Kill(process.pid))
    await asyncio.sleep(2)
    assert_nothing_left(system)


NAN = {"sim": ModelSpec(driver="simulated", slots=2, lease=4, options=FAST | {"nan": True})}


@pytest.mark.parametrize("models", [NAN])
async def test_numbers_that_are_none_are_never_passed_on(system: Any) -> None:
    for call in (
        ScoreText("a", ["b"]),
        EmbedTexts(["a"]),
        Generate("a", None, Sampling(max_tokens=5, logprobs=True)),
    ):
        with pytest.raises(DriverFailed, match="sim"):
            await system.call(call)
    await system.turns()
    assert_nothing_left(system)
    assert await system.call(Generate("a", None, Sampling(max_tokens=2, seed=1))) == text_of(1, 2)


async def test_an_answer_of_the_wrong_kind_or_length_is_named(system: Any) -> None:
    for wrong in (protocol.Embedded(1, [[1.0]], 1), protocol.Scored(1, [0.5, 0.5], [1, 1], 1)):
        thread = system.thread(system.kernel.gate.call(system.client, ScoreText("a", ["b"])))
        while not system.launcher.drivers or not system.driver.sent_of(protocol.Score):
            await asyncio.sleep(0)
        (asked,) = system.driver.sent_of(protocol.Score)
        system.driver.on_message(msgspec.structs.replace(wrong, sequence=asked.sequence))
        with pytest.raises(DriverFailed, match="answered"):
            await thread
        await asyncio.sleep(2)
        system.driver.sent.clear()
