"""A default that can change, such as a list, belongs to one call: tasks do not share it."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from typing import Any

import msgspec
import pytest

from ipc.abi import ToolMark
from kernel.programs.arguments import Arguments
from kernel.programs.tool import Tool
from llmosd.context import Context
from tests.support.naming import without_addresses
from tests.support.system import System


class Point(msgspec.Struct):
    x: int


class Frozen(msgspec.Struct, frozen=True):
    x: int


@dataclasses.dataclass
class Plain:
    x: int


def bound(default: Any, **given: Any) -> Any:
    def function(value: Any = default) -> None: ...

    return Arguments("function", function, ()).bind(given)


@pytest.mark.parametrize(
    "default", [[1, [2]], {"a": [1]}, {1}, bytearray(b"x"), deque([1]), Point(1), Plain(1), (1, [2])], ids=repr
)
def test_each_call_gets_its_own_copy_of_a_default_that_can_change(default: Any) -> None:
    first, second = bound(default)["value"], bound(default)["value"]
    assert first == second == default
    assert first is not default
    assert first is not second


@pytest.mark.parametrize(
    "default", [None, 1, "text", (1, "a"), frozenset({1}), Frozen(1), object(), int], ids=without_addresses
)
def test_a_default_that_cannot_change_is_not_copied(default: Any) -> None:
    assert bound(default) == {}


def test_a_default_that_cannot_be_copied_is_shared() -> None:
    lock = threading.Lock()
    assert bound([lock])["value"][0] is lock


def test_a_given_argument_replaces_the_default() -> None:
    assert bound([1], value=2) == {"value": 2}


async def test_processes_of_one_agent_do_not_share_a_default(system: System) -> None:
    async def collect(ctx: Context, seen: list[int] = []) -> list[int]:  # noqa: B006
        seen.append(len(seen))
        return seen

    assert [await system.run(collect) for _ in range(2)] == [[0], [0]]


def test_calls_of_one_tool_do_not_share_a_default() -> None:
    def collect(seen: list[int] = []) -> list[int]:  # noqa: B006
        seen.append(len(seen))
        return seen

    tool = Tool(collect, ToolMark("collect", ""), "test")
    assert [tool.function(**tool.bind({})) for _ in range(2)] == [[0], [0]]
