"""The decorators `agent` and `tool`, which mark the functions that llmosd can run.

Used in program files. They set an attribute of the function, its mark, by which the daemon's loader finds it. They
never wrap or call the function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from enum import Enum
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

    `name`: the name of the program (default: the name of the function). `summary`: one line for `llmos programs`
    (default: the first line of the docstring). `accepts` declares the messages of the agent as frozen Structs. The type
    of a message must then be the name of one of these Structs, and the body must fit that Struct; otherwise the sender
    gets an error. The agent receives the body as this Struct.

    `durable`: the agent survives the daemon, if it is a submitted task or a child of a durable agent. Its calls are
    recorded. After a restart of the daemon the agent runs from its first line, and each call returns the recorded
    answer, until the agent is where it was, with the same pid, names, memory and unread messages. A recorded call is
    not executed again, and messages between durable agents arrive once. So the behaviour of the agent may depend only
    on its arguments and on the answers to its calls: use `ctx.time()` and `ctx.random()` for time and chance, and a
    tool for each effect outside the daemon. A call with an effect that others see waits for one or two fsyncs. Answers
    pass through msgpack: a Struct becomes a mapping, unless `accepts` declares it.

    A default that can change, such as a list, is copied for each process, so tasks do not share it.

    Raises `TypeError` for anything but an `async def` with at least one parameter, for Structs that are not frozen, and
    for a name or a summary that is no text.
    """
    if type(durable) is not bool:
        raise TypeError(f"durable is {durable!r}; pass True or False")
    declared = None if accepts is None else {kind.__name__: kind for kind in accepts}
    for kind in (declared or {}).values():
        if not kind.__struct_config__.frozen:
            raise TypeError(
                f"an agent accepts only frozen Structs, because agents share no mutable values; {kind} is not frozen"
            )

    def mark(function: F) -> F:
        if not inspect.iscoroutinefunction(function) or not inspect.signature(function).parameters:
            raise TypeError(f"an agent must be an `async def` whose first parameter is a context; {function!r} is not")
        label, line = _labels(function, name, summary)
        setattr(function, AGENT_ATTRIBUTE, AgentMark(label, line, declared, durable))
        return function

    return mark if function is None else mark(function)


@overload
def tool(function: F, /) -> F: ...


@overload
def tool(
    *, name: str | None = None, summary: str = "", concurrency: int = 8, timeout: float | None = None, retries: int = 0
) -> Callable[[F], F]: ...


def tool(function: Any = None, /, *, name: str | None = None, summary: str = "", **options: Any) -> Any:
    """Mark a function as a tool, which agents call by `ctx.tool`, and which runs in worker threads.

    An `async def` runs in a worker thread, too, in an event loop of its own. It is cancelled if its caller gives up; a
    plain function cannot be stopped.

    `name` and `summary` are as for `agent`. `concurrency`: the most calls that run at the same time; further calls wait
    in line. `timeout`: seconds that a call may take, with all attempts. `retries`: further attempts after the function
    raised, with the same call id.

    A parameter `call_id: str` gets the id of the call. Use it for an effect that must not happen twice: a call of a
    durable agent has the same id in every run of the daemon, so a tool that checks the id acts exactly once. Any other
    tool acts at least once.

    A default that can change, such as a list, is copied for each call, as it is for an agent.

    Raises `TypeError` for anything but a function, and `ValueError` for numbers out of range.
    """

    def mark(function: F) -> F:
        if not inspect.isfunction(function):
            raise TypeError(f"a tool must be a function; {function!r} is not")
        label, line = _labels(function, name, summary)
        marked = msgspec.convert({"name": label, "summary": line, **options}, ToolMark)
        setattr(function, TOOL_ATTRIBUTE, marked)
        return function

    return mark if function is None else mark(function)


def _labels(function: Any, name: Any, summary: Any) -> tuple[str, str]:
    """The name and the summary of an agent or a tool. Lists show both, so one that is no text would break them."""
    line = summary or (inspect.getdoc(function) or "").partition("\n")[0].encode(errors="replace").decode()
    return _text(name or function.__name__, "a name"), _text(line, "a summary")


def _text(value: Any, what: str) -> str:
    if type(value) is str or (isinstance(value, str) and isinstance(value, Enum)):
        text = str.__str__(value)
        if text.isascii() or text == text.encode(errors="replace").decode():
            return text
    raise TypeError(f"{what} is {value!a}; pass text (str) that UTF-8 can encode")
