"""The stop of the daemon: what clients do meanwhile lasts, and the journal closes whatever the other parts do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ipc.errors import JournalUnavailable, LlmosError, ShuttingDown
from ipc.syscalls import Kill, KillTask, Send, Submit
from kernel import kernel as kernel_module
from kernel.core.event_log import EventLog
from kernel.journal.journal import Journal
from kernel.journal.settings import FILE, JournalSettings
from kernel.journal.store import Store
from llmosd.context import Context
from tests.support.boot import boot
from tests.support.durable_world import Life, World

pytestmark = pytest.mark.real_time


def pid_of(life: Life, program: str) -> int:
    return next(process.pid for process in life.system.table.alive.values() if process.program == program)


@asynccontextmanager
async def stopping(life: Life) -> AsyncIterator[None]:
    """The daemon stops, and waits for its drivers to write generations to disk while the block runs."""
    go, reached, generations = asyncio.Event(), asyncio.Event(), life.system.kernel.durability.generations

    async def slow() -> None:
        reached.set()
        await go.wait()

    generations.checkpoint_to_disk = slow  # type: ignore[method-assign]
    drain = asyncio.ensure_future(life.system.kernel.drain(0))
    await reached.wait()
    try:
        yield
    finally:
        go.set()
        await drain


def clean(folder: Path) -> bool:
    store = Store(folder / FILE, "off")
    try:
        return bool(next(iter(store.db.execute("SELECT clean FROM stops")))[0])
    finally:
        store.close()


@pytest.mark.parametrize("durable", [False, True])
async def test_a_detached_task_that_a_client_kills_while_the_daemon_stops_does_not_run_again(
    world: World, durable: bool
) -> None:
    async def victim(ctx: Context) -> None:
        await ctx.receive()

    async def innocent(ctx: Context) -> None:
        await ctx.receive()

    world.agent(victim, durable=durable)
    world.agent(innocent, durable=durable)
    async with world.life(orderly=True) as life:
        await life.submit("victim")
        await life.submit("innocent")
        async with stopping(life):
            status = await life.system.call(Kill(pid_of(life, "victim")))
            assert status.reason == "killed"
    async with world.life(life.folder, orderly=True) as life:
        await life.until(lambda: any(process.program == "innocent" for process in life.system.table.alive.values()))
        assert [(row.program, row.state) for row in await life.system.history()] == [
            ("innocent", "running"),
            ("victim", "killed"),
        ]


async def test_a_child_of_a_durable_agent_that_a_client_kills_while_the_daemon_stops_does_not_run_again(
    world: World,
) -> None:
    starts = []

    async def child(ctx: Context) -> None:
        starts.append(ctx.pid)
        await ctx.receive()

    async def parent(ctx: Context) -> str:
        pid = await ctx.spawn("child")
        await ctx.receive(type="go on")
        try:
            return str(await ctx.wait(pid))
        except LlmosError as error:
            return error.message

    world.agent(child)
    world.agent(parent)
    async with world.life(orderly=True) as life:
        task = await life.submit("parent")
        await life.until(lambda: starts)
        async with stopping(life):
            assert (await life.system.call(Kill(starts[0]))).reason == "killed"
    async with world.life(life.folder, orderly=True) as life:
        await life.until(lambda: any(process.program == "parent" for process in life.system.table.alive.values()))
        await life.system.call(Send(pid_of(life, "parent"), None, type="go on"))
        assert "killed by process" in await life.result(task)
    assert len(starts) == 1


@pytest.mark.parametrize("by_task", [False, True])
async def test_a_kill_of_what_the_stop_interrupted_before_is_refused_because_it_runs_again(
    world: World, by_task: bool
) -> None:
    async def stubborn(ctx: Context) -> None:
        while True:
            try:
                await ctx.receive()
            except asyncio.CancelledError:
                dying.set()
                await asyncio.wait([asyncio.ensure_future(let_go.wait())])
                raise

    dying, let_go = asyncio.Event(), asyncio.Event()
    world.agent(stubborn, durable=False)
    async with world.life(orderly=True) as life:
        task = await life.submit("stubborn")
        call = KillTask(task) if by_task else Kill(pid_of(life, "stubborn"))
        drain = asyncio.ensure_future(life.system.kernel.drain(0))
        await dying.wait()
        killing = asyncio.ensure_future(life.system.call(call))
        await life.system.turns()
        let_go.set()
        with pytest.raises(ShuttingDown, match=r"restarts in the next run of the daemon; kill it then"):
            await killing
        await drain
    async with world.life(life.folder, orderly=True) as life:
        await life.until(lambda: any(process.program == "stubborn" for process in life.system.table.alive.values()))


async def test_the_journal_closes_in_order_though_drivers_and_subprocesses_never_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    journal = Journal(tmp_path, JournalSettings())
    system = boot(tmp_path, journal=journal)
    monkeypatch.setattr(kernel_module.BELONGINGS, "close", never)
    system.kernel.resources.close, ended = never, system.kernel.resources.close  # type: ignore[method-assign]
    await system.kernel.drain(0)
    closing = asyncio.ensure_future(system.kernel.close())
    await system.until(lambda: journal.closed)
    closing.cancel()
    await asyncio.wait([closing])
    await ended()
    assert clean(tmp_path)


async def test_an_error_of_one_part_at_the_stop_closes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise OSError("no")

    journal = Journal(tmp_path, JournalSettings())
    system = boot(tmp_path, journal=journal)
    monkeypatch.setattr(kernel_module.BELONGINGS, "close", broken)
    await system.kernel.drain(0)
    with pytest.raises(OSError, match="no"):
        await system.kernel.close()
    assert journal.closed
    assert clean(tmp_path)


async def test_a_stop_that_the_loop_never_answers_is_recorded_and_counts_no_crash(tmp_path: Path) -> None:
    """The signal thread and the last resort call `stop_began`; then the process ends without a close."""
    journal = Journal(tmp_path, JournalSettings())
    await journal.read(lambda store: None)
    assert not clean(tmp_path)
    await asyncio.to_thread(journal.stop_began)
    await asyncio.to_thread(journal.stop_began)
    await journal.read(lambda store: None)
    assert clean(tmp_path)
    await journal.close()


async def test_a_request_after_the_journal_was_closed_is_answered(tmp_path: Path) -> None:
    journal = Journal(tmp_path, JournalSettings())
    closing = asyncio.ensure_future(journal.close())
    await asyncio.sleep(0)
    ends: list[LlmosError | None] = []
    journal.persist((), ends.append)
    with pytest.raises(JournalUnavailable, match="closed"):
        await journal.read(lambda store: None)
    await asyncio.gather(closing, journal.close())
    assert [type(end) for end in ends] == [JournalUnavailable]


async def test_an_end_is_reported_once_and_an_answer_that_fails_costs_no_other(tmp_path: Path) -> None:
    """The stream of the first task raises at its end, which is reported again later: other answers still arrive."""

    async def held(ctx: Context) -> str:
        await go.wait()
        return "done"

    class Broken(EventLog):
        def finish(self, event: object) -> None:
            raise ValueError("broken")

    go, reported = asyncio.Event(), list[str]()
    system = boot(tmp_path, journal=Journal(tmp_path, JournalSettings()))
    recorder = system.recorder()
    first = await system.submit(Submit(system.program(held)), system.recorder().stream)
    await system.submit(Submit("held"), recorder.stream)
    running = system.tasks._running
    task = next(task for task in running.tasks.values() if task.pid == first.pid)
    task.event_log, task.when_reported = Broken(None), lambda: reported.append("first")
    go.set()
    await system.until(lambda: recorder.ended and reported)
    running._written(task, None)
    running._written(task, JournalUnavailable("late"))
    running.fail(task, "failed", ValueError("late"))
    assert reported == ["first"]
    assert system.tasks.unwritten == 0
    assert [row.state for row in await system.history()] == ["done", "done"]
    await system.kernel.drain(0)
    await system.kernel.close()
