"""A tool: a function, its name and limits, and the check of its arguments.

The program loader makes a `Tool` for each function marked with `@tool`, and `load` makes one for each function that the
settings name. This module never runs the function.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ipc.abi import TOOL_ATTRIBUTE, ToolMark
from ipc.errors import ToolFailed
from ipc.syscalls import ToolInfo
from kernel.lib import failures
from kernel.programs.arguments import Arguments
from kernel.programs.jobs import TimeLimit
from kernel.programs.origin import printing_for

CALL_ID = "call_id"  # a parameter of this name receives the id of the call

FunctionPath = Annotated[str, Meta(pattern=r"^[\w.]+:\w+$")]


class ToolSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A tool in the settings. `function` is "module:name"; the other fields override those of its `ToolMark`."""

    function: FunctionPath
    concurrency: Annotated[int, Meta(ge=1, le=256)] | None = None
    timeout: Annotated[float, Meta(ge=0)] | None = None
    retries: Annotated[int, Meta(ge=0, le=100)] | None = None


class Tool:
    """A function that agents may call."""

    def __init__(self, function: Callable[..., Any], mark: ToolMark, source: str) -> None:
        self.name = mark.name
        self.mark = mark
        self.source = source
        self.function = function
        self.is_coroutine = inspect.iscoroutinefunction(function)
        arguments = Arguments(mark.name, function, (CALL_ID,))
        self.signature = arguments.signature
        self.bind = arguments.bind
        self.takes_call_id = CALL_ID in inspect.signature(function).parameters


def broken_tool(mark: ToolMark, source: str, error: str) -> ToolInfo:
    """The row of a tool that cannot be used."""
    return ToolInfo(mark.name, mark.summary, "", source, mark.concurrency, mark.timeout, mark.retries, error=error)


def load(name: str, spec: ToolSpec) -> Tool:
    """Import the tool that the settings call `name`. Blocks on the disk. Raises `ToolFailed`."""
    module, _, attribute = spec.function.partition(":")
    try:
        with printing_for(spec.function):
            function = getattr(importlib.import_module(module), attribute)
        if not callable(function):
            raise TypeError(f"{spec.function} is not a function")
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        mark: ToolMark = getattr(function, TOOL_ATTRIBUTE, ToolMark(name, summary))
        overrides = {
            key: value for key in ("concurrency", "timeout", "retries") if (value := getattr(spec, key)) is not None
        }
        return Tool(function, msgspec.structs.replace(mark, name=name, **overrides), spec.function)
    except BaseException as error:
        if isinstance(error, TimeLimit):
            raise
        why = f"tool {name}: {spec.function} cannot be loaded: {failures.summary(error)}"
        raise ToolFailed(why, tool=name, traceback=failures.traceback_text(error)) from None
