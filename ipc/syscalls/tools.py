"""Tools: functions that agents call, and that the daemon runs in worker threads."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from ipc.syscalls.base import Count, Seconds, Syscall


class Reference(msgspec.Struct, frozen=True):
    """Stands for a result above 1 MiB: the name of the shared region that holds it, and its size in encoded bytes.

    The region ends with the caller.
    """

    name: str
    size: int


class ToolInfo(msgspec.Struct, frozen=True):
    """A tool that agents can call, with its settings (see `llmosd.tool`) and its present calls.

    `running` functions hold one of the `concurrency` places each; for `abandoned` of them, no caller waits any more.
    `queued` calls wait for a place. `calls` and `failures` count since the daemon started. `error`: why the tool cannot
    be loaded, or "".
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
    """Run the tool `name` in a worker thread; answers its result, or a `Reference` to a result above 1 MiB.

    `timeout`: seconds for the whole call: the wait for a place, all attempts, and the pauses between them; None: the
    tool's own timeout. A plain function cannot be stopped: after a timeout it goes on, and holds its place until it
    returns. A coroutine function is cancelled.
    If no place is free, the call waits in line, or fails with `Busy` if `wait` is false. Errors: `UnknownTool`,
    `BadArguments`, `ToolFailed`, `TimedOut`, `NotEncodable` (the result), `Busy`, `LimitExceeded` (a large result),
    `InvalidCall`.
    """

    name: str
    args: dict[str, Any] = {}
    timeout: Seconds | None = None
    wait: bool = True


class Tools(Syscall, tag="tools"):
    """Answers the tools, sorted by name: one page, without the first `start` ones.

    Without `start`, it answers all. Errors: `LimitExceeded` if these are more than a page.
    """

    start: Count | None = None
    page: ClassVar[int] = 150
    returns: ClassVar[Any] = list[ToolInfo]


ToolCalls = UseTool | Tools
