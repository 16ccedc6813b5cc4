"""Threads for functions that block: bounded pools, which never delay the exit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from kernel.lib import worker_threads
from kernel.lib.worker_threads import DaemonThreads, in_thread

GUARD = 60  # seconds after which a test has failed


def test_a_pool_runs_functions_and_returns_their_outcomes() -> None:
    pool = DaemonThreads("test", 2)
    assert pool.submit(divmod, 7, 3).result(GUARD) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 7, 0).result(GUARD)
    with pytest.raises(SystemExit):
        pool.submit(sys.exit).result(GUARD)
    assert pool.submit(int).result(GUARD) == 0


def test_a_pool_has_a_bounded_number_of_threads_and_further_functions_wait_in_order() -> None:
    pool, inside, go, order = DaemonThreads("test", 2), threading.Semaphore(0), threading.Event(), list[int]()

    def hang() -> None:
        inside.release()
        assert go.wait(GUARD)

    hanging = [pool.submit(hang) for _ in range(2)]
    for _ in range(2):
        assert inside.acquire(timeout=GUARD)
    waiting: list[Future[Any]] = [pool.submit(order.append, number) for number in range(3)]
    assert waiting[1].cancel()
    assert (pool._threads, order) == (2, [])
    go.set()
    for future in (*hanging, waiting[0], waiting[2]):
        future.result(GUARD)
    assert sorted(order) == [0, 2]


def test_few_threads_stay_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_threads, "MAX_IDLE", 1)
    pool, barrier = DaemonThreads("test", 3), threading.Barrier(3, timeout=GUARD)
    for future in [pool.submit(barrier.wait) for _ in range(3)]:
        future.result(GUARD)
    while pool._threads > 1:
        os.sched_yield()
    assert pool.submit(int).result(GUARD) == 0


def test_a_pool_without_a_thread_reports_that_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool = DaemonThreads("test", 2)
    with pytest.raises(RuntimeError, match="can't start"):
        pool.submit(int)
    monkeypatch.undo()
    assert pool.submit(int).result(GUARD) == 0


def test_a_thread_that_hangs_does_not_delay_the_exit() -> None:
    code = (
        "import threading\nfrom kernel.lib.worker_threads import DaemonThreads\n"
        "inside = threading.Event()\n"
        "DaemonThreads('test', 1).submit(lambda: (inside.set(), threading.Event().wait()))\ninside.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=GUARD, check=False).returncode == 0


async def test_the_threads_of_the_kernel_see_the_variables_of_the_caller() -> None:
    variable: ContextVar[int] = ContextVar("variable", default=0)
    variable.set(3)
    assert await in_thread(variable.get) == 3


def test_the_kernel_uses_no_thread_of_the_default_executor_which_agents_may_block() -> None:
    root = Path(worker_threads.__file__).parents[2]
    files = [*(root / "kernel").rglob("*.py"), *(root / "llmosd" / "daemon").rglob("*.py")]
    assert len(files) > 100
    uses = re.compile(r"\.to_thread\(|run_in_executor\(\s*None\b")
    assert [str(path) for path in files if uses.search(path.read_text())] == []
