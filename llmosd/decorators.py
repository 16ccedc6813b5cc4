"""The `agent` decorator: marks a coroutine function as a program that llmosd can run.

Used in program files. It changes nothing about the function; the daemon's loader looks for the mark.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

import msgspec

from ipc.abi import AGENT_ATTRIBUTE, TOOL_ATTRIBUTE, AgentMark, ToolMark

F = TypeVar("F", bound=Callable[..., Any])


@overload
def agent(function: F, /) -> F: ...


@overload
def agent(
    *, name: str | None = None, summary: str = "", accepts: Iterable[type[msgspec.Struct]] | None = None
) -> Callable[[F], F]: ...


def agent(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    summary: str = "",
    accepts: Iterable[type[msgspec.Struct]] | None = None,
) -> Any:
    """Mark a coroutine function, whose first parameter is its `Context`, as an agent.

    `name` is what it is run by (the function's own by default), `summary` one line for `llmos programs` (the first of
    the docstring by default). `accepts` declares its messages, as frozen Structs: a message's type is the name of one
    of them and its body fits it, or the sender gets the error. Raises `TypeError` for anything but an `async def` with
    at least one parameter, and for Structs that are not frozen.
    """
    declared = None if accepts is None else {kind.__name__: kind for kind in accepts}
    for kind in (declared or {}).values():
        if not kind.__struct_config__.frozen:
            raise TypeError(f"agents accept frozen Structs, so that none can change what another reads; {kind} is not")

    def mark(function: F) -> F:
        if not inspect.iscoroutinefunction(function) or not inspect.signature(function).parameters:
            raise TypeError(f"an agent is an `async def` that takes a context first, which {function!r} is not")
        line = summary or (inspect.getdoc(function) or "").partition("\n")[0]
        setattr(function, AGENT_ATTRIBUTE, AgentMark(name or function.__name__, line, declared))
        return function

    return mark if function is None else mark(function)


@overload
def tool(function: F, /) -> F: ...


@overload
def tool(
    *, name: str | None = None, summary: str = "", concurrency: int = 8, timeout: float | None = None, retries: int = 0
) -> Callable[[F], F]: ...


def tool(function: Any = None, /, *, name: str | None = None, summary: str = "", **how: Any) -> Any:
    """Mark a plain function, which agents then call by `ctx.tool`, and which runs in worker threads.

    `concurrency`: calls of it that run at once, further ones wait in line; `timeout`: seconds that a call waits for it;
    `retries`: further attempts after it raised, with the same call id. A parameter `call_id: str` is given that id. Use
    it where an effect must not be had twice. Raises `TypeError` for coroutines, `ValueError` for numbers out of range.
    """

    def mark(function: F) -> F:
        if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
            raise TypeError(f"a tool is a plain function, which {function!r} is not")
        line = summary or (inspect.getdoc(function) or "").partition("\n")[0]
        marked = msgspec.convert({"name": name or function.__name__, "summary": line, **how}, ToolMark)
        setattr(function, TOOL_ATTRIBUTE, marked)
        return function

    return mark if function is None else mark(function)
