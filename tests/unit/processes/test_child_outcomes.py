"""A parent learns how each of its children ended, however many others ended since, until it has waited for it."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import AgentFailed, OutcomeForgotten
from ipc.syscalls import Kill, Spawn, Wait
from kernel.core import child_outcomes
from kernel.core.process_table import REMEMBERED
from llmosd.context import Context
from tests.support.agents import idle, listener
from tests.support.system import System

MANY = REMEMBERED + 100


@pytest.fixture(autouse=True)
def child(system: System) -> None:
    async def child(ctx: Context, n: int, value: Any = None) -> Any:
        if n == 5:
            raise ValueError("five")
        return n if value is None else value

    system.program(child)


async def family(ctx: Context, value: Any = None, count: int = MANY) -> list[int]:
    """Spawns children and returns their pids when all have ended."""
    pids = [await ctx.spawn("child", {"n": n, "value": value}) for n in range(count)]
    await ctx.sleep(1)
    return pids


async def test_a_parent_can_wait_for_all_its_children_after_they_ended(system: System) -> None:
    async def parent(ctx: Context) -> list[Any]:
        results: list[Any] = []
        for pid in await family(ctx):
            try:
                results.append(await ctx.wait(pid))
            except AgentFailed as error:
                results.append(error.data["program"])
        return results

    assert await system.run(parent) == [n if n != 5 else "child" for n in range(MANY)]
    assert len(system.table.outcomes) == 0


async def test_a_client_can_wait_for_all_its_children_after_they_ended(system: System) -> None:
    pids = [await system.call(Spawn("child", {"n": n})) for n in range(MANY)]
    await system.turns()
    assert [(await system.status(pid)).reason for pid in pids] == ["done"] * 5 + ["failed"] + ["done"] * (MANY - 6)


async def test_an_outcome_is_for_the_parent_and_until_it_has_waited(system: System) -> None:
    async def parent(ctx: Context) -> list[int]:
        return await family(ctx)

    async def waiter(ctx: Context) -> str:
        pids = await family(ctx)
        await ctx.wait(pids[0])
        with pytest.raises(OutcomeForgotten, match=f"process {pids[0]} has ended"):
            await ctx.wait(pids[0])
        for pid in stranger:
            with pytest.raises(OutcomeForgotten):
                await ctx.wait(pid)
        return "right"

    stranger = (await system.run(parent))[:2]
    assert await system.run(waiter) == "right"


async def test_a_monitor_of_a_child_that_ended_long_ago_reports_how_it_ended(system: System) -> None:
    async def parent(ctx: Context) -> list[str]:
        pids = await family(ctx)
        for pid in pids[4:6]:
            await ctx.monitor(pid)
        return [(await ctx.receive()).body.reason for _ in range(2)]

    assert await system.run(parent) == ["done", "failed"]


async def test_no_outcome_is_left_of_a_parent_that_has_ended_or_of_detached_children(system: System) -> None:
    async def parent(ctx: Context) -> None:
        for n in range(MANY):
            await ctx.spawn("child", {"n": n}, detach=True)
        await ctx.sleep(1)
        assert len(system.table.outcomes) == 0
        await family(ctx)
        assert len(system.table.outcomes) == MANY - REMEMBERED
        await idle(ctx)

    process = system.spawn(parent)
    await system.until(lambda: len(system.table.outcomes) == MANY - REMEMBERED)
    await system.call(Kill(process.pid))
    assert (len(system.table.outcomes), system.table.outcomes.size) == (0, 0)


async def test_a_wait_that_was_answered_while_the_child_ended_leaves_no_outcome(system: System) -> None:
    async def parent(ctx: Context) -> None:
        for n in range(10, MANY + 10):
            assert await ctx.wait(await ctx.spawn("child", {"n": n})) == n
        assert len(system.table.outcomes) == 0

    await system.run(parent)


async def test_a_parent_that_kills_its_children_leaves_no_outcome(system: System) -> None:
    system.program(listener)

    async def parent(ctx: Context) -> None:
        done = await ctx.spawn("child", {"n": 1})
        await ctx.sleep(1)
        await ctx.kill(done)  # too late: its result is there
        for _ in range(MANY):
            await ctx.kill(await ctx.spawn("listener"))
        assert len(system.table.outcomes) == 1
        assert await ctx.wait(done) == 1

    await system.run(parent)


@pytest.mark.parametrize("bound", ["MOST", "BYTES"])
async def test_a_parent_that_never_waits_loses_its_own_oldest_outcomes_and_not_those_of_others(
    system: System, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_outcomes, bound, 20 if bound == "MOST" else 2000)

    async def modest(ctx: Context) -> list[int]:
        pids = await family(ctx, "x" * 100, 4)
        await ctx.receive()
        return [len(await ctx.wait(pid)) for pid in pids]

    async def greedy(ctx: Context) -> None:
        pids = await family(ctx, "x" * 100, REMEMBERED + 60)
        with pytest.raises(OutcomeForgotten):
            await ctx.wait(pids[0])
        assert await ctx.wait(pids[59]) == "x" * 100

    one = system.spawn(modest)
    await system.run(greedy)
    assert len(system.table.outcomes) <= 20
    system.kernel.messaging.notify(one, "go", None)
    assert await system.result(one) == [100] * 4


async def test_a_wait_for_a_pid_that_never_existed_is_not_too_late(system: System) -> None:
    with pytest.raises(Exception, match="never existed") as caught:
        await system.call(Wait(10**6))
    assert not isinstance(caught.value, OutcomeForgotten)
