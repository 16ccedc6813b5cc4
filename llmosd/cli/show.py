"""Prints values as text or JSON: results, log lines, times and sizes.

Called by the commands; `llmosd.cli.table` prints tables. It never contacts the daemon.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from ipc.messages import Log
from llmosd.cli.json_text import json_text
from llmosd.printable import printable_line
from llmosd.standard_streams import encodable


def value(data: Any, as_json: bool, file: IO[str] | None = None) -> None:
    """Print `data` as one JSON document. Without `as_json`, print a string without quotes."""
    if isinstance(data, str) and not as_json:
        text = data
    else:
        text = json_text(data)
        if not encodable(text):
            text = json_text(data, ascii_only=True)
    print(text, file=file or sys.stdout, flush=True)


def result(data: Any, as_json: bool) -> None:
    """Print the result of a process or of a call. Without `as_json`, a process without a result prints nothing."""
    if data is not None or as_json:
        value(data, as_json)


def log_line(line: Log, as_json: bool, file: IO[str] | None = None) -> None:
    """Print a line of a log. Each line of its text and of its traceback gets the label, which names the process."""
    if as_json:
        value(line, as_json, file)
        return
    clock = time.strftime("%H:%M:%S", time.localtime(line.time))
    label = f"{clock} [{line.pid}] {printable_line(line.level)}:"
    fields = dict(line.fields)
    traceback = fields.pop("traceback", "")
    first, *others = [*(line.event.splitlines() or [""]), *str(traceback).splitlines()]
    first = " ".join([first, *(f"{name}={content!r}" for name, content in fields.items())])
    for part in (first, *others):
        print(f"{label} {printable_line(part)}".rstrip(), file=file or sys.stdout)
    (file or sys.stdout).flush()


def duration(seconds: float) -> str:
    """Seconds as text, such as 3.2s, 4m05s or 2h03m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(count: float) -> str:
    """A number of bytes as text, such as 98 MB."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def counts(numbers: Mapping[str, int]) -> str:
    """Counts by name as text, such as "a 1, b 2", or "none"."""
    return ", ".join(f"{name} {count}" for name, count in sorted(numbers.items())) or "none"
