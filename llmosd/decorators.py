"""The `agent` decorator: marks a coroutine function as a program that llmosd can run.

Used in program files. It changes nothing about the function; the daemon's loader looks for the mark.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from ipc.abi import AGENT_ATTRIBUTE, AgentMark

F = TypeVar("F", bound=Callable[..., Any])


@overload
def agent(function: F, /) -> F: ...


@overload
def agent(*, name: str | None = None, summary: str = "") -> Callable[[F], F]: ...


def agent(function: Any = None, /, *, name: str | None = None, summary: str = "") -> Any:
    """Mark a coroutine function, whose first parameter is its `Context`, as an agent.

    `name` is what it is run by (the function's own by default), `summary` one line for `llmos programs` (the first of
    the docstring by default). Raises `TypeError` for anything but an `async def` with at least one parameter.
    """

    def mark(function: F) -> F:
        if not inspect.iscoroutinefunction(function) or not inspect.signature(function).parameters:
            raise TypeError(f"an agent is an `async def` that takes a context first, which {function!r} is not")
        line = summary or (inspect.getdoc(function) or "").partition("\n")[0]
        setattr(function, AGENT_ATTRIBUTE, AgentMark(name or function.__name__, line))
        return function

    return mark if function is None else mark(function)
