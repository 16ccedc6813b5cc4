"""The log of the daemon: structlog on standard error, as readable text on a terminal and as JSON elsewhere.

Configured once by the daemon, before its first log line and before `kernel.processes.stdio` replaces `sys.stderr`: it
writes to the original one. It never writes to a file.
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from typing import Any, Literal, TextIO

import structlog

from kernel.core.process import Thread
from llmosd.printable import printable, printable_line


def configure(level: str, style: Literal["auto", "human", "json"]) -> None:
    """Log messages of at least `level`. The style "auto" means "human" on a terminal, and "json" elsewhere."""
    human = style == "human" or (style == "auto" and sys.stderr.isatty())
    renderer: list[Any]
    if human:
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)
        renderer = [_escape, console]
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


def name_process(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
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


def _escape(_logger: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Make a log line harmless on a terminal: names and errors of agents may contain control characters."""
    plain = {"exc_info": fields.pop("exc_info")} if "exc_info" in fields else {}  # escaped by `_write_traceback`
    return {printable_line(name): _escaped(content) for name, content in fields.items()} | plain


def _escaped(content: Any) -> Any:
    text = content if isinstance(content, str) else repr(content)
    escaped = printable_line(text)
    return content if escaped == text else escaped


def _write_traceback(file: TextIO, error: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, error)
    file.write(printable(text.getvalue()))
