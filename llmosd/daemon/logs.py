"""The log of the daemon: structlog on standard error, as readable text on a terminal and as JSON elsewhere.

Configured by the daemon before its first log line, and again when the settings are reloaded. The thread of a
`LogWriter` writes the lines, so no line of the log waits for its reader. It never writes to a file, and never raises.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

import structlog

from kernel.core.process import Thread
from kernel.lib.failures import summary
from llmosd.daemon.log_fields import bound_fields
from llmosd.daemon.log_throttle import UNTHROTTLED, WINDOW, Throttle
from llmosd.daemon.log_writer import LogWriter
from llmosd.printable import printable, printable_line

Style = Literal["auto", "human", "json"]

MAX_FRAMES = 50  # of each error in a traceback
MAX_CHAIN = 10  # errors of a chain of causes

DROPPED = "lines of the log were dropped, because nobody read them in time"


class DaemonLog:
    """The log of one daemon, written by `writer`. On a `terminal`, the style "auto" is "human"; elsewhere, "json"."""

    def __init__(self, writer: LogWriter, *, terminal: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._writer = writer
        self._terminal = terminal
        self._throttle = Throttle(self._report_omitted, clock)
        self._stop = threading.Event()
        self.least = logging.INFO
        # The loggers of modules cache this list, so `configure` changes the list itself.
        self.processors: list[Any] = []
        self._logger_class = _filtering(self)
        self.logger = structlog.wrap_logger(
            _LineLogger(writer), processors=self.processors, wrapper_class=self._logger_class
        )

    def configure(self, level: str, style: Style) -> None:
        """Log messages of at least `level` from now on, in this style."""
        self.least = logging.getLevelNamesMapping()[level.upper()]
        human = style == "human" or (style == "auto" and self._terminal)
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human)
        render = _human_renderer(self._terminal) if human else structlog.processors.JSONRenderer(default=str)

        def notice(count: int) -> bytes:
            return _line(render, stamp(None, "warning", {"event": DROPPED, "lines": count, "level": "warning"}))

        self._writer.notice = notice
        self.processors[:] = [
            structlog.contextvars.merge_contextvars,
            name_process,
            structlog.processors.add_log_level,
            structlog.processors.ExceptionRenderer(_traceback),
            bound_fields,
            self._throttle,
            stamp,
            lambda _logger, _method, fields: _line(render, fields),
        ]

    def install(self) -> None:
        """Write the log lines of all code of this Python."""
        structlog.configure(
            processors=self.processors,
            wrapper_class=self._logger_class,
            logger_factory=lambda *_: _LineLogger(self._writer),
            cache_logger_on_first_use=True,
        )
        threading.Thread(target=self._poll, name="llmosd log throttle", daemon=True).start()

    def flush(self) -> None:
        """Report the lines that the throttle has left out so far."""
        self._throttle.flush()

    def close(self) -> None:
        """Report the lines that the throttle has left out so far, and do so no more."""
        self._stop.set()
        self._throttle.flush()

    def poll(self) -> None:
        """Report the lines that the throttle has left out in a window that has ended."""
        self._throttle.poll()

    def _report_omitted(self, level: str, event: str, count: int) -> None:
        number = logging.getLevelNamesMapping().get(level.upper(), logging.WARNING)
        self.logger.log(number, event, repeated=f"{count} more times", **{UNTHROTTLED: True})

    def _poll(self) -> None:
        while not self._stop.wait(WINDOW / 4):
            self.poll()


def _filtering(settings: DaemonLog) -> type[Any]:
    """A class of loggers that drop lines below `settings.least`, which may change."""
    base: Any = structlog.make_filtering_bound_logger(logging.NOTSET)

    def method(name: str, number: int) -> Any:
        inherited = getattr(base, name)

        def write(self: Any, event: str, *args: Any, **fields: Any) -> Any:
            return inherited(self, event, *args, **fields) if number >= settings.least else None

        return write

    def log_at(self: Any, level: int, event: str, *args: Any, **fields: Any) -> Any:
        return base.log(self, level, event, *args, **fields) if level >= settings.least else None

    names = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error", "critical")}
    return type("DaemonLogger", (base,), {name: method(name, names[name]) for name in names} | {"log": log_at})


class _LineLogger:
    """The logger below structlog's: takes each finished line, whatever its level."""

    def __init__(self, writer: LogWriter) -> None:
        self.msg = writer.write

    def __getattr__(self, level: str) -> Any:
        return self.msg


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


def _line(render: Any, fields: structlog.typing.EventDict) -> bytes:
    text = render(None, "", fields)
    return (text if isinstance(text, str) else str(text)).encode(errors="backslashreplace") + b"\n"


def _human_renderer(colors: bool) -> Any:
    console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return lambda logger, method, fields: console(logger, method, _escape(logger, method, fields))


def _escape(_logger: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Make a log line harmless on a terminal: names and errors of agents may contain control characters."""
    return {
        printable_line(name): printable(content) if name == "exception" else _escaped(content)
        for name, content in fields.items()
    }


def _escaped(content: Any) -> Any:
    text = content if isinstance(content, str) else repr(content)
    escaped = printable_line(text)
    return content if escaped == text else escaped


def _traceback(exc_info: structlog.typing.ExcInfo) -> str:
    """The traceback of an error and of its causes, with the frames of the kernel.

    Python's own formatter visits every error of a group of groups, and these may be more than any number of seconds
    can visit.
    """
    chain: list[BaseException] = []
    error: BaseException | None = exc_info[1]
    while error is not None and all(error is not one for one in chain) and len(chain) < MAX_CHAIN:
        chain.append(error)
        error = error.__cause__ if error.__cause__ or error.__suppress_context__ else error.__context__
    parts: list[str] = []
    for one in reversed(chain):
        frames = traceback.extract_tb(one.__traceback__, limit=-MAX_FRAMES)
        parts.append("Traceback (most recent call last):\n" + "".join(traceback.format_list(frames)) + summary(one))
    return "\n\n".join(parts)
