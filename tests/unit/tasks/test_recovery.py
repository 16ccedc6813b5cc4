"""Tasks of a previous run of the daemon: a task that cannot restart ends, and the others restart."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from ipc.codec import encode
from ipc.errors import Busy
from ipc.messages import Result, State
from ipc.syscalls import Submit
from kernel.journal.records import AcceptedTask
from kernel.tasks import recovery
from tests.support.slow_disk import double
from tests.support.system import System

pytestmark = pytest.mark.real_time


async def test_a_program_that_cannot_be_read_at_a_recovery_lets_its_own_tasks_alone_wait(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = system.programs.look
    broken_disk = True

    def load(name: str, caller: None, since: float) -> Any:
        if name == "unreadable" and broken_disk:
            raise OSError("the disk is gone")
        return loaded("double", caller, since)

    system.program(double)
    monkeypatch.setattr(system.programs, "look", load)
    tasks = system.tasks
    earlier = [
        AcceptedTask(name, "somebody", None, encode(Submit(name, {"number": 4})), time.time(), id=number)
        for number, name in enumerate(("unreadable", "double"), 1)
    ]
    tasks.recovery.recover(earlier)
    broken, sound = (tasks._tasks[task.id] for task in earlier)
    while sound.final is None or tasks.recovery.state(1) is None:
        await asyncio.sleep(0.01)
    assert isinstance(sound.final, Result)
    assert tasks.recovery.state(1) == State(0, "waiting", "OSError: the disk is gone")
    broken_disk = False
    tasks.recovery.waiting.watch.retry_now()
    while broken.final is None:
        await asyncio.sleep(0.01)
    assert isinstance(broken.final, Result)


async def test_a_program_that_takes_long_to_load_at_a_recovery_lets_other_tasks_restart_before_its_own(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, disk, calls = system.programs.look, threading.Event(), []

    def load(name: str, caller: None, since: float) -> Any:
        if name == "slow" and not disk.is_set():
            calls.append(name)
            if len(calls) > 1:
                raise Busy("another thread runs the file")
            assert disk.wait(60)
        return loaded("double", caller, since)

    system.program(double)
    monkeypatch.setattr(system.programs, "look", load)
    monkeypatch.setattr(recovery, "LOAD_SECONDS", 0.01)
    tasks = system.tasks
    earlier = [
        AcceptedTask(name, "somebody", None, encode(Submit(name, {"number": 4})), time.time(), id=number)
        for number, name in enumerate(("slow", "double"), 1)
    ]
    tasks.recovery.recover(earlier)
    slow, quick = (tasks._tasks[task.id] for task in earlier)
    while quick.final is None:
        await asyncio.sleep(0.01)
    assert isinstance(quick.final, Result)
    assert slow.final is None
    monkeypatch.setattr(recovery, "LOAD_SECONDS", 60.0)
    disk.set()
    tasks.recovery.waiting.watch.retry_now()
    while slow.final is None:
        await asyncio.sleep(0.01)
    assert isinstance(slow.final, Result)
