"""The record of a call: its fingerprint survives updates of llmosd, and a replay from it repeats no warning."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.messages import Log
from ipc.syscalls import ChatMessage, Completion, Constraint, Generate, Limits, Sampling, Spawn, Submit
from kernel.durable.recorded_call import fingerprint_of
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.durable_world import World

SAMPLING = Sampling(seed=1, constraint=Constraint("regex", "a"))


@pytest.mark.parametrize(
    ("call", "digest"),
    [
        (Generate("x"), "729ee699a465406e33b10b75"),
        (Generate([ChatMessage("user", "hi")], "m", SAMPLING, False, 3), "1db6855c8716e746861e1419"),
    ],
)
def test_a_model_call_has_the_fingerprint_that_it_had_before_full_was_added(call: Generate, digest: str) -> None:
    assert fingerprint_of(call).digest.hex() == digest
    assert str(fingerprint_of(call)).endswith(f"{call.emit}, {call.samples}]")


@pytest.mark.parametrize(
    ("call", "digest"),
    [
        (Spawn("a"), "e53af295a244d3b9f330f570"),
        (Spawn("a", limits=Limits(memory_keys=3)), "86e46a01b73fac750f4b1caf"),
        (Spawn("a", {"n": 1}, limits=Limits(tokens=5, memory_bytes=7)), "8e2003807b31a337ef392c7e"),
    ],
)
def test_a_spawn_has_the_fingerprint_that_it_had_before_limits_were_added(call: Spawn, digest: str) -> None:
    assert fingerprint_of(call).digest.hex() == digest
    new = [Limits(memory_keys=3), *(Limits(memory_keys=3, **{name: 1}) for name in Limits.__struct_fields__[-3:])]
    assert len({fingerprint_of(Spawn("a", limits=limits)).digest for limits in new}) == 4


def test_a_new_field_with_another_value_is_part_of_the_fingerprint() -> None:
    full = fingerprint_of(Generate("x", full=True))
    assert full.digest != fingerprint_of(Generate("x")).digest
    assert str(full).endswith("True, 1, True]")


@pytest.mark.real_time
async def test_a_replay_answers_the_same_completions_and_repeats_no_warning(world: World) -> None:
    answered: list[Completion] = []
    world.models = {"sim": ModelSpec(driver="simulated", max_tokens=5)}

    async def author(ctx: Context) -> list[Any]:
        text = await ctx.generate("one", seed=1)
        reply = await ctx.generate("two", seed=2, full=True)
        if ctx.attempt == 1:  # waits for the end of the daemon
            answered.append(reply)
            await asyncio.get_running_loop().create_future()
        return [text, reply.text, reply.reason, reply.prompt_tokens, reply.tokens]

    program = world.agent(author)
    folder = world.folder / "folder"
    async with world.life(folder) as life:
        recorder = life.system.recorder()
        submitted = await life.system.submit(Submit(program, {}, detach=True), recorder.stream)
        await life.until(lambda: answered)
        (line,) = recorder.of(Log)
        assert "cut after 5 tokens" in line.event
    async with world.life(folder) as life:
        recorder = await life.system.attach(submitted.id)
        first, second, *rest = await life.result(submitted.id)
        assert (len(first.split()), len(second.split()), rest) == (5, 5, ["length", 1, 5])
        assert life.calls.get("Generate", 0) == 0
        assert recorder.of(Log) == []
