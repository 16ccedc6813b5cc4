"""Tasks that an agent makes outside its threads, by any way: contexts work in them, and they live as their process."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import InvalidCall
from ipc.syscalls import Kill, Resume, Suspend
from kernel.core.process import Thread
from llmosd.context import Context
from tests.support.system import System

pytestmark = pytest.mark.real_time

Make = Callable[[], "asyncio.Task[None]"]
Way = Callable[[Make, Path], Any]  # arranges that the loop, or a worker thread, calls `make`


async def soon(make: Make, folder: Path) -> None:
    asyncio.get_running_loop().call_soon(make)


async def later(make: Make, folder: Path) -> None:
    asyncio.get_running_loop().call_later(0.001, make)


async def done_callback(make: Make, folder: Path) -> None:
    future = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda _: make())
    future.set_result(None)


async def executor_done(make: Make, folder: Path) -> None:
    asyncio.get_running_loop().run_in_executor(None, int).add_done_callback(lambda _: make())


async def own_executor_done(make: Make, folder: Path) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(1)
    asyncio.get_running_loop().run_in_executor(pool, int).add_done_callback(lambda _: make())
    return pool


async def soon_from_a_thread(make: Make, folder: Path) -> None:
    await asyncio.to_thread(asyncio.get_running_loop().call_soon_threadsafe, make)


async def soon_from_an_executor(make: Make, folder: Path) -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, loop.call_soon_threadsafe, make)


async def wrapped(make: Make) -> None:
    make()


async def coroutine_from_a_thread(make: Make, folder: Path) -> None:
    await asyncio.to_thread(asyncio.run_coroutine_threadsafe, wrapped(make), asyncio.get_running_loop())


async def coroutine_from_an_executor(make: Make, folder: Path) -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, asyncio.run_coroutine_threadsafe, wrapped(make), loop)


async def reader(make: Make, folder: Path) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()

    def readable() -> None:
        loop.remove_reader(ours)
        make()

    loop.add_reader(ours, readable)
    theirs.send(b"x")
    return ours, theirs


async def stream_server(make: Make, folder: Path) -> Any:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        make()
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "socket")
    _, writer = await asyncio.open_unix_connection(folder / "socket")
    writer.write(b"line\n")
    return server, writer


class Calling(asyncio.Protocol):
    def __init__(self, make: Make, when: str) -> None:
        self._make, self._when = make, when

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._when == "made":
            self._make()

    def data_received(self, data: bytes) -> None:
        if self._when == "data":
            self._make()


async def protocol(make: Make, folder: Path, when: str) -> Any:
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(partial(Calling, make, when), str(folder / "socket"))
    _, writer = await asyncio.open_unix_connection(folder / "socket")
    writer.write(b"line\n")
    return server, writer


class Cyclic:
    def __init__(self) -> None:
        self.cycle = self


async def weak_callback(make: Make, folder: Path) -> Any:
    thing = Cyclic()
    reference = weakref.ref(thing, lambda _: make())
    del thing
    gc.collect()
    return reference


async def exception_handler(make: Make, folder: Path) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: make())
    loop.call_soon(lambda: 1 / 0)


WAYS: list[Way] = [
    soon,
    later,
    done_callback,
    executor_done,
    own_executor_done,
    soon_from_a_thread,
    soon_from_an_executor,
    coroutine_from_a_thread,
    coroutine_from_an_executor,
    reader,
    stream_server,
    partial(protocol, when="made"),
    partial(protocol, when="data"),
    weak_callback,
    exception_handler,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: getattr(way, "__name__", str(getattr(way, "keywords", ""))))
async def test_a_task_works_in_its_context_and_is_suspended_and_killed_with_its_process(
    system: System, tmp_path: Path, way: Way
) -> None:
    ticks: list[int] = []
    opened: list[Any] = []
    errors: list[BaseException] = []

    async def agent(ctx: Context) -> None:
        async def ticker() -> None:
            try:
                thread = asyncio.current_task()
                assert isinstance(thread, Thread)
                assert thread.process.pid == ctx.pid
                await ctx.send(ctx.pid, "hello")
                assert (await ctx.receive()).body == "hello"
                await ctx.sleep(0.001)
            except BaseException as error:
                errors.append(error)
                raise
            while True:
                ticks.append(1)
                await asyncio.sleep(0)

        opened.append(await way(lambda: asyncio.create_task(ticker()), tmp_path))
        await asyncio.Event().wait()

    process = system.spawn(agent)
    await system.until(lambda: errors or len(ticks) > 3)
    assert errors == []
    await system.call(Suspend(process.pid))
    before = len(ticks)
    await system.turns()
    assert len(ticks) == before
    await system.call(Resume(process.pid))
    await system.until(lambda: len(ticks) > before)
    await system.call(Kill(process.pid))
    before = len(ticks)
    await system.turns()
    assert (len(ticks), list(process.threads)) == (before, [])


async def test_what_no_process_owns_may_make_no_call_that_waits_and_says_so(system: System) -> None:
    """Plain threads inherit no context variables, and `asyncio.Task` asks no task factory."""
    refused: list[str] = []

    async def agent(ctx: Context) -> None:
        loop = asyncio.get_running_loop()

        async def work() -> None:
            try:
                await ctx.sleep(1000)
            except InvalidCall as error:
                refused.append(error.message)

        thread = threading.Thread(target=lambda: asyncio.run_coroutine_threadsafe(work(), loop).result(60))
        thread.start()
        await asyncio.Task(work())
        await asyncio.to_thread(thread.join)

    await system.run(agent)
    assert len(refused) == 2
    assert all("a context works in the threads of its own process only" in message for message in refused)


async def test_an_agent_sets_no_signal_handler_in_which_a_task_could_begin(system: System) -> None:
    async def agent(ctx: Context) -> list[str]:
        refused: list[str] = []
        for handle in (asyncio.get_running_loop().add_signal_handler, signal.signal):
            try:
                handle(signal.SIGUSR2, print)
            except (RuntimeError, ValueError) as error:
                refused.append(str(error))
        return refused

    before = signal.getsignal(signal.SIGUSR2)
    refused = await system.run(agent)
    assert len(refused) == 2
    assert all("the daemon" in message for message in refused)
    assert signal.getsignal(signal.SIGUSR2) is before


async def test_functions_in_worker_threads_belong_to_the_process_only_while_they_run(system: System) -> None:
    seen: list[str] = []
    pool = ThreadPoolExecutor(1)  # one thread, so all functions share its context variables

    async def agent(ctx: Context) -> None:
        loop = asyncio.get_running_loop()

        async def owner() -> str:
            task = asyncio.current_task()
            return str(task.process.pid) if isinstance(task, Thread) else "none"

        def look() -> None:
            seen.append(asyncio.run_coroutine_threadsafe(owner(), loop).result(60))

        await loop.run_in_executor(pool, look)
        await asyncio.wrap_future(pool.submit(look))

    try:
        for _ in range(2):
            process = system.spawn(agent)
            await system.result(process)
            assert seen[-2:] == [str(process.pid), "none"]
    finally:
        pool.shutdown()
