"""A disk that commits new tasks only when the test allows it, and helpers of the tests of tasks.

It never delays the end of a task.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from ipc.syscalls import TaskInfo
from kernel.journal.store import Store
from llmosd.context import Context
from tests.support.system import System


class Disk:
    """Delays every commit of new tasks until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        real = Store.accept

        def late(store: Store, tasks: Any) -> Any:
            self.go.wait()
            return real(store, tasks)

        monkeypatch.setattr(Store, "accept", late)


async def ended(system: System, count: int) -> list[TaskInfo]:
    """The history, once `count` tasks have ended."""
    while True:
        rows = await system.history()
        if sum(bool(row.ended) for row in rows) == count:
            return rows
        await asyncio.sleep(0.001)


async def double(ctx: Context, number: int) -> int:
    return 2 * number
