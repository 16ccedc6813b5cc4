"""Tasks whose programs are broken when the daemon restarts: they wait, lose nothing, and go on when they can."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import DeadlineExceeded, Killed, TooManyAttempts, UnknownProcess, UnknownTask
from ipc.syscalls import (
    Attach,
    History,
    Kill,
    KillTask,
    Logs,
    Nice,
    PeekMailbox,
    Ps,
    Resume,
    Send,
    Submit,
    Suspend,
    TaskInfo,
    Threads,
    Why,
)
from kernel.journal.settings import FILE
from kernel.programs import jobs, watch
from kernel.tasks import recovery
from tests.support.durable_world import Life, World

# ruff: noqa: ASYNC240
pytestmark = pytest.mark.real_time("uvloop")

GOOD = """
from llmosd import agent

@agent(durable=True)
async def counts(ctx, start: int = 0):
    first = await ctx.random()
    message = await ctx.receive()
    return [first, message.body, ctx.attempt]

@agent
async def plain(ctx, start: int = 0):
    return [ctx.attempt, (await ctx.receive()).body]
"""

NO_PROGRAM = "no program '"  # the error names the files that may define it

BROKEN = {
    "syntax error": (lambda text: text + "def oops(:\n", NO_PROGRAM),
    "import error": (lambda text: "import no_such_module\n" + text, NO_PROGRAM),
    "error of the module": (lambda text: text + "1 / 0\n", NO_PROGRAM),
    "missing file": (lambda text: None, NO_PROGRAM),
    "renamed agents": (
        lambda text: text.replace("def counts", "def other").replace("def plain", "def more"),
        NO_PROGRAM,
    ),
    "other parameters": (lambda text: text.replace("start: int = 0", "stop: int"), "stop"),
}


@pytest.fixture
def file(world: World) -> Path:
    folder = world.folder / "agents"
    folder.mkdir()
    world.agents = [folder]
    file = folder / "some.py"
    file.write_text(GOOD)
    return file


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for changed files all the time, and try again by time after a minute only."""
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watch, "FIRST_PAUSE", 60.0)


async def row_of(life: Life, task: str) -> TaskInfo:
    rows: list[TaskInfo] = await life.system.call(History())
    return next(row for row in rows if row.id == task)


async def wait_for_state(life: Life, task: str, state: str = "waiting") -> TaskInfo:
    while (row := await row_of(life, task)).state != state:
        await asyncio.sleep(0.005)
    return row


async def pid_of(life: Life, task: str) -> int:
    return (await wait_for_state(life, task, "running")).pid


async def accepted(world: World, *programs: str, **options: Any) -> tuple[Path, list[str]]:
    """Run tasks in a first run of the daemon until each waits for a message; return its folder and their ids."""
    async with world.life() as life:
        tasks = []
        for program in programs:
            submitted = await life.system.call(Submit(program, {"start": 3}, detach=True, **options))
            tasks.append(submitted.id)
            await life.until(lambda pid=submitted.pid: life.system.table.alive[pid].state()[1] == "message")
        await life.system.tasks.flush()
        return life.folder, tasks


async def test_tasks_of_broken_files_wait_and_go_on_when_these_are_corrected(world: World, file: Path) -> None:
    file.unlink()
    good, reasons, files = {}, {}, {}
    for number, (how, (_, reason)) in enumerate(BROKEN.items()):
        files[how] = file.with_name(f"file_{number}.py")
        good[how] = GOOD.replace("counts", f"counts_{number}").replace("plain", f"plain_{number}")
        files[how].write_text(good[how])
        reasons |= {f"counts_{number}": reason, f"plain_{number}": reason}
    folder, tasks = await accepted(world, *reasons)
    query = "SELECT pid, hex(outcome) FROM calls WHERE number = 0 ORDER BY pid"
    async with world.life(folder, orderly=True) as life:
        recorded = await life.rows(query)
    assert len(recorded) == len(BROKEN)
    for how, (breaks, _) in BROKEN.items():
        text = breaks(good[how])
        files[how].unlink() if text is None else files[how].write_text(text)
    for run in (1, 2):
        async with world.life(folder) as life:
            for task, reason in zip(tasks, reasons.values(), strict=True):
                row = await wait_for_state(life, task)
                assert reason in row.waits_for
                assert (row.pid, row.attempt) == (0, 2)  # the second attempt was the last that began
            assert await life.rows(query) == recorded
            assert {row[0] for row in await life.rows("SELECT crashes FROM tasks")} == {1}
            if run == 1:
                continue
            for how, whole in good.items():
                files[how].write_text(whole)
            for task, program in zip(tasks, reasons, strict=True):
                last_pid = (await row_of(life, task)).last_pid
                pid = await pid_of(life, task)
                await life.system.call(Send(pid, "go on"))
                if program.startswith("counts"):
                    first, body, attempt = await life.result(task)
                    assert (type(first), body, attempt, last_pid) == (float, "go on", 3, pid)
                else:
                    assert await life.result(task) == [3, "go on"]


async def test_deaths_of_the_daemon_do_not_count_against_tasks_that_wait(world: World, file: Path) -> None:
    world.attempts = 2
    folder, (task,) = await accepted(world, "counts")
    file.write_text("1 / 0")
    for _ in range(4):
        async with world.life(folder) as life:
            await wait_for_state(life, task)
            await life.system.tasks.flush()
    async with world.life(folder) as life:
        file.write_text(GOOD)
        await life.system.call(Send(await pid_of(life, task), "alive"))
        assert (await life.result(task))[1:] == ["alive", 2]


async def test_a_task_restarts_without_a_change_of_its_file_when_another_attempt_succeeds(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (task,) = await accepted(world, "plain")
    file.write_text(GOOD + "import os\nif not os.environ.get('BY_THE_USER'): raise ValueError('not set')\n")
    async with world.life(folder) as life:
        assert "not set" in (await wait_for_state(life, task)).waits_for
        monkeypatch.setenv("BY_THE_USER", "yes")
        life.system.kernel.program_watch.retry_now()  # as SIGHUP does
        await pid_of(life, task)
    monkeypatch.delenv("BY_THE_USER")
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.05)
    async with world.life(folder) as life:
        await wait_for_state(life, task)
        monkeypatch.setenv("BY_THE_USER", "yes")
        await pid_of(life, task)


async def test_a_file_that_hangs_holds_up_its_own_tasks_only(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "LOAD_SECONDS", 0.5)
    monkeypatch.setattr(jobs, "PATIENCE", 0.05)
    (file.parent / "hangs.py").write_text(GOOD.replace("plain", "hanging").replace("counts", "another"))
    folder, (hanging, sound) = await accepted(world, "hanging", "plain")
    go = world.folder / "go"
    wait = f"import os, time\nwhile not os.path.exists({os.fspath(go)!r}): time.sleep(0.01)\n"
    (file.parent / "hangs.py").write_text(wait + GOOD.replace("plain", "hanging").replace("counts", "another"))
    async with world.life(folder) as life:
        await pid_of(life, sound)
        assert "takes longer" in (await wait_for_state(life, hanging)).waits_for
        go.touch()
        life.system.kernel.program_watch.retry_now()
        while (await row_of(life, hanging)).state != "running":
            life.system.kernel.program_watch.retry_now()
            await asyncio.sleep(0.05)


async def test_a_file_that_makes_the_daemon_die_while_it_runs_is_given_up(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "LOAD_SECONDS", 0.1)
    monkeypatch.setattr(jobs, "PATIENCE", 0.01)
    world.attempts = 3
    folder, (task,) = await accepted(world, "plain")
    go = world.folder / "go"
    file.write_text(f"import os, time\nwhile not os.path.exists({os.fspath(go)!r}): time.sleep(0.01)\n" + GOOD)
    for attempt in (2, 3):
        async with world.life(folder) as life:  # its end stands for the death of the daemon by the file
            assert (await wait_for_state(life, task)).attempt == attempt
            await life.system.tasks.flush()
    async with world.life(folder) as life:
        with pytest.raises(TooManyAttempts):
            await life.result(task)
    go.touch()


async def test_a_task_that_waits_can_be_killed_by_its_id_or_its_pid_and_stays_dead(world: World, file: Path) -> None:
    folder, tasks = await accepted(world, "counts", "plain", "counts")
    file.write_text("1 / 0")
    async with world.life(folder, orderly=True) as life:
        pids = [(await wait_for_state(life, task)).last_pid for task in tasks]
        recorder = life.system.recorder()
        attached = life.system.thread(
            life.system.kernel.gate.enter(life.system.client, Attach(tasks[0]), recorder.stream)
        )
        await life.until(lambda: recorder.events)
        assert recorder.events[0].state == "waiting"
        assert await life.system.call(KillTask(tasks[0])) == "killed"
        assert {row[0] for row in await life.rows("SELECT task FROM processes")} == {int(tasks[2], 16)}
        assert (await attached).pid == 0
        await life.until(lambda: recorder.ended)
        assert recorder.events[-1].error.code == "Killed"
        assert await life.system.call(KillTask(tasks[1])) == "killed"
        assert await life.system.call(KillTask(tasks[1])) == "killed"  # it has ended
        status = await life.system.call(Kill(pids[2]))
        assert (status.reason, status.pid) == ("killed", pids[2])
        assert [row.state for row in await life.system.call(History())] == ["killed"] * 3
    file.write_text(GOOD)
    async with world.life(folder) as life:
        assert not life.system.tasks._tasks
        with pytest.raises(Killed):
            await life.result(tasks[2])
        with pytest.raises(UnknownTask):
            await life.system.call(KillTask("12ab"))


async def test_a_running_task_can_be_killed_by_its_id(world: World, file: Path) -> None:
    async with world.life() as life:
        task = await life.submit("plain")
        assert await life.system.call(KillTask(task)) == "killed"
        assert (await row_of(life, task)).state == "killed"


async def test_a_task_that_waits_ends_at_its_deadline(world: World, file: Path) -> None:
    folder, (task,) = await accepted(world, "counts", deadline=3600.0)
    file.write_text("1 / 0")
    with sqlite3.connect(folder / FILE) as journal:
        journal.execute("UPDATE tasks SET submitted = ?", (time.time() - 3599.0,))
    journal.close()
    async with world.life(folder) as life:
        with pytest.raises(DeadlineExceeded):
            await life.result(task)


async def test_tasks_that_wait_are_explained_and_listed(world: World, file: Path) -> None:
    folder, (durable, plain) = await accepted(world, "counts", "plain")
    file.write_text("\n1 / 0")
    async with world.life(folder) as life:
        pid = (await wait_for_state(life, durable)).last_pid
        call = life.system.call
        for subject in (Why(task=durable), Why(task=plain), Why(pid)):
            explained = await call(subject)
            assert (explained.state, explained.wait.kind) == ("waiting", "program")
            assert "ZeroDivisionError" in explained.text
        assert f"Task {durable} (counts) has been waiting" in (await call(Why(pid))).text
        rows = await call(Ps(tasks=True))
        assert [(row.pid, row.task, row.program, row.state) for row in rows] == [
            (0, durable, "counts", "waiting"),
            (0, plain, "plain", "waiting"),
        ]
        assert await call(Ps()) == []
        for look in (Logs(pid), Threads(pid), PeekMailbox(pid), Suspend(pid), Resume(pid), Nice(pid, 5)):
            with pytest.raises(UnknownProcess, match=rf"{pid} has not restarted, because its task is waiting: no prog"):
                await call(look)
        file.write_text(GOOD)
        await pid_of(life, durable)
        assert (await call(Why(task=durable))).pid == pid
        await call(KillTask(durable))
        assert f"Task {durable} (counts) ended" in (await call(Why(task=durable))).text


async def test_a_name_of_a_durable_task_that_waits_stays_reserved(world: World, file: Path) -> None:
    folder, (task,) = await accepted(world, "counts", name="counter")
    file.write_text("1 / 0")
    async with world.life(folder) as life:
        await wait_for_state(life, task)
        sending = life.system.thread(life.system.kernel.gate.enter(life.system.client, Send("counter", "late")))
        await life.system.turns()
        assert not sending.done()
        file.write_text(GOOD)
        assert (await life.result(task))[1] == "late"


CHILDREN = """
from llmosd import agent

@agent(durable=True)
async def parent(ctx, start: int = 0):
    pid = await ctx.spawn("child", name="child")
    return await ctx.wait(pid)
"""
CHILD = """
from llmosd import agent

@agent(durable=True)
async def child(ctx):
    first = await ctx.random()
    return (await ctx.receive()).body
"""


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [(lambda text: text + "def oops(:", "SyntaxError"), (lambda text: text.replace("ctx)", "ctx, more)"), "more")],
)
async def test_a_durable_parent_waits_for_the_program_of_its_child(
    world: World, file: Path, breaks: Callable[[str], str], reason: str
) -> None:
    file.write_text(CHILDREN)
    other = file.parent / "other.py"
    other.write_text(CHILD)
    async with world.life() as life:
        task = await life.submit("parent")
        await life.until(lambda: "child" in life.system.names)
        child = life.system.names["child"]
        await life.until(lambda: child.state()[1] == "message")
        await life.system.tasks.flush()
    other.write_text(breaks(CHILD))
    async with world.life(life.folder) as life:
        pid = await pid_of(life, task)
        parent = life.system.table.alive[pid]
        while (explained := await life.system.call(Why(pid))).wait.kind != "program":
            await asyncio.sleep(0.001)
        assert parent.state()[0] in ("blocked", "ready")  # ready: it tries again
        assert reason in explained.text
        other.write_text(CHILD)
        await life.until(lambda: "child" in life.system.names)
        await life.system.call(Send(child.pid, "the same child"))
        assert await life.result(task) == "the same child"


async def test_a_timeout_around_a_spawn_does_not_end_a_replay_that_waits_for_the_program(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMIT_OF_A_TEST", "60")
    limit = "float(os.environ['LIMIT_OF_A_TEST'])"
    block = f"async with asyncio.timeout({limit}):\n        pid = await"
    file.write_text("import asyncio, os\n" + CHILDREN.replace("pid = await", block))
    other = file.parent / "other.py"
    other.write_text(CHILD)
    async with world.life() as life:
        task = await life.submit("parent")
        await life.until(lambda: "child" in life.system.names)
        child = life.system.names["child"]
        await life.until(lambda: child.state()[1] == "message")
        await life.system.tasks.flush()
    other.write_text("1 / 0")
    monkeypatch.setenv("LIMIT_OF_A_TEST", "0.3")
    async with world.life(life.folder) as life:
        parent = life.system.table.alive[await pid_of(life, task)]
        await life.until(lambda: parent.state()[1] == "program child")
        await life.until(parent.threads[0].cancelling)  # the timeout has passed
        other.write_text(CHILD)
        await life.until(lambda: "child" in life.system.names)
        await life.system.call(Send(child.pid, "in time"))
        assert await life.result(task) == "in time"
