"""Tools: functions in worker threads, whose places are fair, whose failures are named, and which always come back."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ipc.abi import ToolMark
from ipc.errors import (
    BadArguments,
    Busy,
    InvalidCall,
    LimitExceeded,
    NotEncodable,
    TimedOut,
    ToolFailed,
    UnknownTool,
)
from ipc.syscalls import Reference, Regions, Resume, Suspend, ToolInfo, Tools, UseTool
from kernel.programs import Programs
from kernel.tools.tool import Tool, ToolSpec, load
from llmosd import tool
from llmosd.context import Context
from tests.support.system import System
from tests.support.virtual_time import VirtualTimeLoop

REAL = 10.0  # seconds that a test waits for a thread at most


class Bench:
    """Tools of the test. No time passes while one is at work, except after `started` of a `Hanging` one."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.tools = system.kernel.tools
        loop = system.loop
        assert isinstance(loop, VirtualTimeLoop)
        self.jumping = loop._jumping
        self.frozen: set[int] = set()
        self._last = 0
        self._submit = self.tools.workers.submit
        self.tools.workers.submit = self.submit  # type: ignore[method-assign]

    def submit(self, function: Callable[[], None], done: Callable[[], None]) -> None:
        self._last += 1
        number = self._last
        self.frozen.add(number)
        self.jumping.executing += 1

        def thaw() -> None:
            self.thaw(number)
            done()

        self._submit(function, thaw)

    def thaw(self, number: int) -> None:
        if number in self.frozen:
            self.frozen.discard(number)
            self.jumping.executing -= 1

    def add(self, function: Callable[..., Any], **how: Any) -> str:
        name = function.__name__
        self.system.programs.tools[name] = Tool(function, ToolMark(name, "", **how), "test")
        return name

    async def hung(self, tool: Hanging, count: int = 1) -> None:
        """Return when `count` calls are inside `tool`; from then on time passes."""
        for _ in range(count):
            assert await asyncio.to_thread(tool.inside.acquire, timeout=REAL)
        for number in tuple(self.frozen):
            self.thaw(number)

    def row(self, name: str) -> ToolInfo:
        return self.tools._info(self.tools._devices[name].tool)

    async def idle(self, name: str) -> None:
        """Return when no function of the tool is at work any more."""
        while self.tools._devices[name].running:
            await asyncio.to_thread(lambda: None)


class Hanging:
    """A tool that does not return until it is let go."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.go = threading.Event()

    def function(self) -> Callable[..., Any]:
        def hang(number: int = 0) -> int:
            self.inside.release()
            assert self.go.wait(REAL)
            return number

        return hang


@pytest.fixture
def bench(system: System) -> Bench:
    return Bench(system)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.go.set()


async def use(ctx: Context, name: str, args: dict[str, Any] | None = None, timeout: float | None = None) -> Any:
    return await ctx.tool(name, args, timeout=timeout)


# ---- calls and results


async def test_a_tool_runs_in_a_thread_with_checked_and_converted_arguments(system: System, bench: Bench) -> None:
    where: list[threading.Thread] = []

    def scale(points: list[float], by: float = 2.0) -> list[float]:
        where.append(threading.current_thread())
        return [point * by for point in points]

    bench.add(scale)

    async def program(ctx: Context) -> Any:
        return [await ctx.tool("scale", points=[1, 2]), await ctx.tool("scale", {"points": [1]}, by=3)]

    assert await system.run(program) == [[2.0, 4.0], [3.0]]
    assert threading.main_thread() not in where


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "number is missing"),
        ({"number": "x"}, "argument number"),
        ({"number": 1, "numbr": 2}, "did you mean number"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_in_words(
    system: System, bench: Bench, args: dict[str, Any], words: str
) -> None:
    def half(number: int) -> float:
        return number / 2

    bench.add(half)
    with pytest.raises(BadArguments, match=words):
        await system.run(use, "half", args)


async def test_an_unknown_tool_is_told_with_a_near_name(system: System, bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "a.py").write_text("from llmosd import tool\n@tool\ndef search() -> int:\n    return 1\n")
    with pytest.raises(UnknownTool, match="did you mean search"):
        await system.run(use, "serach")
    assert await system.run(use, "search") == 1


async def test_a_negative_timeout_is_refused(system: System, bench: Bench) -> None:
    with pytest.raises(InvalidCall):
        await system.run(use, "any", None, -1.0)


async def test_a_tool_that_raised_is_usable_again(system: System, bench: Bench) -> None:
    def divide(by: int) -> float:
        return 1 / by

    bench.add(divide, concurrency=1)
    for _ in range(3):
        with pytest.raises(ToolFailed, match="ZeroDivisionError") as error:
            await system.run(use, "divide", {"by": 0})
        assert "return 1 / by" in error.value.data["traceback"]
    assert await system.run(use, "divide", {"by": 1}) == 1.0
    row = bench.row("divide")
    assert (row.running, row.queued, row.calls, row.failures) == (0, 0, 4, 3)


async def test_even_a_tool_that_exits_ends_only_its_call(system: System, bench: Bench) -> None:
    def leave() -> None:
        sys.exit(1)

    bench.add(leave, concurrency=1)
    for _ in range(2):
        with pytest.raises(ToolFailed, match="SystemExit"):
            await system.run(use, "leave")


async def test_a_result_that_cannot_be_carried_is_named_and_not_tried_again(system: System, bench: Bench) -> None:
    calls: list[int] = []

    def odd() -> Any:
        calls.append(1)
        return object()

    bench.add(odd, retries=3)
    with pytest.raises(NotEncodable, match="result of tool odd"):
        await system.run(use, "odd")
    assert calls == [1]


async def test_a_large_result_comes_by_reference_and_ends_with_its_caller(system: System, bench: Bench) -> None:
    blob, seen = bytes(2_000_000), []

    def read() -> bytes:
        return blob

    bench.add(read)

    async def program(ctx: Context) -> Any:
        reference = await ctx.tool("read")
        assert isinstance(reference, Reference)
        seen.append((await ctx.shared(reference.name).get()).value)
        return reference.size

    assert await system.run(program) == len(blob) + 5
    assert seen[0] is blob
    assert await system.call(Regions()) == []


async def test_a_large_result_over_the_quota_is_refused_by_name(system: System, bench: Bench) -> None:
    def read() -> bytes:
        return bytes(300 * 1024 * 1024)

    bench.add(read)
    with pytest.raises(LimitExceeded):
        await system.run(use, "read")


async def test_what_a_tool_does_to_its_arguments_is_its_own(system: System, bench: Bench) -> None:
    seen: list[int] = []

    def eat(items: list[int]) -> int:
        seen.append(len(items))
        items.clear()
        if len(seen) == 1:
            raise ValueError("once")
        return 0

    bench.add(eat, retries=1)

    async def program(ctx: Context) -> int:
        items = [1, 2]
        await ctx.tool("eat", items=items)
        return len(items)

    assert await system.run(program) == 2
    assert seen == [2, 2]


# ---- call ids and retries


async def test_retries_keep_the_call_id_and_pause_longer_each_time(system: System, bench: Bench) -> None:
    ids: list[str] = []

    def shaky(call_id: str, what: str) -> str:
        ids.append(call_id)
        if len(ids) < 4:
            raise OSError(what)
        return what

    bench.add(shaky, retries=3)
    start = system.loop.time()
    assert await system.run(use, "shaky", {"what": "x"}) == "x"
    assert len(set(ids)) == 1
    assert system.loop.time() - start == pytest.approx(0.1 + 0.2 + 0.4)
    with pytest.raises(BadArguments):
        await system.run(use, "shaky", {"what": "x", "call_id": "mine"})


async def test_call_ids_are_the_same_in_every_run_however_the_threads_interleave(system: System, bench: Bench) -> None:
    ids: dict[str, list[str]] = {}

    def note(who: str, call_id: str) -> None:
        ids.setdefault(who, []).append(call_id.partition(".")[2])

    bench.add(note)

    async def program(ctx: Context, turns: list[int]) -> None:
        async def child(name: str, wait: int) -> None:
            for _ in range(wait):
                await asyncio.sleep(0)
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.tool("note", who=name + "'s child"))
            await ctx.tool("note", who=name)

        async with asyncio.TaskGroup() as group:
            for name, wait in zip("ab", turns, strict=True):
                group.create_task(child(name, wait))
        await ctx.tool("note", who="main")
        await ctx.tool("note", who="main")

    name = system.program(program)
    await system.run(name, [0, 9])
    first = dict(ids)
    ids.clear()
    await system.run(name, [9, 0])
    assert ids == first
    assert first["main"] == ["0.1", "0.2"]
    assert first["a's child"] == ["0-1-1.1"]


# ---- places, time and ends


async def test_calls_beyond_the_concurrency_wait_in_line_and_run_in_its_order(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function(), concurrency=1)
    order: list[int] = []

    async def program(ctx: Context, number: int) -> None:
        order.append(await ctx.tool("hang", number=number))

    name = system.program(program)
    agents = [system.spawn(name, number) for number in range(4)]
    await bench.hung(hanging)
    row = bench.row("hang")
    assert (row.running, row.queued) == (1, 3)
    system.kernel.ending.end(agents[2], "killed", "by the test")
    with pytest.raises(Busy):
        await system.call(UseTool("hang", wait=False))
    hanging.go.set()
    await bench.idle("hang")
    for number in (0, 1, 3):
        await system.result(agents[number])
    assert order == [0, 1, 3]


async def test_a_call_gives_up_at_its_timeout_and_the_place_stays_taken_until_the_function_returns(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function(), concurrency=1, timeout=30.0)
    start = system.loop.time()
    first = system.spawn(use, "hang", None, 5.0)
    await bench.hung(hanging)
    with pytest.raises(TimedOut, match="keeps its place"):
        await system.result(first)
    assert system.loop.time() - start == 5.0
    row = bench.row("hang")
    assert (row.running, row.abandoned, bench.tools.workers.threads) == (1, 1, 1)
    with pytest.raises(TimedOut, match="no free place"):
        await system.run(use, "hang")
    assert system.loop.time() - start == 35.0
    hanging.go.set()
    await bench.idle("hang")
    assert await system.run(use, "hang", {"number": 7}) == 7
    row = bench.row("hang")
    assert (row.running, row.abandoned, bench.tools.workers.threads) == (0, 0, 1)


async def test_a_killed_caller_waits_no_longer_and_the_place_comes_back(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function(), concurrency=1)
    agent = system.spawn(use, "hang")
    await bench.hung(hanging)
    assert agent.state() == ("blocked", "tool hang")
    system.kernel.ending.end(agent, "killed", "by the test")
    assert (await system.status(agent)).reason == "killed"
    waiting = system.spawn(use, "hang", {"number": 2})
    hanging.go.set()
    await bench.idle("hang")
    assert await system.result(waiting) == 2


async def test_a_place_given_to_a_caller_that_was_killed_at_once_is_passed_on(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function(), concurrency=1)
    agents = [system.spawn(use, "hang", {"number": number}) for number in range(3)]
    await bench.hung(hanging)
    device = bench.tools._devices["hang"]
    ticket = device.queue[0]
    hanging.go.set()
    while not ticket.given:
        await asyncio.sleep(0)
    system.kernel.ending.end(agents[1], "killed", "by the test")
    assert await system.result(agents[2]) == 2
    assert (device.running, len(device.queue)) == (0, 0)


async def test_a_suspended_caller_gets_its_result_when_it_is_resumed(
    system: System, bench: Bench, hanging: Hanging
) -> None:
    bench.add(hanging.function())
    agent = system.spawn(use, "hang", {"number": 3}, 60.0)
    await bench.hung(hanging)
    await system.call(Suspend(agent.pid))
    hanging.go.set()
    await bench.idle("hang")
    await asyncio.sleep(100)  # past the timeout: what has come in time is delivered
    assert agent.state() == ("suspended", "")
    await system.call(Resume(agent.pid))
    assert await system.result(agent) == 3


# ---- where tools come from


async def test_a_configured_tool_is_loaded_at_its_first_call(
    system: System, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("some_tools")
    module.shout = lambda text: text.upper()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_tools", module)
    bench.tools._configured = {
        "loud": ToolSpec(function="some_tools:shout", concurrency=2, retries=1),
        "gone": ToolSpec(function="some_tools:gone"),
    }

    def loud(text: str) -> str:
        return "not what the settings name"

    bench.add(loud)
    assert await system.run(use, "loud", {"text": "a"}) == "A"
    with pytest.raises(ToolFailed, match="some_tools:gone cannot be loaded"):
        await system.run(use, "gone")
    gone, loud = await system.call(Tools())
    assert (gone.name, "cannot be loaded" in gone.error) == ("gone", True)
    assert (loud.name, loud.signature, loud.concurrency, loud.retries, loud.calls) == ("loud", "(text)", 2, 1, 1)


def test_a_configured_function_keeps_what_its_mark_says_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    @tool(concurrency=3, retries=2)
    def marked() -> None:
        """What it does."""

    module = ModuleType("some_tools")
    module.marked = marked  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_tools", module)
    loaded = load("other", ToolSpec(function="some_tools:marked", retries=0))
    assert (loaded.name, loaded.mark.concurrency, loaded.mark.retries, loaded.mark.summary) == (
        "other",
        3,
        0,
        "What it does.",
    )


async def test_a_file_that_changed_brings_its_tools_anew_and_one_that_is_gone_takes_them(tmp_path: Path) -> None:
    programs = Programs([tmp_path])
    programs._installed = []
    path = tmp_path / "a.py"
    path.write_text("from llmosd import tool\n@tool\ndef one() -> int:\n    return 1\n")
    programs.refresh()
    assert set(programs.tools) == {"one"}
    path.write_text("from llmosd import tool\n@tool(name='two')\ndef one() -> int:\n    return 2222\n")
    os.utime(path, ns=(1, 1))
    programs.refresh()
    assert set(programs.tools) == {"two"}
    path.unlink()
    programs.refresh()
    assert programs.tools == {}


def test_only_plain_functions_are_tools_and_their_numbers_are_checked() -> None:
    async def coroutine() -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        tool(coroutine)
    for how in ({"concurrency": 0}, {"timeout": -1.0}, {"retries": -1}, {"retrys": 1}):
        with pytest.raises(ValueError, match=r"Expected|unknown"):
            tool(**how)(lambda: None)  # type: ignore[call-overload]
