"""Durable agents at a start of the daemon: what may be wrong with them, and how an earlier life left them."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from ipc.codec import decode, encode
from ipc.errors import HistoryDamaged, LlmosError, ReplayDiverged, TooManyAttempts, UnknownName, UnknownProcess
from ipc.frames import FrameDecoder, frame
from ipc.protocol import VERSION, FromDaemon, Hello, RawAnswer, Request, Welcome
from ipc.syscalls import Nice, Ping, Resume, Send, Submit, Suspend
from kernel.durable import durability
from kernel.durable.arrivals import Arrivals
from kernel.journal import schema, store, writer
from kernel.journal.settings import FILE
from kernel.journal.store import Store
from kernel.server import Connection
from llmosd.context import Context
from tests.support.durable_world import World

pytestmark = pytest.mark.real_time


async def test_a_replay_that_takes_another_way_ends_and_shows_both_sides(world: World) -> None:
    word = ["then"]

    async def wayward(ctx: Context) -> None:
        await ctx.time()
        with suppress(LlmosError):
            await ctx.generate(f"a word for {word[0]}", max_tokens=1)
        await ctx.receive()

    async def parent(ctx: Context) -> None:
        await ctx.wait(await ctx.spawn("wayward"))

    world.agent(wayward)
    world.agent(parent)
    async with world.life() as life:
        tasks = [await life.submit("wayward"), await life.submit("parent")]
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        await life.rows("SELECT 1")
        folder = life.folder
    word[0] = "now"
    world.agent(wayward)
    world.programs[-1].version = "another"
    async with world.life(folder) as life:
        for task in tasks:
            with pytest.raises(
                ReplayDiverged, match=r"a word for then.*a word for now.*its code has changed"
            ) as caught:
                await life.result(task)
            assert caught.value.data["number"] == 1
        assert await life.rows("SELECT * FROM calls") == []


async def test_a_row_that_cannot_be_read_ends_its_own_task_and_no_other(world: World) -> None:
    async def reader(ctx: Context) -> Any:
        await ctx.time()
        return (await ctx.receive()).body

    program = world.agent(reader)
    async with world.life() as life:
        tasks = [await life.submit(program) for _ in range(4)]
        pids = [process.pid for process in life.system.table.alive.values() if process.program == "reader"]
        await life.until(lambda: life.calls.get("Receive", 0) == 4)
        await life.rows("SELECT 1")
        folder = life.folder
    with apsw.Connection(str(folder / FILE)) as db:
        db.execute("UPDATE calls SET outcome = x'c1' WHERE pid = ?", (pids[0],))
        db.execute("UPDATE calls SET call = x'00' WHERE pid = ?", (pids[1],))
        db.execute("INSERT INTO messages (pid, message, envelope) VALUES (?, 1, x'93c1')", (pids[2],))
    async with world.life(folder) as life:
        for task in tasks[:3]:
            with pytest.raises(HistoryDamaged):
                await life.result(task)
        await life.system.call(Send(pids[3], "alive"))
        assert await life.result(tasks[3]) == "alive"


async def test_what_was_suspended_is_suspended_again_until_it_is_resumed(world: World) -> None:
    async def sleeper(ctx: Context) -> Any:
        return (await ctx.receive()).body

    program = world.agent(sleeper)
    async with world.life() as life:
        task = await life.submit(program)
        (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "sleeper")
        await life.system.call(Suspend(pid))
        await life.system.call(Send(pid, "morning"))
        folder = life.folder
    async with world.life(folder) as life:
        await life.system.call(Send(pid, "again"))
        process = life.system.table.alive[pid]
        await life.system.turns(50)
        assert (process.suspended, process.calls) == (True, 0)
        await life.system.call(Resume(pid))
        assert await life.result(task) == "morning"


async def test_the_priority_of_a_process_is_what_it_was_given_last(world: World) -> None:
    async def worker(ctx: Context) -> Any:
        await ctx.nice(ctx.pid, 7)
        ctx.start_thread(ctx.sleep(1e6))
        return (await ctx.receive()).body

    program = world.agent(worker)
    async with world.life() as life:
        task = await life.submit(program)
        other = await life.submit(program)
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        pid, pid_of_other = (one.pid for one in life.system.table.alive.values() if one.program == program)
        assert await life.system.call(Nice(pid, -3, relative=True)) == 4
        folder = life.folder
    async with world.life(folder) as life:
        alive = life.system.table.alive
        await life.until(lambda: {pid, pid_of_other} <= alive.keys() and len(alive[pid].threads) == 2)
        assert [alive[one].priority for one in (pid, pid_of_other)] == [4, 7]
        assert {thread.priority for thread in alive[pid].threads} == {4}
        for one in (pid, pid_of_other):
            await life.system.call(Send(one, "hello"))
        assert [await life.result(one) for one in (task, other)] == ["hello", "hello"]


@pytest.mark.parametrize("version", range(2, len(schema.MIGRATIONS)))
async def test_an_agent_in_a_journal_of_an_earlier_version_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    async def worker(ctx: Context) -> list[Any]:
        return [await ctx.time(), (await ctx.receive()).body]

    program = world.agent(worker)
    monkeypatch.setattr(store, "MIGRATIONS", schema.MIGRATIONS[:version])
    async with world.life() as life:
        task = await life.submit(program)
        while not (calls := await life.rows("SELECT pid FROM calls")):
            await asyncio.sleep(0.001)
        assert await life.rows("PRAGMA user_version") == [(version,)]
        folder = life.folder
    monkeypatch.undo()
    before = time.time()
    async with world.life(folder) as life:
        await life.system.call(Send(calls[0][0], "hello"))
        begun, body = await life.result(task)
        assert (begun < before, body) == (True, "hello")


async def test_any_program_is_run_as_a_durable_one_on_demand_and_no_other_keeps_calls(world: World) -> None:
    async def plain(ctx: Context) -> list[Any]:
        return [ctx.attempt, await ctx.time(), (await ctx.receive()).type]

    program = world.agent(plain, durable=False)
    async with world.life() as life:
        kept, lost = [
            (await life.system.call(Submit(program, detach=True, durable=durable))).id for durable in (True, False)
        ]
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        assert [row[0] for row in await life.rows("SELECT count(*) FROM calls")] == [1]
        folder = life.folder
        before = time.time()
    async with world.life(folder) as life:
        await life.until(lambda: life.calls.get("Receive", 0) == 2)
        for pid in [process.pid for process in life.system.table.alive.values() if process.program == "plain"]:
            await life.system.call(Send(pid, None, type="go"))
        results = [await life.result(task) for task in (kept, lost)]
        assert [result[0] for result in results] == [2, 2]
        assert results[0][1] < before < results[1][1]


async def test_a_task_that_gets_further_in_each_life_is_not_given_up(world: World) -> None:
    async def slow(ctx: Context) -> int:
        for number in range(5):
            await ctx.memory.set("number", number)
            await ctx.receive(sender=None, type=f"go {number}")
        return ctx.attempt

    async def stuck(ctx: Context) -> None:
        await ctx.receive()

    world.agent(slow)
    world.agent(stuck)
    world.attempts = 3
    folder: Path | None = None
    pid, tasks = 0, list[str]()
    for number in range(4):
        async with world.life(folder) as life:
            folder = life.folder
            if not tasks:
                tasks = [await life.submit("slow"), await life.submit("stuck")]
                (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "slow")
            await life.system.call(Send(pid, None, type=f"go {number}"))
            while msgspec.msgpack.encode(number + 1) not in [
                row[0] for row in await life.rows("SELECT value FROM memory")
            ]:
                await asyncio.sleep(0.001)
    async with world.life(folder) as life:
        await life.system.call(Send(pid, None, type="go 4"))
        assert await life.result(tasks[0]) == 5
        with pytest.raises(TooManyAttempts):
            await life.result(tasks[1])


async def test_who_only_waits_is_not_given_up_if_the_daemon_lasts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durability, "LASTED", 0.01)

    async def waiter(ctx: Context) -> Any:
        return (await ctx.receive()).body

    program = world.agent(waiter)
    world.attempts = 3
    async with world.life() as life:
        task, folder = await life.submit(program), life.folder
        (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == program)
    for _ in range(5):
        async with world.life(folder) as life:
            while await life.rows("SELECT crashes FROM tasks") != [(0,)]:
                await asyncio.sleep(0.001)
    async with world.life(folder) as life:
        await life.system.call(Send(pid, "at last"))
        assert await life.result(task) == "at last"


async def test_an_orderly_stop_leaves_a_detached_durable_agent_where_it_was(world: World) -> None:
    async def worker(ctx: Context) -> list[Any]:
        pids = [await ctx.spawn(program) for program in ("plain", "idle")]
        text = await ctx.generate("x", max_tokens=1)
        return [ctx.pid, pids, text, [await ctx.wait(pid) for pid in pids]]

    async def idle(ctx: Context) -> int:
        await ctx.receive()
        return ctx.pid

    world.agent(idle, "plain", durable=False)
    world.agent(idle)
    program = world.agent(worker)
    async with world.life(orderly=True) as life:
        task = await life.submit(program)
        await life.until(lambda: life.calls.get("Wait"))
        folder = life.folder
    async with world.life(folder) as life:
        assert len(await life.rows("SELECT * FROM processes WHERE status IS NULL")) == 3
        pids = [row[0] for row in await life.rows("SELECT pid FROM processes ORDER BY pid")]
        for pid in pids[1:]:
            await life.until(lambda pid=pid: pid in life.system.table.alive)  # type: ignore[misc]
            await life.system.call(Send(pid, None))
        own, children, _, ends = await life.result(task)
        assert [own, *children] == pids
        assert ends == children
        assert life.calls.get("Generate", 0) == 0


async def test_who_waits_for_a_process_to_begin_again_is_woken_when_it_does_and_for_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Waiter:
        wakes = 0

        def wake(self) -> None:
            self.wakes += 1

    threads = [Waiter(), Waiter()]
    arrivals = Arrivals(lambda: None)
    arrivals.expect([(1, 10), (2, 10), (3, 11)], {"two": 2, "three": 3})
    waits = [arrivals.resolve(UnknownProcess("", pid=3)), arrivals.resolve(UnknownName("", name="two"))]
    for thread, wait in zip(threads, waits, strict=True):
        monkeypatch.setattr(asyncio, "current_task", lambda one=thread: one)
        wait.send(None)
    arrivals.came(1)
    assert [thread.wakes for thread in threads] == [0, 0]
    arrivals.came(2)
    assert [thread.wakes for thread in threads] == [0, 1]
    arrivals.ended(11)
    assert [thread.wakes for thread in threads] == [1, 1]
    assert (arrivals.pids, arrivals.names) == ({}, {})
    for wait in waits:
        with pytest.raises(StopIteration) as stopped:
            wait.send(None)
        assert stopped.value.value is True


async def test_a_client_is_welcomed_once_the_journal_has_said_what_there_is(world: World) -> None:
    async with world.life() as life:
        kernel = life.system.kernel
        kernel.opened = False
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        transport, _ = await kernel.loop.create_connection(lambda: Connection(kernel, set()), sock=ours)
        theirs.setblocking(False)
        stream = frame(encode(Hello(VERSION, "test"))) + frame(encode(Request(1, Ping())))
        await kernel.loop.sock_sendall(theirs, stream)
        await life.until(lambda: kernel.on_opened)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        kernel.opened = True
        for callback in kernel.on_opened:
            callback()
        frames = FrameDecoder()
        answers: list[Any] = []
        while len(answers) < 2:
            data = await kernel.loop.sock_recv(theirs, 65536)
            answers += [decode(payload, FromDaemon) for payload in frames.feed(data)]
        assert [type(answer) for answer in answers] == [Welcome, RawAnswer]
        transport.close()
        theirs.close()


async def test_a_disk_that_takes_nothing_pauses_a_durable_agent_and_is_no_error_to_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    real = Store.keep

    def keep(store: Store, wanted: Any) -> None:
        wanted = list(wanted)
        if wanted and full.is_set():
            raise apsw.FullError("no room")
        real(store, wanted)

    monkeypatch.setattr(Store, "keep", keep)
    monkeypatch.setattr(writer, "RETRY", 0.005)
    steps: list[int] = []

    async def worker(ctx: Context) -> list[int]:
        for number in range(3):
            await ctx.time()
            await ctx.shared("region").set(number)
            steps.append(number)
            await ctx.receive()
        return steps

    program = world.agent(worker)
    async with world.life() as life:
        task = await life.submit(program)
        (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "worker")
        await life.until(lambda: steps == [0])
        full.set()
        sent = life.system.thread(life.system.kernel.gate.enter(life.system.client, Send(pid, 1)))
        process = life.system.table.alive[pid]
        await life.until(lambda: process.state()[1] == "journal")
        await asyncio.sleep(0.03)
        assert (steps, sent.done()) == ([0], False)
        full.clear()
        await sent
        for _ in range(2):
            await life.system.call(Send(pid, 2))
        assert await life.result(task) == [0, 1, 2]
