"""Durable agents while the daemon starts and stops, when it gives up on them, and when the disk is full."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from ipc.codec import decode, encode
from ipc.errors import TooManyAttempts, UnknownName, UnknownProcess
from ipc.frames import FrameDecoder, frame
from ipc.protocol import VERSION, FromDaemon, Hello, RawAnswer, Request, Welcome
from ipc.syscalls import Ping, Send
from kernel.connection import Connection
from kernel.durable import wiring
from kernel.durable.pending_restarts import PendingRestarts
from kernel.journal import writer
from kernel.journal.store import Store
from llmosd.context import Context
from tests.support.durable_world import World

pytestmark = pytest.mark.real_time


async def test_a_task_that_gets_further_in_each_life_is_not_given_up(world: World) -> None:
    async def slow(ctx: Context) -> int:
        for number in range(5):
            await ctx.memory.set("number", number)
            await ctx.receive(sender=None, type=f"go {number}")
        return ctx.attempt

    world.agent(slow)
    world.attempts = 3
    folder: Path | None = None
    pid, tasks = 0, list[str]()
    for number in range(4):
        async with world.life(folder) as life:
            folder = life.folder
            if not tasks:
                tasks = [await life.submit("slow")]
                (pid,) = (process.pid for process in life.system.table.alive.values() if process.program == "slow")
            await life.system.call(Send(pid, None, type=f"go {number}"))
            while msgspec.msgpack.encode(number + 1) not in [
                row[0] for row in await life.rows("SELECT value FROM memory")
            ]:
                await asyncio.sleep(0.001)
    async with world.life(folder) as life:
        await life.system.call(Send(pid, None, type="go 4"))
        assert await life.result(tasks[0]) == 5


async def test_a_task_that_gets_no_further_is_given_up(world: World) -> None:
    async def stuck(ctx: Context) -> None:
        await ctx.receive()

    world.agent(stuck)
    world.attempts = 3
    async with world.life() as life:
        task, folder = await life.submit("stuck"), life.folder
    for _ in range(3):
        async with world.life(folder) as life:
            pass
    async with world.life(folder) as life:
        with pytest.raises(TooManyAttempts):
            await life.result(task)


async def test_who_only_waits_is_not_given_up_if_the_daemon_lasts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "STABLE_AFTER", 0.01)

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
    pending = PendingRestarts(lambda: None)
    pending.expect([(1, 10), (2, 10), (3, 11)], {"two": 2, "three": 3})
    waits = [pending.wait_for_restart(UnknownProcess("", pid=3)), pending.wait_for_restart(UnknownName("", name="two"))]
    for thread, wait in zip(threads, waits, strict=True):
        monkeypatch.setattr(asyncio, "current_task", lambda one=thread: one)
        wait.send(None)
    pending.remove(1)
    assert [thread.wakes for thread in threads] == [0, 0]
    pending.remove(2)
    assert [thread.wakes for thread in threads] == [0, 1]
    pending.remove_task(11)
    assert [thread.wakes for thread in threads] == [1, 1]
    assert (pending.pids, pending.names) == ({}, {})
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
    real = Store.apply

    def keep(store: Store, wanted: Any) -> None:
        wanted = list(wanted)
        if wanted and full.is_set():
            raise apsw.FullError("no room")
        real(store, wanted)

    monkeypatch.setattr(Store, "apply", keep)
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
