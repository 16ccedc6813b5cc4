"""Model slots: the order in which sequences get one, the leases on it, and the requests that are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.errors import Busy, ContextOverflow, InvalidCall, InvalidPrompt
from ipc.messages import State
from ipc.syscalls import Generate, Models, Sampling, Slots
from kernel.drivers import protocol
from kernel.models import runtime as runtime_module
from llmosd.context import Context
from tests.support.agents import teller
from tests.support.simulated import assert_nothing_left, text_of
from tests.support.system import System

# ---- serving


async def test_a_generation_answers_its_text_and_is_charged(system: System) -> None:
    status = await system.status(system.spawn(teller, tokens=10, seed=7))
    assert status.value == text_of(7, 10)
    assert (status.usage.prompt_tokens, status.usage.generated_tokens) == (3, 10)
    await system.turns()
    assert_nothing_left(system)


async def test_one_load_serves_all_and_callers_see_what_they_wait_for(system: System) -> None:
    recorder = system.recorder()
    processes = [system.spawn(teller, stream=recorder.stream), *(system.spawn("teller") for _ in range(4))]
    assert len({await system.result(process) for process in processes}) == 1
    assert system.launcher.kinds == [("simulated", "sim")]
    assert next(event.state for event in recorder.of(State)).startswith("model sim loading")


async def test_slots_are_given_first_come_first_served(system: System) -> None:
    order: list[int] = []

    async def worker(ctx: Context, n: int) -> None:
        await ctx.generate("x", max_tokens=5)
        order.append(n)

    system.program(worker)
    processes = [system.spawn("worker", n=n) for n in range(7)]
    for process in processes:
        await system.status(process)
    assert order == list(range(7))
    assert [admit.sequence for admit in system.driver.sent_of(protocol.Admit)] == [1, 2, 3, 4, 5, 6, 7]


async def test_never_more_sequences_on_the_driver_than_slots(system: System) -> None:
    processes = [system.spawn(teller if not n else "teller", tokens=6) for n in range(9)]
    for process in processes:
        await system.status(process)
    sizes = [len(said.progress) for said in system.driver.said if isinstance(said, protocol.Bundle)]
    assert max(sizes) == 2
    assert sum(sizes) == 9 * 6


async def test_a_short_call_does_not_wait_for_its_long_neighbour(system: System) -> None:
    long = system.spawn(teller, tokens=500)
    await asyncio.sleep(3.5)
    before = system.loop.time()
    await system.run("teller", tokens=5)
    assert system.loop.time() - before <= 6
    assert not long.ended


async def test_a_lease_is_renewed_before_it_runs_out(system: System) -> None:
    await system.run(teller, tokens=40)
    assert not [said for said in system.driver.said if isinstance(said, protocol.Parked)]
    granted = sum(renew.tokens for renew in system.driver.sent_of(protocol.Renew))
    (admit,) = system.driver.sent_of(protocol.Admit)
    assert admit.lease == 4
    assert 36 <= granted <= 40 + 4


async def test_the_kernel_never_grants_more_than_a_lease_ahead(system: System) -> None:
    process = system.spawn(teller, tokens=50)
    leases = []
    while not process.ended:
        await asyncio.sleep(1)
        leases += [sequence.lease for sequence in system.driver.sequences.values()]
    assert leases
    assert max(leases) <= 4
    assert min(leases) > 0


async def test_slot_and_model_tables_say_what_goes_on(system: System) -> None:
    processes = [system.spawn(teller if not n else "teller") for n in range(4)]
    await asyncio.sleep(4.5)
    (row,) = await system.call(Slots())
    assert (row.state, row.slots, row.used, row.queued, row.restarts) == ("ready", 2, 2, 2, 0)
    assert [sequence.position for sequence in row.sequences] == [0, 0, 1, 2]
    assert [sequence.pid for sequence in row.sequences] == [process.pid for process in processes]
    assert row.tokens_per_second == pytest.approx(2.0)
    (model,) = await system.call(Models())
    assert (model.name, model.state, model.default, model.context) == ("sim", "ready", True, 8192)
    assert processes[0].state() == ("generating", "4 tokens")
    assert processes[3].state() == ("queued", "2nd of 2 for sim")


async def test_the_queue_has_a_bound_and_a_name_for_it(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "MAX_QUEUE", 3)
    processes = [system.spawn(teller if not n else "teller") for n in range(2)]
    await asyncio.sleep(2)
    processes += [system.spawn("teller"), system.spawn("teller")]
    await system.turns()
    more = [system.spawn("teller"), system.spawn("teller")]
    with pytest.raises(Busy, match="wait for model sim"):
        await system.result(more[1])
    for process in [*processes, more[0]]:
        assert (await system.status(process)).reason == "done"


# ---- what is refused


async def test_an_overlong_request_says_both_numbers_and_hurts_nobody(system: System) -> None:
    async def greedy(ctx: Context) -> str:
        return await ctx.generate("word " * 100, max_tokens=8100)

    neighbour = system.spawn(teller, tokens=10)
    await asyncio.sleep(2)
    with pytest.raises(ContextOverflow) as caught:
        await system.run(greedy)
    assert caught.value.data.items() >= {"prompt_tokens": 100, "max_tokens": 8100, "context": 8192}.items()
    assert "100" in caught.value.message
    assert "8100" in caught.value.message
    assert await system.result(neighbour) == text_of(1, 10)
    assert_nothing_left(system)


async def test_an_empty_prompt_is_refused(system: System) -> None:
    async def mute(ctx: Context) -> str:
        return await ctx.generate("  ")

    with pytest.raises(InvalidPrompt):
        await system.run(mute)


@pytest.mark.parametrize(
    "options",
    [
        *({"max_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 2}, {"top_p": float("nan")}),
        *({"top_k": 0}, {"seed": -1}, {"stop": ""}, {"stop": ["a", ""]}),
    ],
)
async def test_sampling_out_of_range_is_refused_before_it_gets_to_a_driver(
    system: System, options: dict[str, Any]
) -> None:
    async def agent(ctx: Context) -> str:
        return await ctx.generate("x", **options)

    with pytest.raises(InvalidCall, match="generation options"):
        await system.run(agent)
    assert system.launcher.drivers == []


@pytest.mark.parametrize(
    ("stop", "words"), [(["x"] * 129, "129 stop strings"), (["x" * 6_000, "y" * 6_000], "12000 characters")]
)
async def test_too_many_stop_strings_are_refused_before_they_get_to_a_driver(
    system: System, stop: list[str], words: str
) -> None:
    async def agent(ctx: Context) -> str:
        return await ctx.generate("x", stop=stop)

    with pytest.raises(InvalidCall, match=words):
        await system.run(agent)
    with pytest.raises(InvalidCall, match=words):
        await system.call(Generate("x", None, Sampling(stop=tuple(stop))))
    assert system.launcher.drivers == []


async def test_messages_of_the_wrong_form_are_refused(system: System) -> None:
    async def agent(ctx: Context) -> str:
        return await ctx.chat([{"role": "user"}])

    with pytest.raises(InvalidCall, match="content"):
        await system.run(agent)


async def test_defaults_of_the_model_hold_where_a_call_says_nothing(system: System) -> None:
    async def plain(ctx: Context) -> str:
        return await ctx.chat([{"role": "user", "content": "hello you"}])

    await system.run(plain)
    await system.run("plain")
    first, second = system.driver.sent_of(protocol.Admit)
    assert first.sampling.temperature == 0.0
    assert first.sampling.seed != second.sampling.seed
    assert first.sampling.max_tokens is None


async def test_several_generations_of_one_process_run_together(system: System) -> None:
    async def parallel(ctx: Context) -> list[str]:
        return await asyncio.gather(*(ctx.generate("x", max_tokens=5, seed=n) for n in range(4)))

    assert await system.run(parallel) == [text_of(n, 5) for n in range(4)]


async def test_closing_the_kernel_stops_the_driver(system: System) -> None:
    await system.run(teller, tokens=3)
    await system.kernel.close()
    assert system.driver.stopped
    assert not system.driver.alive


async def test_a_client_generates_by_itself(system: System) -> None:
    assert await system.call(Generate("x y", None, Sampling(max_tokens=4, seed=3))) == text_of(3, 4)
