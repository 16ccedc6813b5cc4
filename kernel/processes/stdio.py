"""`sys.stdout`, `sys.stderr` and the root handler of `logging` while the daemon runs: they pass all text to `Printing`.

The daemon installs them when its kernel is ready. Agents share the interpreter of the daemon, so the streams look like
those of a program whose output is a pipe. Linux processes that an agent starts inherit the descriptors 1 and 2, and
their output bypasses these streams. They never write to a file themselves.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

from kernel.lib.failures import bounded, summary, traceback_text
from kernel.processes.printing import MAX_LINE, Printing


class PrintedStream(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr`, which is its `kind`. Code that closes it affects nothing."""

    mode = "w"
    line_buffering = True
    write_through = False
    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None

    def __init__(self, kind: str, original: Any, printing: Printing) -> None:
        self.name = f"<{kind}>"
        self.buffer = PrintedBytes(self)
        self._kind = kind
        self._original = original
        self._printing = printing

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._printing.bypassed:
            self._original.write(text)
        else:
            self._printing.write(self._kind, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._printing.bypassed:
            self._original.flush()
        else:
            self._printing.flush(self._kind)

    def close(self) -> None:
        self.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        """The descriptor of the daemon's own stream. Text that is written to it bypasses the logs of processes."""
        number: int = self._original.fileno()
        return number

    def reconfigure(self, **options: Any) -> None:
        """Has no effect. `io.TextIOWrapper`, the usual class of these streams, has this method."""


class PrintedBytes(io.BufferedIOBase):
    """The attribute `buffer` of a stream, for code that writes bytes. Each call must write whole characters."""

    def __init__(self, stream: PrintedStream) -> None:
        self._stream = stream
        self.raw = self

    def write(self, data: Any) -> int:
        content = bytes(data)
        self._stream.write(content.decode(errors="backslashreplace"))
        return len(content)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._stream.fileno()


class LogRecords(logging.Handler):
    """Passes the records of `logging` to `Printing`, with the name of their logger and their traceback.

    A record that a handler of an agent has printed is in the log already.
    """

    def __init__(self, printing: Printing) -> None:
        super().__init__()
        self._printing = printing

    def handle(self, record: logging.LogRecord) -> Any:
        """Without the lock of other handlers: a thread that waits for the loop must not hold a lock that it needs."""
        passes = self.filter(record)
        if passes and not _is_printed(record):
            self.emit(record)
        return passes

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage().rstrip("\n")
        except Exception as unfit:  # the arguments do not fit the format
            place = f"{record.pathname}:{record.lineno}"
            text = f"a record of logging at {place} cannot be formatted: {summary(unfit)}"
        fields: dict[str, Any] = {} if record.name == "root" else {"logger": bounded(record.name, MAX_LINE)}
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            fields["traceback"] = traceback_text(error)
        elif record.exc_text or record.stack_info:
            fields["traceback"] = bounded(str(record.exc_text or record.stack_info), MAX_LINE)
        self._printing.record(_level(record.levelno), bounded(text, MAX_LINE), fields)


def _is_printed(record: logging.LogRecord) -> bool:
    """Whether another handler, which an agent or a library has added, writes `record` to one of our streams."""
    named = logging.root.manager.loggerDict.get(record.name)
    logger: logging.Logger | None = named if isinstance(named, logging.Logger) else logging.root
    while logger is not None:
        for handler in logger.handlers:
            if (
                isinstance(handler, logging.StreamHandler)
                and isinstance(handler.stream, PrintedStream)
                and record.levelno >= handler.level
                and not handler.filters  # they may reject it
            ):
                return True
        logger = logger.parent if logger.propagate else None
    return False


def _level(number: int) -> str:
    """The name of a level in the logs of processes. A level between two of these counts as the lower one."""
    for name in ("critical", "error", "warning", "info"):
        if number >= logging.getLevelNamesMapping()[name.upper()]:
            return name
    return "debug"


def install(printing: Printing) -> Callable[[], None]:
    """Replace the streams and add the handler, for all code of this Python. Returns a function that undoes it.

    Records of level INFO and above get through. A logger whose own level is lower passes on more.
    """
    root, handler = logging.getLogger(), LogRecords(printing)
    stdout, stderr, level = sys.stdout, sys.stderr, root.level
    sys.stdout = PrintedStream("stdout", stdout, printing)
    sys.stderr = PrintedStream("stderr", stderr, printing)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)

    def undo() -> None:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)
        sys.stdout, sys.stderr = stdout, stderr
        printing.close()

    return undo
