"""Calls of tools: functions in worker threads, with checked arguments and named failures."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import (
    BadArguments,
    InvalidCall,
    LimitExceeded,
    NotEncodable,
    ToolFailed,
    UnknownTool,
)
from ipc.syscalls import Reference, Regions
from llmosd.context import Context
from tests.support.system import System
from tests.support.tool_bench import Bench, use


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
        place = f"{__file__}:{divide.__code__.co_firstlineno + 1}"
        assert error.value.data["place"] == place
        assert error.value.message.startswith(f"{place.rpartition('/')[2]}: tool divide: ZeroDivisionError")
    assert await system.run(use, "divide", {"by": 1}) == 1.0
    row = bench.row("divide")
    assert (row.running, row.queued, row.calls, row.failures) == (0, 0, 4, 3)


async def test_a_tool_fails_by_name_though_its_error_has_no_text(system: System, bench: Bench) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def mute() -> None:
        raise Mute

    bench.add(mute, concurrency=1)
    for _ in range(2):
        with pytest.raises(ToolFailed, match="tool mute: Mute"):
            await system.run(use, "mute")


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
