"""Running tasks: every reader gets the events and the result, and a slow reader holds up its task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ipc.errors import KeyReused, Killed
from ipc.messages import Emitted, Failed, Result
from ipc.syscalls import Attach, Kill, Submit, Submitted
from kernel.journal.store import Store
from llmosd.context import Context
from tests.support.agents import forever
from tests.support.slow_disk import Disk, double, ended
from tests.support.system import System

pytestmark = pytest.mark.real_time


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


async def test_a_key_finds_a_task_whose_end_is_written_together_with_the_question(system: System, disk: Disk) -> None:
    system.program(forever)
    disk.go.set()
    first = await system.call(Submit("forever", key="k", detach=True))
    disk.go.clear()
    enter = system.kernel.gate.enter
    other = system.thread(enter(system.client, Submit("forever", detach=True)))
    await system.turns()  # from now on the disk is busy with this task
    system.kernel.process_exit.end(system.table.alive[first.pid], "killed", "enough")
    await system.until(lambda: first.pid not in system.table.alive)
    recorder = system.recorder()
    again = system.thread(enter(system.client, Submit("forever", key="k", detach=True), recorder.stream))
    await system.turns()
    disk.go.set()
    await other
    assert await again == Submitted(first.id, 0)
    assert isinstance(recorder.events[-1], Failed)


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
