"""Programs that spawn without end, in a real daemon: they are killed for good, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipc.syscalls import GetStats, Limits, Ping
from llmosd import Client
from tests.support.daemon import RunningDaemon

AGENTS = """
import asyncio

from llmosd import Context, agent
from ipc.errors import LimitExceeded


@agent
async def bomb(ctx: Context) -> None:
    while True:
        try:
            await ctx.spawn(bomb)
            await ctx.spawn(bomb, detach=True)
            await asyncio.sleep(0)
        except LimitExceeded:
            await ctx.sleep(3600)
        finally:
            if asyncio.current_task().cancelling():
                await ctx.spawn(bomb)


@agent
async def idle(ctx: Context) -> None:
    await ctx.receive()


@agent
async def wide(ctx: Context, count: int) -> None:
    for _ in range(count):
        await ctx.spawn(idle)
    await ctx.receive()


@agent
async def deep(ctx: Context, count: int) -> None:
    if count:
        await ctx.spawn(deep, {"count": count - 1})
    await ctx.receive()
"""

GUARD = 60.0  # seconds


@pytest.fixture
def daemon(launch: Callable[..., RunningDaemon]) -> RunningDaemon:
    return launch("[limits.process]\nprocesses = 2_000\ndepth = 200_000\n")


def processes(client: Client) -> int:
    count: int = client.request(GetStats()).processes
    return count


def test_a_killed_bomb_leaves_only_what_it_detached_and_others_are_served(
    daemon: RunningDaemon, eventually: Callable[..., None]
) -> None:
    with daemon.client() as bomber, daemon.client() as other:
        task = bomber.submit("bomb", limits=Limits(processes=300))
        eventually(lambda: processes(other) == 300, "the bomb reaches its limit", GUARD)
        other.kill(task.pid)
        assert other.request(Ping(b"x")).payload == b"x"
        eventually(lambda: task.pid not in {row.pid for row in other.ps()}, "the bomb ends", GUARD)
        while rest := other.ps():
            assert len(rest) <= 300  # bombs that have not yet met the limit take the places of the dead
            other.kill(rest[0].pid)


def test_a_tree_ends_with_the_connection_of_its_client(daemon: RunningDaemon, eventually: Callable[..., None]) -> None:
    with daemon.client() as other:
        for agent in ("wide", "deep"):
            with daemon.client() as bomber:
                bomber.submit(agent, {"count": 1_999})
                eventually(lambda: processes(other) == 2_000, "the tree grows", GUARD)
            eventually(lambda: processes(other) == 0, "the tree ends", GUARD)


@pytest.mark.soak(short=False)
@pytest.mark.parametrize("agent", ["wide", "deep"])
def test_a_hundred_thousand_processes_are_killed_while_others_are_served(
    launch: Callable[..., RunningDaemon], eventually: Callable[..., None], agent: str
) -> None:
    daemon = launch("[limits.process]\ndepth = 200_000\n")
    with daemon.client() as client, daemon.client() as other:
        task = client.submit(agent, {"count": 100_000})
        eventually(lambda: processes(other) > 100_000, "the tree grows", 10 * GUARD)
        client.kill(task.pid)
        eventually(lambda: processes(other) == 0, "the tree ends", GUARD)
