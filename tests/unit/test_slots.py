"""Model slots: who gets one, how long, and that a generation survives suspension and the death of its driver."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import (
    Busy,
    ConfigError,
    ContextOverflow,
    DriverFailed,
    InvalidCall,
    InvalidPrompt,
    ModelLoadFailed,
    ModelNotFound,
    UnknownModel,
    to_wire,
)
from ipc.messages import Log, State, Token
from ipc.syscalls import Generate, Kill, Models, Resume, Sampling, Send, Slots, Suspend
from kernel.drivers import protocol
from kernel.drivers.simulated import simulated_token
from kernel.slots import runtime as runtime_module
from kernel.slots.model import ModelSpec
from kernel.slots.workload import MAX_DEATHS
from kernel.stream import MAX_EVENTS
from llmosd.context import Context

FAST = {"step_seconds": 1.0, "sequence_seconds": 0.0, "prompt_seconds": 0.0, "reply_tokens": 8}


async def teller(ctx: Context, tokens: int = 20, seed: int = 1) -> str:
    return await ctx.generate("one two three", max_tokens=tokens, seed=seed)


def text_of(seed: int, tokens: int) -> str:
    """What the simulated device says, undisturbed."""
    return "".join(simulated_token(seed, n)[1] for n in range(tokens))


def runtime(system: Any) -> Any:
    return system.kernel.resources.runtime("sim")


def assert_nothing_left(system: Any) -> None:
    run = runtime(system)
    assert (run._slots.taken, run._slots.queue, run._sequences) == (set(), [], {})
    assert system.driver.device._sequences == {}


# ---- serving


async def test_a_generation_answers_its_text_and_is_charged(system: Any) -> None:
    status = await system.status(system.spawn(teller, tokens=10, seed=7))
    assert status.value == text_of(7, 10)
    assert (status.usage.prompt_tokens, status.usage.generated_tokens) == (3, 10)
    await system.turns()
    assert_nothing_left(system)


async def test_one_load_serves_all_and_callers_see_what_they_wait_for(system: Any) -> None:
    recorder = system.recorder()
    processes = [system.spawn(teller, stream=recorder.stream), *(system.spawn("teller") for _ in range(4))]
    assert len({await system.result(process) for process in processes}) == 1
    assert system.launcher.kinds == [("simulated", "sim")]
    assert next(event.state for event in recorder.of(State)).startswith("model sim loading")


async def test_slots_are_given_first_come_first_served(system: Any) -> None:
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


async def test_never_more_sequences_on_the_driver_than_slots(system: Any) -> None:
    processes = [system.spawn(teller if not n else "teller", tokens=6) for n in range(9)]
    for process in processes:
        await system.status(process)
    sizes = [len(said.progress) for said in system.driver.said if isinstance(said, protocol.Bundle)]
    assert max(sizes) == 2
    assert sum(sizes) == 9 * 6


async def test_a_short_call_does_not_wait_for_its_long_neighbour(system: Any) -> None:
    long = system.spawn(teller, tokens=500)
    await asyncio.sleep(3.5)
    before = system.loop.time()
    await system.run("teller", tokens=5)
    assert system.loop.time() - before <= 6
    assert not long.ended


async def test_a_lease_is_renewed_before_it_runs_out(system: Any) -> None:
    await system.run(teller, tokens=40)
    assert not [said for said in system.driver.said if isinstance(said, protocol.Parked)]
    granted = sum(renew.tokens for renew in system.driver.sent_of(protocol.Renew))
    (admit,) = system.driver.sent_of(protocol.Admit)
    assert admit.lease == 4
    assert 36 <= granted <= 40 + 4


async def test_the_kernel_never_grants_more_than_a_lease_ahead(system: Any) -> None:
    process = system.spawn(teller, tokens=50)
    leases = []
    while not process.ended:
        await asyncio.sleep(1)
        leases += [sequence.lease for sequence in system.driver.device._sequences.values()]
    assert leases
    assert max(leases) <= 4
    assert min(leases) > 0


async def test_slot_and_model_tables_say_what_goes_on(system: Any) -> None:
    processes = [system.spawn(teller if not n else "teller") for n in range(4)]
    await asyncio.sleep(4.5)
    (row,) = await system.call(Slots())
    assert (row.state, row.slots, row.used, row.queued, row.restarts) == ("ready", 2, 2, 2, 0)
    assert [sequence.position for sequence in row.sequences] == [0, 0, 1, 2]
    assert [sequence.pid for sequence in row.sequences] == [process.pid for process in processes]
    assert row.tokens_per_second == pytest.approx(2.0)
    (model,) = await system.call(Models())
    assert (model.name, model.state, model.default, model.context) == ("sim", "ready", True, 8192)
    assert processes[0].state()[1].startswith("sim: ")
    assert "queued" in processes[3].state()[1]


async def test_the_queue_has_a_bound_and_a_name_for_it(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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


# ---- kill and suspend


async def test_kill_during_a_generation_sends_cancel_and_frees_the_slot_when_the_driver_has_let_go(system: Any) -> None:
    victim, other, queued = (system.spawn(teller if not n else "teller", tokens=50) for n in range(3))
    await asyncio.sleep(5.5)
    run = runtime(system)
    system.kernel.ending.end(victim, "killed", "test")
    await asyncio.sleep(0)
    assert (await system.status(victim)).reason == "killed"
    assert [cancel.sequence for cancel in system.driver.sent_of(protocol.Cancel)] == [1]
    await system.turns()
    assert run._slots.taken == {2, 3}
    assert 1 not in run._sequences
    await system.call(Kill(other.pid))
    await system.call(Kill(queued.pid))
    await system.turns()
    assert_nothing_left(system)


async def test_a_kill_that_crosses_the_end_of_the_generation_leaves_nothing(system: Any) -> None:
    process = system.spawn(teller, tokens=3)
    while not system.launcher.drivers or not any(isinstance(m, protocol.Done) for m in system.driver.said):
        await asyncio.sleep(0.001)
        if process.generated_tokens == 2:
            await asyncio.sleep(0.9)
            break
    # The last step is under way in the driver: its Done and our Cancel meet on the wire.
    system.loop.call_later(0.1, system.kernel.ending.end, process, "killed", "test")
    await system.status(process)
    await asyncio.sleep(3)
    assert_nothing_left(system)


async def test_kill_of_a_queued_call_tells_the_driver_nothing(system: Any) -> None:
    processes = [system.spawn(teller if not n else "teller") for n in range(3)]
    await asyncio.sleep(2.5)
    await system.call(Kill(processes[2].pid))
    assert system.driver.sent_of(protocol.Cancel) == []
    assert runtime(system)._slots.queue == []
    assert await system.result(processes[0]) == await system.result(processes[1])


async def test_kill_while_the_model_loads(system: Any) -> None:
    process = system.spawn(teller)
    await system.turns(2)
    await system.call(Kill(process.pid))
    assert await system.run("teller", tokens=5) == text_of(1, 5)
    await system.turns()
    assert_nothing_left(system)


async def test_a_timeout_around_a_generation_frees_its_slot(system: Any) -> None:
    async def impatient(ctx: Context) -> str:
        try:
            async with asyncio.timeout(5):
                await ctx.generate("x", max_tokens=1000)
        except TimeoutError:
            return await ctx.generate("x", max_tokens=3, seed=1)
        return ""

    assert await system.run(impatient) == text_of(1, 3)
    await system.turns()
    assert_nothing_left(system)


@pytest.mark.parametrize("after", [0, 0.5, 3.5, 4.0, 5.0, 19.5])
async def test_suspend_takes_a_generation_off_its_slot_and_resume_continues_the_same_text(
    system: Any, after: float
) -> None:
    process = system.spawn(teller, tokens=20, seed=5)
    await system.turns(3)
    await asyncio.sleep(after)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    made = process.generated_tokens
    assert runtime(system)._slots.taken == set()
    others = [system.spawn("teller", tokens=8) for _ in range(2)]
    for other in others:
        await system.status(other)
    assert process.generated_tokens == made
    assert not process.ended
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(5, 20)
    await system.turns()
    assert_nothing_left(system)


async def test_suspending_sends_revoke_and_resuming_at_once_just_goes_on(system: Any) -> None:
    process = system.spawn(teller, tokens=20, seed=5)
    await asyncio.sleep(5.5)
    for _ in range(3):
        await system.call(Suspend(process.pid))
        await system.call(Resume(process.pid))
    assert len(system.driver.sent_of(protocol.Revoke)) == 3
    assert await system.result(process) == text_of(5, 20)
    await system.turns()
    assert_nothing_left(system)


async def test_a_resume_before_the_driver_has_parked_it_keeps_the_slot(system: Any) -> None:
    processes = [system.spawn(teller if not n else "teller", tokens=20) for n in range(3)]
    await asyncio.sleep(5.5)
    await system.call(Suspend(processes[0].pid))
    await system.call(Resume(processes[0].pid))
    assert [sequence.id for sequence in runtime(system)._slots.queue] == [3]
    await asyncio.sleep(3)
    assert runtime(system)._slots.taken == {1, 2}
    for process in processes:
        assert await system.result(process) == text_of(1, 20)


@pytest.mark.parametrize(
    "models", [{"sim": ModelSpec(driver="simulated", slots=1, lease=lease, options=FAST)} for lease in (1, 2, 3)]
)
async def test_the_shortest_leases_lose_no_slot_and_no_token(system: Any) -> None:
    processes = [system.spawn(teller if not n else "teller", tokens=7) for n in range(3)]
    for process in processes:
        assert await system.result(process) == text_of(1, 7)
    bundles = [said for said in system.driver.said if isinstance(said, protocol.Bundle)]
    assert max(len(bundle.progress) for bundle in bundles) == 1


async def test_a_resumed_generation_takes_its_old_place_in_line(system: Any) -> None:
    first, second, third, fourth = (system.spawn(teller if not n else "teller", tokens=12) for n in range(4))
    await asyncio.sleep(2.5)
    await system.call(Suspend(first.pid))
    await asyncio.sleep(2)  # the third has its slot now
    await system.call(Resume(first.pid))
    assert [sequence.id for sequence in runtime(system)._slots.queue] == [1, 4]
    for process in (first, second, third, fourth):
        assert await system.result(process) == text_of(1, 12)


async def test_resuming_one_thread_leaves_the_generations_of_the_others_in_line_once(system: Any) -> None:
    async def two_threads(ctx: Context) -> str:
        ctx.start_thread(ctx.sleep(1000))
        return await ctx.generate("one two three", max_tokens=12, seed=1)

    running = [system.spawn(teller if not n else "teller", tokens=12) for n in range(2)]
    waiting = system.spawn(two_threads)
    await asyncio.sleep(2)
    await system.call(Suspend(waiting.pid, "0-1"))
    await system.call(Resume(waiting.pid, "0-1"))
    assert [sequence.id for sequence in runtime(system)._slots.queue] == [3]
    for process in (*running, waiting):
        assert await system.result(process) == text_of(1, 12)
    await asyncio.sleep(60)
    assert_nothing_left(system)


async def test_a_resumed_generation_does_not_take_a_slot_while_its_reader_is_behind(system: Any) -> None:
    recorder = system.recorder(credit=0)

    async def behind(ctx: Context) -> str:
        ctx.start_thread(flood(ctx))
        return await ctx.generate("one two three", max_tokens=12, seed=1)

    async def flood(ctx: Context) -> None:
        await ctx.receive()
        for number in range(MAX_EVENTS):
            await ctx.emit(number)

    process = system.spawn(behind, stream=recorder.stream)
    await asyncio.sleep(3)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    others = [system.spawn(teller if not n else "teller", tokens=30) for n in range(2)]
    await asyncio.sleep(2)
    await system.call(Resume(process.pid))  # both slots are taken: it waits in line
    await system.call(Send(process.pid, "go"))
    for other in others:
        await system.result(other)
    assert runtime(system)._slots.taken == set()
    recorder.stream.grant(10_000)
    assert await system.result(process) == text_of(1, 12)


async def test_a_call_made_as_its_process_is_suspended_waits_for_the_resume(system: Any) -> None:
    process = system.spawn(teller, tokens=4)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(20)
    assert process.calls == 0
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(1, 4)


async def test_kill_of_a_suspended_generation_frees_it_in_the_driver(system: Any) -> None:
    process = system.spawn(teller, tokens=50)
    await asyncio.sleep(5.5)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    await system.call(Kill(process.pid))
    await system.turns()
    assert_nothing_left(system)


# ---- the driver dies


@pytest.mark.parametrize("after", [0.5, 2.5, 4.0, 9.5])
async def test_generations_go_on_in_a_new_driver_with_the_text_they_would_have_had(system: Any, after: float) -> None:
    recorders = [system.recorder() for _ in range(4)]
    processes = [
        system.spawn(teller if not n else "teller", tokens=20, seed=n, stream=recorder.stream)
        for n, recorder in enumerate(recorders)
    ]
    await asyncio.sleep(after)
    system.driver.die()
    for n, process in enumerate(processes):
        assert await system.result(process) == text_of(n, 20)
        assert process.generated_tokens == 20
        assert process.prompt_tokens == 3
        assert "".join(event.text for event in recorders[n].of(Token)) == text_of(n, 20)
    assert len(system.launcher.drivers) == 2
    (row,) = await system.call(Slots())
    assert row.restarts == 1
    logged = [event.event for event in recorders[0].of(Log)]
    assert logged == ["driver died; the generation goes on in a new one"]
    assert_nothing_left(system)


async def test_an_admission_after_a_death_carries_all_that_was_made(system: Any) -> None:
    process = system.spawn(teller, tokens=20, seed=9)
    await asyncio.sleep(6.5)
    made = process.generated_tokens
    system.driver.die()
    await system.result(process)
    (admit,) = system.driver.sent_of(protocol.Admit)
    assert (admit.prompt, admit.prompt_ids) == ("", [3, 3, 5])
    assert admit.generated == [simulated_token(9, n)[0] for n in range(made)]
    assert admit.released == len(text_of(9, made))


async def test_a_driver_that_dies_too_often_under_one_generation_fails_it(system: Any) -> None:
    process = system.spawn(teller, tokens=1000)
    for _ in range(MAX_DEATHS + 1):
        await asyncio.sleep(10)
        system.driver.die()
        await system.turns()
    with pytest.raises(DriverFailed, match="4 times"):
        await system.result(process)
    assert await system.run("teller", tokens=5) == text_of(1, 5)


async def test_a_queued_call_does_not_pay_for_the_deaths_of_others(system: Any) -> None:
    victims = [system.spawn(teller if not n else "teller", tokens=1000) for n in range(2)]
    queued = system.spawn("teller", tokens=5)
    for _ in range(MAX_DEATHS + 1):
        await asyncio.sleep(10)
        system.driver.die()
        await system.turns()
    for victim in victims:
        with pytest.raises(DriverFailed):
            await system.result(victim)
    assert await system.result(queued) == text_of(1, 5)


async def test_a_driver_that_never_gets_to_a_token_is_given_up(system: Any) -> None:
    async def die_at_birth() -> None:
        while True:
            await asyncio.sleep(0.01)
            if system.launcher.drivers:
                system.driver.die("exit code 1")

    killer = asyncio.ensure_future(die_at_birth())
    with pytest.raises(DriverFailed, match=r"exit code 1"):
        await system.run(teller)
    killer.cancel()
    assert len(system.launcher.drivers) <= runtime_module.MAX_RESTARTS + 1
    assert await system.run("teller", tokens=5) == text_of(1, 5)


async def test_a_kill_while_the_driver_is_dead_leaves_nothing(system: Any) -> None:
    process = system.spawn(teller, tokens=50)
    await asyncio.sleep(5.5)
    system.driver.die()
    await system.turns(1)
    await system.call(Kill(process.pid))
    await asyncio.sleep(5)
    assert_nothing_left(system)


async def test_a_kill_whose_done_never_comes_because_the_driver_dies_leaves_nothing(system: Any) -> None:
    process = system.spawn(teller, tokens=50)
    await asyncio.sleep(5.5)
    system.kernel.ending.end(process, "killed", "test")
    system.driver.die()
    await asyncio.sleep(5)
    assert_nothing_left(system)
    assert await system.run("teller", tokens=5) == text_of(1, 5)


async def test_a_suspended_generation_survives_the_death_of_the_driver(system: Any) -> None:
    process = system.spawn(teller, tokens=20, seed=2)
    await asyncio.sleep(5.5)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    system.driver.die()
    await asyncio.sleep(20)
    assert not process.ended
    assert system.driver.sent_of(protocol.Admit) == []
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(2, 20)


async def test_a_resumed_generation_in_line_is_there_once_after_the_death_of_the_driver(system: Any) -> None:
    processes = [system.spawn(teller if not n else "teller", tokens=20) for n in range(3)]
    await asyncio.sleep(3)
    await system.call(Suspend(processes[0].pid))
    await asyncio.sleep(2)  # the third has its slot now
    await system.call(Resume(processes[0].pid))
    system.driver.die()
    await system.turns()
    queue = [sequence.id for sequence in runtime(system)._slots.queue]
    assert len(set(queue)) == len(queue)
    for process in processes:
        assert await system.result(process) == text_of(1, 20)
    await asyncio.sleep(60)
    assert_nothing_left(system)


async def test_what_an_old_incarnation_still_says_is_ignored(system: Any) -> None:
    process = system.spawn(teller, tokens=20, seed=2)
    await asyncio.sleep(5.5)
    old = system.driver
    old.die()
    await asyncio.sleep(2)
    for stale in (
        protocol.Bundle([protocol.Progress(1, [1], "stale")], 1, 1.0),
        protocol.Done(1, "stop"),
        protocol.Failed(1, to_wire(ModelLoadFailed("stale"))),
        protocol.Parked(1),
        protocol.LoadFailed(to_wire(ModelLoadFailed("stale"))),
    ):
        old.on_message(stale)
    old._on_exit("again")
    assert await system.result(process) == text_of(2, 20)
    assert len(system.launcher.drivers) == 2


async def test_messages_about_sequences_that_are_gone_do_no_harm(system: Any) -> None:
    await system.run(teller, tokens=3)
    for stray in (
        protocol.Bundle([protocol.Progress(99, [1], "x")], 1, 1.0),
        protocol.Admitted(99, [1]),
        protocol.Done(99, "stop"),
        protocol.Parked(99),
    ):
        system.driver.on_message(stray)
    assert await system.run("teller", tokens=3) == text_of(1, 3)


# ---- loading


async def test_a_load_that_fails_is_named_and_the_next_call_tries_again(system: Any) -> None:
    system.launcher.refusals.append(OSError("no more processes"))
    with pytest.raises(ModelLoadFailed, match="no more processes"):
        await system.run(teller)
    (row,) = await system.call(Models())
    assert row.state == "failed"
    assert await system.run("teller", tokens=5) == text_of(1, 5)


async def test_everybody_who_waits_for_a_load_that_fails_gets_the_error(system: Any) -> None:
    system.launcher.refusals.append(OSError("no"))
    processes = [system.spawn(teller if not n else "teller") for n in range(5)]
    statuses = [await system.status(process) for process in processes]
    assert [status.error.code for status in statuses] == ["ModelLoadFailed"] * 5


@pytest.mark.parametrize("models", [{"sim": ModelSpec(driver="simulated", options={"step_secs": 1})}])
async def test_wrong_driver_options_are_a_named_error_that_lists_the_right_ones(system: Any) -> None:
    for program in (teller, "teller"):
        with pytest.raises(ConfigError, match=r"step_secs.*step_seconds"):
            await system.run(program)
    await asyncio.sleep(1)
    assert all(driver.stopped for driver in system.launcher.drivers)


async def test_a_slow_load_is_told_to_those_who_wait(system: Any) -> None:
    recorder = system.recorder()
    await system.result(system.spawn(teller, stream=recorder.stream))
    states = [(event.state, event.detail) for event in recorder.of(State)]
    assert ("model sim loading", "pretending to load") in states


TWO_MODELS = {
    "slow": ModelSpec(driver="simulated", options=FAST | {"load_seconds": 1000}),
    "quick": ModelSpec(driver="simulated", options=FAST),
}


@pytest.mark.parametrize("models", [TWO_MODELS])
async def test_a_model_that_loads_for_long_holds_up_no_other(system: Any) -> None:
    async def asks(ctx: Context, model: str) -> str:
        return await ctx.generate("x", model=model, max_tokens=3)

    slow = system.spawn(asks, model="slow")
    before = system.loop.time()
    await system.run("asks", model="quick")
    assert system.loop.time() - before < 10
    assert not slow.ended
    await system.result(slow)


async def test_unknown_models_are_named_with_the_known_ones(system: Any, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="configured: sim"):
        await system.call(Generate("x", "simm"))
    with pytest.raises(ModelNotFound):
        await system.call(Generate("x", str(tmp_path / "nothing")))


# ---- what is refused


async def test_an_overlong_request_says_both_numbers_and_hurts_nobody(system: Any) -> None:
    async def greedy(ctx: Context) -> str:
        return await ctx.generate("word " * 100, max_tokens=8100)

    neighbour = system.spawn(teller, tokens=10)
    await asyncio.sleep(2)
    with pytest.raises(ContextOverflow) as caught:
        await system.run(greedy)
    assert caught.value.data == {"prompt_tokens": 100, "max_tokens": 8100, "context": 8192}
    assert "100" in caught.value.message
    assert "8100" in caught.value.message
    assert await system.result(neighbour) == text_of(1, 10)
    assert_nothing_left(system)


async def test_an_empty_prompt_is_refused(system: Any) -> None:
    async def mute(ctx: Context) -> str:
        return await ctx.generate("  ")

    with pytest.raises(InvalidPrompt):
        await system.run(mute)


@pytest.mark.parametrize(
    "options", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 2}, {"top_k": 0}, {"seed": -1}, {"stop": ""}]
)
async def test_sampling_out_of_range_is_refused_before_it_gets_to_a_driver(
    system: Any, options: dict[str, Any]
) -> None:
    async def agent(ctx: Context) -> str:
        return await ctx.generate("x", **options)

    with pytest.raises(InvalidCall, match="generation options"):
        await system.run(agent)
    assert system.launcher.drivers == []


async def test_messages_of_the_wrong_form_are_refused(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        return await ctx.chat([{"role": "user"}])

    with pytest.raises(InvalidCall, match="content"):
        await system.run(agent)


async def test_defaults_of_the_model_hold_where_a_call_says_nothing(system: Any) -> None:
    async def plain(ctx: Context) -> str:
        return await ctx.chat([{"role": "user", "content": "hello you"}])

    await system.run(plain)
    await system.run("plain")
    first, second = system.driver.sent_of(protocol.Admit)
    assert first.sampling.temperature == 0.0
    assert first.sampling.seed != second.sampling.seed
    assert first.sampling.max_tokens is None


async def test_several_generations_of_one_process_run_together(system: Any) -> None:
    async def parallel(ctx: Context) -> list[str]:
        return await asyncio.gather(*(ctx.generate("x", max_tokens=5, seed=n) for n in range(4)))

    assert await system.run(parallel) == [text_of(n, 5) for n in range(4)]


async def test_closing_the_kernel_stops_the_driver(system: Any) -> None:
    await system.run(teller, tokens=3)
    await system.kernel.close()
    assert system.driver.stopped
    assert not system.driver.alive


async def test_a_client_generates_by_itself(system: Any) -> None:
    assert await system.call(Generate("x y", None, Sampling(max_tokens=4, seed=3))) == text_of(3, 4)
