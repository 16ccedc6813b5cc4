"""The decorator that makes a function an agent marks the function and does not change it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from ipc.abi import AGENT_ATTRIBUTE, AgentMark
from llmosd import agent, tool
from llmosd.context import Context


def test_the_decorator_marks_and_changes_nothing() -> None:
    async def plain(ctx: Context) -> None:
        """Does something.

        And more.
        """

    assert agent(plain) is plain
    assert getattr(plain, AGENT_ATTRIBUTE) == AgentMark("plain", "Does something.")
    assert getattr(agent(name="n", summary="s")(plain), AGENT_ATTRIBUTE) == AgentMark("n", "s")


def test_only_a_coroutine_function_with_a_context_can_be_an_agent() -> None:
    def no_coroutine(ctx: Context) -> None: ...
    async def no_context() -> None: ...

    for function in (no_coroutine, no_context):
        with pytest.raises(TypeError, match="async def"):
            agent(function)


def test_the_decorator_may_be_imported_from_its_own_module_too() -> None:
    code = "from llmosd.decorators import agent as first; from llmosd import agent; assert agent is first, agent"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


class Word(str):
    __slots__ = ()


@pytest.mark.parametrize("odd", ["half a \ud800", Word("word"), 5], ids=ascii)
def test_a_name_or_a_summary_that_no_list_can_show_is_refused(odd: Any) -> None:
    async def runs(ctx: Context) -> None: ...

    def works() -> None: ...

    for mark, function in ((agent, runs), (tool, works)):
        for label in ("name", "summary"):
            options: dict[str, Any] = {label: odd}
            with pytest.raises(TypeError, match=f"a {label} is .*; pass text"):
                mark(**options)(function)
