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
    *,
    name: str | None = None,
    summary: str = "",
    accepts: Iterable[type[msgspec.Struct]] | None = None,
    durable: bool = False,
) -> Callable[[F], F]: ...


def agent(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    summary: str = "",
    accepts: Iterable[type[msgspec.Struct]] | None = None,
    durable: bool = False,
) -> Any:
    """Mark a coroutine function, whose first parameter is its `Context`, as an agent.

    `name` is what it is run by (the function's own by default), `summary` one line for `llmos programs` (the first of
    the docstring by default). `accepts` declares its messages, as frozen Structs: a message's type is the name of one
    of them and its body fits it, or the sender gets the error.

    `durable`: as a submitted task, or a child of a durable agent, it survives the daemon. Its calls are kept; after a
    restart it runs from the top, is answered from what was kept, and so comes to where it was, with no token paid
    twice, no message sent or received twice, and its pid, names and memory. So what it does may depend on its arguments
    and on the answers to its calls alone: it takes `ctx.time()` and `ctx.random()` for the time and for chance, and a
    tool for each effect outside. A call waits for one fsync, a model call among them. Results are what msgpack makes
    of them: a Struct comes back as a mapping, unless `accepts` declares it.

    Raises `TypeError` for anything but an `async def` with at least one parameter, and for Structs that are not frozen.
    """
    declared = None if accepts is None else {kind.__name__: kind for kind in accepts}
    for kind in (declared or {}).values():
        if not kind.__struct_config__.frozen:
            raise TypeError(f"agents accept frozen Structs, so that none can change what another reads; {kind} is not")

    def mark(function: F) -> F:
        if not inspect.iscoroutinefunction(function) or not inspect.signature(function).parameters:
            raise TypeError(f"an agent is an `async def` that takes a context first, which {function!r} is not")
        line = summary or (inspect.getdoc(function) or "").partition("\n")[0]
        setattr(function, AGENT_ATTRIBUTE, AgentMark(name or function.__name__, line, declared, durable))
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
    it where an effect must not be had twice: the call of a durable agent has the same id in every life of the daemon,
    so that a tool which checks it acts once; any other one acts at least once.

    Raises `TypeError` for coroutines, `ValueError` for numbers out of range.
    """

    def mark(function: F) -> F:
        if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
            raise TypeError(f"a tool is a plain function, which {function!r} is not")
        line = summary or (inspect.getdoc(function) or "").partition("\n")[0]
        marked = msgspec.convert({"name": name or function.__name__, "summary": line, **how}, ToolMark)
        setattr(function, TOOL_ATTRIBUTE, marked)
        return function

    return mark if function is None else mark(function)
