"""Retries of a tool: all attempts have the same call id, which is also the same in every run of a program."""

from __future__ import annotations

import asyncio

import pytest

from ipc.errors import (
    BadArguments,
)
from llmosd.context import Context
from tests.support.system import System
from tests.support.tool_bench import Bench, use


async def test_retries_keep_the_call_id_and_pause_longer_each_time(system: System, bench: Bench) -> None:
    ids: list[str] = []

    def shaky(call_id: str, what: str) -> str:
        ids.append(call_id)
        if len(ids) < 4:
            raise OSError(what)
        return what

    bench.add(shaky, retries=3)
    start = system.loop.time()
    assert await system.run(use, "shaky", {"what": "x"}) == "x"
    assert len(set(ids)) == 1
    assert system.loop.time() - start == pytest.approx(0.1 + 0.2 + 0.4)
    with pytest.raises(BadArguments):
        await system.run(use, "shaky", {"what": "x", "call_id": "mine"})


async def test_call_ids_are_the_same_in_every_run_however_the_threads_interleave(system: System, bench: Bench) -> None:
    ids: dict[str, list[str]] = {}

    def note(who: str, call_id: str) -> None:
        ids.setdefault(who, []).append(call_id.partition(".")[2])

    bench.add(note)

    async def program(ctx: Context, turns: list[int]) -> None:
        async def child(name: str, wait: int) -> None:
            for _ in range(wait):
                await asyncio.sleep(0)
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.tool("note", who=name + "'s child"))
            await ctx.tool("note", who=name)

        async with asyncio.TaskGroup() as group:
            for name, wait in zip("ab", turns, strict=True):
                group.create_task(child(name, wait))
        await ctx.tool("note", who="main")
        await ctx.tool("note", who="main")

    name = system.program(program)
    await system.run(name, [0, 9])
    first = dict(ids)
    ids.clear()
    await system.run(name, [9, 0])
    assert ids == first
    assert first["main"] == ["0.1", "0.2"]
    assert first["a's child"] == ["0-1-1.1"]
