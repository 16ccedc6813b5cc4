"""Fixtures of the tests of synchronisation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.syscalls import Locks


@pytest.fixture
def order() -> list[Any]:
    return []


@pytest.fixture
async def nothing_left(system):
    yield
    for process in tuple(system.table.alive.values()):
        if process is not system.client:
            system.kernel.process_exit.end(process, "killed", "the test is over")
    await asyncio.sleep(10)
    assert await system.call(Locks()) == []
