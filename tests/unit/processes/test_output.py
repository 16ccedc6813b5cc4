"""The output of processes: `emit` waits for a reader that is behind, and followers of a log see each new line."""

from __future__ import annotations

from ipc.codec import encode
from ipc.frames import MAX_FRAME
from ipc.messages import Emitted, Failed, Result
from ipc.syscalls import Emit, Kill, Logs, Send
from kernel.core.stream import MAX_EVENTS
from llmosd.context import Context
from tests.support.system import System


async def test_emit_waits_while_the_reader_is_behind_and_loses_nothing(system: System) -> None:
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


async def test_a_stream_that_closes_lets_its_task_go_on(system: System) -> None:
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


async def test_a_task_waiting_for_its_reader_can_be_killed(system: System) -> None:
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


async def test_an_emit_given_up_leaves_nothing_with_the_stream(system: System) -> None:
    recorder = system.recorder(credit=0)
    for n in range(MAX_EVENTS):
        recorder.stream.push(Emitted(1, n))
    process = system.client
    process.stream = recorder.stream
    for _ in range(5):
        thread = system.thread(system.kernel.gate.enter(process, Emit("x")))
        await system.turns()
        thread.cancel()
        await system.turns()
    assert not recorder.stream._on_drained
    process.stream = None


async def test_events_of_a_child_reach_the_submitter_of_its_parent(system: System) -> None:
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


async def test_emit_without_a_reader_is_gone(system: System) -> None:
    async def agent(ctx: Context) -> str:
        for n in range(10 * MAX_EVENTS):
            await ctx.emit(n)
        return "done"

    process = system.spawn(agent, detach=True)
    assert await system.result(process) == "done"


async def test_followers_of_a_log_see_new_lines_until_the_process_ends(system: System) -> None:
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


async def test_a_log_that_no_frame_can_hold_is_answered_with_its_last_lines(system: System) -> None:
    async def agent(ctx: Context) -> None:
        for n in range(30):
            ctx.log("x" * 900_000, number=n)

    process = system.spawn(agent)
    await system.result(process)
    lines = await system.call(Logs(process.pid))
    assert len(encode(lines)) < MAX_FRAME
    assert [line.fields["number"] for line in lines] == list(range(30 - len(lines), 30))
