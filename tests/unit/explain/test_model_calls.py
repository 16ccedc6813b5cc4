"""Why a process in a model call has no next token: the queue, the load, memory, a swap, its reader. And `ps` of it."""

from __future__ import annotations

import asyncio

import pytest

from ipc.messages import Emitted
from ipc.syscalls import Limits, Ps, SetPolicy, Spawn, Suspend
from kernel.core.event_log import EventLog
from kernel.core.reader_wait import reader_facts
from kernel.core.stream import MAX_EVENTS
from kernel.drivers import protocol
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.agents import generating, teller
from tests.support.explaining import pids, why
from tests.support.many_models import HOLDS_ONE, THREE, TWO, prepare, settle_sizes
from tests.support.paging import FOUR_SLOTS, TWO_SLOTS
from tests.support.simulated import FAST
from tests.support.system import System

SLOW_LOAD = {"sim": ModelSpec(driver="simulated", slots=2, options=FAST | {"load_seconds": 10.0})}


async def listed(system: System) -> dict[int, tuple[str, str]]:
    """The states and waits that `ps` shows, by pid."""
    return {row.pid: (row.state, row.waits_for) for row in await system.call(Ps())}


async def test_ps_shows_the_stage_of_each_call(system: System) -> None:
    system.program(teller)
    processes = [system.spawn("teller", tokens=50) for _ in range(5)]
    await asyncio.sleep(4.5)
    await system.call(Suspend(processes[4].pid))
    assert list((await listed(system)).values()) == [
        ("generating", "4 tokens"),
        ("generating", "4 tokens"),
        ("queued", "1st of 2 for sim"),
        ("queued", "2nd of 2 for sim"),
        ("suspended", ""),
    ]


async def test_the_places_that_ps_shows_are_those_of_the_moment(system: System) -> None:
    system.program(teller)
    processes = [system.spawn("teller", tokens=50) for _ in range(5)]
    await asyncio.sleep(4.5)
    before = await listed(system)
    system.kernel.process_exit.end(processes[2], "killed", "the test goes on")
    await system.turns()
    after = await listed(system)
    assert [rows[processes[4].pid] for rows in (before, after)] == [
        ("queued", "3rd of 3 for sim"),
        ("queued", "2nd of 2 for sim"),
    ]


async def test_the_tokens_of_all_samples_of_a_call_are_counted(system: System) -> None:
    process = system.spawn(generating(samples=3, max_tokens=10))
    await asyncio.sleep(4.5)
    assert process.state() == ("generating", "8 tokens")


async def test_a_generation_says_how_far_it_is_and_when_it_ends(system: System) -> None:
    process = system.spawn(generating(max_tokens=20))
    await asyncio.sleep(4.5)
    explanation = await why(system, process)
    assert (explanation.wait.kind, explanation.wait.seconds) == ("generating", 4.5)
    assert (
        "has been generating for 4.5 s on model sim (4 tokens so far). The wait ends when the reply ends, after 16 "
        "more tokens at most." in explanation.text
    )


async def test_a_generation_that_a_limit_of_tokens_ends_first_says_so(system: System) -> None:
    call = Spawn(system.program(generating(max_tokens=20)), limits=Limits(tokens=12))
    process = system.table.alive[await system.call(call)]
    await asyncio.sleep(4.5)
    explanation = await why(system, process)
    left = 12 - process.prompt_tokens - 4
    assert f"when the reply ends, or fails after {left} more tokens at the limit of tokens." in explanation.text


async def test_a_queued_call_names_the_slots_the_place_and_what_the_policy_does_next(system: System) -> None:
    system.program(teller)
    await system.call(SetPolicy(kind="round_robin", quantum=10))
    processes = [system.spawn("teller", tokens=50) for _ in range(4)]
    await asyncio.sleep(4.5)
    explanation = await why(system, processes[3])
    wait = explanation.wait
    assert (wait.kind, wait.place, wait.line, wait.seconds) == ("queue", 2, 2, 4.5)
    assert (pids(wait.ahead), pids(wait.holders)) == ([processes[2].pid], pids(processes[:2]))  # type: ignore[arg-type]
    assert [one.note for one in wait.holders] == ["4 tokens", "4 tokens"]
    assert wait.next == (
        "The policy round_robin takes a slot away after 10 tokens if another call waits. 1 call gets a slot before "
        f"this one. Process {processes[0].pid} (teller) has to give up its slot after 6 more tokens"
    )
    next_ = f"The policy round_robin gives its slot to process {processes[2].pid} (teller) after 6 more tokens"
    assert (await why(system, processes[0])).wait.next == next_
    assert (await why(system, processes[1])).wait.next == "For now, the policy round_robin leaves it its slot"
    explanation = await why(system, processes[2])
    assert "2 of 2 slots are in use. The wait ends when the policy gives it a slot." in explanation.text
    assert "This call gets the next free slot." in explanation.text


async def test_the_policy_auto_says_which_policy_it_uses_and_why(system: System) -> None:
    system.program(teller)
    await system.call(SetPolicy(kind="auto"))
    processes = [system.spawn("teller", tokens=50) for _ in range(3)]
    await asyncio.sleep(4.5)
    next_ = (await why(system, processes[2])).wait.next
    assert next_.startswith(
        "The policy auto (priority: no call has had to wait yet) uses priority at present, which runs"
    )


async def test_a_limit_on_slots_is_named_with_its_cause(system: System) -> None:
    system.program(teller)
    system.spawn("teller", tokens=50)
    await asyncio.sleep(1)
    system.runtime().rules.set_slot_limit(1, "memory is short")
    waiting = system.spawn("teller", tokens=50)
    await asyncio.sleep(1)
    text = (await why(system, waiting)).text
    assert "1 of 1 slot is in use, limited to 1 of 2: memory is short." in text


@pytest.mark.parametrize("models", [SLOW_LOAD])
async def test_a_call_that_waits_for_a_load_says_the_stage_and_since_when(system: System) -> None:
    process = system.spawn(generating())
    await asyncio.sleep(4)
    assert process.state() == ("loading", "sim loading")
    explanation = await why(system, process)
    assert (explanation.wait.kind, explanation.wait.seconds) == ("loading", 4.0)
    assert (
        "waiting 4.0 s for model sim, which is loading (pretending to load). The load began 4.0 s ago; the model was "
        "never loaded before. The wait ends when the model is loaded, which may take 30 min at most."
        in explanation.text
    )
    system.runtime().driver_reported(protocol.Loading("weights", 0.45))
    assert process.state() == ("loading", "sim 45%")
    assert "which is loading (weights 45%)" in (await why(system, process)).text


@pytest.mark.parametrize("models", [TWO])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_call_whose_model_has_no_room_names_the_models_in_memory_and_their_callers(system: System) -> None:
    prepare(system)
    await settle_sizes(system)
    first = system.spawn("teller", model="one", tokens=5000)
    await asyncio.sleep(3)
    waiting = system.spawn("teller", model="two")
    await asyncio.sleep(1)
    assert waiting.state() == ("loading", "two waiting for memory")
    explanation = await why(system, waiting)
    assert (explanation.wait.kind, pids(explanation.wait.holders)) == ("memory", [first.pid])
    assert "The model needs 1 GB, and 500 MB of 1.5 GB are free; in memory: one (1 GB)." in explanation.text
    assert "Model two waits for one to finish its turn (9 s at most); the daemon decides again in" in explanation.text


@pytest.mark.parametrize("models", [THREE])
@pytest.mark.parametrize("resources", [HOLDS_ONE])
async def test_a_model_behind_another_one_in_the_line_for_memory_names_that_one(system: System) -> None:
    prepare(system)
    await settle_sizes(system)
    system.spawn("teller", model="one", tokens=5000)
    await asyncio.sleep(3)
    system.spawn("teller", model="two")
    await asyncio.sleep(1)
    last = system.spawn("teller", model="three")
    await asyncio.sleep(1)
    assert last.state() == ("loading", "three waiting for memory")
    assert "Model two is loaded first; the daemon decides again in" in (await why(system, last)).text


@pytest.mark.parametrize("models", [FOUR_SLOTS])
async def test_a_call_on_a_slot_without_kv_memory_names_those_that_hold_it(system: System) -> None:
    system.program(teller)
    processes = [system.spawn("teller", seed=seed) for seed in range(4)]
    await asyncio.sleep(6.5)
    assert processes[3].state() == ("queued", "KV memory of sim")
    explanation = await why(system, processes[3])
    assert (explanation.wait.kind, pids(explanation.wait.holders)) == ("memory", pids(processes[:2]))  # type: ignore[arg-type]
    assert "for KV memory of model sim, while it holds a slot." in explanation.text
    assert "46 kB of 50 kB are in use, and 2 calls wait for memory." in explanation.text
    assert (await why(system, processes[0])).wait.kind == "generating"


@pytest.mark.parametrize("models", [TWO_SLOTS])
async def test_a_call_that_is_being_swapped_out_says_so(system: System) -> None:
    system.program(teller)
    processes = [system.spawn("teller", seed=seed) for seed in range(2)]
    await asyncio.sleep(4.5)
    (sequence,) = system.sequences(processes[0])
    system.runtime().active.pager.swap_out(sequence)  # type: ignore[arg-type]
    system.runtime().active.leases.parked(sequence)
    assert processes[0].state() == ("blocked", "swapping sim")
    explanation = await why(system, processes[0])
    assert explanation.wait.kind == "swapping"
    assert "Its KV is being written to disk, because KV memory is short." in explanation.text


@pytest.mark.usefixtures("small_streams")
async def test_a_lagging_reader_is_named_to_a_generation_and_to_emit(system: System) -> None:
    async def emits(ctx: Context) -> None:
        while True:
            await ctx.emit("x")

    recorders = [system.recorder(credit=0) for _ in range(2)]
    for recorder in recorders:
        recorder.stream.reader = system.client.pid
    agent = generating(max_tokens=20)
    generator = system.spawn(agent, stream=recorders[0].stream)
    emitter = system.spawn(emits, stream=recorders[1].stream)
    await asyncio.sleep(30)
    assert [process.state() for process in (generator, emitter)] == [("blocked", "reader of the task")] * 2
    for process, unread in (
        (generator, "characters of tokens wait to be read"),
        (emitter, "256 events wait to be read"),
    ):
        explanation = await why(system, process)
        assert (explanation.wait.kind, pids(explanation.wait.holders)) == ("reader", [system.client.pid])
        assert "The client that does not read is process 1 (client)." in explanation.text
        assert unread in explanation.text
        assert "The wait ends when the client reads on or disconnects." in explanation.text


async def test_of_the_clients_of_a_task_only_those_that_are_behind_are_named(system: System) -> None:
    recorders = [system.recorder(credit=credit) for credit in (1_000_000, 0, 0)]
    log = EventLog(None)
    for number, recorder in enumerate(recorders, 10):
        recorder.stream.reader = number
        log.add(recorder.stream)
    for _ in range(MAX_EVENTS):
        log.push(Emitted(1, 1))
    facts = reader_facts(log, "waiting for the reader of its task")
    assert (facts.held, pids(facts.holders)) == ("The clients that do not read are", [11, 12])
    assert facts.state == "256 events and 256 events wait to be read, which is the most that may wait"
