"""Agents and tools of a real daemon raise errors whose methods do harm: each caller gets an answer that names the type.

`tests/unit/processes/test_hostile_errors.py` has many more errors and places.
"""

from __future__ import annotations

import pytest

from ipc.errors import AgentFailed, LlmosError, NotEncodable, ToolFailed
from ipc.syscalls import Crashes
from llmosd import AsyncClient
from tests.support.fuzzing import MISTAKES

AGENTS = '''
import asyncio
import dataclasses
import sys

from llmosd import Context, agent, tool


def trap(*_, **__):
    raise SystemExit("a trap")


class Hostile(Exception):
    """Every attribute that a report could read is a trap."""

    __str__ = __repr__ = __getattr__ = __eq__ = __hash__ = __reduce__ = trap
    __class__ = __notes__ = __traceback__ = __cause__ = __context__ = args = property(trap)


@dataclasses.dataclass
class Fields:
    one: int = 1


class Value(Fields):
    one = property(trap, lambda self, value: None)


@dataclasses.dataclass
class Argument:
    number: int

    def __post_init__(self):
        raise Hostile


@tool
def failing_tool() -> None:
    raise Hostile


@tool
def unreadable_tool() -> Value:
    return Value()


@agent
async def fails(ctx: Context) -> None:
    raise Hostile


@agent
async def fails_in_a_group(ctx: Context) -> None:
    raise ExceptionGroup("all", [Hostile(), ValueError("x" * 50_000_000)])


@agent
async def fails_deep(ctx: Context) -> None:
    def dive(depth: int) -> None:
        if not depth:
            raise Hostile
        dive(depth - 1)

    sys.setrecursionlimit(100_000)
    try:
        dive(5_000)
    finally:
        sys.setrecursionlimit(1_000)


@agent
async def returns_a_trap(ctx: Context) -> Value:
    return Value()


@agent
async def uses(ctx: Context, name: str) -> None:
    await ctx.tool(name)


@agent
async def takes(ctx: Context, argument: Argument) -> None: ...


@agent
async def logs_a_trap(ctx: Context) -> None:
    ctx.log("a line", field=Value())


@agent(durable=True)
async def fails_durably(ctx: Context) -> None:
    await ctx.sleep(0.001)
    raise Hostile


@agent(durable=True)
async def stores_a_trap(ctx: Context) -> None:
    await ctx.checkpoint(Value())
'''

CASES: list[tuple[str, dict[str, object], type[LlmosError], str]] = [
    ("fails", {}, AgentFailed, "Hostile"),
    ("fails_in_a_group", {}, AgentFailed, "Hostile"),
    ("fails_deep", {}, AgentFailed, "Hostile"),
    ("returns_a_trap", {}, NotEncodable, "Value"),
    ("uses", {"name": "failing_tool"}, ToolFailed, "Hostile"),
    ("uses", {"name": "unreadable_tool"}, LlmosError, "Value"),
    ("takes", {"argument": {"number": 1}}, LlmosError, "Hostile"),
    ("logs_a_trap", {}, NotEncodable, "dict"),
    ("fails_durably", {}, AgentFailed, "Hostile"),
    ("stores_a_trap", {}, NotEncodable, "Value"),
]


async def test_errors_with_hostile_methods_reach_their_clients(launch):
    daemon = launch()
    async with AsyncClient(daemon.socket) as client:
        for program, arguments, kind, text in CASES:
            with pytest.raises(kind) as caught:
                await client.run(program, arguments)
            assert text in caught.value.message, (program, caught.value.message[:500])
            assert len(caught.value.message) < 10_000
            assert await client.ping(program) == program
        assert await client.ps() == []
        assert {report.program for report in await client.request(Crashes())} >= {
            "fails",
            "fails_deep",
            "returns_a_trap",
        }
    out = daemon.llmos("run", "fails")
    assert (out.returncode, "Hostile" in out.stderr) == (1, True), out.stderr
    assert daemon.llmos("crashes").returncode == 0
    assert [line[:1_000] for line in daemon.log.splitlines() if any(mistake in line for mistake in MISTAKES)] == []
