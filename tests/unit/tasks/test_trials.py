"""Tasks that are held back after deaths of the daemon, and the tasks on trial for which they wait."""

from __future__ import annotations

import asyncio
import time

import pytest

from ipc.codec import encode
from ipc.errors import ShuttingDown
from ipc.syscalls import Attach, History, KillTask, Submit, Why
from kernel.journal.histories import RecoveredState
from kernel.journal.records import AcceptedTask
from kernel.tasks import trials
from llmosd.context import Context
from tests.support.slow_disk import double
from tests.support.system import System

pytestmark = pytest.mark.real_time


async def endless(ctx: Context, number: int) -> None:
    await ctx.receive()


async def accept(system: System, program: str, count: int) -> list[AcceptedTask]:
    """Put tasks of a previous run into the journal, without running them."""
    loop = asyncio.get_running_loop()
    answers = []
    for number in range(count):
        answer = loop.create_future()
        call = encode(Submit(program, {"number": number}))
        system.tasks._journal.accept(AcceptedTask(program, "ann", None, call, time.time()), answer.set_result)
        answers.append(answer)
    return [await answer for answer in answers]


def opened(system: System, seconds: float, alone: bool = False) -> None:
    system.tasks.recovery.trials.opened(RecoveredState(crashes=2, trial_seconds=seconds, alone=alone))


async def test_a_group_restarts_when_the_tasks_before_it_have_run_for_the_time_of_a_trial(system: System) -> None:
    system.program(endless)
    tasks = await accept(system, "endless", 3)
    for group, task in enumerate(tasks):
        task.group = group
    opened(system, 0.05)
    system.tasks.recovery.recover(tasks)
    running = system.tasks._tasks
    assert [system.tasks.recovery.trials.holds(task.id) for task in tasks] == [False, True, True]
    while not running[tasks[2].id].pid:
        assert bool(running[tasks[0].id].pid) >= bool(running[tasks[1].id].pid)
        await asyncio.sleep(0.001)
    assert [running[task.id].attempt for task in tasks] == [1, 2, 2]
    assert not any(system.tasks.recovery.trials.holds(task.id) for task in tasks)


async def test_a_group_restarts_when_the_tasks_on_trial_have_ended(system: System) -> None:
    system.program(double)
    tasks = await accept(system, "double", 2)
    tasks[1].group = 1
    opened(system, 3600.0)
    system.tasks.recovery.recover(tasks)
    await system.until(lambda: not system.tasks._tasks)
    assert {row.state for row in await system.call(History(10))} == {"done"}


async def test_new_tasks_wait_while_a_suspect_runs_alone_and_are_refused_when_the_daemon_stops(system: System) -> None:
    system.program(endless)
    system.program(double)
    (suspect,) = await accept(system, "endless", 1)
    opened(system, 3600.0, alone=True)
    system.tasks.recovery.recover([suspect])
    waiting = asyncio.ensure_future(system.submit(Submit("double", {"number": 2})))
    await system.until(lambda: system.tasks._tasks[suspect.id].pid)
    assert len(system.tasks._tasks) == 1
    system.kernel.lifecycle.draining = True
    system.tasks.stop()
    with pytest.raises(ShuttingDown):
        await waiting


async def test_a_task_runs_alone_for_a_bounded_time_whatever_its_trial_takes(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LONGEST", 0.05)
    system.program(endless)
    system.program(double)
    (suspect,) = await accept(system, "endless", 1)
    opened(system, 3600.0, alone=True)
    system.tasks.recovery.recover([suspect])
    submitted = await system.submit(Submit("double", {"number": 2}))
    assert system.tasks._tasks[suspect.id].pid != submitted.pid != 0


async def test_a_program_that_cannot_be_read_does_not_prolong_a_trial(system: System) -> None:
    system.program(endless)
    tasks = await accept(system, "endless", 2)
    tasks[1].group = 1
    opened(system, 0.05)
    trials = system.tasks.recovery.trials
    system.tasks.recovery.recover(tasks)
    while trials.holds(tasks[1].id):
        await asyncio.sleep(0.01)
        trials.restarted(0)  # another attempt, at which nothing restarts


async def test_a_task_that_is_held_back_does_not_begin_while_the_daemon_drains(system: System) -> None:
    system.program(endless)
    tasks = await accept(system, "endless", 2)
    tasks[1].group = 1
    opened(system, 0.05)
    system.tasks.recovery.recover(tasks)
    await system.until(lambda: system.tasks._tasks[tasks[0].id].pid)
    await system.kernel.drain(0.2)
    assert system.tasks.recovery.trials.holds(tasks[1].id)


async def test_the_history_shows_the_tasks_that_are_held_back(system: System) -> None:
    system.program(endless)
    tasks = await accept(system, "endless", 2)
    tasks[1].group = 1
    opened(system, 3600.0)
    system.tasks.recovery.recover(tasks)
    await system.until(lambda: system.tasks._tasks[tasks[0].id].pid)
    assert [row.state for row in await system.call(History(10))] == ["held back", "running"]


async def test_a_client_that_attaches_to_a_task_that_is_held_back_waits_for_its_restart(system: System) -> None:
    system.program(endless)
    tasks = await accept(system, "endless", 2)
    tasks[1].group = 1
    opened(system, 0.05)
    system.tasks.recovery.recover(tasks)
    submitted = await system.call(Attach(f"{tasks[1].id:x}"))
    assert submitted.pid == system.tasks._tasks[tasks[1].id].pid != 0
    assert submitted.attempt == 2


async def test_a_task_that_is_held_back_is_explained_and_can_be_killed(system: System) -> None:
    system.program(endless)
    tasks = await accept(system, "endless", 3)
    tasks[1].group = tasks[2].group = 1
    opened(system, 3600.0)
    system.tasks.recovery.recover(tasks)
    await system.until(lambda: system.tasks._tasks[tasks[0].id].pid)
    explained = await system.call(Why(task=f"{tasks[1].id:x}"))
    assert (explained.state, explained.wait.kind) == ("held back", "trial")
    assert "died 2 times in a row" in explained.text
    assert await system.call(KillTask(f"{tasks[1].id:x}")) == "killed"
    assert [row.state for row in await system.call(History(10))] == ["held back", "killed", "running"]
    assert await system.call(KillTask(f"{tasks[0].id:x}")) == "killed"
    await system.until(lambda: system.tasks._tasks[tasks[2].id].pid)  # nothing is on trial any more
    assert tasks[1].id not in system.tasks._tasks
