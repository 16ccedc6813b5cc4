"""Scores and vectors: they hold a slot, are charged, and are requested again when a driver dies."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec
import pytest

from ipc.errors import (
    DriverFailed,
    InvalidCall,
    InvalidPrompt,
    LimitExceeded,
)
from ipc.syscalls import (
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
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.agents import generating
from tests.support.simulated import FAST, assert_nothing_left, text_of
from tests.support.system import System


async def test_scores_and_vectors_are_functions_of_the_texts_and_are_charged(system: System) -> None:
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


async def test_a_query_holds_a_slot_while_it_runs(system: System) -> None:
    async def agent(ctx: Context) -> int:
        return len(await ctx.embed(["x"]))

    for _ in range(2):
        system.spawn(generating(max_tokens=6))
    await asyncio.sleep(2.5)
    process = system.spawn(agent)
    await asyncio.sleep(1.5)
    (row,) = await system.call(Slots())
    assert [(one.state, one.position) for one in row.sequences] == [("running", 0), ("running", 0), ("queued", 1)]
    assert process.state() == ("queued", "1st of 1 for sim")
    assert system.driver.sent_of(protocol.EmbedQuery) == []
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
async def test_empty_or_endless_lists_are_refused(system: System, call: Any) -> None:
    with pytest.raises(InvalidCall, match=r"texts|continuations"):
        await system.call(call)
    assert system.launcher.drivers == []


async def test_a_single_text_is_not_taken_for_a_list_of_letters(system: System) -> None:
    async def agent(ctx: Context) -> Any:
        return await ctx.embed("text")

    with pytest.raises(InvalidCall, match="not a single text"):
        await system.run(agent)


async def test_a_query_that_the_driver_refuses_is_named(system: System) -> None:
    with pytest.raises(InvalidPrompt):
        await system.call(ScoreText("  ", ["a"]))
    await system.turns()
    assert_nothing_left(system)


async def test_queries_count_against_limits(system: System) -> None:
    async def agent(ctx: Context) -> None:
        await ctx.embed(["a b c d"])
        await ctx.embed(["a b c d"])

    system.program(agent)
    pid = await system.call(Spawn("agent", limits=Limits(tokens=6)))
    with pytest.raises(LimitExceeded, match="6 tokens"):
        await system.result(pid)
    await system.turns()
    assert_nothing_left(system)


async def test_a_query_whose_driver_dies_is_asked_again_and_one_that_is_killed_leaves_nothing(system: System) -> None:
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
async def test_numbers_that_are_none_are_never_passed_on(system: System) -> None:
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


async def test_an_answer_of_the_wrong_kind_or_length_is_named(system: System) -> None:
    for wrong in (protocol.Embedded(1, [[1.0]], 1), protocol.Scored(1, [0.5, 0.5], [1, 1], 1)):
        thread = system.thread(system.kernel.gate.call(system.client, ScoreText("a", ["b"])))
        while not system.launcher.drivers or not system.driver.sent_of(protocol.ScoreQuery):
            await asyncio.sleep(0)
        (asked,) = system.driver.sent_of(protocol.ScoreQuery)
        system.driver.on_message(msgspec.structs.replace(wrong, sequence=asked.sequence))
        with pytest.raises(DriverFailed, match="answered"):
            await thread
        await asyncio.sleep(2)
        system.driver.sent.clear()
