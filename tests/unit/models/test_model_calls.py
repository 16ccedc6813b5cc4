"""Generations that return more than a text: several samples, or the log probabilities of their tokens."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from ipc.errors import (
    InvalidCall,
    InvalidPrompt,
    to_wire,
)
from ipc.syscalls import (
    Completion,
    Generate,
    Kill,
)
from kernel.drivers import protocol
from kernel.drivers.simulated.sequence import simulated_token
from tests.support.agents import generating
from tests.support.simulated import answer, assert_nothing_left, text_of
from tests.support.system import System


async def test_samples_are_drawn_with_one_seed_after_the_other_and_all_are_charged(system: System) -> None:
    status = await system.status(system.spawn(generating(samples=3, seed=7, max_tokens=5)))
    completions = msgspec.msgpack.decode(status.value, type=list[Completion])
    assert [completion.text for completion in completions] == [text_of(seed, 5) for seed in (7, 8, 9)]
    assert completions[0].ids == [simulated_token(7, n)[0] for n in range(5)]
    assert [(completion.reason, completion.logprobs) for completion in completions] == [("length", [])] * 3
    assert (status.usage.generated_tokens, status.usage.prompt_tokens) == (15, 9)
    await system.turns()
    assert_nothing_left(system)


async def test_probabilities_come_with_each_token(system: System) -> None:
    (completion,) = await answer(system, seed=1, max_tokens=4, logprobs=True)
    assert completion.text == text_of(1, 4)
    assert len(completion.logprobs) == len(completion.ids) == 4
    assert all(-2 < logprob < 0 for logprob in completion.logprobs)


async def test_probabilities_survive_the_death_of_the_driver(system: System) -> None:
    calm = await answer(system, seed=1, max_tokens=12, logprobs=True)
    task = asyncio.ensure_future(answer(system, seed=1, max_tokens=12, logprobs=True))
    await asyncio.sleep(5.5)
    system.driver.die()
    assert await task == calm


@pytest.mark.parametrize("samples", [0, -1, 1025])
async def test_a_strange_number_of_samples_is_refused(system: System, samples: int) -> None:
    with pytest.raises(InvalidCall, match="samples"):
        await system.run(generating(samples=samples))
    with pytest.raises(InvalidCall, match="samples"):
        await system.call(Generate("x", samples=samples))


async def test_one_sample_that_fails_takes_the_others_with_it(system: System) -> None:
    task = asyncio.ensure_future(system.run(generating(samples=4, max_tokens=50)))
    await asyncio.sleep(5.5)
    system.driver._say(protocol.SequenceFailed(2, to_wire(InvalidPrompt("this one"))))
    with pytest.raises(InvalidPrompt, match="this one"):
        await task
    await system.turns()
    del system.driver.sequences[2]
    assert_nothing_left(system)


async def test_a_kill_ends_all_samples(system: System) -> None:
    process = system.spawn(generating(samples=5, max_tokens=50))
    await asyncio.sleep(4.5)
    await system.call(Kill(process.pid))
    await system.turns()
    assert_nothing_left(system)
