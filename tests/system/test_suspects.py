"""A task that makes the daemon die: it alone is given up, and the tasks that run beside it end well."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from math import ceil, log2
from pathlib import Path

import pytest

from ipc.messages import State
from llmosd import ConnectionLost, NoDaemon, TooManyAttempts
from tests.support.daemon import RunningDaemon, eventually

AGENTS = """
import asyncio, ctypes, os, time
from llmosd import agent

async def until(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.02)

@agent
async def exits(ctx, path: str):
    await until(path)
    os._exit(9)

@agent
async def crashes_later(ctx, path: str):
    await until(path)
    await asyncio.sleep(1)
    ctypes.string_at(0)

@agent(durable=True)
async def crashes_durably(ctx, path: str):
    while not os.path.exists(path):
        await ctx.sleep(0.02)
    ctypes.string_at(0)

@agent
async def innocent(ctx, path: str):
    await until(path)
    return "done"

@agent
async def short(ctx):
    return ctx.attempt
"""

SETTINGS = "[journal]\nattempts = 3\n"
soak = pytest.mark.soak(short=False)


def ended(daemon: RunningDaemon, task: str) -> bool:
    """Whether the daemon runs and has written the end of `task`."""
    with suppress(NoDaemon, ConnectionLost), daemon.client() as client:
        return any(row.id == task and row.ended for row in client.history())
    return False


@pytest.mark.parametrize(
    ("guilty", "innocent"),
    [
        ("exits", 6),
        pytest.param("exits", 40, marks=soak),
        pytest.param("crashes_later", 40, marks=soak),
        pytest.param("crashes_durably", 40, marks=soak),
    ],
)
def test_only_the_task_that_makes_the_daemon_die_is_given_up(
    launch: Callable[..., RunningDaemon], folder: Path, guilty: str, innocent: int
) -> None:
    go, gate = folder / "go", folder / "gate"
    daemon, runs = launch(SETTINGS), 1
    with daemon.client() as client, suppress(ConnectionLost):
        suspect = client.submit(guilty, {"path": str(go)}, detach=True, key="guilty")
        tasks = [client.submit("innocent", {"path": str(gate)}, detach=True) for _ in range(innocent)]
    go.touch()
    while True:
        eventually(lambda: daemon.process.poll() is not None or ended(daemon, suspect.id), "a crash or an end", 120)  # noqa: B023
        if daemon.process.poll() is None:
            break
        runs += 1
        assert runs <= 2 + ceil(log2(innocent + 1)) + 1 + 1  # crashes with all, with halves, and alone; the last run
        daemon = launch(SETTINGS, ready=False)
    with daemon.client() as client:
        with pytest.raises(TooManyAttempts):
            client.attach(suspect.id).result(60)
        gate.touch()
        assert [client.attach(task.id).result(60) for task in tasks] == ["done"] * innocent
        assert client.submit("short").result(60) == 1


def make_the_trials_long(folder: Path) -> None:
    """Let the run that has just died look a minute longer, and so the trials of the next run."""
    with closing(sqlite3.connect(folder / "state" / "journal.sqlite")) as journal, journal:
        journal.execute("UPDATE stops SET started = started - 60")


def test_a_task_that_is_held_back_is_shown_as_such_and_restarts_when_the_suspects_have_ended(
    launch: Callable[..., RunningDaemon], folder: Path
) -> None:
    gates = [folder / "gate 1", folder / "gate 2"]
    daemon = launch(SETTINGS)
    with daemon.client() as client:
        first, second = (client.submit("innocent", {"path": str(gate)}, detach=True) for gate in gates)
    for _ in range(2):
        daemon.kill()
        make_the_trials_long(folder)
        daemon = launch(SETTINGS)
    with daemon.client() as client:
        eventually(lambda: {row.state for row in client.history()} == {"running", "held back"}, "one restarts", 60)
        assert [row.id for row in client.history() if row.state == "held back"] == [second.id]
        waits = []

        def waiting(state: State) -> None:
            waits.append((state.state, "died 2 times" in state.detail))
            gates[0].touch()

        client.on_wait = waiting
        new = client.submit("short")  # waits for the suspect, which runs alone
        assert waits == [("held back", True)]
        attached = client.attach(second.id)
        assert new.result(60) == 1
        assert client.attach(first.id).result(60) == "done"
        gates[1].touch()
        assert attached.result(60) == "done"
