"""Streams of events: credit is honoured, order is kept, and a reader that is behind pauses the task."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.messages import Emitted, Failed, Log, Result, State, Token
from ipc.syscalls import Emit, Kill, Logs, Send
from kernel.slots.sequence import PARKED
from kernel.stream import MAX_EVENTS, MAX_TEXT, Stream
from llmosd.context import Context


def emitted(n: int) -> Emitted:
    return Emitted(1, n)


# ---- the stream by itself


def test_no_more_events_go_out_than_there_is_credit(make_recorder: Any) -> None:
    recorder = make_recorder(credit=2)
    for n in range(5):
        recorder.stream.push(emitted(n))
    assert recorder.events == [emitted(0), emitted(1)]
    recorder.stream.grant(1)
    assert len(recorder.events) == 3
    recorder.stream.grant(10)
    assert recorder.events == [emitted(n) for n in range(5)]
    recorder.stream.push(emitted(5))
    assert recorder.events[-1] == emitted(5)


def test_waiting_neighbours_of_one_generation_join(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    for text in ("a", "b", "c"):
        recorder.stream.push(Token(text, 1, 1))
    recorder.stream.push(Token("x", 1, 2))
    recorder.stream.push(Token("d", 1, 1))
    recorder.stream.grant(10)
    assert recorder.events == [Token("abc", 1, 1), Token("x", 1, 2), Token("d", 1, 1)]


def test_tokens_do_not_join_across_another_event(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    recorder.stream.push(Token("before", 1, 1))
    recorder.stream.push(emitted(1))
    recorder.stream.push(Token("after", 1, 1))
    recorder.stream.push(Token("wards", 1, 1))
    recorder.stream.grant(10)
    assert recorder.events == [Token("before", 1, 1), emitted(1), Token("afterwards", 1, 1)]


def test_tokens_join_again_after_part_of_them_went_out(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    recorder.stream.push(Token("a", 1, 1))
    recorder.stream.grant(1)
    recorder.stream.push(Token("b", 1, 1))
    recorder.stream.push(Token("c", 1, 1))
    recorder.stream.grant(5)
    assert recorder.events == [Token("a", 1, 1), Token("bc", 1, 1)]


def test_text_and_events_congest_and_reading_relieves(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    relieved = []
    recorder.stream.push(Token("x" * MAX_TEXT, 1, 1))
    assert recorder.stream.congested
    recorder.stream.when_drained(lambda: relieved.append(1))
    recorder.stream.grant(1)
    assert not recorder.stream.congested
    assert relieved == [1]
    recorder.stream.grant(1)
    assert relieved == [1]
    for n in range(MAX_EVENTS + 1):
        recorder.stream.push(emitted(n))
    assert recorder.stream.congested


def test_log_lines_give_way_to_their_count_when_nobody_reads_but_results_never_do(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    for n in range(MAX_EVENTS + 10):
        recorder.stream.push(Log(1, 0.0, "info", str(n)))
    recorder.stream.push(State(1, "waits"))
    recorder.stream.push(Result(1, "value"))
    recorder.stream.end()
    assert not recorder.ended
    recorder.stream.grant(10_000)
    assert recorder.events[-2].fields == {"lines": 10}
    assert len(recorder.events) == MAX_EVENTS + 2
    assert recorder.events[-1] == Result(1, "value")
    assert recorder.ended


def test_close_releases_waiters_and_drops_what_waits(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    for n in range(MAX_EVENTS):
        recorder.stream.push(emitted(n))
    relieved = []
    recorder.stream.when_drained(lambda: relieved.append(1))
    recorder.stream.close()
    assert relieved == [1]
    assert not recorder.stream.congested
    recorder.stream.push(emitted(0))
    recorder.stream.grant(5)
    recorder.stream.end()
    assert recorder.events == []
    assert not recorder.ended


def test_a_relief_that_makes_the_stream_congested_again_waits_again(make_recorder: Any) -> None:
    recorder = make_recorder(credit=0)
    calls = []

    def refill() -> None:
        calls.append(1)
        for n in range(MAX_EVENTS):
            recorder.stream.push(emitted(n))
        recorder.stream.when_drained(refill)

    refill()
    recorder.stream.grant(MAX_EVENTS)
    assert calls == [1, 1]
    assert recorder.stream.congested


@pytest.fixture
def make_recorder() -> Any:
    """A recorder without a kernel: the client's end of a stream."""

    class Recorder:
        def __init__(self, credit: int) -> None:
            self.events: list[Any] = []
            self.ended = False
            self.stream = Stream(self.events.append, credit, self._end)

        def _end(self) -> None:
            self.ended = True

    return Recorder


# ---- emit


async def test_emit_waits_while_the_reader_is_behind_and_loses_nothing(system: Any) -> None:
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> str:
        for n in range(3 * MAX_EVENTS):
            await ctx.emit(n)
        return "done"

    process = system.spawn(agent, stream=recorder.stream)
    await system.turns(50)
    assert process.state() == ("blocked", "reader of the task")
    assert process.calls == MAX_EVENTS + 1
    while not process.ended:
        recorder.stream.grant(10)
        await system.turns(5)
    recorder.stream.grant(10_000)
    await system.turns()
    assert [event.value for event in recorder.of(Emitted)] == list(range(3 * MAX_EVENTS))
    assert [type(event) for event in recorder.events[-1:]] == [Result]
    assert recorder.ended


async def test_a_stream_that_closes_lets_its_task_go_on(system: Any) -> None:
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> str:
        for n in range(3 * MAX_EVENTS):
            await ctx.emit(n)
        return "done"

    process = system.spawn(agent, stream=recorder.stream)
    await system.turns(50)
    assert not process.ended
    recorder.stream.close()
    assert await system.result(process) == "done"


async def test_a_task_waiting_for_its_reader_can_be_killed(system: Any) -> None:
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> None:
        while True:
            await ctx.emit(None)

    process = system.spawn(agent, stream=recorder.stream)
    await system.turns(50)
    await system.call(Kill(process.pid))
    recorder.stream.grant(10_000)
    assert isinstance(recorder.events[-1], Failed)
    assert recorder.ended


async def test_an_emit_given_up_leaves_nothing_with_the_stream(system: Any) -> None:
    recorder = system.recorder(credit=0)
    for n in range(MAX_EVENTS):
        recorder.stream.push(emitted(n))
    process = system.client
    process.stream = recorder.stream
    for _ in range(5):
        thread = system.thread(system.kernel.gate.enter(process, Emit("x")))
        await system.turns()
        thread.cancel()
        await system.turns()
    assert recorder.stream._on_relief == []
    process.stream = None


async def test_events_of_a_child_reach_the_submitter_of_its_parent(system: Any) -> None:
    async def child(ctx: Context) -> None:
        await ctx.emit("from the child")

    async def parent(ctx: Context) -> None:
        await ctx.wait(await ctx.spawn("child"))
        await ctx.wait(await ctx.spawn("child", detach=True))

    system.program(child)
    recorder = system.recorder()
    process = system.spawn(parent, stream=recorder.stream)
    await system.result(process)
    assert [(event.pid, event.value) for event in recorder.of(Emitted)] == [(process.pid + 1, "from the child")]


async def test_emit_without_a_reader_is_gone(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        for n in range(10 * MAX_EVENTS):
            await ctx.emit(n)
        return "done"

    process = system.spawn(agent, detach=True)
    assert await system.result(process) == "done"


# ---- generations and logs


async def test_tokens_flow_to_the_submitter_in_order(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        return await ctx.generate("one two", max_tokens=6, seed=1)

    recorder = system.recorder()
    text = await system.result(system.spawn(agent, stream=recorder.stream))
    assert "".join(event.text for event in recorder.of(Token)) == text
    assert len(recorder.of(Token)) == 6


async def test_a_quiet_generation_sends_no_tokens(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        return await ctx.generate("one two", max_tokens=6, emit=False)

    recorder = system.recorder()
    await system.result(system.spawn(agent, stream=recorder.stream))
    assert recorder.of(Token) == []


async def test_a_generation_parks_while_its_reader_is_behind_and_goes_on_afterwards(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.stream.MAX_TEXT", 15)
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> str:
        return await ctx.generate("prompt", max_tokens=20, seed=3)

    async def undisturbed(ctx: Context) -> str:
        return await ctx.generate("prompt", max_tokens=20, seed=3)

    process = system.spawn(agent, stream=recorder.stream)
    await asyncio.sleep(60)
    (sequence,) = process.sequences
    assert sequence.state == PARKED
    assert sequence.holds == {"reader"}
    assert 0 < len(sequence.ids) < 10
    assert "reader" in process.state()[1]
    # Its slot is free for others meanwhile.
    assert await system.run(undisturbed)
    recorder.stream.grant(10_000)
    text = await system.result(process)
    assert text == await system.run("undisturbed")
    assert "".join(event.text for event in recorder.of(Token)) == text


async def test_a_generation_does_not_begin_while_its_reader_is_behind(system: Any) -> None:
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> str:
        for n in range(MAX_EVENTS):
            await ctx.emit(n)
        return await ctx.generate("prompt", max_tokens=20, seed=3)

    process = system.spawn(agent, stream=recorder.stream)
    await asyncio.sleep(60)
    (sequence,) = process.sequences
    assert (sequence.state, sequence.ids) == (PARKED, [])
    recorder.stream.grant(10_000)
    assert len((await system.result(process)).split()) == 20


async def test_a_paused_generation_goes_on_when_its_reader_goes_away(system: Any) -> None:
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> str:
        for n in range(MAX_EVENTS):
            await ctx.emit(n)
        return await ctx.generate("prompt", max_tokens=20, seed=3)

    process = system.spawn(agent, stream=recorder.stream)
    await asyncio.sleep(60)
    assert not process.ended
    recorder.stream.close()
    assert len((await system.result(process)).split()) == 20


async def test_a_paused_generation_can_be_killed(system: Any) -> None:
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> str:
        for n in range(MAX_EVENTS):
            await ctx.emit(n)
        return await ctx.generate("prompt", max_tokens=20)

    process = system.spawn(agent, stream=recorder.stream)
    await asyncio.sleep(60)
    await system.call(Kill(process.pid))
    await asyncio.sleep(5)
    runtime = system.runtime()
    assert (runtime.work.slots.taken, runtime.work.slots.queue, runtime.work.sequences) == (set(), [], {})
    recorder.stream.grant(10_000)  # what it left with the stream does no harm
    assert recorder.ended


async def test_followers_of_a_log_see_new_lines_until_the_process_ends(system: Any) -> None:
    async def agent(ctx: Context) -> None:
        ctx.log("one")
        await ctx.receive()
        ctx.log("two", n=2)

    process = system.spawn(agent)
    await system.turns()
    recorder = system.recorder()
    so_far = system.kernel.gate.enter(system.client, Logs(process.pid, 10), recorder.stream)
    assert [line.event for line in so_far] == ["one"]
    await system.call(Send(process.pid, None))
    await system.status(process)
    assert [(line.event, line.fields) for line in recorder.events] == [("two", {"n": 2})]
    assert recorder.ended
    assert [line.event for line in await system.call(Logs(process.pid))] == ["one", "two"]
