"""A change or an end that the journal cannot store ends its own task, with an error that says so, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import HistoryDamaged, NotStorable
from ipc.syscalls import Send
from kernel.journal.changes import PutCall, PutMemory
from kernel.journal.settings import FILE
from kernel.lib import failpoints
from llmosd.context import Context
from tests.support.durable_world import Life, World

pytestmark = [pytest.mark.real_time, pytest.mark.usefixtures("disarmed")]

ONCE_AND_AGAIN = "journal.apply=MemoryError@1-2"  # the transaction, and then the request by itself


async def waiter(ctx: Context) -> Any:
    await ctx.time()
    return (await ctx.receive()).body


async def pids_of(life: Life, count: int) -> list[int]:
    await life.until(lambda: life.calls.get("Receive", 0) == count)
    return [int(pid) for (pid,) in await life.rows("SELECT pid FROM calls ORDER BY pid")]


async def test_a_change_that_cannot_be_stored_ends_its_task_on_the_disk_and_for_its_client(world: World) -> None:
    program = world.agent(waiter)
    async with world.life() as life:
        guilty, innocent = await life.submit(program), await life.submit(program)
        first, second = await pids_of(life, 2)
        durability = life.system.kernel.durability
        assert durability is not None
        durability.commits.persist(PutMemory(first, "half of a pair: \ud800", b"value"))
        with pytest.raises(NotStorable, match="surrogates not allowed"):
            await life.result(guilty)
        assert first not in life.system.table.alive
        durability.commits.persist(PutCall(second, 0, "main", 5, b"call", b"outcome"))
        assert await life.rows("SELECT DISTINCT pid FROM calls") == [(second,)]
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send(second, "hello"))
        assert await life.result(innocent) == "hello"
        with pytest.raises(NotStorable):
            await life.result(guilty)


async def test_a_call_whose_change_cannot_be_stored_raises_the_error_and_the_agent_goes_on(world: World) -> None:
    async def keeper(ctx: Context) -> str:
        failpoints.arm({failpoints.VARIABLE: ONCE_AND_AGAIN})
        try:
            await ctx.shared("region", durable=True).set("value")
        except NotStorable:
            await ctx.shared("region", durable=True).set("value")
            return "stored at the second attempt"
        return "stored"

    program = world.agent(keeper, durable=False)
    async with world.life() as life:
        assert await life.run(program) == "stored at the second attempt"
        assert await life.rows("SELECT name FROM regions") == [("region",)]


async def test_a_result_that_cannot_be_stored_is_reported_and_stored_as_this_error(world: World) -> None:
    async def last(ctx: Context) -> str:
        failpoints.arm({failpoints.VARIABLE: ONCE_AND_AGAIN})
        return "result"

    program = world.agent(last, durable=False)
    async with world.life() as life:
        task = await life.submit(program)
        with pytest.raises(NotStorable, match="MemoryError"):
            await life.result(task)
        assert await life.rows("SELECT reason, error FROM tasks") == [("failed", "NotStorable")]
        assert life.system.tasks.unwritten == 0


async def test_a_text_that_cannot_be_decoded_ends_its_own_task_at_the_next_start(world: World) -> None:
    program = world.agent(waiter)
    async with world.life() as life:
        damaged, sound = await life.submit(program), await life.submit(program)
        first, second = await pids_of(life, 2)
        folder = life.folder
        await life.rows(f"UPDATE calls SET thread = CAST(x'ff' AS TEXT) WHERE pid = {first}")
    assert (folder / FILE).exists()
    async with world.life(folder) as life:
        with pytest.raises(HistoryDamaged, match="can't decode byte 0xff"):
            await life.result(damaged)
        await life.system.call(Send(second, "hello"))
        assert await life.result(sound) == "hello"


async def test_an_outcome_that_cannot_be_decoded_is_a_named_error_of_its_task(world: World) -> None:
    async def quick(ctx: Context) -> str:
        return "result"

    program = world.agent(quick, durable=False)
    async with world.life() as life:
        task = await life.submit(program)
        assert await life.result(task) == "result"
        await life.rows("UPDATE tasks SET outcome = x'c1'")
        with pytest.raises(HistoryDamaged, match="the outcome of this task cannot be decoded"):
            await life.result(task)
