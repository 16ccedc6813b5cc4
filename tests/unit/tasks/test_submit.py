"""Submitting a task: it starts and is answered once it is on disk, even if its client gives up meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.codec import decode
from ipc.errors import Busy, DeadlineExceeded, NotEncodable, NotPermitted, UnknownTask
from ipc.messages import Failed
from ipc.syscalls import Attach, Submit, Submitted
from kernel.journal import journal as journal_module
from llmosd.context import Context
from tests.support.agents import forever, make_call
from tests.support.slow_disk import Disk, double, ended
from tests.support.system import System

pytestmark = pytest.mark.real_time


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


async def test_a_task_whose_deadline_passes_before_its_program_is_loaded_is_refused_and_not_stored(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load(parent: Any, name: str) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(system.kernel.lifecycle, "load", load)
    with pytest.raises(DeadlineExceeded, match="before the process could begin"):
        await system.call(Submit("slow", deadline=0.01))
    assert await system.history() == []


async def test_the_journal_stores_the_whole_deadline_though_the_load_took_time(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, load = system.program(forever), system.kernel.lifecycle.load

    async def slow(parent: Any, name: str) -> Any:
        await asyncio.sleep(0.01)  # taken off the deadline
        return await load(parent, name)

    monkeypatch.setattr(system.kernel.lifecycle, "find", lambda parent, name: None)
    monkeypatch.setattr(system.kernel.lifecycle, "load", slow)
    await system.call(Submit(program, deadline=3600.0, detach=True))
    assert system.kernel.tasks is not None
    query = "SELECT call FROM tasks"
    stored = await system.kernel.tasks._journal.read(lambda store: store.db.execute(query).fetchall())
    assert [decode(call, Submit).deadline for (call,) in stored] == [3600.0]


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
        submission.cancel()  # the answer has arrived, and was not read
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
    system.kernel.process_exit.end(other, "killed", "it left")
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
    monkeypatch.setattr(journal_module, "MAX_WAITING", 3)
    system.program(double)
    waiting = [asyncio.ensure_future(system.call(Submit("double", {"number": n}))) for n in range(3)]
    await system.turns()
    with pytest.raises(Busy, match="3 tasks wait"):
        await system.call(Submit("double", {"number": 9}))
    disk.go.set()
    assert len({(await one).id for one in waiting}) == 3
    await system.call(Submit("double", {"number": 9}))


async def test_agents_submit_nothing_and_unknown_tasks_are_named(system: System) -> None:
    async def agent(ctx: Context) -> None:
        await make_call(ctx, Submit("double"))

    with pytest.raises(NotPermitted):
        await system.run(agent)
    for text in ("", "zz", "-1", "f" * 16, "7"):
        with pytest.raises(UnknownTask):
            await system.call(Attach(text))
