"""Generations whose reader is behind: they park, let others run, and go on without a token lost."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ipc.messages import Emitted, Token
from ipc.syscalls import Kill
from kernel.core.event_log import EventLog
from kernel.core.stream import MAX_EVENTS
from kernel.models.sequence import PARKED
from llmosd.context import Context
from tests.support.system import System


async def test_tokens_flow_to_the_submitter_in_order(system: System) -> None:
    async def agent(ctx: Context) -> str:
        return await ctx.generate("one two", max_tokens=6, seed=1)

    recorder = system.recorder()
    text = await system.result(system.spawn(agent, stream=recorder.stream))
    assert "".join(event.text for event in recorder.of(Token)) == text
    assert len(recorder.of(Token)) == 6


async def test_a_quiet_generation_sends_no_tokens(system: System) -> None:
    async def agent(ctx: Context) -> str:
        return await ctx.generate("one two", max_tokens=6, emit=False)

    recorder = system.recorder()
    await system.result(system.spawn(agent, stream=recorder.stream))
    assert recorder.of(Token) == []


async def test_a_generation_parks_while_its_reader_is_behind_and_goes_on_afterwards(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.core.stream.MAX_TEXT", 15)
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> str:
        return await ctx.generate("prompt", max_tokens=20, seed=3)

    async def undisturbed(ctx: Context) -> str:
        return await ctx.generate("prompt", max_tokens=20, seed=3)

    process = system.spawn(agent, stream=recorder.stream)
    await asyncio.sleep(60)
    (sequence,) = system.sequences(process)
    assert sequence.state == PARKED
    assert sequence.block_reasons == {"reader"}
    assert 0 < len(sequence.ids) < 10
    assert "reader" in process.state()[1]
    # Its slot is free for others meanwhile.
    assert await system.run(undisturbed)
    recorder.stream.grant(10_000)
    text = await system.result(process)
    assert text == await system.run("undisturbed")
    assert "".join(event.text for event in recorder.of(Token)) == text


async def test_a_generation_does_not_begin_while_its_reader_is_behind(system: System) -> None:
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> str:
        for n in range(MAX_EVENTS):
            await ctx.emit(n)
        return await ctx.generate("prompt", max_tokens=20, seed=3)

    process = system.spawn(agent, stream=recorder.stream)
    await asyncio.sleep(60)
    (sequence,) = system.sequences(process)
    assert (sequence.state, sequence.ids) == (PARKED, [])
    recorder.stream.grant(10_000)
    assert len((await system.result(process)).split()) == 20


async def test_a_paused_generation_goes_on_when_its_reader_goes_away(system: System) -> None:
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


async def test_a_paused_generation_can_be_killed(system: System) -> None:
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
    assert (runtime.active.leases.taken, runtime.active.leases.queue, runtime.active.sequences) == (set(), [], {})
    recorder.stream.grant(10_000)  # its callback on the stream does no harm
    assert recorder.ended


@pytest.mark.parametrize("attached", [False, True])
async def test_calls_given_up_while_their_reader_is_behind_leave_nothing_with_the_stream(
    system: System, attached: bool
) -> None:
    """An agent that polls a model with a timeout would otherwise collect one generation in its stream per poll."""
    recorder = system.recorder(credit=0)
    log = EventLog(recorder.stream)

    async def agent(ctx: Context) -> None:
        for n in range(MAX_EVENTS):
            await ctx.emit(n)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(20):
                    await ctx.generate("prompt", max_tokens=20)

    process = system.spawn(agent, stream=log if attached else recorder.stream)  # type: ignore[arg-type]
    await asyncio.sleep(10)
    assert (len(recorder.stream._on_drained), len(log._on_drained)) == (1, int(attached))
    await asyncio.sleep(200)
    assert (len(recorder.stream._on_drained), len(log._on_drained)) == (1, int(attached))
    system.kernel.process_exit.end(process, "killed", "")
    await asyncio.sleep(5)
    assert len(recorder.stream._on_drained) == int(attached)  # the event log itself
    assert not log._on_drained


async def test_a_reply_that_ends_while_its_reader_is_behind_leaves_nothing_with_the_stream(system: System) -> None:
    lease = system.runtime().spec.lease
    recorder = system.recorder(credit=0)

    async def agent(ctx: Context) -> str:
        return await ctx.generate("prompt", max_tokens=lease, seed=3)

    process = system.spawn(agent, stream=recorder.stream)
    await system.until(lambda: system.sequences(process) and system.sequences(process)[0].ids)
    for n in range(MAX_EVENTS):
        recorder.stream.push(Emitted(0, n))
    await system.until(lambda: recorder.stream._on_drained)
    assert len((await system.result(process)).split()) == lease
    assert not recorder.stream._on_drained
