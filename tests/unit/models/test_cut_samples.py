"""With several samples, a reply that was cut loses only itself."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ipc.errors import InvalidReply
from ipc.messages import Log
from ipc.syscalls import Completion
from kernel.models.generation import Generation
from llmosd.context import Context
from tests.support.simulated import answer
from tests.support.system import System


class Point(msgspec.Struct):
    x: int


@pytest.fixture(params=[{2}])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The seeds of the replies that are cut."""
    seeds: set[int] = request.param
    completion = Generation.completion

    def cut_some(generation: Generation) -> Completion:
        whole = completion(generation)
        if generation.sampling.seed not in seeds:
            return whole
        return msgspec.structs.replace(whole, text=whole.text[:3], reason="length")

    monkeypatch.setattr(Generation, "completion", cut_some)
    return seeds


async def test_the_values_of_the_other_samples_are_returned_and_the_log_counts_the_missing_one(
    system: System, cut: set[int]
) -> None:
    async def agent(ctx: Context) -> Any:
        return await ctx.chat([{"role": "user", "content": "x"}], schema=Point, samples=3, seed=1, max_tokens=9)

    recorder = system.recorder()
    process = system.spawn(agent, stream=recorder.stream)
    assert await system.result(process) == [{"x": 0}] * 2
    (line,) = recorder.of(Log)
    assert line.event.startswith("1 of 3 replies are missing among the values; the reply does not fit the schema")


async def test_with_full_each_completion_has_its_reason_and_the_one_that_was_cut_no_value(
    system: System, cut: set[int]
) -> None:
    replies = await answer(system, schema=Point, samples=3, seed=1, full=True)
    assert [reply.value for reply in replies] == [Point(0), None, Point(0)]
    assert [reply.reason for reply in replies] == ["stop", "length", "stop"]
    assert replies[1].text == '{"x'


async def test_choices_that_were_cut_lose_only_themselves(system: System, cut: set[int]) -> None:
    replies = await answer(system, choices=["four words of text"], samples=3, seed=1)
    assert [reply.reason for reply in replies] == ["stop", "length", "stop"]


@pytest.mark.parametrize("cut", [{1, 2, 3}], indirect=True)
@pytest.mark.parametrize("full", [False, True])
async def test_a_call_fails_only_if_all_replies_were_cut(system: System, cut: set[int], full: bool) -> None:
    with pytest.raises(InvalidReply, match="does not match the schema") as failed:
        await answer(system, schema=Point, samples=3, seed=1, full=full)
    assert failed.value.data["text"] == '{"x'
