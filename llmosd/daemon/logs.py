"""The log of the daemon: structlog on standard error, as readable text on a terminal and as JSON elsewhere.

Configured once by the daemon, before its first log line and before `kernel.processes.stdio` replaces `sys.stderr`: it
writes to the original one. It never writes to a file.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

from kernel.core.process import Thread


def configure(level: str, style: Literal["auto", "human", "json"]) -> None:
    """Log messages of at least `level`. The style "auto" means "human" on a terminal, and "json" elsewhere."""
    human = style == "human" or (style == "auto" and sys.stderr.isatty())
    renderer: list[Any]
    if human:
        plain = structlog.dev.plain_traceback
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    else:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            name_process,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def name_process(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the process whose step caused the line, unless the line names a process itself."""
    task = _current_task()
    if isinstance(task, Thread) and not task.process.is_client and "pid" not in event:
        event["pid"], event["program"] = task.process.pid, task.process.program
    return event


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # this thread runs no loop
        return None
