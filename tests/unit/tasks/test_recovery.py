"""Tasks of a previous run of the daemon: a task that cannot restart ends, and the others restart."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from ipc.codec import encode
from ipc.messages import Failed, Result
from ipc.syscalls import Submit
from kernel.journal.records import AcceptedTask
from tests.support.slow_disk import double
from tests.support.system import System

pytestmark = pytest.mark.real_time


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
        AcceptedTask(name, "somebody", None, encode(Submit(name, {"number": 4})), time.time(), id=number)
        for number, name in enumerate(("unreadable", "double"), 1)
    ]
    tasks.recovery.recover(earlier)
    broken, sound = (tasks._tasks[task.id] for task in earlier)
    while broken.final is None or sound.final is None:
        await asyncio.sleep(0.01)
    assert isinstance(broken.final, Failed)
    assert isinstance(sound.final, Result)
