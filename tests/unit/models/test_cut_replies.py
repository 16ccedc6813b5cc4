"""Replies that a limit cut: the agent gets the reason with `full`, and otherwise the user of the task a warning."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ipc.errors import ContextOverflow, InvalidReply
from ipc.messages import Log
from ipc.syscalls import Completion, Generate, Logs
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.agents import generating
from tests.support.simulated import FAST, answer, text_of
from tests.support.system import System

PROMPT = "one two three"  # three tokens
CUT = "the reply was cut after 5 tokens, the default limit; set max_tokens for another limit"
FULL = (
    "the reply was cut after 2 tokens, because with its prompt it fills the model's context of 20 tokens; "
    "shorten the prompt"
)


class Point(msgspec.Struct):
    x: int


@pytest.fixture
def models() -> dict[str, ModelSpec]:
    """A model that would say eight words, but cuts replies at five tokens, and any sequence at 20."""
    return {"sim": ModelSpec(driver="simulated", slots=2, max_tokens=5, options=FAST | {"context": 20})}


async def warnings(system: System, agent: Any) -> list[str]:
    """The warnings that the client of a task with this agent gets."""
    recorder = system.recorder()
    await system.result(system.spawn(agent, stream=recorder.stream))
    return [line.event for line in recorder.of(Log) if line.level == "warning"]


async def test_a_reply_cut_by_the_default_limit_is_reported_once_to_the_client_and_in_the_log(system: System) -> None:
    process = system.spawn(generating())
    await system.result(process)
    (line,) = await system.call(Logs(process.pid))
    assert (line.pid, line.level, line.event) == (process.pid, "warning", CUT)
    assert line.fields == {"program": process.program, "model": "sim"}
    assert await warnings(system, generating()) == [CUT]


async def test_a_reply_that_ends_by_itself_or_at_a_chosen_limit_is_not_reported(system: System) -> None:
    assert await warnings(system, generating(max_tokens=2)) == []
    assert await warnings(system, generating(choices=["yes"])) == []
    assert await warnings(system, generating(full=True)) == []


async def test_one_call_with_several_samples_is_reported_once(system: System) -> None:
    expected = "3 of 3 replies were cut after 5 tokens, the default limit; set max_tokens for another limit"
    assert await warnings(system, generating(samples=3)) == [expected]


async def test_the_report_of_a_child_names_the_child(system: System) -> None:
    system.program(generating(), "asker")

    async def parent(ctx: Context) -> int:
        pid = await ctx.spawn("asker")
        await ctx.wait(pid)
        return pid

    recorder = system.recorder()
    child = await system.result(system.spawn(parent, stream=recorder.stream))
    (line,) = recorder.of(Log)
    assert (line.pid, line.fields["program"]) == (child, "asker")


async def test_a_reply_cut_by_the_context_is_reported_as_such(system: System) -> None:
    async def crowded(ctx: Context) -> str:
        return await ctx.generate("word " * 18)

    assert await warnings(system, crowded) == [FULL]

    async def reason(ctx: Context) -> str:
        return (await ctx.generate("word " * 18, full=True)).reason

    assert await system.run(reason) == "context"
    with pytest.raises(ContextOverflow):
        await answer(system, max_tokens=18)


async def test_full_answers_a_completion_with_reason_and_lengths(system: System) -> None:
    reply = await answer(system, seed=1, full=True)
    assert (type(reply), reply.text, reply.reason) == (Completion, text_of(1, 5), "length")
    assert (reply.prompt_tokens, reply.tokens, reply.value) == (3, 5, None)
    assert (await answer(system, choices=["yes"], full=True)).reason == "stop"
    assert await answer(system, seed=1, max_tokens=2, full=False) == text_of(1, 2)
    assert await answer(system, seed=1, max_tokens=2, full=None, samples=None, emit=None) == text_of(1, 2)


async def test_full_with_several_samples_answers_as_many_completions(system: System) -> None:
    replies = await answer(system, seed=1, samples=2, max_tokens=3, full=True)
    assert [(reply.text, reply.tokens) for reply in replies] == [(text_of(1, 3), 3), (text_of(2, 3), 3)]
    (alone,) = await answer(system, seed=1, logprobs=True, max_tokens=3)
    whole = await answer(system, seed=1, logprobs=True, max_tokens=3, full=True)
    assert alone == whole
    assert len(whole.logprobs) == 3


async def test_a_completion_carries_the_value_of_its_schema(system: System) -> None:
    reply = await answer(system, schema=Point, full=True)
    assert (reply.text, reply.value) == ('{"x":0}', Point(0))
    replies = await answer(system, schema=Point, samples=2, full=True)
    assert [reply.value for reply in replies] == [Point(0)] * 2
    (alone,) = await answer(system, schema=Point, logprobs=True)
    assert alone.value == Point(0)


async def test_a_value_that_the_default_limit_cut_is_an_error_that_says_so(system: System) -> None:
    long = "a choice of thirty-two characters"
    with pytest.raises(InvalidReply, match="does not match the choices: it was cut after 5 tokens, the default limit"):
        await answer(system, choices=[long])
    with pytest.raises(InvalidReply, match="the default limit"):
        await answer(system, choices=[long], full=True)
    with pytest.raises(InvalidReply, match="after 2 tokens, its max_tokens; raise max_tokens") as caught:
        await answer(system, choices=[long], max_tokens=2)
    assert caught.value.data["text"] == long[:8]


async def test_a_client_gets_a_list_of_completions_with_full_and_else_a_text(system: System) -> None:
    (reply,) = await system.call(Generate(PROMPT, full=True))
    assert (reply.reason, reply.tokens) == ("length", 5)
    assert isinstance(await system.call(Generate(PROMPT)), str)


def test_a_recorded_completion_of_an_older_version_has_its_length() -> None:
    old = {"text": "a b", "ids": [4, 5], "logprobs": [], "reason": "stop"}
    reply = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Completion)
    assert (reply.tokens, reply.prompt_tokens, reply.value) == (2, 0, None)
