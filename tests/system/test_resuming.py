"""Clients that lose the connection, or the daemon, and return: they see all events of a task, and none twice."""

from __future__ import annotations

import os
import subprocess

import pytest

from llmosd import AsyncClient, ConnectionLost, Emitted, Missed, Restarted, Result, TimedOut
from llmosd.cli import following
from tests.support.daemon import SCRIPTS
from tests.support.simulated import text_of

AGENTS = '''
import os
from llmosd import Context, agent

@agent
async def counter(ctx: Context, steps: list[str]) -> str:
    """Emits rows of numbers, each row once its file exists."""
    for row, path in enumerate(steps):
        while not os.path.exists(path):
            await ctx.sleep(0.01)
        for number in range(3):
            await ctx.emit(10 * row + number)
    return "counted"

@agent
async def flood(ctx: Context, go: str) -> str:
    for number in range(1500):
        await ctx.emit(number)
    while not os.path.exists(go):
        await ctx.sleep(0.01)
    return "over"

@agent
async def teller(ctx: Context, go: str) -> str:
    text = await ctx.generate("x", max_tokens=150, seed=5)
    while not os.path.exists(go):
        await ctx.sleep(0.01)
    return text
'''
TOKENS = 150


@pytest.fixture
def steps(folder):
    return [folder / f"step-{number}" for number in range(3)]


def paths(steps):
    return {"steps": [str(step) for step in steps]}


def values(events):
    return [event.value for event in events if isinstance(event, Emitted | Result)]


def test_a_client_that_comes_back_gets_what_it_missed_and_nothing_twice(launch, steps):
    daemon = launch()
    with daemon.client() as client:
        task = client.submit("counter", paths(steps), detach=True)
        steps[0].touch()
        events = task.events(20)
        seen = [next(events) for _ in range(2)]  # the third is sent, but never read
    steps[1].touch()
    with daemon.client() as client:
        again = client.attach(task.id, after=task.seen)
        events = again.events(20)
        seen += [next(events) for _ in range(4)]
        steps[2].touch()
        seen += events
    assert values(seen) == [0, 1, 2, 10, 11, 12, 20, 21, 22, "counted"]
    with daemon.client() as client:  # it has ended, and its events are not retained
        assert list(client.attach(task.id, after=(1, 0)).events(20)) == [Missed(0, 0), seen[-1]]
        assert list(client.attach(task.id).events(20)) == [seen[-1]]


async def test_an_asynchronous_client_comes_back_as_well(launch, steps):
    daemon = launch()
    seen = []
    async with AsyncClient(daemon.socket) as llmos:
        task = await llmos.submit("counter", paths(steps), detach=True)
        steps[0].touch()
        async for event in task.events():
            seen.append(event)
            if len(seen) == 2:
                break
    for step in steps[1:]:
        step.touch()
    async with AsyncClient(daemon.socket) as llmos:
        again = await llmos.attach(task.id, after=task.seen)
        seen += [event async for event in again.events()]
    # If the task has already ended, its last events are not retained, and the client gets `Missed`.
    if Missed(0, 0) in seen:
        assert values(seen) == [0, 1, "counted"]
    else:
        assert values(seen) == [0, 1, 2, 10, 11, 12, 20, 21, 22, "counted"]


def test_what_is_not_kept_is_said(launch, folder, eventually):
    daemon = launch()
    go = folder / "go"
    with daemon.client() as client:
        task = client.submit("flood", {"go": str(go)}, detach=True)
        client.close()
    with daemon.client() as client:
        eventually(lambda: any(row.waits_for == "time" for row in client.ps()), "all events are emitted")
        late = client.attach(task.id, after=(1, 0))
        events = late.events(20)
        missed = next(events)
        assert isinstance(missed, Missed)
        go.touch()
        assert values(events) == [*range(missed.events, 1500), "over"]
        assert 0 < missed.events < 1500


def test_after_a_restart_the_events_of_the_new_life_come_from_their_beginning(launch, steps):
    daemon = launch()
    with daemon.client() as client:
        task = client.submit("counter", paths(steps), detach=True)
        steps[0].touch()
        events = task.events(20)
        assert values(next(events) for _ in range(2)) == [0, 1]
        daemon.kill()
    with launch().client() as client:
        again = client.attach(task.id, after=task.seen)
        assert again.seen == (2, 0)
        steps[1].touch()
        events = again.events(20)
        assert next(events) == Restarted(again.pid, 2)
        assert values(next(events) for _ in range(6)) == [0, 1, 2, 10, 11, 12]
        steps[2].touch()
        assert values(events) == [20, 21, 22, "counted"]


def test_llmos_attach_comes_back_with_the_daemon_and_prints_no_token_twice(launch, folder):
    daemon = launch()
    go = folder / "go"
    with daemon.client() as client:
        task = client.submit("teller", {"go": str(go)}, detach=True)
        attached = subprocess.Popen(
            [SCRIPTS / "llmos", "attach", task.id, "--stream"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"LLMOSD_SOCKET": str(daemon.socket)},
        )
        try:
            assert os.read(attached.stdout.fileno(), 1) == b"s"
            daemon.kill()
            go.touch()
            launch()
            out, error = attached.communicate(timeout=60)
        finally:
            attached.kill()
    text = text_of(5, TOKENS)
    assert "s" + out.rstrip("\n") == text
    assert attached.returncode == 0, error
    assert "waiting until it restarts" in error
    assert "attempt 2" in error


def test_llmos_attach_gives_up_on_a_daemon_that_stays_away(launch, steps, monkeypatch):
    monkeypatch.setattr(following, "PATIENCE", 0.3)
    daemon = launch()
    with daemon.client() as client:
        task = client.submit("counter", paths(steps), detach=True)
        daemon.kill()
        with pytest.raises(ConnectionLost):
            list(following.events(client, task, print))
        monkeypatch.setattr(following, "PATIENCE", 3.0)
        with pytest.raises(TimedOut), client.expiring(0.1, "no result"):
            list(following.events(client, task, print))
