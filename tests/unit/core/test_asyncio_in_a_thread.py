"""asyncio works inside a thread: timeouts, task groups, gathering, its primitives, and the introspection of tasks."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from ipc.errors import TimedOut
from ipc.syscalls import Kill
from kernel.core.process import Thread
from llmosd.context import Context
from tests.support.system import System


async def test_timeout_ends_a_kernel_wait(system: System) -> None:
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


async def test_a_timeout_around_a_loop_of_immediate_calls_still_strikes(system: System) -> None:
    async def agent(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0):
                while True:
                    await ctx.send(ctx.pid, None)
                    await ctx.receive()
        except TimeoutError:
            return "struck"

    assert await system.run(agent) == "struck"


async def test_wait_for_cancels_what_it_gives_up(system: System) -> None:
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
    system: System, kind: str, first: str
) -> None:
    """asyncio.wait_for of Python 3.11 may swallow it: https://github.com/python/cpython/issues/86296."""
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
    cancel = partial(system.kernel.process_exit.end, process, "killed", "by the test")
    if first == "cancellation":
        system.loop.call_at(until, cancel)
    await system.turns()
    if first == "timeout":
        system.loop.call_at(until, cancel)
    await system.status(process)
    assert ends == ["cancelled"]


async def test_the_tasks_of_a_task_group_are_threads_of_the_process(system: System) -> None:
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


async def test_a_failing_child_cancels_its_task_group(system: System) -> None:
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


async def test_killing_a_process_ends_the_tasks_it_made(system: System) -> None:
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
    assert system.asyncio_tasks() == set()


async def test_tasks_left_behind_are_cancelled_when_the_agent_returns(system: System) -> None:
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


async def test_tasks_of_the_kernel_and_of_tests_are_no_threads(system: System) -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    assert not isinstance(task, Thread)
    await task


async def test_gather_keeps_order_and_cancels_on_failure(system: System) -> None:
    async def agent(ctx: Context) -> list[Any]:
        async def value(n: int) -> int:
            await ctx.sleep(10 - n)
            return n

        values = await asyncio.gather(*(value(n) for n in range(5)))
        both = await asyncio.gather(value(1), ctx.wait(999), return_exceptions=True)
        return [values, [type(item).__name__ for item in both]]

    assert await system.run(agent) == [[0, 1, 2, 3, 4], ["int", "UnknownProcess"]]


async def test_event_queue_lock_semaphore_and_condition(system: System) -> None:
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


async def test_a_shielded_task_survives_the_cancellation_of_its_waiter(system: System) -> None:
    async def agent(ctx: Context) -> str:
        inner = asyncio.create_task(asyncio.sleep(2, "inner"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.shield(inner)
        return await inner

    assert await system.run(agent) == "inner"


async def test_context_variables_are_copied_into_child_threads(system: System) -> None:
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


async def test_to_thread_runs_off_the_loop(system: System) -> None:
    async def agent(ctx: Context) -> int:
        return await asyncio.to_thread(sum, range(10))

    assert await system.run(agent) == 45


async def test_awaiting_what_is_no_future_is_an_error_in_the_agent(system: System) -> None:
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


async def test_awaiting_a_future_of_another_loop_is_an_error_in_the_agent(system: System) -> None:
    other = asyncio.new_event_loop()
    future = other.create_future()

    async def agent(ctx: Context) -> str:
        try:
            await future
        except RuntimeError as error:
            return str(error)
        return ""

    try:
        assert "attached to a different loop" in await system.run(agent)
    finally:
        other.close()


async def test_what_is_no_coroutine_makes_no_task(system: System) -> None:
    async def agent(ctx: Context) -> str:
        with pytest.raises(TypeError) as refused:
            asyncio.get_running_loop().create_task(7)  # type: ignore[arg-type]
        return str(refused.value)

    assert await system.run(agent) == "a coroutine was expected, got 7"


async def test_a_timeout_of_zero_strikes_at_the_first_wait(system: System) -> None:
    async def agent(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(0)
        except TimeoutError:
            return "struck"
        return "went on"

    assert await system.run(agent) == "struck"


async def test_a_task_shows_where_it_stands(system: System) -> None:
    async def agent(ctx: Context) -> str:
        async def sleeping() -> None:
            await asyncio.sleep(100)

        task = asyncio.create_task(sleeping())
        await asyncio.sleep(0)
        text = io.StringIO()
        task.print_stack(file=text)
        return text.getvalue()

    assert "await asyncio.sleep(100)" in await system.run(agent)


async def test_introspection_works_as_on_a_task(system: System) -> None:
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
