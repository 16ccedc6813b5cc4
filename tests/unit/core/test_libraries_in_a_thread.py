"""anyio, httpx and subprocesses work inside a thread."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from ipc.syscalls import Kill
from llmosd.context import Context
from tests.support.system import System

# ---- anyio


async def test_anyio_task_group_and_move_on_after(system: System) -> None:
    async def agent(ctx: Context) -> list[Any]:
        seen: list[Any] = []

        async def child(n: int) -> None:
            await ctx.sleep(n)
            seen.append(n)

        async with anyio.create_task_group() as group:
            for n in (3, 1, 2):
                group.start_soon(child, n)
        with anyio.move_on_after(5) as scope:
            await ctx.receive()
        seen.append(scope.cancelled_caught)
        with anyio.CancelScope() as inner:
            inner.cancel()
            await ctx.sleep(1)
            seen.append("not reached")
        seen.append(inner.cancelled_caught)
        with pytest.raises(TimeoutError), anyio.fail_after(1):
            await asyncio.sleep(100)
        await ctx.sleep(1)
        seen.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]
        return seen

    assert await system.run(agent) == [1, 2, 3, True, True, 0]


async def test_anyio_cancels_a_group_whose_child_fails(system: System) -> None:
    async def agent(ctx: Context) -> list[str]:
        seen = []

        async def sibling() -> None:
            try:
                await ctx.receive()
            finally:
                seen.append("left")

        async def failing() -> None:
            await ctx.sleep(1)
            raise ValueError

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(sibling)
                group.start_soon(failing)
        except* ValueError:
            seen.append("ValueError")
        return seen

    assert await system.run(agent) == ["left", "ValueError"]


async def test_anyio_primitives_and_worker_threads(system: System) -> None:
    async def agent(ctx: Context) -> list[Any]:
        send, receive = anyio.create_memory_object_stream[int](0)
        got: list[Any] = []

        async def producer() -> None:
            async with send:
                for n in range(3):
                    await send.send(n)

        async with anyio.create_task_group() as group:
            group.start_soon(producer)
            got += [item async for item in receive]
        event, lock = anyio.Event(), anyio.Lock()
        event.set()
        async with lock:
            await event.wait()
        return [*got, await asyncio.to_thread(len, "four")]

    assert await system.run(agent) == [0, 1, 2, 4]


async def test_killing_a_process_leaves_an_anyio_group(system: System) -> None:
    ended = []

    async def agent(ctx: Context) -> None:
        async def child() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(True)

        async with anyio.create_task_group() as group:
            group.start_soon(child)
            group.start_soon(child)

    process = system.spawn(agent)
    await system.turns()
    await system.call(Kill(process.pid))
    assert ended == [True, True]
    assert system.asyncio_tasks() == set()


@pytest.mark.real_time
async def test_anyio_to_thread_inside_a_thread(system: System) -> None:
    async def agent(ctx: Context) -> int:
        return await anyio.to_thread.run_sync(sum, [1, 2, 3])

    assert await system.run(agent) == 6


# ---- sockets and processes


@pytest.mark.real_time
async def test_httpx_speaks_to_a_real_server_inside_a_thread(system: System) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def agent(ctx: Context) -> list[str]:
        async with httpx.AsyncClient(trust_env=False) as client:
            answers = await asyncio.gather(*(client.get(f"http://127.0.0.1:{port}/") for _ in range(3)))
        return [answer.text for answer in answers]

    assert await system.run(agent) == ["hello"] * 3
    server.close()


@pytest.mark.real_time
async def test_killing_an_agent_cuts_its_http_request_short(system: System) -> None:
    connected = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        connected.set()
        await reader.read()  # until the client goes away
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def agent(ctx: Context) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(f"http://127.0.0.1:{port}/")

    process = system.spawn(agent)
    await connected.wait()
    assert (await system.call(Kill(process.pid))).reason == "killed"
    server.close()


async def test_httpx_mock_transport_needs_no_socket(system: System) -> None:
    async def agent(ctx: Context) -> int:
        transport = httpx.MockTransport(lambda request: httpx.Response(204))
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.get("http://nowhere/")).status_code

    assert await system.run(agent) == 204


@pytest.mark.real_time
async def test_a_subprocess_runs_inside_a_thread(system: System) -> None:
    async def agent(ctx: Context) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", "print(6 * 7)", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return out.decode().strip()

    assert await system.run(agent) == "42"
