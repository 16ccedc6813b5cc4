"""The state of a durable agent besides its calls: memory, names, checkpoints, and regions that outlive the daemon."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.codec import reveal
from ipc.errors import CheckpointRefused, InvalidCall, NameTaken
from ipc.syscalls import Publish, Regions, Send, SharedDelete, SharedGet, SharedSet
from llmosd.context import Context
from tests.support.durable_world import Life, World, everywhere, note

pytestmark = pytest.mark.real_time


async def test_memory_names_and_subscriptions_are_there_again(world: World) -> None:
    async def keeper(ctx: Context) -> list[Any]:
        await ctx.register("keeper")
        await ctx.subscribe("all.#")
        for number in range(4):
            await ctx.memory.set(f"key {number}", [number])
        await ctx.memory.delete("key 1")
        await ctx.memory.set("key 2", "new")
        body = (await ctx.receive()).body
        return [body, await ctx.memory.keys(), await ctx.memory.get("key 2"), await ctx.memory.get("key 1", 7)]

    program = world.agent(keeper)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Receive"))
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        while not await life.system.call(Publish("all.of.you", "hello")):
            await asyncio.sleep(0.001)
        assert await life.result(task) == ["hello", ["key 0", "key 2", "key 3"], "new", 7]
        assert life.calls.get("MemorySet", 0) == 0
        assert life.calls.get("Register", 0) == 0


async def test_a_name_of_a_durable_agent_is_given_to_nobody_else_before_it_is_back(world: World) -> None:
    async def holder(ctx: Context) -> str:
        await ctx.register("throne")
        return (await ctx.receive()).body

    async def rival(ctx: Context) -> int:
        try:
            await ctx.register("throne")
        except NameTaken as error:
            return int(error.data["pid"])
        return 0

    program = world.agent(holder)
    other = world.agent(rival, durable=False)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Receive"))
        (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "holder")
        await life.rows("SELECT 1")
        folder = life.folder
    async with world.life(folder) as life:
        process = life.system.spawn(other)
        assert await life.system.result(process) == pid
        assert process.pid > pid
        await life.system.call(Send("throne", "long live"))
        assert await life.result(task) == "long live"


async def test_a_checkpoint_cuts_the_history_and_gives_its_state_back(world: World) -> None:
    world.tool(note(world))

    async def looper(ctx: Context) -> list[str]:
        done = await ctx.checkpoint([])
        while len(done) < 5:
            text = await ctx.generate(f"round {len(done)}", max_tokens=2, temperature=1.0)
            done.append(await ctx.tool("note", line=f"{len(done)} {text}"))
            done = await ctx.checkpoint(done)
        return done

    program = world.agent(looper)

    def once(life: Life, result: list[str]) -> None:
        assert sorted(world.lines.values()) == result

    await everywhere(world, program, once)
    assert max(world.kept) == 2
    assert world.kept.count(0) > 5


async def test_a_checkpoint_is_refused_beside_children_and_threads_and_is_nothing_to_others(world: World) -> None:
    async def idle(ctx: Context) -> None:
        await ctx.sleep(1e6)

    async def looper(ctx: Context) -> list[Any]:
        pid = await ctx.spawn("idle")
        refused = 0
        try:
            await ctx.checkpoint(1)
        except CheckpointRefused:
            refused += 1
        await ctx.kill(pid)
        thread = ctx.start_thread(ctx.sleep(1e6))
        try:
            await ctx.checkpoint(2)
        except CheckpointRefused:
            refused += 1
        thread.cancel()
        await asyncio.wait([thread])
        return [refused, await ctx.checkpoint({"a": (1, 2)})]

    async def careless(ctx: Context) -> Any:
        state = object()
        return await ctx.checkpoint(state) is state

    world.agent(idle, durable=False)
    world.agent(looper)
    world.agent(careless, durable=False)
    async with world.life() as life:
        assert await life.run("looper") == [2, {"a": [1, 2]}]
        assert await life.run("careless") is True


async def test_durable_regions_are_there_again_with_versions_that_go_on_growing(world: World) -> None:
    async def scribe(ctx: Context) -> list[int]:
        book, scrap = ctx.shared("book", durable=True), ctx.shared("scrap")
        await scrap.set("gone with the daemon")
        versions = [await book.set({"pages": [1]}), await ctx.shared("book").set({"pages": [1, 2]})]
        await ctx.receive()
        return [*versions, await book.compare_and_set("end", versions[-1]), await scrap.set("new")]

    program = world.agent(scribe)
    async with world.life() as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Receive"))
        assert await life.system.call(SharedSet("mine", 1, durable=True))
        await life.system.call(SharedSet("yours", 1, durable=True))
        await life.system.call(SharedDelete("yours"))
        with pytest.raises(InvalidCall, match="cannot be durable"):
            await life.system.call(SharedSet("odd", 1, ephemeral=True, durable=True))
        (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "scribe")
        folder = life.folder
    async with world.life(folder) as life:
        regions = {region.name: region for region in await life.system.call(Regions())}
        assert regions.keys() == {"book", "mine"}
        value, version = await life.system.call(SharedGet("book"))
        assert reveal(value) == {"pages": [1, 2]}
        await life.system.call(Send(pid, None))
        versions = await life.result(task)
        assert versions == sorted(versions)
        assert versions[1] == version
        assert reveal((await life.system.call(SharedGet("book"))).value) == "end"
    async with world.life(folder) as life:
        value, version = await life.system.call(SharedGet("book"))
        assert (reveal(value), version) == ("end", versions[2])


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda ctx: ctx.subscribe("half a pair \ud800"), InvalidCall),
        (lambda ctx: ctx.subscribe("x" * 100_000), InvalidCall),
        (lambda ctx: ctx.subscribe(5), InvalidCall),
        (lambda ctx: ctx.monitor(1.5), InvalidCall),
    ],
)
async def test_what_no_row_can_hold_is_refused_and_the_journal_goes_on(world: World, use: Any, error: Any) -> None:
    async def careless(ctx: Context) -> float:
        with pytest.raises(error):
            await use(ctx)
        return await ctx.time()

    program = world.agent(careless)
    async with world.life() as life:
        assert await life.run(program) <= await life.run(program)


async def test_calls_before_the_first_checkpoint_are_made_anew_once(world: World) -> None:

    async def settings(ctx: Context) -> None:
        await ctx.register("settings")
        while True:
            message = await ctx.receive()
            await ctx.reply(message, message.body.upper())

    async def looper(ctx: Context) -> list[Any]:
        mode = await ctx.call("settings", "fast")
        await ctx.send("settings-log", mode)
        state = await ctx.checkpoint([])
        while len(state) < 2:
            state = await ctx.checkpoint([*state, (await ctx.receive()).body])
        return [mode, state, (await ctx.receive()).body]

    async def listener(ctx: Context) -> list[str]:
        await ctx.register("settings-log")
        seen = []
        while True:
            message = await ctx.receive()
            if message.type == "enough":
                return seen
            seen.append(message.body)

    world.agent(settings)
    world.agent(looper)
    world.agent(listener)
    async with world.life() as life:
        await life.submit("settings")
        listening = await life.submit("listener")
        await life.until(lambda: len(life.system.names) == 2)
        task = await life.submit("looper")
        pid = max(process.pid for process in life.system.table.alive.values())
        for body in (1, 2):
            await life.system.call(Send(pid, body))
        while await life.rows(f"SELECT 1 FROM messages WHERE pid = {pid:d}"):
            await asyncio.sleep(0.001)
        while [row[0] for row in await life.rows("SELECT epoch FROM processes WHERE program = 'looper'")] != [6]:
            await asyncio.sleep(0.001)
        folder = life.folder
    for made in (1, 0):  # the first of these runs makes the call; the second answers it from the journal
        async with world.life(folder) as life:
            while [row.state()[1] for row in life.system.table.alive.values()].count("message") != 3:
                await asyncio.sleep(0.001)
            await life.rows("SELECT 1")
            assert life.calls.get("Call", 0) == made
    async with world.life(folder) as life:
        await life.system.call(Send(pid, "last"))
        assert await life.result(task) == ["FAST", [1, 2], "last"]
        await life.system.call(Send("settings-log", None, type="enough"))
        assert await life.result(listening) == ["FAST", "FAST"]
