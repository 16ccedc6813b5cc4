"""A thread is cancelled exactly as an asyncio.Task is: each scenario has the same result with both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support.system import System

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
async def test_a_thread_is_cancelled_as_an_asyncio_task_is(system: System, scenario: Any) -> None:
    ours: list[Any] = []
    theirs: list[Any] = []
    await scenario(system.thread, ours)
    await scenario(asyncio.create_task, theirs)
    assert ours == theirs
    assert theirs
