"""An orderly stop counts as no crash, whatever agents do to threads, to imports or to the loop."""

from __future__ import annotations

import signal
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.daemon import RunningDaemon, eventually

AGENTS = """
import asyncio, ctypes, time
from llmosd import Context, agent, tool

@agent
async def waiter(ctx: Context) -> None:
    await ctx.receive()

@agent
async def pool(ctx: Context) -> None:
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 600) for _ in range(300)))

@tool
def never() -> str:
    "Never returns."
    time.sleep(10**6)

@agent
async def caller(ctx: Context) -> None:
    await ctx.call_tool("never")

@agent
async def holds_the_loop(ctx: Context) -> None:
    "C code waits for a lock that nobody releases: no signal interrupts it, and other threads run."
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    await ctx.receive(type="begin")
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
"""
GUARD = 60.0  # seconds; only a test that hangs takes as long
HANGING = "import time; time.sleep(10**6)"


def rows(folder: Path, query: str) -> list[Any]:
    file = f"file:{folder}/state/journal.sqlite?mode=ro"
    with closing(sqlite3.connect(file, uri=True)) as db:
        return db.execute(query).fetchall()


def test_an_orderly_stop_counts_as_no_crash(folder: Path, start: Callable[..., RunningDaemon]) -> None:
    agents = folder / "agents"
    agents.mkdir()
    (agents / "busy.py").write_text(AGENTS)
    (agents / "hanging.py").write_text(HANGING)

    def run() -> RunningDaemon:
        return start("--agents", str(agents), environment={"LLMOSD_DRAIN_SECONDS": "0"})

    daemon = run()
    with daemon.client() as client:
        for program in ("waiter", "pool", "caller", "holds_the_loop"):
            client.submit(program, detach=True)
        assert client.run("ask", {"question": "a word"})
    assert daemon.kill(signal.SIGTERM) == 0
    assert rows(folder, "SELECT clean FROM stops") == [(1,)]

    daemon = run()
    with daemon.client() as client:
        eventually(lambda: any(one.program == "holds_the_loop" for one in client.ps()), "it restarts", GUARD)
        client.send(next(one.pid for one in client.ps() if one.program == "holds_the_loop"), None, type="begin")
    daemon.process.send_signal(signal.SIGTERM)
    eventually(lambda: rows(folder, "SELECT clean FROM stops") == [(1,)], "the stop is on disk", GUARD)
    daemon.kill()  # as the last resort does later
    assert rows(folder, "SELECT DISTINCT attempt, crashes FROM tasks WHERE ended IS NULL") == [(2, 0)]


def test_a_start_that_fails_counts_as_no_crash(folder: Path, start: Callable[..., RunningDaemon]) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(folder / "llmosd.sock"))
        foreign.listen(1)
        refused = start(ready=False)
        assert refused.process.wait(timeout=GUARD) == 1
        assert "another program listens" in refused.log
    assert rows(folder, "SELECT clean FROM stops") == [(1,)]
