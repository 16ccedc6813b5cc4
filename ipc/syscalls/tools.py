"""Tools: plain functions that agents call as an operating system's programs use devices."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from ipc.syscalls.base import Seconds, Syscall


class Reference(msgspec.Struct, frozen=True):
    """A result too large to hand over: the shared region that holds it, which ends with the caller; bytes encoded."""

    name: str
    size: int


class ToolInfo(msgspec.Struct, frozen=True):
    """A tool that agents can call, and what it does now.

    `running` functions hold a place each; `abandoned` of them have no caller any more. `calls` and `failures` count
    since the start. `error`: why it cannot be loaded.
    """

    name: str
    summary: str
    signature: str
    source: str
    concurrency: int
    timeout: float | None
    retries: int
    running: int = 0
    abandoned: int = 0
    queued: int = 0
    calls: int = 0
    failures: int = 0
    error: str = ""


class UseTool(Syscall, tag="use_tool"):
    """Run tool `name` in a worker thread; answers what it returns, or a `Reference` to a large result.

    `timeout`: seconds for the queue, all attempts and their pauses together; None leaves the tool's own. The function
    itself cannot be stopped: it keeps its place until it returns. All places taken, the call waits in line, or gets
    `Busy` without `wait`. Errors: `UnknownTool`, `BadArguments`, `ToolFailed`, `TimedOut`, `NotEncodable`, `Busy`,
    `InvalidCall`.
    """

    name: str
    args: dict[str, Any] = {}
    timeout: Seconds | None = None
    wait: bool = True


class Tools(Syscall, tag="tools"):
    """All tools."""

    returns: ClassVar[Any] = list[ToolInfo]


ToolCalls = UseTool | Tools
