"""Errors whose methods do harm end what raised them, and nothing else: `tests.support.hostile` has the errors.

A test runs all of them in one kernel. It compares texts only, because pytest itself cannot show such errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from ipc.codec import encode
from ipc.foreign import class_name
from ipc.syscalls import ExitStatus, Ps, Spawn, Threads
from kernel.core.process import Process
from llmosd.context import Context
from tests.support.agents import echo, forever, make_call
from tests.support.hostile import ERRORS, PLAIN_CLASSES
from tests.support.system import System
from tests.support.tool_bench import Bench

pytestmark = pytest.mark.filterwarnings("ignore")  # of coroutines that were not awaited, and of `__del__` that raises

LARGEST = 100_000  # bytes of an encoded exit status
FEW = (
    "__str__ raises",
    "__class__ is a trap",
    "__traceback__ is a trap",
    "args of a cancellation",
    "all traps",
    "SystemExit",
)

Make = Callable[[], BaseException]
Body = Callable[[Context, Make], Coroutine[Any, Any, Any]]


def raising(make: Make) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise make()

    return fail


def value_that_raises(make: Make) -> Any:
    """A value whose encoding raises."""

    @dataclasses.dataclass
    class Fields:
        one: int = 1

    return type("Value", (Fields,), {"one": property(raising(make), lambda self, value: None)})()


def nameless(make: Make) -> Any:
    """A value that cannot be encoded, of a class without a readable name."""
    return type("Meta", (type,), {"__name__": property(raising(make))})("Nameless", (), {})()


async def raises(ctx: Context, make: Make) -> None:
    raise make()


async def fails_in_finally(ctx: Context, make: Make) -> None:
    try:
        raise ValueError
    finally:
        raise make()


async def fails_in_a_thread(ctx: Context, make: Make) -> None:
    ctx.start_thread(raises(ctx, make))
    await ctx.sleep(1)


async def fails_in_a_task(ctx: Context, make: Make) -> None:
    await asyncio.create_task(raises(ctx, make))


async def fails_in_a_context_manager(ctx: Context, make: Make) -> None:
    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise make()

    async with manager(), ctx.lock("one"):
        raise ValueError


async def fails_at_a_timeout(ctx: Context, make: Make) -> None:
    async with asyncio.timeout(1):
        try:
            await ctx.sleep(10)
        finally:
            raise make()


async def awaits_a_future_that_fails(ctx: Context, make: Make) -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_exception(make())
    await future


async def awaits_no_future(ctx: Context, make: Make) -> None:
    class Odd:
        __repr__ = raising(make)

        def __await__(self) -> Any:
            yield self

    await Odd()


async def awaits_a_false_future(ctx: Context, make: Make) -> None:
    class Odd:
        _asyncio_future_blocking = True
        add_done_callback = raising(make)

        def __await__(self) -> Any:
            yield self

    await Odd()


async def awaits_a_future_that_cannot_be_asked(ctx: Context, make: Make) -> None:
    class Odd:
        _asyncio_future_blocking = property(raising(make))

        def __await__(self) -> Any:
            yield self

    await Odd()


async def returns_a_trap(ctx: Context, make: Make) -> Any:
    return value_that_raises(make)


async def returns_a_nameless_value(ctx: Context, make: Make) -> Any:
    return nameless(make)


async def sends_a_trap(ctx: Context, make: Make) -> None:
    await ctx.send(await ctx.spawn("forever"), value_that_raises(make))


async def logs_a_trap(ctx: Context, make: Make) -> None:
    ctx.log("a line", field=value_that_raises(make))


async def emits_a_trap(ctx: Context, make: Make) -> None:
    await ctx.emit(value_that_raises(make))


async def stores_a_trap(ctx: Context, make: Make) -> None:
    await ctx.shared("region").set(value_that_raises(make))


async def passes_a_trap(ctx: Context, make: Make) -> None:
    await make_call(ctx, Spawn("adder_of_anything", {"a": value_that_raises(make)}))


async def names_a_thread_with_a_trap(ctx: Context, make: Make) -> None:
    ctx.start_thread(forever(ctx), name=type("Odd", (), {"__str__": raising(make)})())  # type: ignore[arg-type]


async def starts_a_trap_as_a_thread(ctx: Context, make: Make) -> None:
    ctx.start_thread(type("Odd", (), {"__repr__": raising(make)})())


PLACES: list[Body] = [
    *(raises, fails_in_finally, fails_in_a_thread, fails_in_a_task, fails_in_a_context_manager, fails_at_a_timeout),
    *(awaits_a_future_that_fails, awaits_no_future, awaits_a_false_future, awaits_a_future_that_cannot_be_asked),
    *(returns_a_trap, returns_a_nameless_value, sends_a_trap, logs_a_trap, emits_a_trap, stores_a_trap, passes_a_trap),
    *(names_a_thread_with_a_trap, starts_a_trap_as_a_thread),
]
ALL = (returns_a_trap,)  # the places at which every error is raised


class World:
    """A kernel with a peer that must go on, and the errors whose processes did not end as they should."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.peer = system.spawn(echo)
        system.program(forever)
        self.wrong: list[str] = []

    async def ended(self, name: str, process: Process, *reasons: str) -> ExitStatus:
        """The exit status of the process in which the error `name` was raised."""
        reasons = reasons or ("failed",)
        status = await self.system.status(process)
        if status.reason not in reasons or len(encode(status)) > LARGEST:
            self.wrong.append(f"{name}: {status.reason}, {len(encode(status))} bytes")
        return status

    async def check(self) -> None:
        """Check that all ended, and that the peer and a client notice nothing."""

        async def ask(ctx: Context) -> Any:
            return await ctx.call(self.peer.pid, "hello")

        assert self.wrong == []
        assert await self.system.run(ask) == "hello"
        encode(await self.system.call(Ps()))


@pytest.fixture
async def world(system: System) -> World:
    return World(system)


@pytest.mark.parametrize("body", PLACES, ids=lambda body: body.__name__)
async def test_any_error_ends_its_process_and_no_other(world: World, body: Body) -> None:
    async def adder_of_anything(ctx: Context, a: object) -> None: ...

    world.system.program(adder_of_anything)
    for name in ERRORS if body in ALL else FEW:

        async def agent(ctx: Context, make: Make = ERRORS[name]) -> Any:
            return await body(ctx, make)

        cancelled = body is fails_in_a_thread and "cancellation" in name  # no failure of its process
        await world.ended(name, world.system.spawn(agent), "done" if cancelled else "failed")
    await world.check()


async def test_the_type_of_any_error_is_reported(world: World) -> None:
    for name, make in ERRORS.items():

        async def agent(ctx: Context, make: Make = make) -> None:
            raise make()

        status = await world.ended(name, world.system.spawn(agent))
        if name in PLAIN_CLASSES and status.error is not None:
            kind = class_name(make())[:100]
            if kind not in status.error.message and status.error.code != kind:
                world.wrong.append(f"{name}: {status.error.code}: {status.error.message[:200]}")
    await world.check()


async def test_an_error_after_a_kill_does_not_hold_the_process(world: World) -> None:
    for name, make in ERRORS.items():

        async def agent(ctx: Context, make: Make = make) -> None:
            try:
                await ctx.sleep(1e6)
            finally:
                raise make()

        process = world.system.spawn(agent)
        await world.system.turns(3)
        world.system.kernel.process_exit.end(process, "killed", "the test kills it")
        assert (await world.system.status(process)).reason == "killed", name
    await world.check()


async def test_a_process_that_awaits_a_false_future_can_be_killed(world: World) -> None:
    class Odd:
        _asyncio_future_blocking = True
        cancel = cancelled = remove_done_callback = raising(RuntimeError)

        def add_done_callback(self, *_: Any, **__: Any) -> None: ...

        def __await__(self) -> Any:
            yield self

    async def agent(ctx: Context) -> None:
        await Odd()

    process = world.system.spawn(agent)
    await world.system.turns(3)
    world.system.kernel.process_exit.end(process, "killed", "the test kills it")
    assert (await world.system.status(process)).reason == "killed"
    await world.check()


async def test_any_error_of_a_tool_answers_its_caller(world: World) -> None:
    bench = Bench(world.system)
    current: list[Make] = []

    def fails() -> None:
        raise current[0]()

    def returns_a_trap() -> Any:
        return value_that_raises(current[0])

    def returns_a_nameless_value() -> Any:
        return nameless(current[0])

    tools = [bench.add(tool) for tool in (fails, returns_a_trap, returns_a_nameless_value)]
    for name, make in ERRORS.items():
        current[:] = [make]
        for tool in tools if name in FEW else tools[:1]:

            async def agent(ctx: Context, tool: str = tool) -> Any:
                return await ctx.tool(tool)

            await world.ended(f"{tool}: {name}", world.system.spawn(agent))
    await world.check()


async def test_any_error_of_the_type_of_an_argument_or_a_message_answers_its_caller(world: World) -> None:
    current: list[Make] = []

    class Odd(msgspec.Struct):
        number: int

        def __post_init__(self) -> None:
            raise current[0]()

    async def child(ctx: Context, argument: Any) -> None: ...

    child.__annotations__["argument"] = Odd
    world.system.program(child)
    listener = world.system.spawn(forever)
    listener.accepts = {"Odd": Odd}
    for name, make in ERRORS.items():
        current[:] = [make]

        async def spawns(ctx: Context) -> None:
            await make_call(ctx, Spawn("child", {"argument": {"number": 1}}))

        async def sends(ctx: Context) -> None:
            await ctx.send(listener.pid, {"number": 1}, type="Odd")

        await world.ended(f"spawns: {name}", world.system.spawn(spawns))
        await world.ended(f"sends: {name}", world.system.spawn(sends))
    await world.check()


async def test_a_supervisor_restarts_a_child_whatever_ended_it(world: World) -> None:
    for name in FEW:

        async def child(ctx: Context, make: Make = ERRORS[name]) -> None:
            raise make()

        world.system.program(child)

        async def agent(ctx: Context) -> None:
            await ctx.supervise(["child"], max_restarts=2, within=1e6)

        status = await world.ended(name, world.system.spawn(agent))
        assert status.error is not None
        assert status.error.code == "TooManyRestarts"
    await world.check()


async def test_a_hook_or_a_watcher_that_raises_does_not_stop_the_others(system: System) -> None:
    ended: list[Process] = []
    system.kernel.process_exit.on_end.insert(0, raising(SystemExit))
    system.kernel.process_exit.on_thread_end.insert(0, raising(RuntimeError))
    system.kernel.process_exit.on_end.append(ended.append)
    process = system.spawn(forever)
    process.watch(raising(KeyboardInterrupt))
    process.watch(ended.append)
    system.kernel.process_exit.end(process, "killed", "the test kills it")
    assert (await system.status(process)).reason == "killed"
    assert ended == [process, process]
    assert process.pid not in system.table.alive


async def test_a_step_that_fails_inside_the_kernel_ends_only_its_process(world: World) -> None:
    """Otherwise the dispatcher would never run another step."""
    process = world.system.spawn(forever)
    await world.system.turns(3)
    thread = process.threads[0]
    thread._context = None  # type: ignore[assignment] # no step can run without one
    thread.cancel()
    status = await world.ended("no context", process)
    assert "AttributeError" in status.error.message if status.error else False
    await world.check()


async def test_the_name_of_a_thread_breaks_no_list(world: World) -> None:
    async def agent(ctx: Context) -> None:
        asyncio.create_task(forever(ctx)).set_name("x" * 1_000_000 + "\ud800")
        asyncio.create_task(forever(ctx)).set_name("half a \ud800")
        await ctx.sleep(1)

    process = world.system.spawn(agent)
    await world.system.turns(3)
    assert len(encode(await world.system.call(Threads(process.pid)))) < 2_000
