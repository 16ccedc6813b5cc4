"""Locks and their kin: fair, handed on when a holder ends in whatever way, and a cancelled wait leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from ipc.errors import InvalidCall, Killed, NotHeld, NotPermitted, SyncMismatch, TimedOut
from ipc.syscalls import AcquireLock, Kill, Locks, SetEvent
from kernel.gate import BURST
from llmosd.context import Context


@pytest.fixture
def order() -> list[Any]:
    return []


@pytest.fixture
async def nothing_left(system):
    yield
    for process in tuple(system.table.alive.values()):
        if process is not system.client:
            system.kernel.ending.end(process, "killed", "the test is over")
    await asyncio.sleep(10)
    assert await system.call(Locks()) == []


pytestmark = pytest.mark.usefixtures("nothing_left")


async def hold(ctx: Context, seconds: float = 10.0) -> None:
    async with ctx.lock("a"):
        await ctx.sleep(seconds)


async def row(system) -> tuple[str, list[int], list[int]]:
    """State, holders and waiters of the only thing in use, its condition aside."""
    (info,) = [info for info in await system.call(Locks()) if info.kind != "condition"]
    return info.state, info.holders, info.waiters


# ---- the lock


async def test_a_lock_goes_round_in_the_order_of_asking(system, order):
    async def worker(ctx: Context, n: int) -> None:
        async with ctx.lock("a"):
            order.append(n)
            await ctx.sleep(1)

    system.program(worker)
    # The last one asks first, and the most urgent one last.
    workers = [system.spawn("worker", n, priority=n) for n in (0, 1, 2, 3)]
    await asyncio.gather(*(asyncio.ensure_future(system.status(worker)) for worker in workers))
    assert sorted(order) == [0, 1, 2, 3]
    assert order == [3, 2, 1, 0]  # the order in which they ran, and so asked


async def test_a_releasing_thread_cannot_take_the_lock_again_before_those_that_wait(system, order):
    async def greedy(ctx: Context) -> None:
        for _ in range(3):
            async with ctx.lock("a"):
                order.append("greedy")
                await ctx.sleep(1)

    async def modest(ctx: Context) -> None:
        async with ctx.lock("a"):
            order.append("modest")

    processes = system.spawn(greedy), system.spawn(modest)
    for process in processes:
        await system.result(process)
    assert order == ["greedy", "modest", "greedy", "greedy"]


@pytest.mark.parametrize("how", ["kill", "crash", "return"])
async def test_a_lock_is_handed_on_when_its_holder_ends(system, how):
    async def holder(ctx: Context) -> None:
        await ctx.lock("a").acquire()
        if how == "kill":
            await ctx.sleep(100)
        await ctx.sleep(1)
        if how == "crash":
            raise ValueError("crash")

    async def waiter(ctx: Context) -> str:
        async with ctx.lock("a"):
            return "got it"

    first, second = system.spawn(holder), system.spawn(waiter)
    await system.turns()
    assert await row(system) == ("held", [first.pid], [second.pid])
    if how == "kill":
        await system.call(Kill(first.pid))
    assert await system.result(second) == "got it"


async def test_a_killed_holder_lets_go_in_order_and_not_before_its_finally_is_done(system, order):
    async def holder(ctx: Context) -> None:
        async with ctx.lock("a"):
            try:
                await ctx.sleep(100)
            finally:
                await asyncio.sleep(1)
                order.append("cleaned up")

    async def waiter(ctx: Context) -> None:
        async with ctx.lock("a"):
            order.append("got it")

    first, second = system.spawn(holder), system.spawn(waiter)
    await system.turns()
    await system.call(Kill(first.pid))
    await system.result(second)
    assert order == ["cleaned up", "got it"]
    assert isinstance(first.status.error, object)
    assert first.status.error.code == "Killed"


async def test_a_thread_holds_and_not_its_process(system):
    async def threads(ctx: Context) -> str:
        async def other() -> None:
            await ctx.lock("a").acquire()

        await asyncio.create_task(other())  # ends with the lock held
        await asyncio.sleep(0)
        async with ctx.lock("a"):
            with pytest.raises(NotHeld, match="another thread"):
                await asyncio.create_task(ctx.lock("a").release())
            return "got it"

    assert await system.run(threads) == "got it"


async def test_an_abandoned_thread_keeps_no_lock(system):
    async def stubborn(ctx: Context) -> None:
        await ctx.lock("a").acquire()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

    first = system.spawn(stubborn)
    await system.turns()
    await system.call(Kill(first.pid))
    await system.run(hold)


async def test_a_reentrant_lock_is_released_as_often_as_it_was_acquired(system):
    async def nested(ctx: Context) -> list[str]:
        states = []
        lock = ctx.lock("a", reentrant=True)
        async with lock:
            async with lock:
                states.append((await row(system))[0])
            states.append((await row(system))[0])
        with pytest.raises(NotHeld, match="held by nobody"):
            await lock.release()
        return states

    assert await system.run(nested) == ["held 2 times", "held"]


async def test_a_timeout_leaves_the_queue_and_zero_only_tries(system):
    async def impatient(ctx: Context, timeout: float) -> float:
        before = system.loop.time()
        with pytest.raises(TimedOut, match="in vain for lock a held by"):
            await ctx.lock("a").acquire(timeout)
        return float(system.loop.time() - before)

    system.program(impatient)
    holder = system.spawn(hold)
    await system.turns()
    assert await system.run("impatient", 0) == 0
    assert await system.run("impatient", 2) == 2
    assert await row(system) == ("held", [holder.pid], [])


async def test_a_cancelled_wait_leaves_the_queue_and_a_cancelled_grant_goes_on(system, order):
    async def waiter(ctx: Context, n: int) -> None:
        async with ctx.lock("a"):
            order.append(n)

    system.program(waiter)

    async def letting_go(ctx: Context) -> None:
        async with ctx.lock("a"):
            await ctx.sleep(5)
        # The next one has been granted the lock, and has not looked yet.
        assert (await row(system))[1] == [second.pid]
        (granted,) = second.threads
        granted.cancel()

    holder = system.spawn(letting_go)
    first, second, third = (system.spawn("waiter", n) for n in range(3))
    await system.turns()
    system.kernel.ending.end(first, "killed", "test")
    await system.turns()
    assert await row(system) == ("held", [holder.pid], [second.pid, third.pid])
    await system.result(holder)
    await system.result(third)
    assert order == [2]


async def test_a_burst_of_uncontended_calls_cannot_be_cancelled_between_grant_and_knowledge(system):
    """The gate gives up the loop after a burst of calls: not between taking a lock and telling who took it."""

    async def worker(ctx: Context) -> bool:
        lock = ctx.lock("a")
        await ctx.event("e").clear()  # so that the last call of a burst, of an even number, is to acquire
        try:
            while True:
                await lock.acquire()
                await lock.release()
        except asyncio.CancelledError:
            return bool(await system.call(Locks()))

    process = system.spawn(worker)
    for _ in range(3):
        await asyncio.sleep(0)
    (thread,) = process.threads
    thread.cancel()
    assert await system.result(process) is False


async def test_who_is_cancelled_on_the_way_out_of_a_lock_holds_it_no_more(system):
    """Also if that is the last call of a burst, with which the gate gives up the loop."""

    async def worker(ctx: Context) -> tuple[int, bool]:
        for _ in range(BURST - 2):
            await ctx.event("e").clear()
        with contextlib.suppress(asyncio.CancelledError):
            async with ctx.lock("a"):
                asyncio.current_task().cancel()
        return ctx._process.calls, bool(await system.call(Locks()))

    assert await system.run(worker) == [BURST, False]


# ---- the semaphore


async def test_a_semaphore_has_so_many_permits_and_gives_back_those_of_the_dead(system):
    async def worker(ctx: Context) -> None:
        semaphore = ctx.semaphore("s", 2)
        await semaphore.acquire()
        await ctx.sleep(10)

    system.program(worker)
    workers = [system.spawn("worker") for _ in range(3)]
    await system.turns()
    pids = [worker.pid for worker in workers]
    assert await row(system) == ("0 of 2 free", pids[:2], pids[2:])
    await system.call(Kill(pids[1]))
    await system.turns()
    assert await row(system) == ("0 of 2 free", [pids[0], pids[2]], [])


# ---- the condition


async def test_notified_threads_go_on_in_order_each_with_the_lock_held(system, order):
    async def waiter(ctx: Context, n: int) -> None:
        async with ctx.condition("c") as condition:
            await condition.wait()
            order.append((n, (await row(system))[1]))
            await ctx.sleep(1)

    system.program(waiter)
    waiters = [system.spawn("waiter", n) for n in range(3)]
    await system.turns()

    async def notifier(ctx: Context) -> tuple[int, int]:
        async with ctx.condition("c") as condition:
            one = await condition.notify()
        await ctx.sleep(10)
        assert len(order) == 1
        async with ctx.condition("c") as condition:
            return one, await condition.notify_all()

    assert await system.run(notifier) == [1, 2]
    for process in waiters:
        await system.result(process)
    assert order == [(n, [process.pid]) for n, process in enumerate(waiters)]


async def test_a_cancelled_wait_for_a_notice_leaves_with_the_lock_held(system, order):
    async def waiter(ctx: Context) -> None:
        async with ctx.condition("c") as condition:
            try:
                async with asyncio.timeout(1):
                    await condition.wait()
            except TimeoutError:
                order.append(((await row(system))[1], system.loop.time() - start))

    async def slow(ctx: Context) -> None:
        async with ctx.lock("c"):
            await ctx.sleep(5)

    start = system.loop.time()
    first = system.spawn(waiter)
    await system.turns()
    second = system.spawn(slow)
    await system.result(first)
    assert order == [([first.pid], 5)]
    await system.result(second)


async def test_a_notice_that_its_thread_cannot_use_goes_to_the_next(system, order):
    async def waiter(ctx: Context, n: int) -> None:
        async with ctx.condition("c") as condition:
            await condition.wait()
            order.append(n)

    async def notifier(ctx: Context) -> None:
        async with ctx.condition("c") as condition:
            await condition.notify()
            (thread,) = first.threads
            thread.cancel()

    system.program(waiter)
    first, second = system.spawn("waiter", 1), system.spawn("waiter", 2)
    await system.turns()
    await system.run(notifier)
    await system.result(second)
    assert order == [2]


async def test_waiting_for_a_notice_gives_up_a_reentrant_lock_altogether_and_gets_all_of_it_back(system):
    async def waiter(ctx: Context) -> str:
        lock = ctx.lock("c", reentrant=True)
        async with lock, lock:
            await ctx.condition("c").wait()
            return (await row(system))[0]

    async def notifier(ctx: Context) -> None:
        async with ctx.condition("c") as condition:
            await condition.notify()

    process = system.spawn(waiter)
    await system.turns()
    await system.run(notifier)
    assert await system.result(process) == "held 2 times"


async def test_a_killed_thread_that_cannot_get_its_lock_back_leaves_no_place_in_the_queue(system):
    async def waiter(ctx: Context) -> None:
        async with ctx.condition("a") as condition:
            await condition.wait()

    process = system.spawn(waiter)
    await system.turns()
    holder = system.spawn(hold, 10)
    await system.turns()
    await system.call(Kill(process.pid))  # abandons it after its grace
    assert await row(system) == ("held", [holder.pid], [])


# ---- barrier and event


async def test_a_barrier_opens_when_all_are_there_and_closes_again(system):
    async def party(ctx: Context, n: int) -> list[Any]:
        barrier = ctx.barrier("b", 3)
        await ctx.sleep(n)
        first = await barrier.wait()
        at = system.loop.time() - start
        await ctx.sleep(n)
        return [first, at, await barrier.wait(), system.loop.time() - start]

    start = system.loop.time()
    system.program(party)
    parties = [system.spawn("party", n) for n in range(3)]
    results = [await system.result(process) for process in parties]
    assert results == [[False, 2, False, 4], [False, 2, False, 4], [True, 2, True, 4]]


async def test_one_that_gives_up_at_a_barrier_no_longer_counts(system):
    async def party(ctx: Context, timeout: float | None) -> bool:
        return await ctx.barrier("b", 2).wait(timeout)

    system.program(party)
    with pytest.raises(TimedOut, match="barrier b"):
        await system.run("party", 1)
    second = system.spawn("party", None)
    await system.turns()
    assert await row(system) == ("1 of 2 there", [], [second.pid])
    assert await system.run("party", 1) is True
    assert await system.result(second) is False


async def test_an_event_lets_all_go_on_that_waited_also_if_it_is_cleared_at_once(system):
    async def waiter(ctx: Context) -> str:
        await ctx.event("e").wait()
        return "went on"

    async def setter(ctx: Context) -> None:
        await ctx.event("e").set()
        await ctx.event("e").clear()

    system.program(waiter)
    waiters = [system.spawn("waiter") for _ in range(2)]
    await system.turns()
    await system.run(setter)
    assert [await system.result(process) for process in waiters] == ["went on", "went on"]


async def test_an_event_stays_set_until_it_is_cleared(system):
    async def use(ctx: Context, what: str) -> None:
        await getattr(ctx.event("e"), what)()

    system.program(use)
    await system.run("use", "set")
    assert (await row(system))[0] == "set"
    await system.run("use", "wait")
    await system.run("use", "clear")
    assert await system.call(Locks()) == []


# ---- what is refused


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda ctx: ctx.lock("x").release(), NotHeld),
        (lambda ctx: ctx.semaphore("x", 1).release(), NotHeld),
        (lambda ctx: ctx.condition("x").wait(), NotHeld),
        (lambda ctx: ctx.condition("x").notify(), NotHeld),
        (lambda ctx: ctx.lock("a").acquire(-1), InvalidCall),
        (lambda ctx: ctx.lock("x").acquire(float("nan")), InvalidCall),
        (lambda ctx: ctx.event("x").wait(-1), InvalidCall),
        (lambda ctx: ctx.barrier("x", 2).wait(-1), InvalidCall),
        (lambda ctx: ctx.lock("").acquire(), InvalidCall),
        (lambda ctx: ctx.lock(5).acquire(), InvalidCall),
        (lambda ctx: ctx.semaphore("x", 0).acquire(), InvalidCall),
        (lambda ctx: ctx.barrier("x", 0).wait(), InvalidCall),
        (lambda ctx: ctx.semaphore("a", 1).acquire(), SyncMismatch),
        (lambda ctx: ctx.semaphore("s", 3).acquire(), SyncMismatch),
        (lambda ctx: ctx.event("s").set(), SyncMismatch),
    ],
)
async def test_what_cannot_be_is_refused_by_name_counted_and_leaves_nothing(system, use, error):
    async def holder(ctx: Context) -> None:
        async with ctx.lock("a"), ctx.semaphore("s", 2):
            await ctx.sleep(10)

    async def wrong(ctx: Context) -> None:
        await use(ctx)

    system.spawn(holder)
    await system.turns()
    before = await system.call(Locks())
    with pytest.raises(error):
        await system.run(wrong)
    assert system.kernel.gate.errors[error.__name__] == 1
    assert await system.call(Locks()) == before


async def test_clients_may_look_but_not_take(system):
    for call in (AcquireLock("a"), SetEvent("e")):
        with pytest.raises(NotPermitted, match="for the threads of an agent"):
            await system.call(call)
    process = system.spawn(hold)
    await system.turns()
    assert await row(system) == ("held", [process.pid], [])
    await system.call(Kill(process.pid))
    with pytest.raises(Killed):
        await system.result(process)
