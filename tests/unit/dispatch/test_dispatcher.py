"""The dispatcher: which thread runs next, and when the loop gets its turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.syscalls import Resume, Suspend
from kernel.core.fiber import PARK, READY, SUSPENDED
from kernel.core.process import Process, Thread
from kernel.dispatch.dispatcher import AGING, STEPS_PER_TURN, Dispatcher
from llmosd.context import Context
from tests.support.system import System


def process(pid: int, priority: int = 0) -> Process:
    return Process(pid, None, f"p{pid}", {}, owner="", priority=priority)


async def note(log: list[Any], *entries: Any) -> None:
    for entry in entries:
        log.append(entry)
        await asyncio.sleep(0)


async def finish(threads: list[Thread]) -> None:
    await asyncio.wait(threads)


async def test_the_urgent_run_first_and_equals_in_order_of_arrival() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []
    priorities = [0, 5, -20, 5, 0, 20]
    await finish(
        [Thread(process(n, priority), note(log, (priority, n)), dispatcher) for n, priority in enumerate(priorities)]
    )
    assert log == [(20, 5), (5, 1), (5, 3), (0, 0), (0, 4), (-20, 2)]


async def test_equals_take_turns() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []
    await finish([Thread(process(n), note(log, n, n, n), dispatcher) for n in range(3)])
    assert log == [0, 1, 2] * 3


async def test_a_more_urgent_thread_that_becomes_ready_is_next() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []
    threads: list[Thread] = []

    async def starter() -> None:
        log.append("starter")
        threads.append(Thread(process(9, 5), note(log, "urgent"), dispatcher))

    threads += [Thread(process(1), starter(), dispatcher), Thread(process(2), note(log, "other"), dispatcher)]
    await asyncio.sleep(0)
    await finish(threads)
    assert log == ["starter", "urgent", "other"]


async def test_the_loop_gets_its_turn_after_a_bounded_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel.dispatch.dispatcher.TURN_SECONDS", float("inf"))
    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher(loop)
    steps = 0
    threads: list[Thread] = []

    async def spin(number: int) -> None:
        """Always ready again after the step of another one."""
        nonlocal steps
        while steps < 10 * STEPS_PER_TURN:
            steps += 1
            threads[number - 1].wake()
            await PARK
        threads[number - 1].wake()

    threads += [Thread(process(n), spin(n), dispatcher) for n in range(3)]
    seen = []
    while steps < 10 * STEPS_PER_TURN:
        await asyncio.sleep(0)
        seen.append(steps)
    assert seen[:4] == [STEPS_PER_TURN * n for n in (1, 2, 3, 4)]
    await finish(threads)


async def test_a_thread_that_gives_up_the_loop_goes_on_once_in_each_turn_of_the_loop() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []
    threads = [Thread(process(n), note(log, n, n, n), dispatcher) for n in range(2)]
    seen = []
    for _ in range(4):
        await asyncio.sleep(0)
        seen.append(len(log))
    assert seen == [2, 4, 6, 6]
    await finish(threads)


async def test_callbacks_that_were_scheduled_before_come_before_a_thread_that_gives_up_the_loop() -> None:
    loop = asyncio.get_running_loop()
    dispatcher, log = Dispatcher(loop), []

    async def agent() -> None:
        loop.call_soon(lambda: loop.call_soon(log.append, "second"))
        loop.call_soon(log.append, "first")
        for number in range(3):
            await asyncio.sleep(0)
            log.append(number)

    await finish([Thread(process(1), agent(), dispatcher)])
    assert log == ["first", 0, "second", 1, 2]


async def test_threads_whose_futures_are_done_come_before_the_thread_that_ended_the_futures() -> None:
    loop = asyncio.get_running_loop()
    dispatcher, log = Dispatcher(loop), []
    futures = [loop.create_future() for _ in range(3)]

    async def waiter(number: int) -> None:
        await futures[number]
        log.append(number)
        if number + 1 < len(futures):
            futures[number + 1].set_result(None)

    async def starter() -> None:
        await asyncio.sleep(0)
        futures[0].set_result(None)
        for _ in futures:
            await asyncio.sleep(0)
            log.append("starter")

    await finish([Thread(process(1), coro, dispatcher) for coro in (*(waiter(n) for n in range(3)), starter())])
    assert log == [0, "starter", 1, "starter", 2, "starter"]


async def test_the_loop_gets_its_turn_when_the_time_of_a_turn_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel.dispatch.dispatcher.TURN_SECONDS", 0.0)
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []
    threads = [Thread(process(n), note(log, n), dispatcher) for n in range(3)]
    seen = []
    while len(log) < 3:
        await asyncio.sleep(0)
        seen.append(len(log))
    assert seen[-3:] == [1, 2, 3]
    await finish(threads)


async def test_threads_go_on_though_a_hook_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel.dispatch.dispatcher.TURN_SECONDS", 0.0)
    loop = asyncio.get_running_loop()
    dispatcher, log, failures = Dispatcher(loop), list[int](), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: failures.append(context))

    def fails(thread: Thread, seconds: float) -> None:
        raise RuntimeError("the hook fails")

    dispatcher.slow_step = -1.0  # every step is slow
    dispatcher.on_slow.append(fails)
    await finish([Thread(process(n), note(log, n, n), dispatcher) for n in range(3)])
    assert sorted(log) == [0, 0, 1, 1, 2, 2]
    assert {str(failure["exception"]) for failure in failures} == {"the hook fails"}


async def test_a_flood_of_threads_does_not_starve_a_timer(system: System) -> None:
    async def spin() -> None:
        for _ in range(STEPS_PER_TURN * 20):
            await asyncio.sleep(0)

    fired = []
    threads = [system.thread(spin()) for _ in range(5)]
    system.loop.call_later(0, fired.append, True)
    await system.turns(3)
    assert fired == [True]
    assert not any(thread.done() for thread in threads)
    for thread in threads:
        thread.cancel()


async def test_the_threads_of_a_suspended_process_are_held_and_go_on_in_order(system: System) -> None:
    log: list[Any] = []

    async def agent(ctx: Context) -> None:
        await asyncio.gather(*(note(log, n, n + 10) for n in range(4)))

    target = system.spawn(agent)
    await system.call(Suspend(target.pid))
    await system.turns()
    assert log == []
    assert [thread.state for thread in target.threads] == [SUSPENDED]
    await system.call(Resume(target.pid))
    assert [thread.state for thread in target.threads] == [READY]
    await system.status(target)
    assert log == [0, 1, 2, 3, 10, 11, 12, 13]


async def test_threads_that_were_ready_when_their_process_was_suspended_keep_their_order() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []
    target = process(1)
    threads = [Thread(target, note(log, n), dispatcher) for n in range(5)]
    target.threads = dict.fromkeys(threads)
    dispatcher.hold(target)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == []
    assert target.held_back == threads
    dispatcher.release(target)
    assert target.held_back is None
    await finish(threads)
    assert log == [0, 1, 2, 3, 4]


async def test_a_suspended_process_does_not_hold_up_others(system: System) -> None:
    async def agent(ctx: Context) -> str:
        return "ran"

    held = system.spawn(agent, priority=20)
    await system.call(Suspend(held.pid))
    assert await system.run(agent) == "ran"
    assert not held.ended


# ---- aging


async def test_a_low_priority_gets_its_steps_while_higher_ones_never_rest() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []

    async def hog(name: int) -> None:
        while len(log) < 50 * AGING:
            log.append(name)
            await asyncio.sleep(0)

    await finish([Thread(process(n, n), hog(n), dispatcher) for n in (20, 10, 0, -20)])
    shares = {name: log.count(name) for name in (20, 10, 0, -20)}
    # Of 50 * AGING steps, one of AGING goes to the lower ones, in turn.
    assert shares[20] == pytest.approx(50 * (AGING - 1), abs=2)
    assert [shares[name] for name in (10, 0, -20)] == [pytest.approx(50 / 3, abs=2)] * 3


async def test_threads_of_all_priorities_that_give_up_the_loop_end_though_others_never_rest() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []

    async def hog(name: int) -> None:
        while len(log) < 6 * AGING:
            log.append(name)
            await asyncio.sleep(0)

    hogs = [Thread(process(n, n), hog(n), dispatcher) for n in (20, 19)]
    quiet = [Thread(process(n, n), note([], *"abc"), dispatcher) for n in (10, 0, -20)]
    await finish([*hogs, *quiet])
    assert log.count(19) == pytest.approx(6 / 4, abs=1)
    late = [dispatcher._ready, dispatcher._gave_way]
    assert [any(late[0].values()), late[1]] == [False, {}]


async def test_a_thread_that_has_given_up_the_loop_can_be_suspended_ranked_anew_and_abandoned() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []
    owners = [process(n) for n in range(3)]
    threads = [Thread(owner, note(log, *[n] * 3), dispatcher) for n, owner in enumerate(owners)]
    owners[0].threads = (threads[0],)
    await asyncio.sleep(0)
    assert log == [0, 1, 2]
    assert [thread.state for thread in threads] == [READY] * 3  # all have given up the loop
    dispatcher.hold(owners[0])
    dispatcher.reprioritise(threads[1], 5)
    threads[2].abandon()
    await asyncio.wait([threads[1]])
    assert log == [0, 1, 2, 1, 1]
    assert (threads[0].state, owners[0].held_back) == (SUSPENDED, [threads[0]])
    dispatcher.release(owners[0])
    await finish(threads)
    assert log == [0, 1, 2, 1, 1, 0, 0]


async def test_one_priority_alone_is_never_interrupted_by_aging() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []
    await finish([Thread(process(n), note(log, *[n] * 100), dispatcher) for n in range(3)])
    assert log == [0, 1, 2] * 100


async def test_a_ready_thread_that_is_ranked_anew_moves_to_the_end_of_that_queue() -> None:
    dispatcher, log = Dispatcher(asyncio.get_running_loop()), []
    threads = [Thread(process(n, n % 2), note(log, n), dispatcher) for n in range(4)]
    dispatcher.reprioritise(threads[0], 1)
    await finish(threads)
    assert log == [1, 3, 0, 2]
