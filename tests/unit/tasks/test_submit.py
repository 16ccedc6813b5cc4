"""The task subsystem in a kernel with a journal whose disk is as slow as the test wants."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.codec import encode
from ipc.errors import Busy, KeyReused, Killed, NotEncodable, NotPermitted, UnknownTask
from ipc.messages import Emitted, Failed, Result
from ipc.syscalls import Attach, Kill, Submit, Submitted, TaskInfo
from kernel.journal import journal as journal_module
from kernel.journal.journal import Journal
from kernel.journal.records import Accepted
from kernel.journal.settings import JournalSettings
from kernel.journal.store import Store
from llmosd.context import Context
from tests.support.agents import forever, make_call
from tests.support.boot import boot
from tests.support.system import System

pytestmark = pytest.mark.real_time


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    system = boot(tmp_path, journal=Journal(tmp_path, JournalSettings()))
    yield system
    await system.kernel.drain(0)
    await system.kernel.close()


class Disk:
    """Holds up every commit until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        real = Store.accept

        def late(store: Store, tasks: Any) -> Any:
            self.go.wait()
            return real(store, tasks)

        monkeypatch.setattr(Store, "accept", late)


@pytest.fixture
def disk(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.go.set()


async def ended(system: System, count: int) -> list[TaskInfo]:
    """The history, once so many tasks have ended."""
    while True:
        rows = await system.history()
        if sum(bool(row.ended) for row in rows) == count:
            return rows
        await asyncio.sleep(0.001)


async def double(ctx: Context, number: int) -> int:
    return 2 * number


async def test_nothing_is_answered_or_begun_before_it_is_on_disk(system: System, disk: Disk) -> None:
    begun = []

    async def agent(ctx: Context) -> None:
        begun.append(ctx.attempt)

    submission = asyncio.ensure_future(system.call(Submit(system.program(agent))))
    await system.turns(50)
    assert (begun, submission.done(), list(system.table.alive)) == ([], False, [system.client.pid])
    disk.go.set()
    submitted: Submitted = await submission
    (row,) = await ended(system, 1)
    assert (row.id, row.state, begun) == (submitted.id, "done", [1])


async def test_a_result_is_told_once_it_is_on_disk_to_all_who_look(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    real = Store.finish

    def late(store: Store, ends: Any) -> Any:
        if ends:
            go.wait()
        return real(store, ends)

    async def agent(ctx: Context) -> str:
        await ctx.emit("on my way")
        return "done"

    await system.history()  # the journal is open
    monkeypatch.setattr(Store, "finish", late)
    first, second = system.recorder(), system.recorder()
    task = await system.kernel.threads.start_thread(
        system.client, system.kernel.gate.enter(system.client, Submit(system.program(agent)), first.stream)
    )
    await system.result(task.pid)
    assert [type(event) for event in first.events] == [Emitted]
    system.kernel.gate.enter(system.client, Attach(task.id), second.stream)
    go.set()
    while not (first.ended and second.ended):
        await asyncio.sleep(0.001)
    assert [event.value for event in first.of(Result) + second.of(Result)] == ["done", "done"]
    late_one = system.recorder()
    again: Submitted = await system.kernel.threads.start_thread(
        system.client, system.kernel.gate.enter(system.client, Attach(task.id), late_one.stream)
    )
    assert (again.id, again.pid, late_one.ended) == (task.id, 0, True)
    assert [event.value for event in late_one.of(Result)] == ["done"]


async def test_who_gives_up_before_the_commit_leaves_what_is_detached_to_run_and_nothing_else(
    system: System, disk: Disk
) -> None:
    program = system.program(double)
    system.program(forever)
    attached = system.thread(system.kernel.gate.enter(system.client, Submit("forever")))
    detached = system.thread(system.kernel.gate.enter(system.client, Submit(program, {"number": 4}, detach=True)))
    await system.turns()
    attached.cancel()
    detached.cancel()
    await system.turns()
    disk.go.set()
    rows = await ended(system, 2)
    assert {row.program: row.state for row in rows} == {"forever": "killed", "double": "done"}
    assert system.table.ended.keys() == {system.client.pid + 1}
    failed = system.recorder()
    killed = next(row.id for row in rows if row.program == "forever")
    await system.thread(system.kernel.gate.enter(system.client, Attach(killed), failed.stream))
    assert [event.error.code for event in failed.of(Failed)] == ["Killed"]


async def test_who_gives_up_as_the_task_begins_ends_it_if_it_is_attached(system: System) -> None:
    system.program(forever)
    for detach in (False, True):
        submission = system.thread(system.kernel.gate.enter(system.client, Submit("forever", detach=detach)))
        while len(system.table.alive) == 1:
            await asyncio.sleep(0)
        submission.cancel()  # its answer is in its hands, and was not taken
        with pytest.raises(asyncio.CancelledError):
            await submission
        await system.turns()
        assert len(system.table.alive) == (2 if detach else 1)


async def test_a_submission_whose_client_dies_meanwhile(system: System, disk: Disk) -> None:
    other = system.kernel.lifecycle.open_client("other")
    program = system.program(double)
    for detach in (False, True):
        system.thread(
            system.kernel.gate.enter(other, Submit(program, {"number": 4}, detach=detach)),
            other,
        )
    await system.turns()
    system.kernel.ending.end(other, "killed", "it left")
    await system.turns()
    disk.go.set()
    assert sorted(row.state for row in await ended(system, 2)) == ["done", "killed"]
    assert {row.owner for row in await system.history()} == {"other"}


async def test_what_speaks_against_a_task_is_said_before_it_is_kept(system: System) -> None:
    system.program(double)
    for call, error in (
        (Submit("double", {"number": "four"}), "BadArguments"),
        (Submit("double", {"number": 4}, name=""), "InvalidCall"),
        (Submit("nothing"), "UnknownProgram"),
        (Submit("double", {"number": 4}, deadline=float("nan")), "InvalidCall"),
    ):
        with pytest.raises(Exception, match=r".") as raised:
            await system.call(call)
        assert type(raised.value).__name__ == error

    async def anything(ctx: Context, value: Any) -> None:
        pass

    with pytest.raises(NotEncodable):
        await system.call(Submit(system.program(anything), {"value": object()}))
    assert await system.history() == []


async def test_what_speaks_against_it_only_after_the_commit_is_its_end(system: System, disk: Disk) -> None:
    system.program(forever)
    one, other = (asyncio.ensure_future(system.call(Submit("forever", name="planner", detach=True))) for _ in range(2))
    await system.turns()
    disk.go.set()
    answers = await asyncio.gather(one, other, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Submitted", "NameTaken"]
    (row,) = [row for row in await ended(system, 1) if row.ended]
    assert (row.state, row.error) == ("failed", "NameTaken")


async def test_too_many_that_wait_for_the_disk_are_refused(
    system: System, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "WAITING", 3)
    system.program(double)
    waiting = [asyncio.ensure_future(system.call(Submit("double", {"number": n}))) for n in range(3)]
    await system.turns()
    with pytest.raises(Busy, match="3 tasks wait"):
        await system.call(Submit("double", {"number": 9}))
    disk.go.set()
    assert len({(await one).id for one in waiting}) == 3
    await system.call(Submit("double", {"number": 9}))


async def test_a_key_finds_a_task_that_runs_and_one_that_ended(system: System) -> None:
    system.program(forever)
    first, second = [await system.call(Submit("forever", key="k", detach=True)) for _ in range(2)]
    assert first == second
    with pytest.raises(KeyReused):
        await system.call(Submit(system.program(double), {"number": 1}, key="k"))
    await system.call(Kill(first.pid))
    await ended(system, 1)
    recorder = system.recorder()
    third: Submitted = await system.thread(
        system.kernel.gate.enter(system.client, Submit("forever", key="k", detach=True), recorder.stream)
    )
    assert third == Submitted(first.id, 0)
    assert isinstance(recorder.events[-1], Failed)
    assert recorder.events[-1].error.code == Killed.__name__


async def test_agents_submit_nothing_and_unknown_tasks_are_named(system: System) -> None:
    async def agent(ctx: Context) -> None:
        await make_call(ctx, Submit("double"))

    with pytest.raises(NotPermitted):
        await system.run(agent)
    for text in ("", "zz", "-1", "f" * 16, "7"):
        with pytest.raises(UnknownTask):
            await system.call(Attach(text))


@pytest.mark.parametrize("behind", [1, 2])
async def test_a_reader_who_is_behind_holds_up_the_task(system: System, behind: int) -> None:
    counts: list[int] = []

    async def agent(ctx: Context) -> None:
        for number in range(1000):
            await ctx.emit(number)
            counts.append(number)

    readers = [system.recorder(0 if number < behind else 1_000_000) for number in range(3)]
    gate: Callable[..., Any] = system.kernel.gate.enter
    task: Submitted = await system.thread(gate(system.client, Submit(system.program(agent)), readers[0].stream))
    for reader in readers[1:]:
        gate(system.client, Attach(task.id), reader.stream)
    for reader in readers[:behind]:
        await system.turns(2000)
        before = len(counts)
        assert before < 1000
        await system.turns(100)
        assert len(counts) == before
        reader.stream.grant(1_000_000)
    await ended(system, 1)
    assert len(counts) == 1000


async def test_a_program_that_cannot_be_read_at_a_recovery_ends_its_own_tasks_alone(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = system.programs.load

    def load(name: str) -> Any:
        if name == "unreadable":
            raise OSError("the disk is gone")
        return loaded(name)

    system.program(double)
    monkeypatch.setattr(system.programs, "load", load)
    tasks = system.tasks
    earlier = [
        Accepted(name, "somebody", None, encode(Submit(name, {"number": 4})), time.time(), id=number)
        for number, name in enumerate(("unreadable", "double"), 1)
    ]
    tasks._recovery.recover(earlier)
    broken, sound = (tasks._tasks[task.id] for task in earlier)
    while broken.final is None or sound.final is None:
        await asyncio.sleep(0.01)
    assert isinstance(broken.final, Failed)
    assert isinstance(sound.final, Result)
