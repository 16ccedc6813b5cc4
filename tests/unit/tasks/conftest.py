"""Fixtures of the tests of tasks: a kernel with a journal, and the disk below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kernel.journal.journal import Journal
from kernel.journal.settings import JournalSettings
from tests.support.boot import boot
from tests.support.slow_disk import Disk
from tests.support.system import System


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    system = boot(tmp_path, journal=Journal(tmp_path, JournalSettings()))
    yield system
    await system.kernel.drain(0)
    await system.kernel.close()


@pytest.fixture
def disk(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.go.set()
