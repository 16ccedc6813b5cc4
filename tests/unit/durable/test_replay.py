"""Replays of durable agents: from every commit they reach the same end, and their effects happen once."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from ipc.errors import LlmosError
from ipc.syscalls import Child, Send
from llmosd.context import Context
from tests.support.durable_world import Life, World, everywhere, note, nothing

pytestmark = pytest.mark.real_time


async def test_time_chance_and_replies_are_at_a_replay_what_an_effect_has_seen(world: World) -> None:
    world.tool(note(world))

    async def gambler(ctx: Context) -> list[Any]:
        seen: list[Any] = []
        for _ in range(3):
            seen += [await ctx.time(), await ctx.random()]
            seen.append(await ctx.generate("a word", max_tokens=4, temperature=1.0))
            await ctx.tool("note", line=repr(seen))
        return seen

    program = world.agent(gambler)
    async with world.life() as life:
        world.recording = True
        task = await life.submit(program)
        first = await life.result(task)
        world.recording = False
    assert len(set(first)) == 9
    made = []
    for copy in world.copies:
        world.lines = world.then.get(copy, world.lines)
        async with world.life(copy) as life:
            if await life.rows("SELECT 1 FROM tasks"):
                seen = await life.result(task)
                assert repr(seen) in world.lines.values()
                assert len(world.lines) == 3
                made.append(life.calls.get("Generate", 0))
    assert made == sorted(made, reverse=True)
    assert (made[0], made[-1]) == (3, 0)


async def test_an_agent_comes_to_the_same_end_from_every_commit_and_its_tool_acts_once(world: World) -> None:
    world.tool(note(world))

    async def worker(ctx: Context, rounds: int) -> list[str]:
        done = []
        for number in range(rounds):
            text = await ctx.generate(f"number {number}", max_tokens=2, temperature=1.0)
            done.append(await ctx.tool("note", line=f"{number} {text}"))
        return done

    def once(life: Life, result: list[str]) -> None:
        assert sorted(world.lines.values()) == sorted(result)

    await everywhere(world, world.agent(worker), once, rounds=4)


async def test_children_keep_their_pids_and_what_has_ended_is_not_run_again(world: World) -> None:
    world.tool(note(world))
    begun: list[str] = []

    async def plain(ctx: Context, number: int) -> list[int]:
        begun.append(f"plain {number}")
        return [ctx.pid, number]

    async def child(ctx: Context, number: int) -> list[Any]:
        text = await ctx.generate(f"child {number}", max_tokens=2, temperature=1.0, seed=number)
        await ctx.tool("note", line=text)
        return [ctx.pid, text]

    async def parent(ctx: Context) -> list[Any]:
        pids = [await ctx.spawn(program, {"number": n}) for n, program in enumerate(("plain", "child", "child"))]
        ends = [await ctx.wait(pid) for pid in pids]
        assert pids == [end[0] for end in ends]  # recorded and replayed; a spawn that was not recorded has a new pid
        assert len({ctx.pid, *pids}) == 4
        return [ctx.pid, [end[1] for end in ends], await ctx.wait(pids[1]) == ends[1]]

    world.agent(plain, durable=False)
    world.agent(child)
    made: list[int] = []

    def count(life: Life, result: Any) -> None:
        assert sorted(world.lines.values()) == sorted(result[1][1:])
        made.append(life.calls.get("Generate", 0))

    first = await everywhere(world, world.agent(parent), count)
    assert first[2] is True
    assert made[-1] == 0
    begun.clear()
    async with world.life(world.copies[-2]) as life:  # the child that is not durable had ended, and had been waited for
        await life.until(lambda: not life.system.table.alive or begun or not life.system.tasks._tasks)
        assert begun == []


async def test_a_failed_child_fails_the_same_way_again(world: World) -> None:
    async def broken(ctx: Context) -> None:
        raise ValueError("no good")

    async def parent(ctx: Context) -> str:
        try:
            await ctx.wait(await ctx.spawn("broken"))
        except LlmosError as error:
            text = f"{type(error).__name__} {error.message}"
        return await ctx.generate(text, max_tokens=1)

    world.agent(broken, durable=False)
    await everywhere(world, world.agent(parent), nothing)


async def test_what_a_tool_raised_is_the_same_again_though_nobody_can_read_it(world: World) -> None:
    def broken() -> None:
        raise ValueError("half a \ud800")

    world.tool(broken)

    async def asker(ctx: Context) -> str:
        try:
            await ctx.tool("broken")
        except LlmosError as error:
            name = type(error).__name__
        await ctx.generate(name, max_tokens=1)
        return name

    assert await everywhere(world, world.agent(asker), nothing) == "ToolFailed"


async def test_threads_replay_each_by_itself_however_they_interleave(world: World) -> None:
    world.tool(note(world))

    async def team(ctx: Context) -> list[Any]:
        async def member(number: int) -> list[Any]:
            seen = []
            for step in range(3):
                await asyncio.sleep(await ctx.random() * 0.002)
                text = await ctx.generate(f"{number} {step}", max_tokens=1 + number, temperature=1.0)
                seen.append(await ctx.tool("note", line=f"{number} {step} {text}"))
            return seen

        first = ctx.start_thread(member(0))
        rest = await asyncio.gather(*(member(number) for number in range(1, 4)))
        return [await first, *rest]

    def once(life: Life, result: Any) -> None:
        assert sorted(world.lines.values()) == sorted(itertools.chain.from_iterable(result))

    await everywhere(world, world.agent(team), once)


async def test_locks_are_taken_again_at_a_replay(world: World) -> None:
    async def careful(ctx: Context) -> list[str]:
        seen = []
        async with ctx.lock("door"):
            seen.append(await ctx.generate("inside", max_tokens=1))
            async with ctx.semaphore("two", 2):
                seen.append(await ctx.generate("further inside", max_tokens=1))
        return seen

    def made(life: Life, result: Any) -> None:
        assert life.calls.get("AcquireLock", 0) in (0, 1)

    await everywhere(world, world.agent(careful), made)


async def test_a_large_result_of_a_tool_is_there_again_under_its_name(world: World) -> None:
    runs = []

    def large(call_id: str) -> bytes:
        runs.append(call_id)
        return bytes(2_000_000)

    async def reader(ctx: Context) -> list[Any]:
        reference = await ctx.tool("large")
        await ctx.generate("x", max_tokens=1)
        value = (await ctx.shared(reference.name).get()).value
        return [reference.name, reference.size, value == bytes(2_000_000)]

    world.tool(large)
    name, size, same = await everywhere(world, world.agent(reader), nothing)
    assert same
    assert size > 2_000_000
    assert {f"tool:{run}" for run in runs} == {name}


async def test_what_was_logged_and_emitted_before_is_not_said_again(world: World) -> None:
    async def talker(ctx: Context) -> None:
        ctx.log("first")
        await ctx.emit("first")
        await ctx.time()
        ctx.log("second")
        await ctx.receive()
        ctx.log("third")

    program = world.agent(talker)
    async with world.life() as life:
        task = await life.submit(program)
        (process,) = (process for process in life.system.table.alive.values() if process.program == "talker")
        await life.until(lambda: life.calls.get("Receive"))
        await life.rows("SELECT 1")
        assert [line.event for line in process.log or ()] == ["first", "second"]
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send(process.pid, None))
        process = life.system.table.alive[process.pid]
        await life.result(task)
        # The second line follows the last recorded call: the journal does not say whether it was written.
        assert [line.event for line in process.log or ()] == ["second", "third"]
        assert life.calls.get("Emit", 0) == 0


async def test_text_that_was_printed_before_is_not_printed_again(world: World) -> None:
    def print_line(text: str) -> None:
        (life,) = lives
        life.system.kernel.printing.write("stdout", f"{text}\n")
        life.system.kernel.printing.record("info", f"record {text}", {})

    async def talker(ctx: Context) -> None:
        print_line("first")
        await ctx.time()
        print_line("second")
        await ctx.receive()
        print_line("third")

    program = world.agent(talker)
    lives: list[Life] = []
    async with world.life() as life:
        lives[:] = [life]
        task = await life.submit(program)
        (process,) = (process for process in life.system.table.alive.values() if process.program == "talker")
        await life.until(lambda: life.calls.get("Receive"))
        await life.rows("SELECT 1")
        assert [line.event for line in process.log or ()] == ["first", "record first", "second", "record second"]
        folder = life.folder
    async with world.life(folder) as life:
        lives[:] = [life]
        await life.system.call(Send(process.pid, None))
        process = life.system.table.alive[process.pid]
        await life.result(task)
        assert [line.event for line in process.log or ()] == ["second", "record second", "third", "record third"]


async def test_supervised_children_start_again_unless_all_had_ended(world: World) -> None:
    async def plain(ctx: Context) -> str:
        await ctx.sleep(0.001)
        return "well"

    async def boss(ctx: Context) -> list[Any]:
        ends = await ctx.supervise([Child("plain", restart="transient"), Child("plain", restart="temporary")])
        return [await ctx.generate("x", max_tokens=1), [(end.reason, end.value) for end in ends]]

    def started(life: Life, result: Any) -> None:
        counts.append(life.calls.get("Supervise", 0))

    counts: list[int] = []
    world.agent(plain, durable=False)
    _, ends = await everywhere(world, world.agent(boss), started)
    assert ends == [["done", "well"]] * 2
    assert (counts[0], counts[-1]) == (1, 0)
