"""Threads: asyncio, anyio and httpx work inside one, and cancelling one is the same as cancelling an asyncio.Task."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from ipc.errors import Killed, TimedOut
from ipc.syscalls import Kill
from kernel.dispatcher import STEPS_PER_TURN
from kernel.gate import BURST
from kernel.thread import PARK, Thread
from llmosd.context import Context

# ---- asyncio inside a thread


async def test_timeout_ends_a_kernel_wait(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        try:
            async with asyncio.timeout(3):
                await ctx.receive()
        except TimeoutError:
            return "late"
        return "message"

    before = system.loop.time()
    assert await system.run(agent) == "late"
    assert system.loop.time() - before == pytest.approx(3)


async def test_a_timeout_around_a_loop_of_immediate_calls_still_strikes(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0):
                while True:
                    await ctx.send(ctx.pid, None)
                    await ctx.receive()
        except TimeoutError:
            return "struck"

    assert await system.run(agent) == "struck"


async def test_wait_for_cancels_what_it_gives_up(system: Any) -> None:
    async def agent(ctx: Context) -> list[str]:
        seen = []

        async def slow() -> None:
            try:
                await ctx.sleep(100)
            finally:
                seen.append("cleaned")

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(slow(), 1)
        assert await asyncio.wait_for(asyncio.sleep(1, "x"), 5) == "x"
        return seen

    assert await system.run(agent) == ["cleaned"]


WAITS: dict[str, Callable[[Context, int], Coroutine[Any, Any, Any]]] = {
    "receive": lambda ctx, peer: ctx.receive(timeout=1),
    "call": lambda ctx, peer: ctx.call(peer, None, 1),
    "wait": lambda ctx, peer: ctx.wait(peer, 1),
    "sleep": lambda ctx, peer: ctx.sleep(1),
    "lock": lambda ctx, peer: ctx.lock("a").acquire(1),
    "event": lambda ctx, peer: ctx.event("e").wait(1),
}


@pytest.mark.parametrize("first", ["timeout", "cancellation"])
@pytest.mark.parametrize("kind", WAITS)
async def test_a_cancellation_that_comes_together_with_a_timeout_is_not_swallowed(
    system: Any, kind: str, first: str
) -> None:
    """As asyncio.wait_for of Python 3.11 may do: https://github.com/python/cpython/issues/86296."""
    ends = []

    async def peer(ctx: Context) -> None:
        await ctx.lock("a").acquire()
        await ctx.sleep(1e6)

    async def agent(ctx: Context, to: int) -> None:
        try:
            await WAITS[kind](ctx, to)
            ends.append("went on")
        except TimedOut:
            ends.append("timed out")
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    other = system.spawn(peer)
    await system.turns()
    until = system.loop.time() + 1
    process = system.spawn(agent, to=other.pid)
    cancel = partial(system.kernel.ending.end, process, "killed", "by the test")
    if first == "cancellation":
        system.loop.call_at(until, cancel)
    await system.turns()
    if first == "timeout":
        system.loop.call_at(until, cancel)
    await system.status(process)
    assert ends == ["cancelled"]


async def test_the_tasks_of_a_task_group_are_threads_of_the_process(system: Any) -> None:
    counts = []

    async def agent(ctx: Context) -> list[int]:
        async def child(n: int) -> int:
            assert isinstance(asyncio.current_task(), Thread)
            await ctx.sleep(n)
            return n

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(child(n), name=f"child {n}") for n in (1, 2, 3)]
            counts.append(len(asyncio.current_task().process.threads))  # type: ignore[union-attr]
        counts.append(len(asyncio.current_task().process.threads))  # type: ignore[union-attr]
        return [task.result() for task in tasks]

    assert await system.run(agent) == [1, 2, 3]
    assert counts == [4, 1]


async def test_a_failing_child_cancels_its_task_group(system: Any) -> None:
    async def agent(ctx: Context) -> list[str]:
        seen = []

        async def sibling() -> None:
            try:
                await ctx.receive()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        async def failing() -> None:
            raise ValueError("x")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(sibling())
                group.create_task(failing())
        except* ValueError:
            seen.append("ValueError")
        await ctx.sleep(1)
        return seen

    assert await system.run(agent) == ["cancelled", "ValueError"]


async def test_killing_a_process_ends_the_tasks_it_made(system: Any) -> None:
    ended = []

    async def agent(ctx: Context) -> None:
        async def background(n: int) -> None:
            try:
                await (ctx.receive() if n % 2 else asyncio.sleep(1000))
            finally:
                ended.append(n)

        keep = [asyncio.create_task(background(n)) for n in range(4)]
        await asyncio.wait(keep)

    process = system.spawn(agent)
    await system.turns()
    assert len(process.threads) == 5
    await system.call(Kill(process.pid))
    assert sorted(ended) == [0, 1, 2, 3]
    assert not process.threads
    assert system.tasks() == set()


async def test_tasks_left_behind_are_cancelled_when_the_agent_returns(system: Any) -> None:
    ended = []

    async def agent(ctx: Context) -> str:
        async def background() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                ended.append(True)

        keep = asyncio.create_task(background())
        await asyncio.sleep(0)
        return str(keep.done())

    assert await system.run(agent) == "False"
    assert ended == [True]


async def test_tasks_of_the_kernel_and_of_tests_are_no_threads(system: Any) -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    assert not isinstance(task, Thread)
    await task


async def test_gather_keeps_order_and_cancels_on_failure(system: Any) -> None:
    async def agent(ctx: Context) -> list[Any]:
        async def value(n: int) -> int:
            await ctx.sleep(10 - n)
            return n

        values = await asyncio.gather(*(value(n) for n in range(5)))
        both = await asyncio.gather(value(1), ctx.wait(999), return_exceptions=True)
        return [values, [type(item).__name__ for item in both]]

    assert await system.run(agent) == [[0, 1, 2, 3, 4], ["int", "UnknownProcess"]]


async def test_event_queue_lock_semaphore_and_condition(system: Any) -> None:
    async def agent(ctx: Context) -> list[Any]:
        event, queue, lock = asyncio.Event(), asyncio.Queue[int](2), asyncio.Lock()
        limit, condition = asyncio.Semaphore(2), asyncio.Condition()
        got: list[Any] = []

        async def producer() -> None:
            for n in range(5):
                await queue.put(n)
            await event.wait()
            async with lock, limit, condition:
                condition.notify_all()

        async with asyncio.TaskGroup() as group:
            group.create_task(producer())
            got += [await queue.get() for _ in range(5)]
            async with condition:
                event.set()
                await condition.wait()
            got.append("notified")
        return got

    assert await system.run(agent) == [0, 1, 2, 3, 4, "notified"]


async def test_a_shielded_task_survives_the_cancellation_of_its_waiter(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        inner = asyncio.create_task(asyncio.sleep(2, "inner"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.shield(inner)
        return await inner

    assert await system.run(agent) == "inner"


async def test_context_variables_are_copied_into_child_threads(system: Any) -> None:
    import contextvars

    variable = contextvars.ContextVar("variable", default="outside")

    async def agent(ctx: Context) -> list[str]:
        variable.set("agent")

        async def child() -> str:
            seen = variable.get()
            variable.set("child")
            return seen

        return [await asyncio.create_task(child()), variable.get()]

    assert await system.run(agent) == ["agent", "agent"]
    assert variable.get() == "outside"


async def test_to_thread_runs_off_the_loop(system: Any) -> None:
    async def agent(ctx: Context) -> int:
        return await asyncio.to_thread(sum, range(10))

    assert await system.run(agent) == 45


async def test_awaiting_what_is_no_future_is_an_error_in_the_agent(system: Any) -> None:
    class Odd:
        def __await__(self) -> Any:
            yield 42

    async def agent(ctx: Context) -> str:
        try:
            await Odd()
        except RuntimeError as error:
            return str(error)
        return ""

    assert "cannot await 42" in await system.run(agent)


async def test_introspection_works_as_on_a_task(system: Any) -> None:
    async def agent(ctx: Context) -> list[Any]:
        me = asyncio.current_task()
        assert me is not None
        assert me in asyncio.all_tasks()
        assert me.get_coro() is not None
        named = me.get_name()
        me.set_name("other")
        with pytest.raises(RuntimeError):
            me.set_result(1)  # type: ignore[attr-defined]
        return [named.startswith("agent-"), me.get_name(), len(me.get_stack()), me.done(), me.cancelled()]

    assert await system.run(agent) == [True, "other", 1, False, False]


# ---- anyio


async def test_anyio_task_group_and_move_on_after(system: Any) -> None:
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


async def test_anyio_cancels_a_group_whose_child_fails(system: Any) -> None:
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


async def test_anyio_primitives_and_worker_threads(system: Any) -> None:
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


async def test_killing_a_process_leaves_an_anyio_group(system: Any) -> None:
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
    assert system.tasks() == set()


@pytest.mark.real_time
async def test_anyio_to_thread_inside_a_thread(system: Any) -> None:
    async def agent(ctx: Context) -> int:
        return await anyio.to_thread.run_sync(sum, [1, 2, 3])

    assert await system.run(agent) == 6


# ---- sockets and processes


@pytest.mark.real_time
async def test_httpx_speaks_to_a_real_server_inside_a_thread(system: Any) -> None:
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
async def test_killing_an_agent_cuts_its_http_request_short(system: Any) -> None:
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


async def test_httpx_mock_transport_needs_no_socket(system: Any) -> None:
    async def agent(ctx: Context) -> int:
        transport = httpx.MockTransport(lambda request: httpx.Response(204))
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.get("http://nowhere/")).status_code

    assert await system.run(agent) == 204


@pytest.mark.real_time
async def test_a_subprocess_runs_inside_a_thread(system: Any) -> None:
    async def agent(ctx: Context) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", "print(6 * 7)", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return out.decode().strip()

    assert await system.run(agent) == "42"


# ---- cancellation


async def test_cancel_before_the_first_step(system: Any) -> None:
    ran = []

    async def body() -> None:
        ran.append(1)

    thread = system.thread(body())
    assert thread.cancel("why")
    with pytest.raises(asyncio.CancelledError):
        await thread
    assert ran == []
    assert thread.cancelled()
    assert not thread.cancel()


async def test_cancel_while_parked(system: Any) -> None:
    async def body() -> None:
        await PARK

    thread = system.thread(body())
    await system.turns(3)
    thread.cancel()
    with pytest.raises(asyncio.CancelledError):
        await thread


async def test_cancel_while_ready_comes_instead_of_the_wake_up(system: Any) -> None:
    seen = []

    async def body() -> None:
        try:
            await PARK
            seen.append("woken")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    thread = system.thread(body())
    await system.turns(3)
    thread.wake()
    thread.cancel()
    thread.wake()
    with pytest.raises(asyncio.CancelledError):
        await thread
    assert seen == ["cancelled"]


async def test_cancel_while_awaiting_a_future_cancels_the_future(system: Any) -> None:
    future: asyncio.Future[None] = system.loop.create_future()

    async def body() -> None:
        await future

    thread = system.thread(body())
    await system.turns(3)
    thread.cancel()
    assert future.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await thread


async def test_cancel_after_the_future_is_done_still_cancels(system: Any) -> None:
    future: asyncio.Future[None] = system.loop.create_future()

    async def body() -> None:
        await future

    thread = system.thread(body())
    await system.turns(3)
    future.set_result(None)
    thread.cancel()
    with pytest.raises(asyncio.CancelledError):
        await thread


async def test_a_wake_up_without_a_wait_is_nothing(system: Any) -> None:
    steps = []

    async def body() -> None:
        for n in range(3):
            steps.append(n)
            await PARK

    thread = system.thread(body())
    thread.wake()
    thread.wake()
    await system.turns(5)
    assert steps == [0]
    thread.wake()
    thread.wake()
    await system.turns(5)
    assert steps == [0, 1]
    thread.cancel()


async def test_an_abandoned_thread_is_never_stepped_again(system: Any) -> None:
    steps = []

    async def body() -> None:
        while True:
            try:
                await PARK
            except asyncio.CancelledError:
                steps.append("ignored")

    thread = system.thread(body())
    await system.turns(3)
    thread.cancel()
    await system.turns(3)
    assert steps == ["ignored"]
    thread.cancel()
    thread.abandon()
    thread.abandon()
    await system.turns(3)
    assert steps == ["ignored"]
    assert thread.cancelled()
    thread.get_coro().close()


async def test_a_thread_cannot_await_itself(system: Any) -> None:
    async def body() -> None:
        me: Any = asyncio.current_task()
        await me

    with pytest.raises(RuntimeError, match="cannot await itself"):
        await system.thread(body())


@pytest.mark.parametrize("directly", [True, False])
async def test_threads_that_await_each_other_in_a_circle_can_be_killed(system: Any, directly: bool) -> None:
    ends = []

    async def agent(ctx: Context) -> None:
        threads: list[asyncio.Future[Any]] = []

        async def one(number: int) -> None:
            await ctx.sleep(1)
            try:
                after = threads[(number + 1) % 3]
                await (after if directly else asyncio.gather(after))
            finally:
                ends.append(number)

        threads += [ctx.start_thread(one(number)) for number in range(3)]
        await threads[0]

    process = system.spawn(agent)
    await asyncio.sleep(2)
    before = system.loop.time()
    await system.call(Kill(process.pid))
    assert (sorted(ends), system.loop.time() - before) == ([0, 1, 2], 0)


async def test_a_line_of_threads_longer_than_the_stack_can_be_killed(system: Any) -> None:
    async def agent(ctx: Context) -> None:
        async def one(left: int) -> None:
            await (ctx.start_thread(one(left - 1)) if left else ctx.sleep(1e6))

        await one(2 * sys.getrecursionlimit())

    process = system.spawn(agent)
    await asyncio.sleep(1)
    assert len(process.threads) > sys.getrecursionlimit()
    assert (await system.call(Kill(process.pid))).reason == "killed"


@pytest.mark.parametrize("path", [None, "0-1"])
async def test_an_abandoned_thread_leaves_no_task_behind(system: Any, path: str | None) -> None:
    ran = []

    async def left_behind() -> None:
        ran.append("ran")

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(1e6)
            except asyncio.CancelledError:
                pass
            except GeneratorExit:
                asyncio.create_task(left_behind())  # noqa: RUF006 - nobody is to hold it
                raise

    async def agent(ctx: Context) -> None:
        await ctx.start_thread(stubborn())

    process = system.spawn(agent)
    await system.turns()
    await system.call(Kill(process.pid, path))
    await system.turns()
    assert ran == []
    assert len(system.client.threads) == 0


Make = Callable[[Coroutine[Any, Any, Any]], Any]


async def scenario_swallow(make: Make, log: list[Any]) -> None:
    async def body() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError as error:
            log.append(error.args)
        return "went on"

    task = make(body())
    await asyncio.sleep(1)
    log.append(task.cancel("message"))
    log.append(await task)
    log.append((task.cancelled(), task.cancelling()))


async def scenario_twice(make: Make, log: list[Any]) -> None:
    async def body() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(10)
                log.append("slept")
            except asyncio.CancelledError:
                log.append("cancelled")
        log.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]

    task = make(body())
    await asyncio.sleep(1)
    task.cancel()
    task.cancel()
    await asyncio.sleep(1)
    await task


async def scenario_uncancel(make: Make, log: list[Any]) -> None:
    async def body() -> None:
        me: Any = asyncio.current_task()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            log.append((me.cancelling(), me.uncancel(), me.uncancel(), me.cancelling()))
        await asyncio.sleep(1)
        log.append("slept")

    task = make(body())
    await asyncio.sleep(1)
    task.cancel()
    await task


async def scenario_cancel_itself(make: Make, log: list[Any]) -> None:
    async def body() -> None:
        me: Any = asyncio.current_task()
        me.cancel("self")
        log.append("still here")
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError as error:
            log.append(error.args)
            raise

    task = make(body())
    try:
        await task
    except asyncio.CancelledError:
        log.append(task.cancelled())


async def scenario_cancel_itself_and_return(make: Make, log: list[Any]) -> None:
    async def body() -> str:
        me: Any = asyncio.current_task()
        me.cancel()
        return "value"

    task = make(body())
    try:
        log.append(await task)
    except asyncio.CancelledError:
        log.append("cancelled")


async def scenario_uncancelled_before_the_step(make: Make, log: list[Any]) -> None:
    async def body() -> None:
        me: Any = asyncio.current_task()
        me.cancel()
        me.uncancel()
        await asyncio.sleep(1)
        log.append("slept")

    task = make(body())
    try:
        await task
    except asyncio.CancelledError:
        log.append("cancelled")


async def scenario_finally_awaits(make: Make, log: list[Any]) -> None:
    async def body() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(2)
            log.append("cleaned")

    task = make(body())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    log.append(task.cancelled())


async def scenario_done_future_and_cancel(make: Make, log: list[Any]) -> None:
    future = asyncio.get_running_loop().create_future()

    async def body() -> None:
        try:
            log.append(await future)
        except asyncio.CancelledError:
            log.append("cancelled")
        await asyncio.sleep(0)
        log.append("on")

    task = make(body())
    await asyncio.sleep(1)
    future.set_result("value")
    task.cancel()
    await asyncio.wait([task])


async def scenario_nested_timeouts(make: Make, log: list[Any]) -> None:
    async def body() -> None:
        try:
            async with asyncio.timeout(2):
                try:
                    async with asyncio.timeout(1):
                        await asyncio.sleep(10)
                except TimeoutError:
                    log.append("inner")
                await asyncio.sleep(10)
        except TimeoutError:
            log.append("outer")
        log.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]

    await make(body())


async def scenario_timeout_and_outer_cancel_at_once(make: Make, log: list[Any]) -> None:
    async def body() -> None:
        try:
            async with asyncio.timeout(1):
                await asyncio.sleep(10)
        except TimeoutError:
            log.append("timeout")
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    task = make(body())
    asyncio.get_running_loop().call_later(1, task.cancel)
    await asyncio.wait([task])
    log.append(task.cancelled())


async def scenario_child_of_a_cancelled_group(make: Make, log: list[Any]) -> None:
    async def child() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            log.append("child")

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(child())
        log.append("not reached")

    task = make(body())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    log.append(task.cancelled())


async def scenario_failing_child(make: Make, log: list[Any]) -> None:
    async def failing() -> None:
        raise ValueError

    async def body() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(10))
                group.create_task(failing())
        except* ValueError:
            log.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]
        await asyncio.sleep(1)
        log.append("slept")

    await make(body())


async def scenario_awaiting_a_cancelled_task(make: Make, log: list[Any]) -> None:
    async def inner() -> None:
        await asyncio.sleep(10)

    async def body() -> None:
        task = asyncio.create_task(inner())
        await asyncio.sleep(1)
        task.cancel("inner")
        try:
            await task
        except asyncio.CancelledError as error:
            log.append((error.args, asyncio.current_task().cancelling()))  # type: ignore[union-attr]

    await make(body())


async def scenario_exception_types(make: Make, log: list[Any]) -> None:
    async def body() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    task = make(body())
    await asyncio.wait([task])
    log.append(repr(task.exception()))


SCENARIOS = [value for name, value in sorted(globals().items()) if name.startswith("scenario_")]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__.removeprefix("scenario_"))
async def test_a_thread_is_cancelled_as_an_asyncio_task_is(system: Any, scenario: Any) -> None:
    ours: list[Any] = []
    theirs: list[Any] = []
    await scenario(system.thread, ours)
    await scenario(asyncio.create_task, theirs)
    assert ours == theirs
    assert theirs


# ---- accounting


@pytest.mark.real_time
async def test_processor_time_is_charged_to_the_process(system: Any) -> None:
    async def busy(ctx: Context) -> None:
        until = time.perf_counter() + 0.03
        while time.perf_counter() < until:
            pass
        await ctx.sleep(0.05)

    status = await system.status(system.spawn(busy))
    assert 0.03 <= status.usage.cpu_seconds < 0.08


async def test_a_burst_of_calls_gives_the_loop_back(system: Any) -> None:
    async def chatty(ctx: Context) -> None:
        while True:
            await ctx.send(ctx.pid, None)
            await ctx.receive()

    process = system.spawn(chatty)
    await system.turns(3)
    assert 0 < process.calls <= 3 * STEPS_PER_TURN * BURST
    await system.call(Kill(process.pid))


async def test_an_error_of_the_kernel_is_raised_where_the_agent_waits(system: Any) -> None:
    async def victim(ctx: Context) -> None:
        await ctx.receive()

    async def waiter(ctx: Context, pid: int) -> str:
        try:
            await ctx.wait(pid)
        except Killed as error:
            return error.message
        return ""

    target = system.spawn(victim)
    process = system.spawn(waiter, pid=target.pid)
    await system.turns()
    await system.call(Kill(target.pid))
    assert "killed by process" in await system.result(process)


# ---- what bit others


async def test_tasks_that_nobody_holds_are_not_collected(system: Any) -> None:
    done: list[int] = []

    async def agent(ctx: Context) -> None:
        async def background(n: int) -> None:
            await asyncio.sleep(1)
            await ctx.sleep(1)
            done.append(n)

        for n in range(100):
            asyncio.create_task(background(n))  # noqa: RUF006 - held by the process alone, which is the point
        gc.collect()
        await ctx.sleep(1.5)
        gc.collect()
        await ctx.sleep(1)

    await system.run(agent)
    assert sorted(done) == list(range(100))


async def test_a_killed_agent_that_takes_its_time_to_clean_up_does_not_spin(system: Any) -> None:
    steps: list[str] = []

    class Count:
        def before_step(self, thread: Thread) -> None:
            steps.append(thread.process.program)

    async def slow(ctx: Context) -> None:
        try:
            await ctx.receive()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.5)
            steps.append("clean")

    process = system.spawn(slow)
    await system.turns()
    system.kernel.instruments.add(Count())
    begin = system.loop.time()
    await system.call(Kill(process.pid))
    assert steps.index("clean") < 5
    assert 1.5 <= system.loop.time() - begin < 2


async def test_a_deferred_cancellation_is_thrown_at_the_next_wait_unless_it_is_taken_back(system: Any) -> None:
    async def program(ctx: Context) -> list[str]:
        me: Any = asyncio.current_task()
        seen = []
        for taken_back in (True, False):
            me.cancel("now")
            try:
                await ctx.sleep(1)
            except asyncio.CancelledError as error:
                me.defer(error)
            if taken_back:
                assert me.uncancel() == 0
            try:
                await ctx.sleep(1)
                seen.append("slept")
            except asyncio.CancelledError as error:
                seen.append(error.args[0])
                me.uncancel()
        return seen

    assert await system.run(program) == ["slept", "now"]
