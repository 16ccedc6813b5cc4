"""The end of a task while the disk accepts no writes: clients learn of it once it is on disk; no other task waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from ipc.codec import reveal
from ipc.errors import JournalUnavailable, NameTaken
from ipc.messages import Emitted, Failed, Result, State
from ipc.syscalls import GetStats, Kill, Submit, Submitted
from kernel.journal import writer
from kernel.journal.journal import Journal
from kernel.journal.settings import JournalSettings
from kernel.journal.store import Store
from kernel.tasks import running, submit
from llmosd.context import Context
from tests.support.boot import boot_as
from tests.support.system import Recorder, System

pytestmark = pytest.mark.real_time


class Disk:
    """Refuses ends of tasks while `full`, and new tasks too unless `accepts`. New tasks wait until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = threading.Event()
        self.accepts = False
        self.go = threading.Event()
        self.go.set()
        finish, accept = Store.finish, Store.accept

        def no_end(store: Store, ends: Any) -> None:
            if ends and self.full.is_set():
                raise apsw.FullError("no room")
            finish(store, ends)

        def no_task(store: Store, wanted: Any) -> Any:
            self.go.wait()
            if wanted and self.full.is_set() and not self.accepts:
                raise apsw.FullError("no room")
            return accept(store, wanted)

        monkeypatch.setattr(Store, "finish", no_end)
        monkeypatch.setattr(Store, "accept", no_task)
        monkeypatch.setattr(writer, "RETRY", 0.005)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


class Journaled(System):
    """A kernel with a journal. Its program `held` waits for `go`, and returns the number of its attempt."""

    go: asyncio.Event

    async def waits(self, count: int) -> None:
        """Return when `count` ends wait for the disk, which has refused each of them."""
        await self.until(lambda: self.tasks._running._delayed == count)


def results(recorder: Recorder) -> list[Any]:
    return [reveal(event.value) for event in recorder.of(Result)]


@asynccontextmanager
async def daemon_run(folder: Path) -> AsyncIterator[Journaled]:
    system = boot_as(Journaled, folder, models={}, journal=Journal(folder, JournalSettings()))
    system.go = asyncio.Event()

    async def held(ctx: Context) -> int:
        await system.go.wait()
        return ctx.attempt

    system.program(held)
    await system.history()  # the journal is open
    try:
        yield system
    finally:
        await system.kernel.drain(0)
        await system.kernel.close()


@pytest.fixture
async def system(tmp_path: Path, disk: Disk) -> AsyncIterator[Journaled]:
    async with daemon_run(tmp_path) as system:
        yield system
        disk.full.clear()
        disk.go.set()


async def test_an_end_is_told_once_it_is_on_the_disk_and_what_else_runs_goes_on(system: Journaled, disk: Disk) -> None:
    more = asyncio.Event()

    async def talker(ctx: Context) -> None:
        await more.wait()
        await ctx.emit("I go on")

    first, second, talk = system.recorder(), system.recorder(), system.recorder()
    await system.submit(Submit(system.program(talker)), talk.stream)
    task = await system.submit(Submit("held"), first.stream)
    other = await system.submit(Submit("held", detach=True), second.stream)
    with capture_logs() as logs:
        disk.full.set()
        system.go.set()
        await system.waits(2)
        late = await system.attach(task.id)
        assert [type(event) for event in first.events] == [State]
        assert [(row.id, row.state, row.pid, row.ended) for row in (await system.history())[:2]] == [
            (other.id, "ending", 0, 0.0),
            (task.id, "ending", 0, 0.0),
        ]
        assert (await system.call(GetStats())).unwritten == 2
        more.set()
        await system.waits(3)
        assert [type(event) for event in talk.events] == [Emitted, State]
        with pytest.raises(JournalUnavailable):
            await system.submit(Submit("held"))
        disk.full.clear()
        await system.until(lambda: talk.ended and first.ended and second.ended and late.ended)
    assert [results(recorder) for recorder in (first, second, late)] == [[1], [1], [1]]
    assert (await system.call(GetStats())).unwritten == 0
    assert {row.state for row in await system.history()} == {"done"}
    said = [line["event"] for line in logs if "ends of tasks" in line["event"]]
    assert said == [
        "the ends of tasks wait for the disk, and are reported after that",
        "the delayed ends of tasks are on disk, and have been reported",
    ]


async def test_a_client_is_told_of_a_kill_once_the_task_will_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, finish = threading.Event(), Store.finish

    def late(store: Store, ends: Any) -> None:
        if ends:
            go.wait()
        finish(store, ends)

    monkeypatch.setattr(Store, "finish", late)
    async with daemon_run(tmp_path) as system:
        try:
            task = await system.submit(Submit("held", detach=True))
            killing = asyncio.ensure_future(system.call(Kill(task.pid)))
            await system.until(lambda: task.pid not in system.table.alive)
            await system.turns()
            assert not killing.done()
        finally:
            go.set()
        assert (await killing).reason == "killed"
        assert [row.state for row in await system.history()] == ["killed"]


async def test_a_disk_that_takes_nothing_holds_up_no_kill(system: Journaled, disk: Disk) -> None:
    task = await system.submit(Submit("held"))
    disk.full.set()
    assert (await system.call(Kill(task.pid))).reason == "killed"
    assert [row.state for row in await system.history()] == ["ending"]


async def test_the_end_of_a_task_whose_client_leaves_while_it_waits_is_kept_as_it_was(
    system: Journaled, disk: Disk
) -> None:
    client = system.kernel.lifecycle.open_client("other")
    recorder = system.recorder()
    task: Submitted = await system.thread(system.kernel.gate.enter(client, Submit("held"), recorder.stream), client)
    disk.full.set()
    system.go.set()
    await system.waits(1)
    recorder.stream.close()
    system.kernel.process_exit.end(client, "killed", "it left")
    disk.full.clear()
    found = await system.attach(task.id)
    await system.until(lambda: found.ended)
    assert results(found) == [1]
    assert results(recorder) == []
    assert [row.state for row in await system.history()] == ["done"]


@pytest.mark.parametrize("gives_up", [False, True])
async def test_what_speaks_against_a_task_that_was_accepted_is_told_once_that_is_on_the_disk(
    system: Journaled, disk: Disk, gives_up: bool
) -> None:
    disk.accepts = True
    disk.full.set()
    disk.go.clear()
    begun, submission = (
        system.thread(system.kernel.gate.enter(system.client, Submit("held", name="planner"), system.recorder().stream))
        for _ in range(2)
    )
    await system.until(lambda: system.journal._waiting == 2)
    disk.go.set()
    await begun
    await system.waits(1)
    await system.history()
    assert not submission.done()
    if gives_up:
        submission.cancel()
        await system.turns()
    disk.full.clear()
    with pytest.raises(asyncio.CancelledError if gives_up else NameTaken):
        await submission
    await system.waits(0)
    assert [(row.state, row.error) for row in await system.history()] == [("failed", "NameTaken"), ("running", "")]


async def test_a_stop_waits_for_the_disk_so_long_says_how_many_ends_it_lost_and_the_tasks_run_again(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "SETTLE_TIMEOUT", 0.05)
    with capture_logs() as logs:
        async with daemon_run(tmp_path) as system:
            recorder = system.recorder()
            task = await system.submit(Submit("held", detach=True), recorder.stream)
            await system.submit(Submit("held"))
            disk.full.set()
            system.go.set()
            await system.waits(2)
    said = [line["tasks"] for line in logs if "run again at the next start" in line["event"]]
    assert said == [2]
    assert [type(event) for event in recorder.events] == [State]
    disk.full.clear()
    async with daemon_run(tmp_path) as system:
        system.go.set()
        found = await system.attach(task.id)
        await system.until(lambda: found.ended)
        assert results(found) == [2]


async def test_a_stop_waits_until_the_disk_takes_the_ends(tmp_path: Path, disk: Disk) -> None:
    with capture_logs() as logs:
        async with daemon_run(tmp_path) as system:
            recorder = system.recorder()
            await system.submit(Submit("held"), recorder.stream)
            disk.full.set()
            system.go.set()
            await system.waits(1)
            stop = asyncio.ensure_future(system.kernel.drain(0))
            await system.turns()
            assert not stop.done()
            disk.full.clear()
            await stop
            assert results(recorder) == [1]
    assert not [line for line in logs if "run again at the next start" in line["event"]]


async def test_an_end_that_no_frame_can_hold_is_a_failure_by_name(
    system: Journaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would stay on disk for ever, and disconnect every client that asks for it."""
    monkeypatch.setattr(running, "MAX_OUTCOME", 1000)

    async def large(ctx: Context) -> str:
        await ctx.emit("so far")
        return "x" * 1000

    recorder = system.recorder()
    await system.submit(Submit(system.program(large)), recorder.stream)
    await system.until(lambda: recorder.ended)
    assert [type(event) for event in recorder.events] == [Emitted, Failed]
    assert recorder.of(Failed)[0].error.code == "FrameTooLarge"
    assert [(row.state, row.error) for row in await system.history()] == [("failed", "FrameTooLarge")]
